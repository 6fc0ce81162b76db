//! `cluster add`: the next nodes of a local cluster, from their directories to their share of the
//! replicas. Each step can be taken again: a node that was added and does not run is started by
//! `cluster start` or `cluster up`, and joins then.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::directory::{Directory, NodeEntry, NODES_MAX};
use super::rebalance::{self, Ended, GOES_ON};
use super::up::{fail_if_ended, Started};
use super::{process, DirArg};
use crate::cli::api::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// How long a new node may take until the cluster counts it.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(200);

#[derive(Args, Clone, Debug)]
pub struct AddArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Failure domain of the new nodes [default: one of its own for each]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Leave the replicas where they are
    #[arg(long)]
    no_rebalance: bool,
    #[command(flatten)]
    dir: DirArg,
}

pub async fn add(args: AddArgs, output: Output) -> Result<(), Failure> {
    let mut added = Vec::new();
    {
        let _lock = Directory::lock(&args.dir.dir)?;
        let mut directory = Directory::open(&args.dir.dir)?;
        for _ in 0..args.nodes {
            added.push(add_one(&mut directory, args.zone.as_deref()).await?);
        }
    }
    let mut directory = Directory::open(&args.dir.dir)?;
    let client = any_node(&directory)?;
    let mut settled = false;
    if !args.no_rebalance {
        rebalance::start(&client, None).await?;
        settled = matches!(rebalance::follow(&client, |_| true).await?, Ended::Settled(_));
    }
    if let Ok(view) = rebalance::look(&client).await {
        let _lock = Directory::lock(&args.dir.dir)?;
        directory = Directory::open(&args.dir.dir)?;
        directory.file.replication = view.replication.max(1);
        directory.save()?;
    }
    say(&directory, &added, (!args.no_rebalance, settled), output);
    Ok(())
}

fn say(directory: &Directory, added: &[u64], (asked, settled): (bool, bool), output: Output) {
    if output == Output::Json {
        let nodes: Vec<&NodeEntry> = directory
            .file
            .nodes
            .iter()
            .filter(|node| added.contains(&node.id))
            .collect();
        return output::json(&json!({
            "added": added, "nodes": nodes, "replication": directory.file.replication, "settled": settled,
        }));
    }
    for node in directory.file.nodes.iter().filter(|node| added.contains(&node.id)) {
        output::line(&format!(
            "node {} joined: mqtt {}, http://{}",
            node.id, node.mqtt, node.http
        ));
    }
    output::line(&match (asked, settled) {
        (false, _) => "no replica was moved; `holdfast cluster rebalance` gives it its share".to_owned(),
        (true, false) => GOES_ON.to_owned(),
        (true, true) => format!("replicas are even; each shard has {}", directory.file.replication),
    });
}

/// Makes one node, starts it, and waits until the cluster counts it.
pub async fn add_one(directory: &mut Directory, zone: Option<&str>) -> Result<u64, Failure> {
    let client = any_node(directory)?;
    let view = rebalance::look(&client).await?;
    let node = directory.newcomer(view.next_node, zone)?;
    process::await_ports(&node).await?;
    let before = directory.file.clone();
    directory.file.nodes.push(node.clone());
    directory.save()?;
    directory.write_node_files()?;
    let (child, running) = process::spawn(&node, directory.file.allow_drills)?;
    directory.record_process(node.id, Some((running.pid, running.started)))?;
    let mut started = vec![Started { id: node.id, child }];
    match wait_joined(directory, &client, &node, &mut started).await {
        Ok(()) => Ok(node.id),
        Err(failure) => {
            let listed = |view: super::view::View| view.nodes.iter().any(|known| known.id == node.id);
            if rebalance::look(&client).await.is_ok_and(|view| !listed(view)) {
                // The cluster never heard of it: it is as if it had not been tried.
                process::kill_now(running);
                directory.file = before;
                directory.save()?;
                // Its log is what the failure quotes; the rest would only be in the way.
                let _ = std::fs::remove_dir_all(&node.dir);
            }
            Err(failure)
        }
    }
}

async fn wait_joined(
    directory: &Directory,
    client: &Client,
    node: &NodeEntry,
    started: &mut [Started],
) -> Result<(), Failure> {
    let mut progress = Progress::new();
    progress.say(&format!("node {} is joining", node.id));
    let deadline = Instant::now() + JOIN_DEADLINE;
    loop {
        fail_if_ended(directory, started)?;
        let view = rebalance::look(client).await.ok();
        let counted = |view: super::view::View| view.nodes.iter().any(|n| n.id == node.id && n.state == "up");
        if view.is_some_and(counted) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = format!("node {} has not joined after {} s", node.id, JOIN_DEADLINE.as_secs());
            return Err(Failure::new(Exit::Unavailable, what)
                .because(process::log_tail(&node.log))
                .advise("mend what its log names; see `holdfast cluster status`"));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// # Errors
/// The token cannot be sent.
pub fn any_node(directory: &Directory) -> Result<Client, Failure> {
    let bases = directory.file.nodes.iter().map(|node| format!("http://{}", node.http));
    Client::new(bases.collect(), &directory.file.token)
}
