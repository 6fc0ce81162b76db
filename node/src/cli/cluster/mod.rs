//! `holdfast cluster …`: a local cluster of real processes, in one directory.

mod directory;
mod drain;
mod process;
mod status;
mod stop;
mod up;
mod view;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use directory::{ClusterFile, Directory, DirectoryLock, NodeEntry, Plan, DEFAULT_BASE_PORT, PORTS_PER_NODE};
pub use process::{check_ports, look, running, Running};
#[cfg(test)]
pub use view::{led_shards, View};

use super::failure::Failure;
use super::output::Output;

/// Where a local cluster lives.
#[derive(Args, Clone, Debug)]
pub struct DirArg {
    /// Directory of the local cluster
    #[arg(long, env = "HOLDFAST_DIR", default_value = "./holdfast-cluster", value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Subcommand, Clone, Debug)]
pub enum ClusterCommand {
    /// Start every node that does not run, making the cluster first if there is none
    #[command(
        after_help = "Example:\n  holdfast cluster up --nodes 3 --dir /tmp/hf --detach\n  holdfast cluster status --dir /tmp/hf\n\nNode i listens on base port + 10(i-1): MQTT +0, HTTP +1, peers +2.\nWithout --detach the nodes stop with Ctrl-C."
    )]
    Up(up::UpArgs),
    /// Start one node that does not run
    #[command(after_help = "Example:\n  holdfast cluster start 2 --dir /tmp/hf")]
    Start(NodeArg),
    /// Stop one node gracefully and wait until it has ended
    #[command(after_help = "Example:\n  holdfast cluster stop 2 --dir /tmp/hf")]
    Stop(NodeArg),
    /// Stop every node
    #[command(
        after_help = "Example:\n  holdfast cluster down --dir /tmp/hf\n\nThe data stays; `holdfast cluster up` starts the same cluster again."
    )]
    Down(DownArgs),
    /// Show nodes, shards, leaders, lag, and what a person should worry about
    #[command(
        after_help = "Example:\n  holdfast cluster status --dir /tmp/hf --output json\n\nEnds with 0 when all is well and with 69 when something does not serve."
    )]
    Status(DownArgs),
    /// Move everything a node leads to the others, then close its connections gently
    #[command(
        after_help = "Example:\n  holdfast cluster drain 2 --dir /tmp/hf && holdfast cluster stop 2 --dir /tmp/hf"
    )]
    Drain(NodeArg),
    /// Let a drained node lead and take connections again
    #[command(after_help = "Example:\n  holdfast cluster undrain 2 --dir /tmp/hf")]
    Undrain(NodeArg),
}

#[derive(Args, Clone, Debug)]
pub struct NodeArg {
    /// The node's id, from 1
    #[arg(value_name = "ID")]
    pub id: u64,
    #[command(flatten)]
    pub dir: DirArg,
}

#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    #[command(flatten)]
    pub dir: DirArg,
}

/// # Errors
/// What went wrong, with its exit code.
pub async fn run(command: ClusterCommand, output: Output) -> Result<(), Failure> {
    match command {
        ClusterCommand::Up(args) => up::up(args, output).await,
        ClusterCommand::Start(args) => up::start(args, output).await,
        ClusterCommand::Stop(args) => stop::stop(args, output).await,
        ClusterCommand::Down(args) => stop::down(&args.dir.dir, output).await,
        ClusterCommand::Status(args) => status::status(&args.dir.dir, output).await,
        ClusterCommand::Drain(args) => drain::drain(args, output).await,
        ClusterCommand::Undrain(args) => drain::undrain(args, output).await,
    }
}
