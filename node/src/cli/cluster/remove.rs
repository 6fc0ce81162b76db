//! `cluster remove`: a node hands over what it has and leaves for ever; of a local cluster its
//! process is stopped then.

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::directory::Directory;
use super::rebalance::{self, Ended, GOES_ON};
use super::{process, stop};
use crate::cli::api::{Client, Request};
use crate::cli::device::{client, Target};
use crate::cli::failure::Failure;
use crate::cli::output::{self, Output, Progress};

#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// The node's id
    #[arg(value_name = "ID")]
    id: u64,
    /// It does not run and never will: make its replicas anew from the others
    #[arg(long)]
    dead: bool,
    /// Return at once; the moving goes on
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

pub async fn remove(args: RemoveArgs, output: Output) -> Result<(), Failure> {
    let client = others(&args)?;
    let path = format!("/api/v1/cluster/nodes/{}/remove", args.id);
    let request = Request {
        path: &path,
        body: Some(("application/json", json!({ "dead": args.dead }))),
        ..Request::default()
    };
    client.send(Method::POST, request).await?;
    let mut left = false;
    if !args.no_wait {
        let gone = |view: &super::view::View| view.nodes.iter().all(|node| node.id != args.id);
        left = matches!(rebalance::follow(&client, gone).await?, Ended::Settled(_));
    }
    if left && args.target.url.is_none() {
        take_down(&args).await?;
    }
    match output {
        Output::Json => output::json(&json!({ "node": args.id, "removed": left })),
        Output::Table if left => output::line(&format!("node {} has left the cluster for ever", args.id)),
        Output::Table => output::line(&format!("node {} is leaving: {GOES_ON}", args.id)),
    }
    Ok(())
}

/// Whoever stays: a node that has left knows nothing new.
fn others(args: &RemoveArgs) -> Result<Client, Failure> {
    if args.target.url.is_some() {
        return client(&args.target);
    }
    let directory = Directory::open(&args.target.dir)?;
    let others = directory.file.nodes.iter().filter(|node| node.id != args.id);
    let mut bases: Vec<String> = others.map(|node| format!("http://{}", node.http)).collect();
    if bases.is_empty() {
        // The only one will say itself that it cannot go.
        bases.extend(directory.file.nodes.iter().map(|node| format!("http://{}", node.http)));
    }
    Client::new(bases, &directory.file.token)
}

/// Stops the node's process and forgets it. Its directory stays: whoever wants it gone deletes it.
async fn take_down(args: &RemoveArgs) -> Result<(), Failure> {
    let _lock = Directory::lock(&args.target.dir)?;
    let mut directory = Directory::open(&args.target.dir)?;
    let Ok(node) = directory.node(args.id).cloned() else {
        return Ok(());
    };
    if let Some(running) = process::running(&node) {
        stop::end(&node, running, &Progress::new()).await?;
    }
    directory.file.nodes.retain(|other| other.id != args.id);
    directory.save()
}
