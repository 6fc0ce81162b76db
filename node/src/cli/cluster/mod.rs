//! `holdfast cluster …`: a local cluster of real processes, in one directory.

mod add;
mod directory;
mod drain;
mod init;
mod process;
mod rebalance;
mod rejoin;
mod reload;
mod remove;
mod repair;
mod repair_remote;
mod scrub;
mod status;
mod stop;
mod token;
mod up;
mod view;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use directory::{
    make_directory, ClusterFile, Directory, DirectoryLock, NodeEntry, Plan, ALLOW_DRILLS, DEFAULT_BASE_PORT,
    PORTS_PER_NODE,
};
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
        after_help = "Example:\n  holdfast cluster drain 2 --dir /tmp/hf && holdfast cluster stop 2 --dir /tmp/hf",
        after_long_help = "Examples:\n  holdfast cluster drain 2 --dir /tmp/hf && holdfast cluster stop 2 --dir /tmp/hf\n  holdfast cluster drain 2 --url http://127.0.0.1:8080 --token \"$TOKEN\"     asks any node\n\nReturns once the node leads nothing any more, at most after 60 s. A drain outlives a restart of\nthe node; end it with `undrain`.\n\nExit codes: 0 drained; 69 nobody answers, or no other replica can take over yet."
    )]
    Drain(drain::DrainArgs),
    /// Let a drained node lead and take connections again
    #[command(
        after_help = "Example:\n  holdfast cluster undrain 2 --dir /tmp/hf",
        after_long_help = "Examples:\n  holdfast cluster undrain 2 --dir /tmp/hf\n  holdfast cluster undrain 2 --url http://127.0.0.1:8080 --token \"$TOKEN\" --wait 5m\n\nLeaderships come back by themselves. Repeating it changes nothing.\n\nExit codes: 0 no longer marked; 69 nobody answers, or the catalog has no leader."
    )]
    Undrain(drain::UndrainArgs),
    /// Let running nodes read their configuration again, as SIGHUP does, and say what came of it
    ///
    /// A file with a mistake is refused as a whole and changes nothing. What can change while a
    /// node runs is in force at once; what needs a restart is named. No connection is dropped.
    #[command(
        after_help = "Example:\n  holdfast cluster reload --dir /tmp/hf",
        after_long_help = "Examples:\n  holdfast cluster reload --dir /tmp/hf\n  holdfast cluster reload --dir /tmp/hf --node 2\n  holdfast cluster reload --url http://127.0.0.1:8080 --token \"$TOKEN\"\n\n`holdfast config check FILE --show-effective` says which keys can be reloaded.\n\nExit codes: 0 taken; 65 a file is refused; 69 a node does not answer."
    )]
    Reload(crate::cli::nodes::Reach),
    /// Let one node, or every node, read everything it has stored, to find rot of the disk
    #[command(
        after_help = "Example:\n  holdfast cluster scrub 2 --dir /tmp/hf\n\nRuns beside other work, and by itself every storage.scrub_interval. State that is found damaged is\nrebuilt by itself; a node whose log is damaged takes no part from then on."
    )]
    Scrub(scrub::ScrubArgs),
    /// Make a new cluster of one node, ready to be started and joined
    #[command(
        after_help = "Example:\n  holdfast cluster init --dir /var/lib/holdfast\n  holdfast node --config /var/lib/holdfast/node-1/node.toml\n\nOther nodes join with cluster.join and a token from `holdfast cluster token create`; see docs/operations."
    )]
    Init(init::InitArgs),
    /// Add nodes to a local cluster, and give them their share of the replicas
    #[command(
        after_help = "Example:\n  holdfast cluster add --nodes 2 --dir /tmp/hf\n\nIt goes on by itself when this command is interrupted; `holdfast cluster rebalance` shows how far it is.\nA cluster of one grows to three replicas with its third node."
    )]
    Add(add::AddArgs),
    /// Move everything off a node, then let it leave for ever
    #[command(
        after_help = "Example:\n  holdfast cluster remove 2 --dir /tmp/hf\n  holdfast cluster remove 3 --dead --dir /tmp/hf      it is gone: make its replicas anew\n\nRefused when fewer nodes would be left than a shard has replicas: add one first."
    )]
    Remove(remove::RemoveArgs),
    /// Make a damaged node whole: wait while it rebuilds itself, or replace it by one with a new id
    #[command(
        after_help = "Example:\n  holdfast cluster repair 2 --dir /tmp/hf\n\nA node that is quarantined is stopped, a new one takes its place, and its directory is set aside.\nThe cluster serves meanwhile. Ends when every replica is a full voter again.",
        after_long_help = "Examples:\n  holdfast cluster repair 2 --dir /tmp/hf\n  holdfast cluster repair 2 --url http://127.0.0.1:8080 --token \"$TOKEN\"     asks any node but that one\n\nOf a local cluster, a node that is quarantined is stopped, a new one takes its place, and its\ndirectory is set aside. By address, nothing on a host is touched: where a node must join first,\nthe command to run on its host is printed, with a join token in it, and waited for; then the old\nid is removed, and its replicas are made anew from the others. Broken off, it can be run again.\nThe cluster serves meanwhile. Ends when every replica is a full voter again."
    )]
    Repair(repair::RepairArgs),
    /// On the host of a node that is lost: make it ready to join again under a new id
    ///
    /// Sets the node's data aside, and rewrites its configuration: cluster.join instead of node.id
    /// and the founders. Touches this host only, and starts nothing.
    #[command(
        after_help = "Example:\n  holdfast cluster rejoin --config /etc/holdfast/node.toml --join 127.0.0.1:8080 --join-token hfj-…\n  systemctl start holdfast\n\n`holdfast cluster repair ID --url …` prints it as it must be run.",
        after_long_help = "Examples:\n  holdfast cluster rejoin --config /etc/holdfast/node.toml --join 127.0.0.1:8080,127.0.0.2:8080 --join-token hfj-…\n  systemctl start holdfast\n\n`holdfast cluster repair ID --url …` prints it as it must be run. The data directory becomes\ndata.damaged-N, the former file node.toml.before-rejoin-N; delete both when nobody needs them.\n\nExit codes: 0 ready to be started; 64 nobody to join is named; 65 the file is refused; 69 the node runs; 74 the disk."
    )]
    Rejoin(rejoin::RejoinArgs),
    /// Spread replicas and leaders evenly, and show how far that is
    #[command(
        after_help = "Example:\n  holdfast cluster rebalance --dir /tmp/hf\n\nCtrl-C ends the showing, not the moving."
    )]
    Rebalance(rebalance::RebalanceArgs),
    /// Tokens that let new nodes join
    #[command(
        subcommand,
        after_help = "Example:\n  holdfast cluster token create --ttl 2h --url http://127.0.0.1:8080 --token \"$TOKEN\""
    )]
    Token(token::TokenCommand),
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
        ClusterCommand::Reload(reach) => reload::reload(reach, output).await,
        ClusterCommand::Scrub(args) => scrub::scrub(args, output).await,
        ClusterCommand::Init(args) => init::init(&args, output),
        ClusterCommand::Add(args) => add::add(args, output).await,
        ClusterCommand::Remove(args) => remove::remove(args, output).await,
        ClusterCommand::Repair(args) => repair::repair(args, output).await,
        ClusterCommand::Rejoin(args) => rejoin::rejoin(&args, output),
        ClusterCommand::Rebalance(args) => rebalance::rebalance(args, output).await,
        ClusterCommand::Token(command) => token::run(command, output).await,
    }
}
