//! `holdfast demo`: three nodes, a fleet, one `kill -9`, and a verdict that anyone can read.
//!
//! Runs for about a minute and leaves nothing behind, also when it is interrupted or fails.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chaos::verdict::Summary;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use simulator::audit::{Fact, Findings};
use simulator::report::conclude::{conclude, Auditing};
use simulator::report::numbers::grouped;
use simulator::report::{Report, Verdict};
use simulator::run::{self, Options, View, Watcher, Wish};
use simulator::scenario::{self, Loaded};

use super::local::{HarnessError, Interrupt, LocalCluster, Plan};

/// The test equipment failed; nothing is said about the product.
const EXIT_HARNESS: u8 = 75;
/// How long the killed node stays away.
const AWAY: Duration = Duration::from_secs(4);
/// Connections opened a second before the fleet publishes in full.
const CONNECT_RATE: u32 = 200;
/// Names the only run of the demo in message ids.
const RUN: u32 = 1;
/// What the fleet does, beside how many and how long.
const SCENARIO: &str = include_str!("demo.toml");

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
    let mut screen = Screen::new(args.duration + ramp(args.devices));
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
    let out = cluster.dir().with_file_name("report");
    let loaded = scenario(args, cluster.dir(), &out)?;
    let options = Options {
        out: out.clone(),
        run: RUN,
        worker: Vec::new(),
        version: format!("holdfast {}", env!("CARGO_PKG_VERSION")),
        resume: false,
    };
    let mut course = Course::new(args, &mut cluster, &mut screen, interrupt);
    let ran = run::run(loaded, &options, &mut course);
    course.finish()?;
    ran.map_err(|e| HarnessError::new("the fleet", e))?;
    screen.say("reading back what was acknowledged");
    let report = judge(&out, interrupt)?;
    screen.clear();
    if args.keep {
        println!("kept: {}", cluster.dir().display());
        println!("report: {}", out.join("report.html").display());
    }
    print_verdict(&report, (nodes, shards));
    Ok(report.verdict.exit_code())
}

/// How long connecting takes; the load rises meanwhile.
fn ramp(devices: u32) -> Duration {
    Duration::from_secs(u64::from(devices.div_ceil(CONNECT_RATE)).max(2))
}

fn scenario(args: &DemoArgs, cluster: &Path, out: &Path) -> Result<Loaded, HarnessError> {
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let text = SCENARIO
        .replace("@CLUSTER@", &quoted(cluster))
        .replace("@DEVICES@", &args.devices.to_string())
        .replace("@RAMP@", &format!("{}ms", ramp(args.devices).as_millis()))
        .replace("@DURATION@", &format!("{}ms", args.duration.as_millis()));
    scenario::parse(&out.join("scenario.toml"), text).map_err(|e| HarnessError::new("the demo's scenario", e))
}

/// What happens to the cluster while the fleet runs: in the middle a leader is killed, and later
/// started again.
struct Course<'a> {
    cluster: &'a mut LocalCluster,
    screen: &'a mut Screen,
    interrupt: &'a Interrupt,
    kill_at: Duration,
    heal_at: Duration,
    victim: Option<u64>,
    /// Starting takes a while and the fleet goes on meanwhile.
    healing: Option<JoinHandle<Result<(), HarnessError>>>,
    healed: bool,
    notes: Vec<String>,
    failure: Option<HarnessError>,
}

impl<'a> Course<'a> {
    fn new(args: &DemoArgs, cluster: &'a mut LocalCluster, screen: &'a mut Screen, interrupt: &'a Interrupt) -> Self {
        let kill_at = ramp(args.devices) + args.duration / 2;
        Self {
            cluster,
            screen,
            interrupt,
            kill_at,
            heal_at: kill_at + AWAY.min(args.duration / 4),
            victim: None,
            healing: None,
            healed: false,
            notes: Vec::new(),
            failure: None,
        }
    }

    fn kill(&mut self) -> Result<(), HarnessError> {
        let (victim, led) = self.cluster.busiest_leader()?;
        let process = self.cluster.process(victim)?;
        process.kill().map_err(|e| HarnessError::new("the kill", e))?;
        self.victim = Some(victim);
        let shards = self.cluster.file.shards;
        self.tell(format!("kill -9 of node {victim}, which led {led} of {shards} shards"));
        Ok(())
    }

    fn heal(&mut self, victim: u64) {
        self.tell(format!("starting node {victim} again"));
        self.healing = Some(std::thread::spawn(self.cluster.starter(victim)));
    }

    /// Waits for the node that was started; the cluster is whole again afterwards.
    fn join(&mut self) -> Result<(), HarnessError> {
        if let Some(healing) = self.healing.take() {
            let healed = healing.join();
            healed.map_err(|_| HarnessError::Failed("the restart panicked".into()))??;
            self.cluster.reload()?;
            self.healed = true;
            if let Some(victim) = self.victim {
                self.tell(format!("node {victim} serves again"));
            }
        }
        Ok(())
    }

    fn tell(&mut self, text: String) {
        self.screen.note(&text);
        self.notes.push(text);
    }

    fn disturb(&mut self, elapsed: Duration) -> Result<(), HarnessError> {
        match self.victim {
            None if elapsed >= self.kill_at => self.kill(),
            Some(victim) if elapsed >= self.heal_at && self.healing.is_none() && !self.healed => {
                self.heal(victim);
                Ok(())
            }
            _ if self.healing.as_ref().is_some_and(JoinHandle::is_finished) => self.join(),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// The user interrupted, or a node could not be killed or started again.
    fn finish(mut self) -> Result<(), HarnessError> {
        let joined = self.join();
        self.interrupt.check()?;
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => joined,
        }
    }
}

impl Watcher for Course<'_> {
    fn prepared(&mut self, _: &str) {}

    fn update(&mut self, view: &View<'_>) {
        let elapsed = Duration::from_micros(view.elapsed_us);
        let counts = format!(
            "{} acknowledged, {} twin reports, {} of {} devices connected, {} connections lost",
            grouped(view.total.counts.acked),
            grouped(view.total.counts.reports_acked),
            view.states.connected,
            view.devices,
            grouped(view.total.counts.lost),
        );
        self.screen.progress(elapsed, &counts);
        if self.failure.is_none() && view.mode == simulator::drive::Mode::Run {
            self.failure = self.disturb(elapsed).err();
        }
    }

    fn note(&mut self, _: &str) {}

    fn wish(&self) -> Wish {
        match self.failure.is_some() || self.interrupt.check().is_err() {
            true => Wish::Abort,
            false => Wish::GoOn,
        }
    }

    fn outside_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// Reads everything back. When the user interrupts, the reading thread is left alone and ends with
/// the command.
fn judge(out: &Path, interrupt: &Interrupt) -> Result<Report, HarnessError> {
    let dir: PathBuf = out.to_owned();
    let reading = std::thread::spawn(move || conclude(&dir, Auditing::Now, &AtomicU64::new(0)));
    while !reading.is_finished() {
        interrupt.sleep(Duration::from_millis(50))?;
    }
    let concluded = reading
        .join()
        .map_err(|_| HarnessError::Failed("reading back panicked".into()))?;
    match concluded {
        Ok((report, None)) => Ok(report),
        Ok((_, Some(error))) | Err(error) => Err(HarnessError::new("reading back", error)),
    }
}

/// The verdict line is the last one, whatever was found.
fn print_verdict(report: &Report, (nodes, shards): (usize, usize)) {
    let none = Findings::default();
    let (counts, audit) = (&report.counts, report.audit.as_ref().unwrap_or(&none));
    println!(
        "{} telemetry messages and {} twin reports acknowledged, {} answers unknown ({} of them stored), {} connections lost",
        grouped(counts.acked),
        grouped(counts.reports_acked),
        grouped(audit.unknown_stored + audit.unknown_absent),
        grouped(audit.unknown_stored),
        grouped(counts.lost),
    );
    for violation in audit.violations.iter().take(20) {
        println!("BROKEN {violation}");
    }
    if report.verdict != Verdict::Pass {
        println!("{}: {}", report.verdict, report.reasons.join("; "));
    }
    let summary = Summary {
        acknowledged: counts.acked + counts.reports_acked,
        lost: audit.count(Fact::AckedSurvive) + audit.count(Fact::TwinWritesSurvive),
        duplicated: audit.count(Fact::StoredOnce),
        longest_gap: Duration::from_secs_f64(report.longest_wait_ms / 1e3),
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

    /// The scenario is sound for the least and for the most that the command line allows.
    #[test]
    fn the_scenario_is_sound_for_every_size() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: DemoArgs,
        }
        for (devices, duration) in [("1", "10s"), ("100", "30s"), ("10000", "1h")] {
            let line = Line::parse_from(["demo", "--devices", devices, "--duration", duration]);
            let out = Path::new("/tmp/a \"demo\"");
            let loaded = scenario(&line.args, out, out).unwrap();
            assert_eq!(loaded.scenario.fleet[0].count.to_string(), devices);
            let seconds: f64 = loaded.scenario.phase.iter().map(|p| p.duration.as_secs_f64()).sum();
            assert_eq!(seconds, (line.args.duration + ramp(line.args.devices)).as_secs_f64());
            assert!(loaded.scenario.audit.enabled);
        }
    }

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
