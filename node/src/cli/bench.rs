//! `holdfast bench`: what this program does on this machine, beside what the machine can do at all
//! and what Mosquitto does with the same load in the same run.
//!
//! The load generator lives in this process on few threads and shares the machine with what it
//! measures; CPU per message of the servers is therefore the figure to compare between machines,
//! messages per second only within one run. Every section is bounded in count and time.

mod failover;
mod fleet;
mod ingest;
mod limits;
mod memory;
mod messages;
mod methods;
mod mosquitto;
mod overload;
mod recorded;
mod report;
mod restart;
mod scale;
mod twin;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::local::{HarnessError, Interrupt, LocalCluster, Plan};
use super::output::Output;
use report::Report;

/// The test equipment failed; nothing is said about the product.
const EXIT_HARNESS: u8 = 75;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// fsync rate and loopback round trips of this machine
    Limits,
    /// QoS 1 throughput, CPU, fsyncs and latency, beside Mosquitto
    Ingest,
    /// Round trips of method calls
    Methods,
    /// Two and five times as much as the cluster takes: goodput, refusals, latency, memory, recovery
    Overload,
    /// Bytes per connection and per device
    Memory,
    /// Write gap of each shard after kill -9 and after SIGSTOP of a leader
    Failover,
    /// Time until everything serves after kill -9 of all nodes
    Restart,
    /// Twin reports over MQTT: patches a second and CPU per patch
    Twin,
    /// The same load with few and with many devices registered; takes minutes, only when asked for
    Scale,
    /// Time from an operator's request to the device that gets the message
    Messages,
}

/// Measure speed, memory, failover and restart on this machine
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast bench\n  holdfast bench --section ingest --repetitions 5 --output json\n  holdfast bench --section restart --restart-devices 200000 --restart-bytes 5GB\n  holdfast bench --section scale --scale-devices 1000000 --scale-connected 18000\n\nTakes about ten minutes with the defaults. Mosquitto is measured where /usr/sbin/mosquitto is installed."
)]
pub struct BenchArgs {
    /// What to measure; may be given several times [default: all but scale]
    #[arg(long = "section", value_enum)]
    pub sections: Vec<Section>,
    /// Directory for the clusters' data; measure on the disk that matters [default: temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Repetitions of each ingest measurement; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub repetitions: u32,
    /// How long each ingest measurement lasts
    #[arg(long, default_value = "6s", value_parser = super::demo::duration)]
    pub time: Duration,
    /// How long the load runs before each ingest measurement
    #[arg(long, default_value = "2s", value_parser = super::demo::duration)]
    pub warm_up: Duration,
    /// Devices of the ingest measurements
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub devices: u32,
    /// Bytes per message
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=262_144))]
    pub payload: u32,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub threads: u32,
    /// Idle connections to hold (each needs a file here and one in a node)
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=45_000))]
    pub idle_connections: u32,
    /// Devices to register for the memory per device
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    pub registered_devices: u32,
    /// kill -9 and SIGSTOP, this many times each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub failover_repetitions: u32,
    /// Registered devices before the restart
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub restart_devices: u32,
    /// Telemetry stored before the restart, such as 200MB or 5GB
    #[arg(long, default_value = "200MB", value_parser = bytes)]
    pub restart_bytes: u64,
    /// Devices to register for `scale`
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    pub scale_devices: u32,
    /// Devices of `scale` that are connected and publish (each needs a file here and one in a node)
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1_000..=45_000))]
    pub scale_connected: u32,
    /// Messages a second of `scale`, over all connected devices
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub scale_rate: u32,
}

impl BenchArgs {
    fn wants(&self, section: Section) -> bool {
        match self.sections.is_empty() {
            true => section != Section::Scale,
            false => self.sections.contains(&section),
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            nodes: 3,
            parent: self.dir.clone(),
            ..Plan::default()
        }
    }
}

/// `200MB`, `5GB`, `64KB` (powers of ten), or plain bytes; up to 100 GB.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "use a number and a unit, such as 200MB".to_owned())?;
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => return Err(format!("{unit:?} is no unit; use B, KB, MB or GB")),
    };
    let size = number.saturating_mul(factor);
    match (1..=100_000_000_000).contains(&size) {
        true => Ok(size),
        false => Err("allowed is 1B to 100GB".into()),
    }
}

/// Measures, prints, and returns the exit code: 0 measured, 1 an acknowledged message was lost on
/// the way, 75 something could not be measured.
pub async fn run(args: BenchArgs, output: Output) -> u8 {
    let result = match Interrupt::follow() {
        Ok(interrupt) => tokio::task::spawn_blocking(move || bench(&args, output, &interrupt)).await,
        Err(error) => Ok(Err(error)),
    };
    match result {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("the benchmark could not be completed: {error}");
            EXIT_HARNESS
        }
        Err(error) => {
            eprintln!("the benchmark ended early: {error}");
            EXIT_HARNESS
        }
    }
}

/// Sections run one after another; what was measured is printed even if a later one fails.
fn bench(args: &BenchArgs, output: Output, interrupt: &Interrupt) -> Result<u8, HarnessError> {
    raise_file_limit();
    let mut report = Report::default();
    let measured = sections(args, &mut report, interrupt);
    match output {
        Output::Table => report.print_table(),
        Output::Json => report.print_json()?,
    }
    measured?;
    Ok(report.exit_code())
}

fn sections(args: &BenchArgs, report: &mut Report, interrupt: &Interrupt) -> Result<(), HarnessError> {
    if args.wants(Section::Limits) {
        note("machine limits");
        limits::measure(args, report, interrupt)?;
    }
    if args.wants(Section::Ingest) {
        let cluster = LocalCluster::up(args.plan(), interrupt)?;
        ingest::measure(args, &cluster, report, interrupt)?;
    }
    if args.wants(Section::Twin) {
        let cluster = LocalCluster::up(args.plan(), interrupt)?;
        twin::measure(args, &cluster, report, interrupt)?;
    }
    if args.wants(Section::Methods) {
        let cluster = LocalCluster::up(args.plan(), interrupt)?;
        methods::measure(args, &cluster, report, interrupt)?;
    }
    if args.wants(Section::Overload) {
        let cluster = LocalCluster::up(args.plan(), interrupt)?;
        overload::measure(args, &cluster, report, interrupt)?;
    }
    if args.wants(Section::Failover) {
        let mut cluster = LocalCluster::up(args.plan(), interrupt)?;
        failover::measure(args, &mut cluster, report, interrupt)?;
    }
    if args.wants(Section::Memory) {
        memory::measure(args, report, interrupt)?;
    }
    if args.wants(Section::Restart) {
        restart::measure(args, report, interrupt)?;
    }
    if args.wants(Section::Scale) {
        scale::measure(args, report, interrupt)?;
    }
    if args.wants(Section::Messages) {
        let cluster = LocalCluster::up(args.plan(), interrupt)?;
        messages::measure(args, &cluster, report, interrupt)?;
    }
    Ok(())
}

/// Progress, on stderr so that the table or JSON stands alone on stdout.
fn note(text: &str) {
    eprintln!("bench: {text}");
}

/// Thousands of sockets need as many files; the nodes inherit the limit.
fn raise_file_limit() {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            note(&format!("the limit of open files stays as it is: {error}"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, size) in [
            ("200MB", 200_000_000),
            ("5GB", 5_000_000_000),
            ("1", 1),
            ("64KB", 64_000),
            ("7B", 7),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for bad in ["", "MB", "0", "5TB", "-1", "101GB", "1.5GB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
