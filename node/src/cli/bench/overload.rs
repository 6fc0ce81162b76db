//! More load than the cluster takes: what is still carried out, at what latency, and what it costs.
//!
//! The maximum is measured first, in the same run, and every figure is a ratio to it or stands
//! beside it. The generator does not spare the server: it sends when a message is due, whatever
//! the answers are. What finds its window full is *held back* (the server does not read: TCP
//! back-pressure) and never sent, what is answered with a refusal is *refused*; offered is what
//! was sent and what was held back.

use std::time::{Duration, Instant};

use simulator::drive::tally::Counts;

use super::fleet::{Fleet, FleetSpec, Load};
use super::recorded::Stretch;
use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Publishes one device may have unacknowledged; what the server allows.
const WINDOW: u16 = 32;
/// Devices that send one message a second throughout, to see what the others do to them.
const QUIET_DEVICES: u32 = 50;
/// The load falls back to half of the maximum; a slice in which nothing is refused or late is calm.
const SLICE: Duration = Duration::from_millis(500);
const RECOVERY_DEADLINE: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(20);

/// One measurement under one load.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    offered: f64,
    goodput: f64,
    refused: f64,
    held_back: f64,
    p50_ms: f64,
    p99_ms: f64,
    quiet_p99_ms: f64,
    resident_mb: f64,
    elections: f64,
    recovery_ms: f64,
}

type Figure = (&'static str, &'static str, fn(&Sample) -> f64);

const FIGURES: [Figure; 9] = [
    ("offered", "msg/s", |s| s.offered),
    ("goodput", "msg/s", |s| s.goodput),
    ("refused", "msg/s", |s| s.refused),
    ("held back", "msg/s", |s| s.held_back),
    ("latency p50 of what is admitted", "ms", |s| s.p50_ms),
    ("latency p99 of what is admitted", "ms", |s| s.p99_ms),
    ("latency p99 of quiet devices", "ms", |s| s.quiet_p99_ms),
    ("resident, all nodes, highest", "MB", |s| s.resident_mb),
    ("elections", "", |s| s.elections),
];

pub fn measure(
    args: &BenchArgs,
    cluster: &LocalCluster,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let mut runs = Runs {
        args,
        cluster,
        interrupt,
        run: 0,
    };
    let (mut most, mut twice, mut fivefold) = (Vec::new(), Vec::new(), Vec::new());
    for repetition in 1..=args.repetitions {
        let max = runs.maximum()?;
        note(&format!(
            "overload {repetition}/{}: the maximum is {:.0} msg/s",
            args.repetitions, max.goodput
        ));
        if max.goodput < 1.0 {
            report.note("nothing was acknowledged, so there is no overload to measure");
            return Ok(());
        }
        for (factor, samples) in [(2.0, &mut twice), (5.0, &mut fivefold)] {
            let sample = runs.beyond(factor, max.goodput)?;
            note(&format!(
                "overload {repetition}/{}: {factor} times: {:.0} of {:.0} msg/s, p99 {:.0} ms",
                args.repetitions, sample.goodput, sample.offered, sample.p99_ms
            ));
            samples.push((sample, sample.goodput / max.goodput));
        }
        most.push((max, 1.0));
    }
    for (name, samples) in [
        ("maximum, window 16", &most),
        ("2 times that", &twice),
        ("5 times that", &fivefold),
    ] {
        add(report, name, samples);
    }
    Ok(())
}

fn add(report: &mut Report, name: &str, samples: &[(Sample, f64)]) {
    let mut row = |figure: &str, unit, values: Vec<f64>| {
        report.add(Who::Holdfast, format!("{name}: {figure}"), unit, &values);
    };
    for (figure, unit, value) in &FIGURES {
        row(figure, unit, samples.iter().map(|(sample, _)| value(sample)).collect());
    }
    if samples.iter().any(|(sample, _)| sample.recovery_ms > 0.0) {
        row(
            "goodput, of the maximum",
            "",
            samples.iter().map(|(_, ratio)| *ratio).collect(),
        );
        row(
            "recovery",
            "ms",
            samples.iter().map(|(sample, _)| sample.recovery_ms).collect(),
        );
    }
}

struct Runs<'a> {
    args: &'a BenchArgs,
    cluster: &'a LocalCluster,
    interrupt: &'a Interrupt,
    run: u32,
}

impl Runs<'_> {
    fn spec(&mut self, prefix: &str, devices: u32, load: Load) -> FleetSpec {
        self.run += 1;
        FleetSpec {
            run: self.run,
            payload_bytes: self.args.payload,
            threads: self.args.threads,
            ack_timeout: Duration::from_secs(30),
            ..FleetSpec::new(self.cluster.mqtt(), prefix, devices, load)
        }
    }

    fn maximum(&mut self) -> Result<Sample, HarnessError> {
        let spec = self.spec("over", self.args.devices, Load::Closed { window: 16 });
        let fleet = Fleet::start(&spec)?;
        fleet.wait_publishing(self.interrupt)?;
        self.interrupt.sleep(self.args.warm_up)?;
        let (from_us, to_us, resident) = self.watch(&fleet)?;
        let stretch = fleet.finish(DRAIN)?.stretch(from_us, to_us)?;
        Ok(sample(&stretch, to_us - from_us, resident))
    }

    /// Three fleets connect together: the load, devices that send little meanwhile, and the calm
    /// that follows when the load ends.
    fn beyond(&mut self, factor: f64, max: f64) -> Result<Sample, HarnessError> {
        let devices = self.args.devices;
        let shed = |per_second: f64, window| Load::Shed { per_second, window };
        let mut quiet = self.spec("quiet", QUIET_DEVICES, shed(f64::from(QUIET_DEVICES), 1));
        let mut calm = self.spec("calm", devices, shed(max / 2.0, WINDOW));
        let mut load = self.spec("over", devices, shed(max * factor, WINDOW));
        let begins = Instant::now() + load.connect_time() * 2;
        let ends = begins + self.args.warm_up + self.args.time;
        (quiet.publish_at, load.publish_at, calm.publish_at) = (Some(begins), Some(begins), Some(ends));
        let (quiet, calm, fleet) = (Fleet::start(&quiet)?, Fleet::start(&calm)?, Fleet::start(&load)?);
        calm.wait_connected(self.interrupt)?;
        fleet.wait_connected(self.interrupt)?;
        quiet.wait_publishing(self.interrupt)?;
        let terms = self.cluster.terms()?;
        self.interrupt.sleep(self.args.warm_up)?;
        let quiet_from_us = quiet.now_us();
        let (from_us, to_us, resident) = self.watch(&fleet)?;
        let quiet_to_us = quiet.now_us();
        let ended = Instant::now();
        let stretch = fleet.finish(Duration::ZERO)?.stretch(from_us, to_us)?;
        let recovery_ms = self.recovered(&calm, ended)?.as_secs_f64() * 1_000.0;
        calm.finish(DRAIN)?;
        let quiet = quiet.finish(DRAIN)?.stretch(quiet_from_us, quiet_to_us)?;
        Ok(Sample {
            quiet_p99_ms: quiet.p50_p99_ms().1,
            elections: self.cluster.terms()?.saturating_sub(terms) as f64,
            recovery_ms,
            ..sample(&stretch, to_us - from_us, resident)
        })
    }

    /// The measured time in the fleet's µs, and the most that all nodes held in memory meanwhile.
    fn watch(&self, fleet: &Fleet) -> Result<(u64, u64, u64), HarnessError> {
        let (from_us, started, mut resident) = (fleet.now_us(), Instant::now(), 0);
        while started.elapsed() < self.args.time {
            self.interrupt.sleep(Duration::from_millis(200))?;
            resident = resident.max(self.cluster.resident_bytes()?);
        }
        Ok((from_us, fleet.now_us(), resident))
    }

    /// From the end of the overload to the end of the first calm slice.
    fn recovered(&self, calm: &Fleet, ended: Instant) -> Result<Duration, HarnessError> {
        loop {
            let before = calm.counts();
            self.interrupt.sleep(SLICE)?;
            let slice = since(&calm.counts(), &before);
            let served = slice.acked * 100 >= slice.sent * 95;
            if slice.sent > 0 && served && slice.refused + slice.dropped == 0 {
                return Ok(ended.elapsed());
            }
            if ended.elapsed() > RECOVERY_DEADLINE {
                note("the cluster has not recovered; its time is given as that of the wait");
                return Ok(RECOVERY_DEADLINE);
            }
        }
    }
}

fn sample(stretch: &Stretch, long_us: u64, resident: u64) -> Sample {
    let per_second = |count: u64| count as f64 * 1e6 / long_us.max(1) as f64;
    let (p50_ms, p99_ms) = stretch.p50_p99_ms();
    Sample {
        offered: per_second(stretch.sent + stretch.dropped),
        goodput: per_second(stretch.acked),
        refused: per_second(stretch.refused),
        held_back: per_second(stretch.dropped),
        p50_ms,
        p99_ms,
        resident_mb: resident as f64 / 1e6,
        ..Sample::default()
    }
}

fn since(now: &Counts, before: &Counts) -> Counts {
    Counts {
        sent: now.sent - before.sent,
        acked: now.acked - before.acked,
        refused: now.refused - before.refused,
        dropped: now.dropped - before.dropped,
        ..Counts::default()
    }
}
