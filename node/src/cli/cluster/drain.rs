//! `cluster drain` and `cluster undrain`: takes a node out of service without a failed request.

use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::directory::Directory;
use super::view;
use crate::cli::api::{Client, Request};
use crate::cli::device::{self, Target};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// How long the leaderships of a node may take to move.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(200);

#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// The node's id, from 1
    #[arg(value_name = "ID")]
    pub id: u64,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Args, Clone, Debug)]
pub struct UndrainArgs {
    #[command(flatten)]
    pub node: DrainArgs,
    /// Try again for so long while nobody can do it, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = crate::config::duration::parse)]
    pub wait: Option<Duration>,
}

impl DrainArgs {
    /// One client per node, so that each can be asked for its own view; by URL the one there.
    fn clients(&self) -> Result<Vec<Client>, Failure> {
        if self.target.url.is_some() {
            return Ok(vec![device::client(&self.target)?]);
        }
        let directory = Directory::open(&self.target.dir)?;
        directory.node(self.id)?;
        directory
            .file
            .nodes
            .iter()
            .map(|node| view::client(&directory, node))
            .collect()
    }
}

pub async fn drain(args: DrainArgs, output: Output) -> Result<(), Failure> {
    let clients = args.clients()?;
    ask(&args, "drain").await?;
    let mut progress = Progress::new();
    let deadline = Instant::now() + DRAIN_DEADLINE;
    loop {
        let leads = leads(&clients, args.id).await;
        if leads == Some(0) {
            break;
        }
        progress.say(&match leads {
            Some(leads) => format!("draining node {}: it still leads {leads} shards", args.id),
            None => "no node answers; trying again".to_owned(),
        });
        if Instant::now() >= deadline {
            let what = format!(
                "node {} still leads shards after {} s",
                args.id,
                DRAIN_DEADLINE.as_secs()
            );
            return Err(Failure::new(Exit::Unavailable, what)
                .because("no other replica is caught up enough to take over")
                .advise(
                    "the drain goes on; see `holdfast cluster status`, or take it back with `holdfast cluster undrain`",
                ));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    drop(progress);
    say(
        output,
        args.id,
        "drained",
        "leads nothing any more and takes no new connections",
    );
    Ok(())
}

pub async fn undrain(args: UndrainArgs, output: Output) -> Result<(), Failure> {
    let until = Instant::now() + args.wait.unwrap_or_default();
    loop {
        match ask(&args.node, "undrain").await {
            Ok(()) => break,
            Err(failure) if failure.exit == Exit::Unavailable && Instant::now() < until => {
                tokio::time::sleep(ASK_EVERY).await;
            }
            Err(failure) => return Err(failure),
        }
    }
    say(
        output,
        args.node.id,
        "up",
        "takes connections again; leaderships come back by themselves",
    );
    Ok(())
}

fn say(output: Output, id: u64, state: &str, text: &str) {
    match output {
        Output::Table => output::line(&format!("node {id} {text}")),
        Output::Json => output::json(&json!({ "node": id, "state": state })),
    }
}

/// Any node will do.
async fn ask(args: &DrainArgs, verb: &str) -> Result<(), Failure> {
    if args.target.url.is_none() {
        Directory::open(&args.target.dir)?.node(args.id)?;
    }
    let path = format!("/api/v1/cluster/nodes/{}/{verb}", args.id);
    let request = Request {
        path: &path,
        ..Request::default()
    };
    let client = device::client(&args.target)?;
    client.send(Method::POST, request).await.map(|_| ())
}

/// How many groups the node leads, the catalog included; `None` when nobody answers. The most
/// that any node says: one may not have heard of a new leader yet.
async fn leads(clients: &[Client], id: u64) -> Option<usize> {
    let views = futures::future::join_all(clients.iter().map(view::ask)).await;
    let count = |view: &view::View| {
        view.shards
            .iter()
            .chain(&view.catalog)
            .filter(|shard| shard.leader == Some(id))
            .count()
    };
    views.iter().flatten().map(count).max()
}
