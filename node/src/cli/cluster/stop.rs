//! `cluster stop` and `cluster down`: graceful first, and honest about what did not end.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::directory::{Directory, NodeEntry};
use super::process::{self, Running};
use super::NodeArg;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// Longer than a node's own deadline (`node.stop_deadline`, 10 s by default).
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a killed process may take to disappear.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

pub async fn stop(args: NodeArg, output: Output) -> Result<(), Failure> {
    let mut directory = Directory::open(&args.dir.dir)?;
    let node = directory.node(args.id)?.clone();
    let Some(running) = process::running(&node) else {
        say(output, &format!("node {} does not run", node.id), &[]);
        return Ok(());
    };
    process::terminate(running);
    if !process::wait_gone(running, STOP_DEADLINE).await {
        let what = format!(
            "node {} (pid {}) still runs {} s after SIGTERM",
            node.id,
            running.pid,
            STOP_DEADLINE.as_secs()
        );
        return Err(Failure::new(Exit::Unavailable, what)
            .because(process::log_tail(&node.log))
            .advise(format!(
                "wait, or end it with `kill -9 {}`: nothing acknowledged is lost",
                running.pid
            )));
    }
    let _lock = Directory::lock(&args.dir.dir)?;
    directory = Directory::open(&args.dir.dir)?;
    directory.record_process(node.id, None)?;
    say(output, &format!("node {} stopped", node.id), &[node.id]);
    Ok(())
}

pub async fn down(path: &Path, output: Output) -> Result<(), Failure> {
    let mut directory = Directory::open(path)?;
    let stopped = stop_all(&mut directory, &mut Progress::new()).await?;
    say(
        output,
        &format!(
            "{} nodes stopped; the data stays in {}",
            stopped.len(),
            directory.path.display()
        ),
        &stopped,
    );
    Ok(())
}

fn say(output: Output, text: &str, stopped: &[u64]) {
    match output {
        Output::Table => output::line(text),
        Output::Json => output::json(&json!({ "stopped": stopped })),
    }
}

/// Stops every node that runs, all at once; kills what does not end in time, with a warning.
///
/// # Errors
/// A process survives even that (69), or the disk refuses (74).
pub async fn stop_all(directory: &mut Directory, progress: &mut Progress) -> Result<Vec<u64>, Failure> {
    let _lock = Directory::lock(&directory.path)?;
    let mut running: Vec<(NodeEntry, Running)> = Vec::new();
    for node in &directory.file.nodes {
        running.extend(process::running(node).map(|found| (node.clone(), found)));
    }
    progress.say(&format!("stopping {} nodes", running.len()));
    // Polled together, so all are asked before any is waited for.
    let progress = &*progress;
    let ends = running.iter().map(|(node, process)| end(node, *process, progress));
    for ended in futures::future::join_all(ends).await {
        ended?;
    }
    for node in directory.file.nodes.clone() {
        directory.record_process(node.id, None)?;
    }
    Ok(running.iter().map(|(node, _)| node.id).collect())
}

/// Stops one process; kills it, with a warning, when it does not end in time.
///
/// # Errors
/// It survives even that (69).
pub async fn end(node: &NodeEntry, process: Running, progress: &Progress) -> Result<(), Failure> {
    process::terminate(process);
    if process::wait_gone(process, STOP_DEADLINE).await {
        return Ok(());
    }
    progress.note(&format!(
        "warning: node {} (pid {}) did not stop within {} s and is killed; see {}",
        node.id,
        process.pid,
        STOP_DEADLINE.as_secs(),
        node.log.display()
    ));
    process::kill_now(process);
    if process::wait_gone(process, KILL_DEADLINE).await {
        return Ok(());
    }
    let what = format!("node {} (pid {}) survives SIGKILL", node.id, process.pid);
    Err(Failure::new(Exit::Unavailable, what)
        .because("the kernel does not let go of it; its disk may hang")
        .advise("look at the disk, then try again"))
}
