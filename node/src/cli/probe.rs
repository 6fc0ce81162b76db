//! `holdfast probe`: asks a node whether it lives or is ready, for health checks in containers that
//! hold nothing but this program.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::failure::{Exit, Failure};
use super::output::{self, Output};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The process answers (/livez): restart it if it does not
    Live,
    /// Devices may be sent here (/readyz): do not restart it if not
    Ready,
}

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast probe ready --url http://127.0.0.1:8080",
    after_long_help = "Examples:\n  holdfast probe live                                  the node at http://127.0.0.1:8080\n  holdfast probe ready --url http://127.0.0.1:18831 --timeout-ms 500\n\nFrom the same machine no token is needed.\n\nExit codes: 0 yes; 69 no, or no answer in time."
)]
pub struct ProbeArgs {
    /// What is asked
    #[arg(value_enum)]
    what: What,
    /// Address of the node's HTTP API
    #[arg(
        long,
        env = "HOLDFAST_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    url: String,
    /// Operator token; needed from another machine only
    #[arg(long, env = "HOLDFAST_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// How long the node may take to answer, in milliseconds, 10..=60000
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    timeout_ms: u64,
}

/// # Errors
/// The node says no, or nothing (69).
pub async fn run(args: ProbeArgs, output: Output) -> Result<(), Failure> {
    let path = match args.what {
        What::Live => "/livez",
        What::Ready => "/readyz",
    };
    let said = ask(&args, path).await;
    if output == Output::Json {
        output::json(&json!({ "path": path, "ok": said.is_ok(), "said": said.clone().unwrap_or_else(|why| why) }));
    }
    match said {
        Ok(said) => {
            if output == Output::Table {
                output::line(said.trim_end());
            }
            Ok(())
        }
        Err(why) => Err(Failure::new(Exit::Unavailable, format!("{}{path} says no", args.url)).because(why)),
    }
}

async fn ask(args: &ProbeArgs, path: &str) -> Result<String, String> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_millis(args.timeout_ms))
        .build()
        .map_err(|error| error.to_string())?;
    let mut request = client.get(format!("{}{path}", args.url.trim_end_matches('/')));
    if let Some(token) = &args.token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.map_err(|error| super::api::innermost(&error))?;
    let (status, text) = (response.status(), response.text().await.unwrap_or_default());
    match status.is_success() {
        true => Ok(text),
        false => Err(format!("{status}: {text}")),
    }
}
