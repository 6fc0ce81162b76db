//! How each deed is undone. Written to the journal before the deed is done, so that whoever finds
//! the journal can mend what the warden could not. Undoing twice changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::process::{Process, ProcessError};
use crate::site::{Http, HttpError, Site, SiteError};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// SIGCONT.
    Continue {
        pid: u32,
        started: u64,
    },
    /// Whatever stopped state a node's process of the moment is in, it goes on.
    ContinueNode {
        node: u64,
    },
    Start {
        node: u64,
    },
    StartAll,
    /// Starts it, and replaces it where it cannot vouch for its data.
    Repair {
        node: u64,
    },
    DeleteLease {
        node: u64,
        http: String,
        lease: String,
    },
    Undrain {
        node: u64,
    },
    UndrainAll,
    Remove {
        path: PathBuf,
    },
    /// Ends the node, and puts its data back where it belongs.
    MoveBack {
        node: u64,
        from: PathBuf,
        to: PathBuf,
    },
    EndProcess {
        pid: u32,
        started: u64,
    },
    Unmount {
        path: PathBuf,
    },
    /// A cluster that was made for the drill: its processes and its directory.
    TearDown {
        dir: PathBuf,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("lease {lease} of node {node}: {source}")]
    Lease {
        lease: String,
        node: u64,
        #[source]
        source: HttpError,
    },
    #[error("undrain of node {node}: {source}")]
    Undrain {
        node: u64,
        #[source]
        source: HttpError,
    },
    #[error("umount of {0} failed")]
    Unmount(PathBuf),
}

impl Undo {
    /// # Errors
    /// It could not be undone now; worth another try.
    pub fn run(&self, site: &Site) -> Result<(), UndoError> {
        match self {
            Self::Continue { pid, started } => signal(Process::known(*pid, *started), Signal::SIGCONT),
            Self::ContinueNode { node } => match site.process(*node) {
                Ok(process) => signal(process, Signal::SIGCONT),
                Err(_) => Ok(()),
            },
            Self::EndProcess { pid, started } => signal(Process::known(*pid, *started), Signal::SIGKILL),
            Self::Start { node } => start(site, *node),
            Self::StartAll => {
                site.command(&["cluster", "up", "--detach"])?;
                Ok(())
            }
            Self::Repair { node } => repair(site, *node),
            Self::DeleteLease { node, http, lease } => delete(site, *node, http, lease),
            Self::Undrain { node } => undrain(site, *node),
            Self::UndrainAll => site.current().iter().try_for_each(|node| undrain(site, node.id)),
            Self::Remove { path } => remove(path),
            Self::MoveBack { node, from, to } => move_back(site, *node, from, to),
            Self::Unmount { path } => unmount(path),
            Self::TearDown { dir } => tear_down(dir),
        }
    }
}

/// A process that is gone needs nothing any more.
fn signal(process: Process, signal: Signal) -> Result<(), UndoError> {
    match process.signal(signal) {
        Err(ProcessError::Gone { .. }) => Ok(()),
        other => Ok(other?),
    }
}

fn start(site: &Site, node: u64) -> Result<(), UndoError> {
    // A node that was removed, or replaced by another, is not missed.
    if site.entry(node).is_err() {
        return Ok(());
    }
    site.command(&["cluster", "start", &node.to_string()])?;
    Ok(())
}

fn repair(site: &Site, node: u64) -> Result<(), UndoError> {
    if site.entry(node).is_err() {
        return Ok(());
    }
    site.command(&["cluster", "repair", &node.to_string()])?;
    Ok(())
}

fn delete(site: &Site, node: u64, http: &str, lease: &str) -> Result<(), UndoError> {
    let client = Http::new(&site.token)?;
    let path = format!("/api/v1/chaos/leases/{lease}");
    match client.call("DELETE", http, &path, None, Duration::from_secs(5)) {
        // A node that does not run has no leases, and one that does not know it has no such lease.
        Ok(_) | Err(HttpError::Closed(_) | HttpError::Status(403 | 404, _)) => Ok(()),
        Err(source) => Err(UndoError::Lease {
            lease: lease.to_owned(),
            node,
            source,
        }),
    }
}

fn undrain(site: &Site, node: u64) -> Result<(), UndoError> {
    let client = Http::new(&site.token)?;
    let mut last = HttpError::Unknown("there is no node to ask".into());
    for asked in site.current() {
        match client.post(&asked.http, &format!("/api/v1/cluster/nodes/{node}/undrain")) {
            Ok(_) | Err(HttpError::Status(404, _)) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(UndoError::Undrain { node, source: last })
}

fn remove(path: &Path) -> Result<(), UndoError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SiteError::file(path, error).into()),
        _ => Ok(()),
    }
}

fn move_back(site: &Site, node: u64, from: &Path, to: &Path) -> Result<(), UndoError> {
    if !from.exists() {
        return start(site, node);
    }
    if let Ok(process) = site.process(node) {
        process.kill()?;
    }
    if to.exists() {
        fs::remove_dir_all(to).map_err(|error| SiteError::file(to, error))?;
    }
    fs::rename(from, to).map_err(|error| SiteError::file(from, error))?;
    start(site, node)
}

fn unmount(path: &Path) -> Result<(), UndoError> {
    let mounted = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_there = mounted
        .lines()
        .any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path));
    if !is_there {
        return Ok(());
    }
    let ended = std::process::Command::new("umount").arg("-l").arg(path).status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        _ => Err(UndoError::Unmount(path.to_owned())),
    }
}

/// The directory was made for this drill alone, so whatever runs from it is the drill's.
fn tear_down(dir: &Path) -> Result<(), UndoError> {
    for _ in 0..2 {
        for process in crate::process::with_argument_below(dir, "node.toml") {
            process.kill()?;
        }
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SiteError::file(dir, error).into()),
        _ => Ok(()),
    }
}
