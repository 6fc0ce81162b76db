//! The command line: what `holdfast` can be told, and how each command ends.
//!
//! Parses, calls, prints. What a node does is in `serve`, what a device does behind the HTTP API.

pub mod api;
pub mod bench;
mod check;
pub mod cluster;
pub mod demo;
mod dev;
mod device;
pub mod failure;
mod local;
mod log;
mod manual;
mod messages;
mod node;
mod nodes;
pub mod output;
mod pages;
#[cfg(feature = "planted")]
mod planted;
mod probe;
mod sim;
mod support;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{error::ErrorKind, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use failure::{Exit, Failure};
use output::Output;

const EXAMPLES: &str = "Examples:\n  holdfast demo                                   three nodes, a kill -9, a verdict\n  holdfast dev                                    one node to play with\n  holdfast cluster up --nodes 3 --dir /tmp/hf     three nodes, as real processes\n  holdfast cluster status --dir /tmp/hf           what runs, and what to worry about\n  holdfast node --config node.toml                one production node\n\nExit codes: 0 success, 1 a verdict found a violation, 64 usage, 65 bad input, 69 unavailable,\n70 internal error, 74 disk, 75 harness failure.";

#[cfg(not(feature = "planted"))]
const VERSION: &str = env!("CARGO_PKG_VERSION");
#[cfg(feature = "planted")]
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " with planted bugs: for drills only, never for data"
);

#[derive(Parser, Debug)]
#[command(name = "holdfast", version = VERSION, about = "An IoT device platform: every device a persistent actor, nothing acknowledged is lost", after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = false)]
struct Cli {
    /// How results are printed
    #[arg(long, value_enum, global = true, default_value = "table")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Three local nodes, a fleet, a kill -9 in the middle, and a verdict
    Demo(demo::DemoArgs),
    /// Measure speed, memory, failover and restart on this machine
    Bench(bench::BenchArgs),
    /// Run one node and everything in it, to play with
    Dev(dev::DevArgs),
    /// Run one node of a cluster
    Node(node::NodeArgs),
    /// Run and look after a local cluster of real processes
    #[command(
        subcommand,
        after_help = "Example:\n  holdfast cluster up --nodes 3 --dir /tmp/hf --detach\n  holdfast cluster status --dir /tmp/hf"
    )]
    Cluster(cluster::ClusterCommand),
    /// Register, look at and change devices
    #[command(
        subcommand,
        after_help = "Example:\n  holdfast device create lamp-1 --dir /tmp/hf\n  holdfast device twin lamp-1 --dir /tmp/hf"
    )]
    Device(device::DeviceCommand),
    /// Drive simulated fleets, and be told whether everything held
    #[command(
        subcommand,
        after_help = "Example:\n  holdfast sim init fleet.toml\n  holdfast sim run fleet.toml --dir /tmp/hf"
    )]
    Sim(sim::SimCommand),
    /// Work with configuration files
    #[command(subcommand, after_help = "Example:\n  holdfast config check /etc/holdfast/node.toml")]
    Config(check::ConfigCommand),
    /// Look at and change what running nodes write to their logs
    #[command(
        subcommand,
        after_help = "Example:\n  holdfast log level --dir /tmp/hf --filter debug --for 10m"
    )]
    Log(log::LogCommand),
    /// Collect what somebody needs who helps you, in one archive without secrets
    SupportBundle(support::SupportArgs),
    /// Ask a node whether it lives or is ready, for health checks
    Probe(probe::ProbeArgs),
    /// Print completions for a shell
    Completions(pages::CompletionsArgs),
    /// Write man pages, one per command
    Man(pages::ManArgs),
}

/// Runs the program; the exit code says how it ended (see [`Exit`]).
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = command().try_get_matches_from(arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(cli) {
        Ok(ended) => ExitCode::from(ended),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{failure}");
            code(failure.exit)
        }
    }
}

/// All that can be said on the command line, with everything there is to say about it.
fn command() -> clap::Command {
    manual::complete(Cli::command())
}

/// Returns the exit code of a command that judges by itself, else success.
fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let output = cli.output;
    match cli.command {
        Command::Demo(args) => return wait(async { Ok(demo::run(args).await) }),
        Command::Bench(args) => return wait(async { Ok(bench::run(args, output).await) }),
        Command::Sim(command) => return sim::run(command, output),
        Command::Dev(args) => dev::run(&args, output),
        Command::Node(args) => node::run(&args),
        Command::Cluster(command) => wait(cluster::run(command, output)),
        Command::Device(command) => wait(device::run(command, output)),
        Command::Config(command) => check::run(command, output),
        Command::Log(command) => wait(log::run(command, output)),
        Command::SupportBundle(args) => wait(support::run(args, output)),
        Command::Probe(args) => wait(probe::run(args, output)),
        Command::Completions(args) => {
            pages::completions(&args, command());
            Ok(())
        }
        Command::Man(args) => pages::man(&args, command(), output),
    }?;
    Ok(Exit::Success as u8)
}

/// Runs an asynchronous command to its end on this thread.
fn wait<T>(command: impl std::future::Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Internal, "no runtime").because(error))?;
    runtime.block_on(command)
}

/// `--help` and `--version` are answers, everything else clap says is a mistake.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => code(Exit::Success),
        _ => code(Exit::Usage),
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
