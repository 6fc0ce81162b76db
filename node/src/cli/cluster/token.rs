//! `cluster token`: what lets new nodes join, for a while.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{json, Value};

use crate::cli::api::Request;
use crate::cli::device::{client, Target};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};
use crate::config::duration;

#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Make a token; it is shown once
    #[command(after_help = "Example:\n  holdfast cluster token create --ttl 2h --dir /tmp/hf")]
    Create(CreateArgs),
    /// Show which tokens are valid, without the tokens themselves
    #[command(after_help = "Example:\n  holdfast cluster token list --dir /tmp/hf")]
    List(ListArgs),
    /// Take a token back
    #[command(after_help = "Example:\n  holdfast cluster token revoke 0a1b2c3d4e5f --dir /tmp/hf")]
    Revoke(RevokeArgs),
}

#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// How long it admits nodes, from 60s to 7d
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
pub struct RevokeArgs {
    /// The token's id, as `list` shows it
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    target: Target,
}

const PATH: &str = "/api/v1/cluster/tokens";
const TTL_SECS: std::ops::RangeInclusive<u64> = 60..=7 * 24 * 3_600;

pub async fn run(command: TokenCommand, output: Output) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => create(&args, output).await,
        TokenCommand::List(args) => list(&args, output).await,
        TokenCommand::Revoke(args) => revoke(&args, output).await,
    }
}

async fn create(args: &CreateArgs, output: Output) -> Result<(), Failure> {
    let life = duration::parse(&args.ttl).map_err(|reason| {
        Failure::new(Exit::Usage, format!("{:?} is no duration", args.ttl))
            .because(reason)
            .advise("write --ttl 2h")
    })?;
    if !TTL_SECS.contains(&life.as_secs()) {
        return Err(
            Failure::new(Exit::Usage, format!("a join token cannot live for {}", args.ttl))
                .because("it admits whoever has it")
                .advise("write --ttl from 60s to 7d"),
        );
    }
    let request = Request {
        path: PATH,
        body: Some(("application/json", json!({ "ttl_secs": life.as_secs() }))),
        ..Request::default()
    };
    let made = client(&args.target)?.send(Method::POST, request).await?.body;
    match output {
        Output::Json => output::json(&made),
        Output::Table => {
            output::line(made["token"].as_str().unwrap_or_default());
            let until = made["expires_at"].as_str().unwrap_or("?");
            output::line(&format!(
                "valid until {until}; put it into cluster.join_token_file of the new node"
            ));
        }
    }
    Ok(())
}

async fn list(args: &ListArgs, output: Output) -> Result<(), Failure> {
    let body = client(&args.target)?.get(PATH).await?.body;
    if output == Output::Json {
        output::json(&body);
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let items = body["items"].as_array().cloned().unwrap_or_default();
    let rows = items
        .iter()
        .map(|item| vec![text(&item["id"]), text(&item["created_at"]), text(&item["expires_at"])]);
    output::table(&["token", "created", "expires"], rows.collect());
    Ok(())
}

async fn revoke(args: &RevokeArgs, output: Output) -> Result<(), Failure> {
    let fine = !args.id.is_empty() && args.id.chars().all(|c| c.is_ascii_alphanumeric());
    if !fine {
        return Err(Failure::new(Exit::Usage, format!("{:?} is no token id", args.id))
            .advise("`holdfast cluster token list` shows the ids"));
    }
    let path = format!("{PATH}/{}", args.id);
    let request = Request {
        path: &path,
        ..Request::default()
    };
    client(&args.target)?.send(Method::DELETE, request).await?;
    match output {
        Output::Json => output::json(&json!({ "revoked": args.id })),
        Output::Table => output::line(&format!("token {} admits nobody any more", args.id)),
    }
    Ok(())
}
