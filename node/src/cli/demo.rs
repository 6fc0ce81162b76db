//! `holdfast demo`: three nodes, a fleet, one `kill -9`, and a verdict that anyone can read.
//!
//! Runs for about a minute and leaves nothing behind, also when it is interrupted or fails.

use std::io::IsTerminal;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chaos::verdict::{grouped, Summary};
use chaos::{read_back, Fact, Findings, ReadBack, Verdict};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Ledger, Load, Progress};

use super::local::{HarnessError, Interrupt, LocalCluster, Plan};

/// The test equipment failed; nothing is said about the product.
const EXIT_HARNESS: u8 = 75;
/// Messages a second of one device.
const RATE_PER_DEVICE: f64 = 20.0;
/// Well below the packet ids a node remembers per device, so that G3 holds for MQTT 3.1.1 as well.
const WINDOW: u16 = 16;
const TWIN_INTERVAL: Duration = Duration::from_secs(5);
/// How long the killed node stays away.
const AWAY: Duration = Duration::from_secs(4);
/// How long unanswered publishes may take after the last one was sent.
const DRAIN: Duration = Duration::from_secs(20);
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Run a local cluster under load, kill a node, and check that nothing acknowledged is lost
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast demo\n  holdfast demo --duration 2m --devices 500\n\nEnds with 0 when nothing acknowledged was lost, 1 when something was, 75 when the demo itself failed."
)]
pub struct DemoArgs {
    /// How long the fleet publishes; the node is killed in the middle (10s..1h)
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub duration: Duration,
    /// Simulated devices, each over a socket of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub devices: u32,
    /// Node processes; a majority survives the kill
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    pub nodes: u16,
    /// Keep the cluster's directory (data, logs) and say where it is; its processes end anyway
    #[arg(long)]
    pub keep: bool,
}

/// `30s`, `2m`, `500ms`, `1h`, or plain seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "use a number and a unit, such as 30s or 2m".to_owned())?;
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => return Err(format!("{unit:?} is no unit; use ms, s, m or h")),
    };
    let time = Duration::from_millis(number.saturating_mul(millis));
    match (Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&time) {
        true => Ok(time),
        false => Err("allowed is 1s to 1h".into()),
    }
}

/// Runs the demo and returns the exit code: 0 nothing lost, 1 a promise broken, 75 it failed itself.
pub async fn run(args: DemoArgs) -> u8 {
    let interrupt = match Interrupt::follow() {
        Ok(interrupt) => interrupt,
        Err(error) => return failed(&error),
    };
    match tokio::task::spawn_blocking(move || demo(&args, &interrupt)).await {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&HarnessError::new("the demo ended early", error)),
    }
}

fn failed(error: &HarnessError) -> u8 {
    eprintln!("the demo could not be completed: {error}");
    eprintln!("This says nothing about the cluster. Processes were ended and temporary files removed.");
    EXIT_HARNESS
}

fn demo(args: &DemoArgs, interrupt: &Interrupt) -> Result<u8, HarnessError> {
    let mut screen = Screen::new(args.duration);
    screen.say(&format!("starting {} nodes", args.nodes));
    let mut cluster = LocalCluster::up(
        Plan {
            nodes: args.nodes,
            keep: args.keep,
            ..Plan::default()
        },
        interrupt,
    )?;
    let (nodes, shards) = (cluster.file.nodes.len(), usize::from(cluster.file.shards));
    screen.say(&format!(
        "{nodes} nodes serve {shards} shards; connecting {} devices",
        args.devices
    ));
    let fleet = connect(args, &cluster, interrupt)?;
    fleet.publish();
    disturb(args, &mut cluster, &fleet, &mut screen, interrupt)?;
    screen.say("waiting for the last acknowledgements");
    let report = fleet.finish(DRAIN).map_err(|e| HarnessError::new("the fleet", e))?;
    let ledger = Arc::new(report.ledger);
    screen.say(&format!(
        "reading back {} acknowledged messages",
        grouped(ledger.acknowledged())
    ));
    let findings = read(&cluster, ledger.clone(), interrupt)?;
    screen.clear();
    if args.keep {
        println!("kept: {}", cluster.dir().display());
    }
    let verdict = Verdict::of(&findings);
    print_verdict(&findings, &ledger, &verdict, (nodes, shards));
    Ok(verdict.exit_code())
}

fn connect(args: &DemoArgs, cluster: &LocalCluster, interrupt: &Interrupt) -> Result<Fleet, HarnessError> {
    let devices = args.devices as usize;
    let config = FleetConfig {
        endpoints: cluster.mqtt(),
        devices,
        device_prefix: "demo".into(),
        load: Load::open(RATE_PER_DEVICE * devices as f64, devices, WINDOW),
        timing: Timing {
            twin_interval: Some(TWIN_INTERVAL),
            ack_timeout: Duration::from_secs(2),
            ..Default::default()
        },
        message_ids: true,
        shards: cluster.file.shards,
        ..Default::default()
    };
    let fleet = Fleet::start(config).map_err(|e| HarnessError::new("the fleet", e))?;
    let end = Instant::now() + CONNECT_DEADLINE;
    while !fleet.wait_connected(devices, Duration::from_millis(100)) {
        interrupt.check()?;
        if Instant::now() > end {
            let connected = Progress::read(&fleet.progress.connected);
            return Err(HarnessError::Failed(format!(
                "only {connected} of {devices} devices could connect"
            )));
        }
    }
    Ok(fleet)
}

/// Load for the whole duration; in the middle a leader is killed, and later started again.
fn disturb(
    args: &DemoArgs,
    cluster: &mut LocalCluster,
    fleet: &Fleet,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let started = Instant::now();
    watch(fleet, screen, started, args.duration / 2, interrupt)?;
    let (victim, led) = cluster.busiest_leader()?;
    cluster
        .process(victim)?
        .kill()
        .map_err(|e| HarnessError::new("the kill", e))?;
    screen.note(&format!(
        "kill -9 of node {victim}, which led {led} of {} shards",
        cluster.file.shards
    ));
    let away = AWAY.min(args.duration / 4);
    watch(fleet, screen, started, args.duration / 2 + away, interrupt)?;
    screen.note(&format!("starting node {victim} again"));
    // Starting takes a while and the fleet is watched meanwhile. When this function is left by an
    // error, the command ends by the same interrupt or with the cluster's directory.
    let healing = std::thread::spawn(cluster.starter(victim));
    let watched = watch(fleet, screen, started, args.duration, interrupt);
    let healed = healing
        .join()
        .map_err(|_| HarnessError::Failed("the restart panicked".into()))?;
    watched.and(healed)?;
    screen.note(&format!("node {victim} serves again"));
    cluster.reload()
}

/// Shows the fleet's counters until `until` after `started`.
fn watch(
    fleet: &Fleet,
    screen: &mut Screen,
    started: Instant,
    until: Duration,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let progress = &fleet.progress;
    while started.elapsed() < until {
        interrupt.sleep(Duration::from_millis(200).min(until.saturating_sub(started.elapsed())))?;
        let counts = format!(
            "{} acknowledged, {} twin reports, {} of {} devices connected, {} reconnects",
            grouped(Progress::read(&progress.acknowledged)),
            grouped(Progress::read(&progress.twin_acknowledged)),
            Progress::read(&progress.connected),
            fleet.devices(),
            grouped(Progress::read(&progress.reconnects)),
        );
        screen.progress(started.elapsed(), &counts);
    }
    Ok(())
}

fn read(cluster: &LocalCluster, ledger: Arc<Ledger>, interrupt: &Interrupt) -> Result<Findings, HarnessError> {
    let from = ReadBack {
        nodes: cluster.http(),
        token: cluster.file.token.clone(),
        request_deadline: READ_DEADLINE,
    };
    cluster.runtime().block_on(async {
        let interrupted = async {
            while interrupt.check().is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            findings = read_back(from, ledger, Arc::new(AtomicU64::new(0))) => {
                findings.map_err(|e| HarnessError::new("reading back", e))
            }
            () = interrupted => Err(HarnessError::Interrupted),
        }
    })
}

/// The verdict line is the last one, whatever was found.
fn print_verdict(findings: &Findings, ledger: &Ledger, verdict: &Verdict, (nodes, shards): (usize, usize)) {
    println!(
        "{} telemetry messages and {} twin reports acknowledged, {} answers unknown ({} of them stored), {} reconnects",
        grouped(findings.acknowledged),
        grouped(findings.twin_acknowledged),
        grouped(findings.unknown_stored + findings.unknown_absent),
        grouped(findings.unknown_stored),
        grouped(ledger.reconnects()),
    );
    match verdict {
        Verdict::Pass => {}
        Verdict::Violation { facts } => facts.iter().for_each(|fact| println!("BROKEN {fact}")),
        Verdict::HarnessFailure { reason } => println!("no verdict: {reason}"),
    }
    let summary = Summary {
        acknowledged: findings.acknowledged + findings.twin_acknowledged,
        lost: findings.lost() + findings.count(Fact::AckedTwinVersionsSurvive),
        duplicated: findings.duplicated(),
        longest_gap: ledger.longest_gap(),
        nodes,
        shards,
    };
    println!("{summary}");
}

/// A bar on a terminal, a line every few seconds elsewhere.
struct Screen {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Screen {
    const LINE_EVERY: Duration = Duration::from_secs(5);

    fn new(duration: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
            let style = ProgressStyle::with_template("{spinner} {wide_bar} {elapsed}\n  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, last_line: None }
    }

    /// What is going on now.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("{text}"),
        }
    }

    /// Something that happened and stays on the screen.
    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn progress(&mut self, elapsed: Duration, counts: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
            bar.set_message(counts.to_owned());
        } else if self.last_line.is_none_or(|at| at.elapsed() >= Self::LINE_EVERY) {
            self.last_line = Some(Instant::now());
            eprintln!("{:>4} s  {counts}", elapsed.as_secs());
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, millis) in [
            ("30s", 30_000),
            ("2m", 120_000),
            ("1500ms", 1_500),
            ("45", 45_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "0s", "2h", "30x", "-5s", "1.5s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
