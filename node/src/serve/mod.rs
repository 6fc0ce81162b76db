//! Runs one node: its part of the cluster, the gateways in front, and an orderly end.
//!
//! Start goes from the inside out (directory, cluster, MQTT, HTTP) so that nobody is let in before
//! he can be served; the stop goes the other way round. Knows no exit codes: `cli` maps
//! [`ServeError`] to them.

mod anew;
mod clock;
pub mod control;
mod edges;
pub mod facts;
mod join;
pub mod lock;
mod machine;
mod notify;
mod reload;
mod run;
pub mod signals;

use std::net::SocketAddr;
use std::path::PathBuf;

use cluster::api::StartError;

pub use machine::OPEN_FILES_MAX;
pub use run::{run, Events};

/// Starts the last line of a node that ended itself; `cluster status` looks for it.
pub const FATAL_MARK: &str = "holdfast ends:";

/// Exit code of a node that a second signal ended before its stop was done.
pub const EXIT_FORCED: i32 = 70;

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{what}: {source}")]
    Disk { what: String, source: std::io::Error },
    #[error("{} is in use by {}", dir.display(), pid.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    InUse { dir: PathBuf, pid: Option<u32> },
    #[error("cannot listen on {addr} ({what}): {source}")]
    Listen {
        what: &'static str,
        addr: SocketAddr,
        source: std::io::Error,
    },
    #[error(transparent)]
    Start(#[from] StartError),
    /// A part failed that a node cannot go on without (a failed fsync, a corrupt replica).
    #[error("{0}")]
    Fatal(String),
    /// Damage was met and written down; the process begins anew, and the start repairs what it can.
    #[error("{0}")]
    BeginAnew(String),
    /// No cluster let this node in.
    #[error("{0}")]
    Join(String),
    #[error("{what}: {reason}")]
    Internal { what: &'static str, reason: String },
}

impl ServeError {
    fn internal(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Internal {
            what,
            reason: reason.to_string(),
        }
    }
}
