//! More load than the cluster takes: what is still carried out, at what latency, and what it costs.
//!
//! The maximum is measured first, in the same run, and every figure is a ratio to it or stands
//! beside it. The generator does not spare the server: it sends when a message is due, whatever
//! the answers are. What finds its window full is *held back* (the server does not read: TCP
//! back-pressure), what is answered with a refusal is *refused*; the sum is what was offered.

use std::time::{Duration, Instant};

use simulator::{Fleet, FleetConfig, Load, Progress};

use super::report::{Report, Who};
use super::{ingest, note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Publishes one device may have unacknowledged; what the server allows.
const WINDOW: u16 = 32;
/// Devices that send one message a second throughout, to see what the others do to them.
const QUIET_DEVICES: usize = 50;
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
    fn fleet(&mut self, prefix: &str, devices: usize, load: Load) -> Result<Fleet, HarnessError> {
        self.run += 1;
        let config = FleetConfig {
            endpoints: self.cluster.mqtt(),
            devices,
            device_prefix: prefix.to_owned(),
            run: self.run,
            load,
            payload_bytes: self.args.payload as usize,
            threads: self.args.threads as usize,
            record: false,
            seed: u64::from(self.run),
            timing: simulator::fleet::Timing {
                ack_timeout: Duration::from_secs(30),
                ..Default::default()
            },
            ..Default::default()
        };
        let fleet = Fleet::start(config).map_err(|e| HarnessError::new("the fleet", e))?;
        ingest::wait_connected(&fleet, self.interrupt)?;
        Ok(fleet)
    }

    fn maximum(&mut self) -> Result<Sample, HarnessError> {
        let fleet = self.fleet("over", self.args.devices as usize, Load::Closed { window: 16 })?;
        fleet.publish();
        self.interrupt.sleep(self.args.warm_up)?;
        self.watch(&fleet)
            .and_then(|sample| Ok(latencies(sample, finish(fleet, DRAIN)?)))
    }

    fn beyond(&mut self, factor: f64, max: f64) -> Result<Sample, HarnessError> {
        let devices = self.args.devices as usize;
        let quiet = self.fleet(
            "quiet",
            QUIET_DEVICES,
            Load::shed(QUIET_DEVICES as f64, QUIET_DEVICES, 1),
        )?;
        let calm = self.fleet("calm", devices, Load::shed(max / 2.0, devices, WINDOW))?;
        let fleet = self.fleet("over", devices, Load::shed(max * factor, devices, WINDOW))?;
        let terms = self.cluster.terms()?;
        quiet.publish();
        fleet.publish();
        self.interrupt.sleep(self.args.warm_up)?;
        quiet.measure();
        let sample = self.watch(&fleet)?;
        quiet.end_measurement();
        let ended = Instant::now();
        calm.publish();
        let report = finish(fleet, Duration::ZERO)?;
        let recovery_ms = self.recovered(&calm, ended)?.as_secs_f64() * 1_000.0;
        finish(calm, DRAIN)?;
        let quiet = finish(quiet, DRAIN)?;
        Ok(Sample {
            quiet_p99_ms: quantile(&quiet, 0.99),
            elections: self.cluster.terms()?.saturating_sub(terms) as f64,
            recovery_ms,
            ..latencies(sample, report)
        })
    }

    /// Counts what happens in the measured time.
    fn watch(&self, fleet: &Fleet) -> Result<Sample, HarnessError> {
        let before = Counts::of(fleet);
        let (started, mut resident) = (Instant::now(), 0);
        fleet.measure();
        while started.elapsed() < self.args.time {
            self.interrupt.sleep(Duration::from_millis(200))?;
            resident = resident.max(self.cluster.resident_bytes()?);
        }
        let counts = Counts::of(fleet).since(&before);
        fleet.end_measurement();
        let per_second = |count: u64| count as f64 / started.elapsed().as_secs_f64();
        Ok(Sample {
            offered: per_second(counts.published + counts.held_back),
            goodput: per_second(counts.acknowledged),
            refused: per_second(counts.refused),
            held_back: per_second(counts.held_back),
            resident_mb: resident as f64 / 1e6,
            ..Sample::default()
        })
    }

    /// From the end of the overload to the end of the first calm slice.
    fn recovered(&self, calm: &Fleet, ended: Instant) -> Result<Duration, HarnessError> {
        loop {
            let before = Counts::of(calm);
            self.interrupt.sleep(SLICE)?;
            let slice = Counts::of(calm).since(&before);
            let served = slice.acknowledged * 100 >= slice.published * 95;
            if slice.published > 0 && served && slice.refused + slice.held_back == 0 {
                return Ok(ended.elapsed());
            }
            if ended.elapsed() > RECOVERY_DEADLINE {
                note("the cluster has not recovered; its time is given as that of the wait");
                return Ok(RECOVERY_DEADLINE);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Counts {
    published: u64,
    acknowledged: u64,
    refused: u64,
    held_back: u64,
}

impl Counts {
    fn of(fleet: &Fleet) -> Self {
        let progress = &fleet.progress;
        Self {
            published: Progress::read(&progress.published),
            acknowledged: Progress::read(&progress.acknowledged),
            refused: Progress::read(&progress.refused),
            held_back: Progress::read(&progress.held_back),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            published: self.published - before.published,
            acknowledged: self.acknowledged - before.acknowledged,
            refused: self.refused - before.refused,
            held_back: self.held_back - before.held_back,
        }
    }
}

fn finish(fleet: Fleet, drain: Duration) -> Result<simulator::fleet::FleetReport, HarnessError> {
    fleet.finish(drain).map_err(|e| HarnessError::new("the fleet", e))
}

fn latencies(sample: Sample, report: simulator::fleet::FleetReport) -> Sample {
    Sample {
        p50_ms: quantile(&report, 0.5),
        p99_ms: quantile(&report, 0.99),
        ..sample
    }
}

fn quantile(report: &simulator::fleet::FleetReport, q: f64) -> f64 {
    match report.latency.is_empty() {
        true => f64::NAN,
        false => report.latency.value_at_quantile(q) as f64 / 1_000.0,
    }
}
