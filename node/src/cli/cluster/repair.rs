//! `cluster repair`: a node of a local cluster that cannot vouch for its data is replaced by one with
//! a new id, from its empty directory to its share of the replicas. Each step can be taken again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::add::{add_one, any_node};
use super::directory::{Directory, NodeEntry};
use super::rebalance::{self, Ended, GOES_ON};
use super::view::{self, NodeView};
use super::{process, repair_remote, stop, up};
use crate::cli::api::{Client, Request};
use crate::cli::device::Target;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// How long a node that was just started may take to say how it is.
const VERDICT_DEADLINE: Duration = Duration::from_secs(30);
/// How long the cluster may take until it lets the old node be removed.
const REMOVE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a node that repairs itself may take.
const REBUILD_DEADLINE: Duration = Duration::from_secs(3_600);
const ASK_EVERY: Duration = Duration::from_millis(300);

#[derive(Args, Clone, Debug)]
pub struct RepairArgs {
    /// The node's id, from 1
    #[arg(value_name = "ID")]
    pub(super) id: u64,
    /// Replace it whatever it says of itself, also when it does not run
    #[arg(long)]
    pub(super) replace: bool,
    /// By address: return where somebody would be waited for; what is left to do is printed
    #[arg(long, requires = "url")]
    pub(super) no_wait: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

/// What the others say of the node.
enum Verdict {
    Well,
    /// It repairs itself.
    Rebuilding,
    Damaged(String),
}

pub async fn repair(args: RepairArgs, output: Output) -> Result<(), Failure> {
    if args.target.url.is_some() {
        return repair_remote::repair(&args, output).await;
    }
    let directory = Directory::open(&args.target.dir)?;
    let node = directory.node(args.id)?.clone();
    let mut progress = Progress::new();
    let verdict = if args.replace {
        Verdict::Damaged("it is replaced by request".to_owned())
    } else {
        ensure_started(&args, &node).await?;
        verdict(&directory, &node, &mut progress).await?
    };
    match verdict {
        Verdict::Well => say(output, &node, None, "is whole; there is nothing to repair"),
        Verdict::Rebuilding => {
            rebuilt(&directory, &node, &mut progress).await?;
            say(output, &node, None, "was given its state by the others and is whole");
        }
        Verdict::Damaged(reason) => {
            progress.note(&format!("node {}: {reason}", node.id));
            replace(&args, &node, &mut progress, output).await?;
        }
    }
    Ok(())
}

fn say(output: Output, node: &NodeEntry, new: Option<u64>, text: &str) {
    match output {
        Output::Table => output::line(&format!("node {} {text}", node.id)),
        Output::Json => output::json(&json!({ "node": node.id, "replaced_by": new, "healthy": true })),
    }
}

/// A node that does not run cannot say how it is.
async fn ensure_started(args: &RepairArgs, node: &NodeEntry) -> Result<(), Failure> {
    if process::running(node).is_some() {
        return Ok(());
    }
    let started = up::start_quietly(&args.target.dir, node.id).await;
    started.map_err(|failure| {
        failure.advise(format!(
            "mend what it names; to replace the node all the same: `holdfast cluster repair {} --replace --dir {}`",
            node.id,
            args.target.dir.display()
        ))
    })
}

async fn verdict(directory: &Directory, node: &NodeEntry, progress: &mut Progress) -> Result<Verdict, Failure> {
    let deadline = Instant::now() + VERDICT_DEADLINE;
    // A node that has just started may be refused by its peers only a moment later.
    let (mut well, mut last) = (0, "down".to_owned());
    loop {
        if let Some(said) = said_of(directory, node).await {
            match said.state.as_str() {
                "damaged" => return Ok(Verdict::Damaged(said.fault.unwrap_or_default())),
                "rebuilding" => return Ok(Verdict::Rebuilding),
                "up" | "draining" if well >= 5 => return Ok(Verdict::Well),
                "up" | "draining" => well += 1,
                _ => well = 0,
            }
            last = said.state;
        }
        if Instant::now() >= deadline {
            let what = format!("node {} does not say how it is: {last}", node.id);
            return Err(Failure::new(Exit::Unavailable, what)
                .because(process::log_tail(&node.log))
                .advise("look at its log; `--replace` replaces it all the same"));
        }
        progress.say(&format!("asking how node {} is: {last}", node.id));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What the node itself says, if that is that it must take no part: its peers may not even reach
/// it. Else what they say of it.
async fn said_of(directory: &Directory, node: &NodeEntry) -> Option<NodeView> {
    if let Some(own) = view::ask(&view::client(directory, node).ok()?).await {
        let own = own.nodes.into_iter().find(|said| said.id == node.id);
        if let Some(damaged) = own.filter(|own| own.state == "damaged") {
            return Some(damaged);
        }
    }
    let view = rebalance::look(&others(directory, node.id).ok()?).await.ok()?;
    view.nodes.into_iter().find(|said| said.id == node.id)
}

fn others(directory: &Directory, id: u64) -> Result<Client, Failure> {
    let mut others = directory.clone();
    others.file.nodes.retain(|node| node.id != id);
    if others.file.nodes.is_empty() {
        let what = format!("node {id} is the only one: no other replica has its data");
        return Err(Failure::new(Exit::Disk, what).advise("restore its directory from a backup"));
    }
    any_node(&others)
}

async fn rebuilt(directory: &Directory, node: &NodeEntry, progress: &mut Progress) -> Result<(), Failure> {
    let deadline = Instant::now() + REBUILD_DEADLINE;
    while Instant::now() < deadline {
        match said_of(directory, node).await {
            Some(said) if said.state == "up" => return Ok(()),
            Some(said) => progress.say(&format!("node {} is {}", node.id, said.state)),
            None => progress.say("no other node answers; trying again"),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    let what = format!("node {} is still being rebuilt", node.id);
    Err(Failure::new(Exit::Unavailable, what).advise("it goes on by itself; see `holdfast cluster status`"))
}

async fn replace(args: &RepairArgs, node: &NodeEntry, progress: &mut Progress, output: Output) -> Result<(), Failure> {
    let client = others(&Directory::open(&args.target.dir)?, node.id)?;
    let new = {
        let _lock = Directory::lock(&args.target.dir)?;
        let mut directory = Directory::open(&args.target.dir)?;
        if let Some(running) = process::running(node) {
            progress.say(&format!("stopping node {}", node.id));
            stop::end(node, running, progress).await?;
        }
        directory.record_process(node.id, None)?;
        progress.say(&format!("adding a node in place of node {}", node.id));
        add_one(&mut directory, Some(&node.zone)).await?
    };
    remove_dead(&client, node.id).await?;
    let gone = |view: &view::View| view.nodes.iter().all(|said| said.id != node.id);
    let settled = matches!(rebalance::follow(&client, gone).await?, Ended::Settled(_));
    let aside = forget(&args.target.dir, node)?;
    let text = match settled {
        true => format!("was replaced by node {new}; what it had is in {}", aside.display()),
        false => format!("is being replaced by node {new}: {GOES_ON}"),
    };
    say(output, node, Some(new), &text);
    Ok(())
}

/// # Errors
/// The cluster keeps refusing, or nobody answers.
pub(super) async fn remove_dead(client: &Client, id: u64) -> Result<(), Failure> {
    let path = format!("/api/v1/cluster/nodes/{id}/remove");
    let request = Request {
        path: &path,
        body: Some(("application/json", json!({ "dead": true }))),
        ..Request::default()
    };
    let deadline = Instant::now() + REMOVE_DEADLINE;
    while let Err(failure) = client.send(Method::POST, request.clone()).await {
        // A newcomer may not count as a member yet, or the old one be believed to run.
        if Instant::now() >= deadline {
            return Err(failure);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

/// Strikes the node off `cluster.json` and sets its directory aside.
fn forget(path: &Path, node: &NodeEntry) -> Result<PathBuf, Failure> {
    let _lock = Directory::lock(path)?;
    let mut directory = Directory::open(path)?;
    directory.file.nodes.retain(|other| other.id != node.id);
    directory.save()?;
    let aside = node.dir.with_extension("damaged");
    match std::fs::rename(&node.dir, &aside) {
        Ok(()) => Ok(aside),
        // It stays where it is; its id is never used again.
        Err(error) => {
            tracing::debug!(%error, "not set aside");
            Ok(node.dir.clone())
        }
    }
}
