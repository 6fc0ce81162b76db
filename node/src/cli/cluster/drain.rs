//! `cluster drain` and `cluster undrain`: takes a node out of service without a failed request.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::directory::Directory;
use super::{view, NodeArg};
use crate::cli::api::{Client, Request};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// How long the leaderships of a node may take to move.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(200);

pub async fn drain(args: NodeArg, output: Output) -> Result<(), Failure> {
    let directory = Directory::open(&args.dir.dir)?;
    directory.node(args.id)?;
    ask(&directory, args.id, "drain").await?;
    let mut progress = Progress::new();
    let deadline = Instant::now() + DRAIN_DEADLINE;
    loop {
        let leads = leads(&directory, args.id).await?;
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

pub async fn undrain(args: NodeArg, output: Output) -> Result<(), Failure> {
    let directory = Directory::open(&args.dir.dir)?;
    directory.node(args.id)?;
    ask(&directory, args.id, "undrain").await?;
    say(
        output,
        args.id,
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

async fn ask(directory: &Directory, id: u64, verb: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/cluster/nodes/{id}/{verb}");
    let request = Request {
        path: &path,
        ..Request::default()
    };
    client(directory)?.send(Method::POST, request).await.map(|_| ())
}

/// Any node will do.
fn client(directory: &Directory) -> Result<Client, Failure> {
    let bases = directory.file.nodes.iter().map(|node| format!("http://{}", node.http));
    Client::new(bases.collect(), &directory.file.token)
}

/// How many groups the node leads, the catalog included; `None` when nobody answers. The most
/// that any node says: one may not have heard of a new leader yet.
async fn leads(directory: &Directory, id: u64) -> Result<Option<usize>, Failure> {
    let views = view::ask_all(directory).await?;
    let count = |view: &view::View| {
        view.shards
            .iter()
            .chain(&view.catalog)
            .filter(|shard| shard.leader == Some(id))
            .count()
    };
    Ok(views.iter().flatten().map(count).max())
}
