//! What the warden does, one deed at a time: its undoing first, then the deed, then what has to be
//! repeated while it lasts.
//!
//! A fault of the catalogue is one deed or several (a partition is a lease on each node). A deed
//! names its node; who that is was decided by whoever ordered it.

mod files;
mod leases;
mod operator;
mod process;
mod undo;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::damage::Damage;
use crate::proxy::{Proxies, Toxic};
use crate::site::{Http, HttpError, Site, SiteError};

pub use undo::{Undo, UndoError};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "deed", rename_all = "snake_case")]
pub enum Deed {
    Kill {
        node: u64,
    },
    Stop {
        node: u64,
    },
    Pause {
        node: u64,
    },
    CrashLoop {
        node: u64,
        every_ms: u64,
    },
    SlowStart {
        node: u64,
        pause_ms: u64,
    },
    DoubleStart {
        node: u64,
    },
    EmptyDisk {
        node: u64,
    },
    /// A lease inside the node; renewed while it lasts. `restarts`: the node may end of it.
    Lease {
        node: u64,
        lease: String,
        fault: Value,
        restarts: bool,
    },
    /// A lease that comes and goes.
    Flap {
        node: u64,
        lease: String,
        fault: Value,
        every_ms: u64,
    },
    Toxic {
        node: u64,
        name: String,
        toxic: Toxic,
    },
    Damage {
        node: u64,
        part: String,
        how: Damage,
    },
    OldCopy {
        node: u64,
    },
    Fill,
    PowerCut {
        torn_seed: Option<u64>,
    },
    Drain {
        node: u64,
    },
    Shuffle,
    AddNode,
    RemoveReadd {
        node: u64,
    },
    TwoChanges,
    Scrub,
    /// A small file system for the drill's cluster.
    Mount {
        path: PathBuf,
        bytes: u64,
    },
    /// The drill's own cluster: undone, it never was.
    Own {
        dir: PathBuf,
    },
    /// What the fleet does by itself, or nobody can do here.
    Elsewhere,
    Impossible {
        why: String,
    },
}

/// How the injection of a fault ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub enum Outcome {
    /// With what there is to say of it.
    Installed(String),
    /// Nothing was done.
    Skipped(String),
    /// It may have been done. It is undone all the same.
    Indeterminate(String),
}

impl Outcome {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Installed(_) => "installed",
            Self::Skipped(_) => "skipped",
            Self::Indeterminate(_) => "indeterminate",
        }
    }

    pub fn why(&self) -> &str {
        match self {
            Self::Installed(why) | Self::Skipped(why) | Self::Indeterminate(why) => why,
        }
    }
}

/// What deeds need.
pub struct Context {
    pub site: Site,
    pub proxies: Proxies,
}

/// A deed under way.
pub struct Doing {
    deed: Deed,
    context: Arc<Context>,
    /// For deeds that alternate: which way it is now.
    on: bool,
    turn: usize,
}

/// Leases inside nodes are short, and renewed: when this host dies, they end soon.
const LEASE_MS: u64 = 10_000;
const RENEW_EVERY: Duration = Duration::from_secs(3);

impl Doing {
    pub fn new(deed: Deed, context: Arc<Context>) -> Self {
        Self {
            deed,
            context,
            on: false,
            turn: 0,
        }
    }

    /// How it will be undone; to be journaled before [`Doing::begin`].
    ///
    /// # Errors
    /// It cannot be done here; nothing was done.
    pub fn undo(&self) -> Result<Vec<Undo>, SiteError> {
        let site = &self.context.site;
        let local = |undo: Vec<Undo>| site.directory().map(|_| undo);
        match &self.deed {
            Deed::Kill { node } | Deed::Stop { node } | Deed::CrashLoop { node, .. } => local(vec![Undo::Start { node: *node }]),
            Deed::Pause { node } => {
                let process = site.process(*node)?;
                Ok(vec![Undo::Continue {
                    pid: process.pid,
                    started: process.started_ticks(),
                }])
            }
            Deed::SlowStart { node, .. } => local(vec![Undo::ContinueNode { node: *node }, Undo::Start { node: *node }]),
            Deed::DoubleStart { .. } => local(Vec::new()),
            Deed::EmptyDisk { node } => {
                let (from, to) = files::aside(site, *node)?;
                Ok(vec![Undo::MoveBack { node: *node, from, to }])
            }
            Deed::Lease { node, lease, restarts, .. } => {
                let mut undo = vec![leases::undo(site, *node, lease)?];
                if *restarts && site.dir.is_some() {
                    undo.push(Undo::Start { node: *node });
                }
                Ok(undo)
            }
            Deed::Flap { node, lease, .. } => Ok(vec![leases::undo(site, *node, lease)?]),
            Deed::Toxic { .. } | Deed::Elsewhere => Ok(Vec::new()),
            Deed::Damage { node, .. } | Deed::OldCopy { node } => local(vec![Undo::Repair { node: *node }]),
            Deed::Fill => Ok(vec![Undo::Remove {
                path: files::filler(site)?,
            }]),
            Deed::PowerCut { .. } => match &site.mirror {
                Some(_) => local(vec![Undo::StartAll]),
                None => Err(SiteError::Unknown(
                    "the nodes do not run under the library that knows what was synced; the drill starts such a cluster itself with cluster.power = true".into(),
                )),
            },
            Deed::Drain { node } => Ok(vec![Undo::Undrain { node: *node }]),
            Deed::Shuffle => Ok(vec![Undo::UndrainAll]),
            Deed::AddNode | Deed::TwoChanges => local(vec![Undo::StartAll]),
            Deed::RemoveReadd { .. } => local(vec![Undo::StartAll]),
            Deed::Scrub => Ok(Vec::new()),
            Deed::Mount { path, .. } => Ok(vec![Undo::Unmount { path: path.clone() }]),
            Deed::Own { dir } => Ok(vec![Undo::TearDown { dir: dir.clone() }]),
            Deed::Impossible { why } => Err(SiteError::Unknown(why.clone())),
        }
    }

    /// Does it.
    pub fn begin(&mut self) -> Outcome {
        let context = self.context.clone();
        let site = &context.site;
        match self.deed.clone() {
            Deed::Kill { node } => process::kill(site, node),
            Deed::Stop { node } => process::stop(site, node),
            Deed::Pause { node } => process::pause(site, node),
            Deed::CrashLoop { node, .. } => process::kill(site, node),
            Deed::SlowStart { node, .. } => process::slow_start(site, node),
            Deed::DoubleStart { node } => process::double_start(site, node),
            Deed::EmptyDisk { node } => files::empty_disk(site, node),
            Deed::Lease { node, lease, fault, .. } | Deed::Flap { node, lease, fault, .. } => {
                self.on = true;
                leases::put(site, node, &lease, &fault, LEASE_MS)
            }
            Deed::Toxic { node, name, toxic } => match context.proxies.set(node, &name, toxic) {
                true => Outcome::Installed("the proxy in front of it".into()),
                false => Outcome::Skipped(
                    "there is no proxy in front of this node: only a drill's own fleet goes through one".into(),
                ),
            },
            Deed::Damage { node, part, how } => files::damage(site, node, &part, how),
            Deed::OldCopy { node } => files::old_copy(site, node),
            Deed::Fill => files::fill(site),
            Deed::PowerCut { torn_seed } => files::power_cut(site, torn_seed),
            Deed::Drain { node } => operator::drain(site, node),
            Deed::Shuffle => {
                self.on = true;
                operator::shuffle(site, &mut self.turn)
            }
            Deed::AddNode => operator::add(site),
            Deed::RemoveReadd { node } => operator::remove_readd(site, node),
            Deed::TwoChanges => operator::two_changes(site),
            Deed::Scrub => operator::scrub(site),
            Deed::Mount { path, bytes } => files::mount(&path, bytes),
            Deed::Own { .. } => Outcome::Installed("this drill's own cluster".into()),
            Deed::Elsewhere => Outcome::Installed("the fleet does it".into()),
            Deed::Impossible { why } => Outcome::Skipped(why),
        }
    }

    /// What has to be done again and again while it lasts; returns when next. `None`: nothing.
    pub fn go_on(&mut self) -> Option<Duration> {
        let context = self.context.clone();
        let site = &context.site;
        match &self.deed {
            Deed::Lease { node, lease, fault, .. } => {
                // A node that was started anew has forgotten it; a renewal puts it there again.
                let _ = leases::put(site, *node, lease, fault, LEASE_MS);
                Some(RENEW_EVERY)
            }
            Deed::Flap {
                node,
                lease,
                fault,
                every_ms,
            } => {
                if self.on {
                    let _ = leases::delete(site, *node, lease);
                } else {
                    let _ = leases::put(site, *node, lease, fault, LEASE_MS);
                }
                self.on = !self.on;
                Some(Duration::from_millis(*every_ms))
            }
            Deed::CrashLoop { node, every_ms } => {
                Some(process::crash_again(site, *node, Duration::from_millis(*every_ms)))
            }
            Deed::SlowStart { node, pause_ms } => {
                self.on = !self.on;
                Some(process::stutter(site, *node, self.on, Duration::from_millis(*pause_ms)))
            }
            Deed::Shuffle => {
                operator::shuffle(site, &mut self.turn);
                Some(Duration::from_secs(2))
            }
            _ => None,
        }
    }

    /// When [`Doing::go_on`] is first due.
    pub fn first(&self) -> Option<Duration> {
        match &self.deed {
            Deed::Lease { .. } => Some(RENEW_EVERY),
            Deed::Flap { every_ms, .. } => Some(Duration::from_millis(*every_ms)),
            Deed::CrashLoop { .. } | Deed::SlowStart { .. } => Some(Duration::ZERO),
            Deed::Shuffle => Some(Duration::from_secs(2)),
            _ => None,
        }
    }

    /// What is undone in this process: proxies end with it anyway.
    pub fn let_go(&self) {
        if let Deed::Toxic { name, .. } = &self.deed {
            self.context.proxies.clear(name);
        }
    }
}

/// What came of a step that either works or says why not.
fn outcome(result: Result<String, SiteError>) -> Outcome {
    match result {
        Ok(said) => Outcome::Installed(said),
        Err(error) => Outcome::Indeterminate(in_a_line(&error.to_string())),
    }
}

/// Ends of logs are for the directory of the verdict, not for a table.
fn in_a_line(text: &str) -> String {
    let line = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    line.chars().take(300).collect()
}

fn http(site: &Site) -> Result<Http, SiteError> {
    Http::new(&site.token)
}

fn refused(error: &HttpError) -> Outcome {
    match error {
        HttpError::Closed(_) | HttpError::Status(..) => Outcome::Skipped(error.to_string()),
        HttpError::Unknown(_) => Outcome::Indeterminate(error.to_string()),
    }
}
