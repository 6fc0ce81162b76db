//! The warden: a process of its own that breaks things, and mends them whatever becomes of whoever
//! asked for it.
//!
//! It leads a session of its own, so that a terminal's signals do not reach it. Before each deed the
//! undoing is in its journal, synced. It undoes a fault when it is told to, when the fault's time is
//! up, when its injector is gone (the pipe between them closes, or the process does), or on SIGTERM;
//! then it ends. What even a killed warden leaves behind is in its journal, and `holdfast chaos heal`
//! finishes it. Bounds: 64 faults at a time, one thread each; 10 tries to undo, a second apart.

mod handle;
mod journal;
mod keeper;
mod serve;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::deed::{Deed, Outcome};
use crate::site::Site;

pub use handle::{Handle, HandleError};
pub use journal::{leftovers, state_dir, Journal, Leftover};
pub use serve::serve;

/// Faults one warden has at a time.
pub const FAULTS_MAX: usize = 64;

/// From the injector, a line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// The first line.
    Begin {
        site: Box<Site>,
        injector: (u32, u64),
        state: PathBuf,
    },
    /// The cluster as it is from now on.
    Site(Box<Site>),
    /// A proxy in front of each node.
    Proxies,
    Inject(Order),
    Heal {
        fault: String,
    },
    /// Everything but what stays to the end.
    HealAll,
    /// Everything, and then the warden ends.
    End,
}

/// A fault: its deeds belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Names it, among the faults of this warden.
    pub fault: String,
    pub deeds: Vec<Deed>,
    pub ttl_ms: u64,
    /// Until the end: the ground the drill stands on, such as its own cluster.
    #[serde(default)]
    pub stays: bool,
}

/// To the injector, a line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tell {
    Ready {
        journal: PathBuf,
    },
    /// Node and where its proxy listens.
    Proxies(Vec<(u64, String)>),
    Outcome {
        fault: String,
        outcome: Outcome,
    },
    /// `problem`: what could not be undone; it is in the journal still.
    Healed {
        fault: String,
        by: Healer,
        problem: Option<String>,
    },
    AllHealed,
    Failed(String),
}

/// Why a fault was healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Healer {
    Asked,
    /// Its time was up.
    Lease,
    /// The injector is gone, or the warden was told to end.
    Warden,
}
