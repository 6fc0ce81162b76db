//! Signals, and starting again.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{outcome, Outcome};
use crate::site::{Site, SiteError};

/// How long a node may take to see that its directory is in use.
const REFUSAL: Duration = Duration::from_secs(20);
/// Between two stops of a slow start it runs for this long.
const STEP: Duration = Duration::from_millis(100);

/// A node that does not run cannot be killed: then nothing is done.
fn on_process(
    site: &Site,
    node: u64,
    what: &str,
    deed: impl Fn(crate::process::Process) -> Result<(), SiteError>,
) -> Outcome {
    match site.process(node) {
        Ok(process) => outcome(deed(process).map(|()| format!("{what} of node {node}, pid {}", process.pid))),
        Err(error) => Outcome::Skipped(error.to_string()),
    }
}

pub fn kill(site: &Site, node: u64) -> Outcome {
    let failed = |source| SiteError::Process { node, source };
    on_process(site, node, "kill -9", |process| process.kill().map_err(failed))
}

pub fn pause(site: &Site, node: u64) -> Outcome {
    let failed = |source| SiteError::Process { node, source };
    on_process(site, node, "SIGSTOP", |process| {
        process.signal(Signal::SIGSTOP).map_err(failed)
    })
}

pub fn stop(site: &Site, node: u64) -> Outcome {
    on_process(site, node, "graceful stop", |_| {
        site.command(&["cluster", "stop", &node.to_string()]).map(drop)
    })
}

/// Starts the node, lets it run for `every`, kills it.
pub fn crash_again(site: &Site, node: u64, every: Duration) -> Duration {
    if let Ok(process) = site.process(node) {
        let _ = process.kill();
        return Duration::from_millis(200);
    }
    // A start that fails is part of the fault; the undoing starts it for good.
    let _ = site.command(&["cluster", "start", &node.to_string()]);
    every
}

pub fn slow_start(site: &Site, node: u64) -> Outcome {
    let killed = kill(site, node);
    let site = site.clone();
    std::thread::spawn(move || {
        let _ = site.command(&["cluster", "start", &node.to_string()]);
    });
    killed
}

/// Stops the process of the moment, or lets it run for a step.
pub fn stutter(site: &Site, node: u64, stop: bool, pause: Duration) -> Duration {
    let Ok(process) = site.process(node) else {
        return STEP;
    };
    let signal = if stop { Signal::SIGSTOP } else { Signal::SIGCONT };
    let _ = process.signal(signal);
    if stop {
        pause
    } else {
        STEP
    }
}

/// A second process on the directory of the first. It has to end by itself, and not well.
pub fn double_start(site: &Site, node: u64) -> Outcome {
    let begin = || -> Result<String, SiteError> {
        let entry = site.entry(node)?;
        site.process(node)?;
        let spawned = Command::new(&site.program)
            .args(["node", "--config"])
            .arg(&entry.config)
            .envs(site.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut second = spawned.map_err(|error| SiteError::file(&site.program, error))?;
        let end = Instant::now() + REFUSAL;
        while Instant::now() < end {
            match second.try_wait() {
                Ok(Some(status)) if status.success() => {
                    return Err(SiteError::Unknown(format!(
                        "the second process of node {node} ended with {status}"
                    )))
                }
                Ok(Some(status)) => return Ok(format!("the second process of node {node} was refused: {status}")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        let _ = second.kill();
        let _ = second.wait();
        Err(SiteError::Unknown(format!(
            "the second process of node {node} went on running beside the first"
        )))
    };
    outcome(begin())
}
