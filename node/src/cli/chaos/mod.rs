//! `holdfast chaos`: failure drills from the first plan to the verdict.
//!
//! Parses, calls the crate of the same name, prints. What a fault does and how it is undone, what a
//! drill says and what had to hold is there.

mod ground;
mod heal;
mod inject;
mod list;
mod plan;
mod run;
mod verdict;
mod warden;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum ChaosCommand {
    /// Run a drill, and be told what held
    #[command(
        after_help = "Examples:\n  holdfast chaos run leader-churn                  a cluster of its own, gone afterwards\n  holdfast chaos run my.toml --dry-run             the plan and the predicted impact\n  holdfast chaos run flapping-link --dir /tmp/hf   a local cluster that runs\n  holdfast chaos run bridge --url http://10.0.0.1:8080 --token \"$TOKEN\""
    )]
    Run(run::RunArgs),
    /// List faults and drills
    #[command(
        after_help = "Examples:\n  holdfast chaos list\n  holdfast chaos list faults --output json\n  holdfast chaos list disk.eio"
    )]
    List(list::ListArgs),
    /// Say whether a drill makes sense
    #[command(after_help = "Example:\n  holdfast chaos check my.toml")]
    Check(plan::CheckArgs),
    /// Write a drill to start from
    #[command(
        after_help = "Examples:\n  holdfast chaos init my.toml\n  holdfast chaos init my.toml --drill kitchen-sink"
    )]
    Init(plan::InitArgs),
    /// Inject one fault by hand, for a while
    #[command(
        after_help = "Examples:\n  holdfast chaos inject process.pause --on node:2 --for 10s --dir /tmp/hf\n  holdfast chaos inject link.latency --on busiest --with ms=200 --url http://10.0.0.1:8080"
    )]
    Inject(inject::InjectArgs),
    /// Undo whatever drills have left behind
    #[command(after_help = "Examples:\n  holdfast chaos heal\n  holdfast chaos heal --dir /tmp/hf")]
    Heal(heal::HealArgs),
    /// Make the report of a drill again, and print its verdict
    #[command(after_help = "Example:\n  holdfast chaos report chaos-leader-churn-1")]
    Report(verdict::ReportArgs),
    /// Break and mend for a drill, which starts this by itself
    #[command(
        hide = true,
        after_help = "Example:\n  (started by `holdfast chaos run` and `inject`)"
    )]
    Warden,
}

/// Returns the exit code where the command judges by itself.
///
/// # Errors
/// 65 for a drill that makes no sense, 69 when nothing answers, 74 for the disk, 75 when the bench
/// broke.
pub fn run(command: ChaosCommand, output: Output) -> Result<u8, Failure> {
    match command {
        ChaosCommand::Run(args) => run::run(&args, output),
        ChaosCommand::List(args) => list::list(&args, output),
        ChaosCommand::Check(args) => plan::check(&args, output),
        ChaosCommand::Init(args) => plan::init(&args, output),
        ChaosCommand::Inject(args) => inject::inject(&args, output),
        ChaosCommand::Heal(args) => heal::heal(&args, output),
        ChaosCommand::Report(args) => verdict::report(&args, output),
        ChaosCommand::Warden => warden::serve(),
    }
}

/// A cluster that runs.
#[derive(Args, Clone, Debug, Default)]
pub struct Reach {
    /// Directory of a local cluster: its processes and files are within reach
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// HTTP API of any node of a cluster: only what its nodes allow is within reach
    #[arg(long, value_name = "URL", conflicts_with = "dir")]
    pub url: Option<String>,
    /// The operator's token, for --url
    #[arg(long, env = "HOLDFAST_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
}
