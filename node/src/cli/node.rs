//! `holdfast node`: one production node.

use std::path::PathBuf;

use cluster::api::StartError;

use super::failure::{Exit, Failure};
use crate::config::{self, ConfigError};
use crate::serve::{self, ServeError};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  holdfast node --config /etc/holdfast/node.toml\n\nEvery key is explained in deploy/config/node.toml and overridden by HOLDFAST_SECTION_KEY.\nSIGTERM stops gracefully within node.stop_deadline; a second one ends at once."
)]
pub struct NodeArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(args: &NodeArgs) -> Result<(), Failure> {
    #[cfg(feature = "planted")]
    super::planted::choose()?;
    let config = config::load(&args.config).map_err(bad_config)?;
    serve::run(config, serve::Events::default()).map_err(ended)
}

pub fn bad_config(error: ConfigError) -> Failure {
    let advice = match &error {
        ConfigError::Unreadable { .. } => "name a file that this user can read",
        ConfigError::Refused(_) => "mend what is named; every key is explained in deploy/config/node.toml",
    };
    Failure::new(Exit::BadInput, "the configuration is refused")
        .because(error)
        .advise(advice)
}

/// The exit code of each way a node can end by itself.
pub fn ended(error: ServeError) -> Failure {
    let (exit, advice) = match &error {
        ServeError::Disk { source, .. } | ServeError::Start(StartError::Disk { source, .. }) => {
            return Failure::disk("the node cannot use its disk", source).because(&error);
        }
        ServeError::InUse { .. } => (
            Exit::Unavailable,
            "stop that process, or give this node a data directory of its own",
        ),
        ServeError::Listen { .. } | ServeError::Start(StartError::Listen { .. }) => (
            Exit::Unavailable,
            "stop what uses the port (`ss -ltnp` names it), or choose another one",
        ),
        ServeError::Join(_) => (
            Exit::Unavailable,
            "check cluster.join and the token; `holdfast cluster token create` makes a new one",
        ),
        ServeError::Start(StartError::Identity(_)) => (
            Exit::Disk,
            "give each node the data directory that it was started with, or an empty one",
        ),
        ServeError::Start(StartError::Corrupt { .. }) => (
            Exit::Disk,
            "the other replicas have the data: replace this node by one with a new id and an empty disk",
        ),
        ServeError::Fatal(_) | ServeError::BeginAnew(_) | ServeError::Start(StartError::BeginAnew(_)) => (
            Exit::Disk,
            "look at the disk and the log; the other nodes go on serving",
        ),
        ServeError::Start(StartError::Other(_)) | ServeError::Internal { .. } => (
            Exit::Internal,
            "this is a bug in holdfast: please report it with the log",
        ),
    };
    Failure::new(exit, "the node does not run")
        .because(error)
        .advise(advice)
}
