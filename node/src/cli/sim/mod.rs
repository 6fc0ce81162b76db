//! `holdfast sim`: describe a fleet, drive it, and be told whether everything held.
//!
//! Parses, calls `simulator`, prints. What a scenario says, how it is driven and judged is there.

mod drive;
mod plan;
pub(super) mod screen;
mod verdict;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum SimCommand {
    /// Drive a scenario, audit what is stored, and write a report
    #[command(
        after_help = "Examples:\n  holdfast sim init fleet.toml && holdfast sim run fleet.toml --dir /tmp/hf\n  holdfast sim run fleet.toml --broker --mqtt 127.0.0.1:1883     any MQTT broker"
    )]
    Run(Box<drive::RunArgs>),
    /// Say whether a scenario makes sense, and what it would do
    #[command(after_help = "Example:\n  holdfast sim check fleet.toml --digest")]
    Check(plan::CheckArgs),
    /// Write a scenario to start from, with comments
    #[command(after_help = "Example:\n  holdfast sim init fleet.toml")]
    Init(plan::InitArgs),
    /// List the profiles that ship, or show one to copy
    #[command(after_help = "Example:\n  holdfast sim profiles vehicle")]
    Profiles(plan::ProfilesArgs),
    /// Print the JSON schema of scenario files, for editors
    #[command(after_help = "Example:\n  holdfast sim schema > scenario.schema.json")]
    Schema,
    /// Make the report of a run again, and print its verdict
    #[command(after_help = "Example:\n  holdfast sim report sim-a-mixed-fleet-1")]
    Report(verdict::ReportArgs),
    /// Read the cluster back once more and judge a run anew
    #[command(after_help = "Example:\n  holdfast sim audit sim-a-mixed-fleet-1")]
    Audit(verdict::ReportArgs),
    /// Print every recorded operation of a run as JSON, one a line
    #[command(
        after_help = "Example:\n  holdfast sim history sim-a-mixed-fleet-1 | jq -r 'select(.outcome == \"unknown\") | .device'"
    )]
    History(verdict::ReportArgs),
    /// Drive a part of a fleet for `sim run`, which starts this by itself
    #[command(
        hide = true,
        after_help = "Example:\n  (started by `holdfast sim run` with run.workers above 1)"
    )]
    Worker,
}

/// Returns the exit code where the command judges by itself.
///
/// # Errors
/// 65 for a scenario that makes no sense, 69 when nothing answers, 74 for the disk, 75 for a
/// machine that is too small.
pub fn run(command: SimCommand, output: Output) -> Result<u8, Failure> {
    match command {
        SimCommand::Run(args) => drive::run(&args, output),
        SimCommand::Check(args) => plan::check(&args, output),
        SimCommand::Init(args) => plan::init(&args, output),
        SimCommand::Profiles(args) => plan::profiles(&args, output),
        SimCommand::Schema => plan::schema(),
        SimCommand::Report(args) => verdict::report(&args, output),
        SimCommand::Audit(args) => verdict::audit(&args, output),
        SimCommand::History(args) => verdict::history(&args),
        SimCommand::Worker => drive::worker(),
    }
}

/// What `run` and `check` change in a scenario.
#[derive(Args, Clone, Debug)]
pub struct Changes {
    /// The local cluster to drive (its cluster.json tells addresses and token); instead of the
    /// scenario's target
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// MQTT endpoints, host:port; instead of the scenario's
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    mqtt: Vec<String>,
    /// Endpoints of MQTT over WebSocket, host:port; instead of the scenario's
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ws: Vec<String>,
    /// HTTP endpoints, host:port; instead of the scenario's
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    http: Vec<String>,
    /// Drive any MQTT broker with the telemetry of the scenario: no operator, no audit, MQTT
    /// instead of HTTP
    #[arg(long)]
    broker: bool,
    /// Seed of the plan; instead of the scenario's
    #[arg(long)]
    seed: Option<u64>,
    /// Processes that share the fleet (1..64); instead of the scenario's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Threads of each process (1..64); instead of the scenario's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// How much faster scenario time passes than real time (1..100000); instead of the scenario's
    #[arg(long, value_name = "FACTOR")]
    compression: Option<f64>,
    /// Closed loop: devices wait for answers, which hides stalls; labelled in every output
    #[arg(long)]
    closed: bool,
    /// Serve the simulator's own /metrics here while it runs, ip:port
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// Do not read the cluster back
    #[arg(long)]
    no_audit: bool,
}

impl Changes {
    fn overrides(&self) -> simulator::scenario::Overrides {
        simulator::scenario::Overrides {
            cluster: self.dir.clone(),
            mqtt: self.mqtt.clone(),
            ws: self.ws.clone(),
            http: self.http.clone(),
            broker: self.broker,
            seed: self.seed,
            workers: self.workers,
            threads: self.threads,
            compression: self.compression,
            closed: self.closed,
            metrics: self.metrics.clone(),
            no_audit: self.no_audit,
        }
    }
}
