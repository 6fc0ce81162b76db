//! `holdfast log …`: what running nodes write to their logs.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{json, Value};

use super::api::Request;
use super::failure::{Exit, Failure};
use super::nodes::{self, Reach};
use super::output::{self, Output};

#[derive(Subcommand, Clone, Debug)]
pub enum LogCommand {
    /// Show the log filter of running nodes, or change it without a restart
    ///
    /// Without --filter it shows what is in force. With --filter it changes the filter at once;
    /// with --for the configured filter returns by itself after that time, so that no node is left
    /// writing debug lines. What is set here ends with the process.
    #[command(
        after_help = "Example:\n  holdfast log level --dir /tmp/hf --filter 'info,cluster=debug' --for 10m",
        after_long_help = "Examples:\n  holdfast log level --dir /tmp/hf                                          what is in force\n  holdfast log level --dir /tmp/hf --filter 'info,cluster=debug' --for 10m   all nodes, ten minutes\n  holdfast log level --dir /tmp/hf --node 2 --filter debug                   one node, until --reset\n  holdfast log level --dir /tmp/hf --reset                                   back to the configured one\n  holdfast log level --url http://127.0.0.1:8080 --token \"$TOKEN\"            the node at this address\n\nLevels: error, warn, info, debug, trace, off; also per module: node, cluster, actors, openraft.\n\nExit codes: 0 done on every node asked; 65 the filter is refused; 69 a node does not answer."
    )]
    Level(LevelArgs),
    /// Print the last lines of a node's log, as the node itself remembers them (up to 1 MiB)
    #[command(
        after_help = "Example:\n  holdfast log lines --dir /tmp/hf --node 2",
        after_long_help = "Examples:\n  holdfast log lines --dir /tmp/hf --node 2\n  holdfast log lines --url http://127.0.0.1:8080 --token \"$TOKEN\" --bytes 65536\n\nExit codes: 0 done; 69 no node answers."
    )]
    Lines(LinesArgs),
}

#[derive(Args, Clone, Debug)]
pub struct LevelArgs {
    /// The filter to put in force, such as 'info,cluster=debug'
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
    /// How long, such as 30s, 10m or 2h (1s to 1d); without it until --reset or a restart
    #[arg(long = "for", value_name = "TIME", requires = "filter", value_parser = time)]
    lasts: Option<String>,
    /// Put the configured filter in force again
    #[arg(long, conflicts_with = "filter")]
    reset: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub struct LinesArgs {
    /// At most so many bytes, 1..=1048576
    #[arg(long, value_name = "BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    bytes: u32,
    #[command(flatten)]
    reach: Reach,
}

fn time(text: &str) -> Result<String, String> {
    crate::config::duration::parse(text).map(|_| text.to_owned())
}

/// # Errors
/// What went wrong, with its exit code.
pub async fn run(command: LogCommand, output: Output) -> Result<(), Failure> {
    match command {
        LogCommand::Level(args) => level(args, output).await,
        LogCommand::Lines(args) => lines(args, output).await,
    }
}

async fn level(args: LevelArgs, output: Output) -> Result<(), Failure> {
    let (method, body) = match (&args.filter, args.reset) {
        (Some(filter), _) => {
            let mut body = json!({ "filter": filter });
            if let Some(lasts) = &args.lasts {
                body["for"] = lasts.as_str().into();
            }
            (Method::PUT, Some(("application/json", body)))
        }
        (None, true) => (Method::DELETE, None),
        (None, false) => (Method::GET, None),
    };
    let told = nodes::ask_each(&args.reach, &method, || Request {
        path: "/api/v1/node/log",
        headers: vec![],
        body: body.clone(),
    })
    .await?;
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let columns = ["node", "filter", "until", "configured"];
    nodes::report(told, output, &columns, |view| {
        ["filter", "until", "configured"].map(|key| text(view, key)).to_vec()
    })
}

async fn lines(args: LinesArgs, output: Output) -> Result<(), Failure> {
    let path = format!("/api/v1/node/log/lines?bytes={}", args.bytes);
    let told = nodes::ask_each(&args.reach, &Method::GET, || Request {
        path: &path,
        ..Request::default()
    })
    .await?;
    let many = told.len() > 1;
    let mut failed = 0;
    let mut items = Vec::new();
    for (node, answer) in told {
        match answer {
            Ok(Value::String(text)) if output == Output::Table => {
                if many {
                    output::line(&format!("==> {node} <=="));
                }
                output::line(text.trim_end());
            }
            Ok(text) => items.push(json!({ "node": node, "lines": lines_of(&text) })),
            Err(failure) => {
                failed += 1;
                output::warn(&format!("node {node}: {failure}"));
                items.push(json!({ "node": node, "error": failure.to_string() }));
            }
        }
    }
    if output == Output::Json {
        output::json(&json!({ "nodes": items }));
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::new(
            Exit::Unavailable,
            format!("{failed} nodes did not answer"),
        )),
    }
}

fn lines_of(text: &Value) -> Vec<&str> {
    text.as_str().map(|text| text.lines().collect()).unwrap_or_default()
}
