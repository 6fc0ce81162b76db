//! `cluster scrub`: nodes read everything they have stored; what they find is told by `status`.

use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::directory::Directory;
use super::{view, DirArg};
use crate::cli::api::Request;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// 16 MiB/s at most: for a terabyte ask `status` instead.
const DEADLINE: Duration = Duration::from_secs(24 * 3_600);
const ASK_EVERY: Duration = Duration::from_millis(300);

#[derive(Args, Clone, Debug)]
pub struct ScrubArgs {
    /// The node's id, from 1 [default: every node]
    #[arg(value_name = "ID")]
    pub id: Option<u64>,
    #[command(flatten)]
    pub dir: DirArg,
}

pub async fn scrub(args: ScrubArgs, output: Output) -> Result<(), Failure> {
    let directory = Directory::open(&args.dir.dir)?;
    let ids: Vec<u64> = match args.id {
        Some(id) => vec![directory.node(id)?.id],
        None => directory.file.nodes.iter().map(|node| node.id).collect(),
    };
    let mut begun = Vec::new();
    for id in ids {
        begun.push((id, begin(&directory, id).await?));
    }
    let deadline = Instant::now() + DEADLINE;
    let mut progress = Progress::new();
    let mut done = Vec::new();
    for (id, passes) in begun {
        done.push((id, finish(&directory, (id, passes), deadline, &mut progress).await?));
    }
    drop(progress);
    match output {
        Output::Table => done.iter().for_each(|(id, bytes)| {
            output::line(&format!("node {id}: {} read, everything is whole", mib(*bytes)));
        }),
        Output::Json => output::json(&json!({
            "nodes": done.iter().map(|(id, bytes)| json!({"id": id, "bytes": bytes, "whole": true})).collect::<Vec<_>>(),
        })),
    }
    Ok(())
}

/// Returns how many passes it had finished before.
async fn begin(directory: &Directory, id: u64) -> Result<u64, Failure> {
    let path = format!("/api/v1/cluster/nodes/{id}/scrub");
    let request = Request {
        path: &path,
        ..Request::default()
    };
    let client = view::client(directory, directory.node(id)?)?;
    let answer = client.send(Method::POST, request).await?;
    Ok(answer.body["passes"].as_u64().unwrap_or(0))
}

/// Waits for one more pass, and returns the bytes read.
async fn finish(
    directory: &Directory,
    (id, before): (u64, u64),
    deadline: Instant,
    progress: &mut Progress,
) -> Result<u64, Failure> {
    let client = view::client(directory, directory.node(id)?)?;
    loop {
        let answer = client.get("/api/v1/cluster").await.ok();
        let node = answer.as_ref().and_then(|answer| {
            let nodes = answer.body["nodes"].as_array()?;
            nodes.iter().find(|node| node["id"] == id)
        });
        let said = |name: &str| node.and_then(|node| node["scrub"][name].as_u64()).unwrap_or(0);
        if said("passes") > before {
            return Ok(said("bytes"));
        }
        let state = node.and_then(|node| node["state"].as_str()).unwrap_or("up");
        // A node that finds something begins anew, and forgets that it was asked.
        let ended = node.is_some_and(|node| node["scrub"]["running"] == false);
        if matches!(state, "damaged" | "rebuilding") || ended {
            return Err(found(directory, id));
        }
        if Instant::now() >= deadline {
            return Err(
                Failure::new(Exit::Unavailable, format!("node {id} is not through with it"))
                    .advise("it goes on; see `scrub` in `GET /api/v1/cluster`"),
            );
        }
        progress.say(&format!("node {id} reads what it has stored: {}", mib(said("bytes"))));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn found(directory: &Directory, id: u64) -> Failure {
    Failure::new(Exit::Disk, format!("node {id} has found damage"))
        .because("bytes that were durable cannot be read any more")
        .advise(format!(
            "see `holdfast cluster status --dir {}`: it says what is repaired by itself and what is to be done",
            directory.path.display()
        ))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
