//! A drill from set-up to verdict. The phases are fixed: set-up, steady, faults, heal all, liveness,
//! audit, verdict.
//!
//! The load runs on a thread of the simulator's, watched through `stage`; who leads what is noted
//! by `observer`; faults are the warden's. This thread only keeps the time.

mod after;
mod course;
mod measure;
mod observer;
mod result;
mod stage;

use std::path::PathBuf;

use crate::drill::Drill;
use crate::site::{Site, SiteError};
use crate::warden::{Handle, HandleError};

pub use after::active;
pub use course::{look, run};
pub use result::{DrillResult, FaultRecord, Impacts, Measured, Phase, Times, Verdict};

/// What a drill is told beside its file.
pub struct Options {
    /// The verdict's directory; made, and must hold none yet.
    pub out: PathBuf,
    pub seed: u64,
    pub version: String,
    /// The command that runs it again.
    pub rerun: String,
    /// Names the run in message ids.
    pub run: u32,
    /// Device ids begin with it.
    pub prefix: String,
    /// The variable that holds the operator's token.
    pub token_env: String,
}

/// A cluster and a warden, ready.
pub struct Ground {
    pub site: Site,
    pub warden: Handle,
    /// Addresses of clients' listeners by node, where the cluster is known by address only.
    pub notes: Vec<String>,
}

/// Who watches.
pub trait Screen {
    /// Something that happened.
    fn say(&self, text: &str);
    /// How things are now.
    fn progress(&self, text: &str);
    /// Whether whoever started it wants it to end.
    fn is_interrupted(&self) -> bool;
}

/// Why a drill says nothing about the product.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    #[error("the verdict's directory {path}: {source}")]
    Out {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Warden(#[from] HandleError),
    #[error("the load: {0}")]
    Load(String),
}

/// The drill with fleets of `devices` in all; rates of single fleets stay.
pub fn scale(drill: &mut Drill, devices: u32) {
    let Some(toml::Value::Array(fleets)) = drill.workload.get_mut("fleet") else {
        return;
    };
    let count = |fleet: &toml::Value| fleet.get("count").and_then(toml::Value::as_integer).unwrap_or(1);
    let whole: i64 = fleets.iter().map(count).sum();
    for fleet in fleets.iter_mut() {
        let part = (count(fleet) * i64::from(devices) / whole.max(1)).max(1);
        if let toml::Value::Table(fleet) = fleet {
            fleet.insert("count".into(), toml::Value::Integer(part));
        }
    }
}
