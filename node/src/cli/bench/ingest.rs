//! QoS 1 publishes: how many, at what cost, and how long they take.
//!
//! Both servers run all the time and take turns (A, B, A, B), so that what the machine does
//! meanwhile meets both. Closed-loop latency is queueing; service time is the open loop's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chaos::process::Process;
use simulator::{Fleet, FleetConfig, Load, Progress};

use super::mosquitto::Mosquitto;
use super::report::{Report, Spread, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(10);
const FSYNC_COUNTER: &str = "holdfast_log_fsyncs_total";

struct Server<'a> {
    who: Who,
    endpoints: Vec<SocketAddr>,
    processes: Vec<Process>,
    cluster: Option<&'a LocalCluster>,
}

impl Server<'_> {
    fn cpu_time(&self) -> Duration {
        self.processes.iter().filter_map(Process::cpu_time).sum()
    }

    fn fsyncs(&self) -> Option<f64> {
        self.cluster?.counter(FSYNC_COUNTER)
    }
}

/// One measurement; NaN where there is nothing to tell.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rate: f64,
    cpu_ms_per_1k: f64,
    fsyncs_per_1k: f64,
    p50_ms: f64,
    p99_ms: f64,
    unanswered: f64,
}

/// A named figure of a sample.
type Figure = (&'static str, &'static str, fn(&Sample) -> f64);

const CLOSED: [Figure; 5] = [
    ("throughput", "msg/s", |s| s.rate),
    ("server CPU", "ms/1k msg", |s| s.cpu_ms_per_1k),
    ("fsyncs, all nodes", "per 1k msg", |s| s.fsyncs_per_1k),
    ("latency p50 (queueing)", "ms", |s| s.p50_ms),
    ("latency p99 (queueing)", "ms", |s| s.p99_ms),
];

const OPEN: [Figure; 6] = [
    ("throughput", "msg/s", |s| s.rate),
    ("server CPU", "ms/1k msg", |s| s.cpu_ms_per_1k),
    ("fsyncs, all nodes", "per 1k msg", |s| s.fsyncs_per_1k),
    ("latency p50 from intended send", "ms", |s| s.p50_ms),
    ("latency p99 from intended send", "ms", |s| s.p99_ms),
    ("unanswered at the end", "msg", |s| s.unanswered),
];

pub fn measure(
    args: &BenchArgs,
    cluster: &LocalCluster,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let mosquitto = match Mosquitto::is_installed() {
        true => Some(Mosquitto::start(interrupt)?),
        false => {
            report.note("Mosquitto is not installed (apt-get install mosquitto), so there is no comparison");
            None
        }
    };
    let mut servers = vec![Server {
        who: Who::Holdfast,
        endpoints: cluster.mqtt(),
        processes: cluster.processes()?,
        cluster: Some(cluster),
    }];
    servers.extend(mosquitto.as_ref().map(|mosquitto| Server {
        who: Who::Mosquitto,
        endpoints: vec![mosquitto.address],
        processes: vec![mosquitto.process],
        cluster: None,
    }));
    let mut runs = Runs {
        args,
        interrupt,
        run: 1,
    };
    let mut half_load = 0.0;
    for window in [1, 16] {
        let name = format!("QoS 1, {} devices, window {window}", args.devices);
        let samples = runs.repeat(&servers, &name, Load::Closed { window })?;
        let rates: Vec<f64> = samples[0].iter().map(|sample| sample.rate).collect();
        half_load = Spread::of(&rates).map_or(0.0, |spread| spread.median / 2.0);
        add(report, &servers, &name, &CLOSED, &samples);
    }
    if half_load < 1.0 {
        report.note("nothing was acknowledged at window 16, so there is no half load");
        return Ok(());
    }
    let name = format!("half load, open loop, {half_load:.0} msg/s");
    let samples = runs.repeat(&servers, &name, Load::open(half_load, args.devices as usize, 32))?;
    add(report, &servers, "half load, open loop", &OPEN, &samples);
    Ok(())
}

fn add(report: &mut Report, servers: &[Server<'_>], name: &str, figures: &[Figure], samples: &[Vec<Sample>]) {
    for (figure, unit, value) in figures {
        for (server, samples) in servers.iter().zip(samples) {
            let values: Vec<f64> = samples.iter().map(value).collect();
            report.add(server.who, format!("{name}: {figure}"), unit, &values);
        }
    }
}

struct Runs<'a> {
    args: &'a BenchArgs,
    interrupt: &'a Interrupt,
    run: u32,
}

impl Runs<'_> {
    /// Samples per server, taken in turns.
    fn repeat(&mut self, servers: &[Server<'_>], name: &str, load: Load) -> Result<Vec<Vec<Sample>>, HarnessError> {
        let mut samples = vec![Vec::new(); servers.len()];
        for repetition in 1..=self.args.repetitions {
            for (server, samples) in servers.iter().zip(&mut samples) {
                let sample = self.once(server, load)?;
                note(&format!(
                    "{name}: {:?} {repetition}/{}: {:.0} msg/s, {:.1} ms/1k, p50 {:.2} ms, p99 {:.2} ms",
                    server.who, self.args.repetitions, sample.rate, sample.cpu_ms_per_1k, sample.p50_ms, sample.p99_ms
                ));
                samples.push(sample);
            }
        }
        Ok(samples)
    }

    fn once(&mut self, server: &Server<'_>, load: Load) -> Result<Sample, HarnessError> {
        self.run += 1;
        let devices = self.args.devices as usize;
        let config = FleetConfig {
            endpoints: server.endpoints.clone(),
            devices,
            device_prefix: "bench".into(),
            run: self.run,
            load,
            payload_bytes: self.args.payload as usize,
            threads: self.args.threads as usize,
            record: false,
            seed: u64::from(self.run),
            timing: simulator::fleet::Timing {
                ack_timeout: Duration::from_secs(20),
                ..Default::default()
            },
            ..Default::default()
        };
        let fleet = Fleet::start(config).map_err(|e| HarnessError::new("the fleet", e))?;
        wait_connected(&fleet, self.interrupt)?;
        fleet.publish();
        self.interrupt.sleep(self.args.warm_up)?;
        let sample = self.window(server, &fleet)?;
        let report = fleet.finish(DRAIN).map_err(|e| HarnessError::new("the fleet", e))?;
        let quantile = |q| match report.latency.is_empty() {
            true => f64::NAN,
            false => report.latency.value_at_quantile(q) as f64 / 1_000.0,
        };
        let unanswered = report.ledger.unknown() as f64;
        Ok(Sample {
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            unanswered,
            ..sample
        })
    }

    /// Counts over the measured time; the fsync counter is read outside the CPU's window because
    /// answering for it costs CPU as well.
    fn window(&self, server: &Server<'_>, fleet: &Fleet) -> Result<Sample, HarnessError> {
        let acknowledged = || Progress::read(&fleet.progress.acknowledged) as f64;
        let (fsyncs, at_fsyncs) = (server.fsyncs(), acknowledged());
        fleet.measure();
        let (started, cpu, before) = (Instant::now(), server.cpu_time(), acknowledged());
        let slept = self.interrupt.sleep(self.args.time);
        let (time, cpu, count) = (
            started.elapsed(),
            server.cpu_time().saturating_sub(cpu),
            acknowledged() - before,
        );
        fleet.end_measurement();
        slept?;
        let more_fsyncs = server.fsyncs().zip(fsyncs).map(|(after, before)| after - before);
        let per_1k = |amount: f64, count: f64| {
            if count > 0.0 {
                amount * 1_000.0 / count
            } else {
                f64::NAN
            }
        };
        Ok(Sample {
            rate: count / time.as_secs_f64(),
            cpu_ms_per_1k: per_1k(cpu.as_secs_f64() * 1_000.0, count),
            fsyncs_per_1k: more_fsyncs.map_or(f64::NAN, |syncs| per_1k(syncs, acknowledged() - at_fsyncs)),
            p50_ms: f64::NAN,
            p99_ms: f64::NAN,
            unanswered: f64::NAN,
        })
    }
}

/// # Errors
/// Not every device could connect in time, or the user interrupted.
pub fn wait_connected(fleet: &Fleet, interrupt: &Interrupt) -> Result<(), HarnessError> {
    let end = Instant::now() + CONNECT_DEADLINE;
    while !fleet.wait_connected(fleet.devices(), Duration::from_millis(100)) {
        interrupt.check()?;
        if Instant::now() > end {
            let connected = Progress::read(&fleet.progress.connected);
            return Err(HarnessError::Failed(format!(
                "only {connected} of {} devices connected",
                fleet.devices()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::bench::BenchArgs;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    /// A measurement of a server that is not ours yields its rate, its CPU and its latencies.
    #[test]
    fn measures_what_a_broker_acknowledges() {
        let line = Line::parse_from([
            "bench",
            "--devices",
            "20",
            "--time",
            "1s",
            "--warm-up",
            "1s",
            "--repetitions",
            "1",
        ]);
        let interrupt = Interrupt::default();
        let broker = Mosquitto::start(&interrupt).unwrap();
        let server = Server {
            who: Who::Mosquitto,
            endpoints: vec![broker.address],
            processes: vec![broker.process],
            cluster: None,
        };
        let mut runs = Runs {
            args: &line.args,
            interrupt: &interrupt,
            run: 1,
        };
        let samples = runs.repeat(&[server], "test", Load::Closed { window: 4 }).unwrap();
        let sample = samples[0][0];
        assert!(sample.rate > 0.0 && sample.cpu_ms_per_1k > 0.0, "{sample:?}");
        assert!(sample.p99_ms >= sample.p50_ms && sample.p50_ms > 0.0, "{sample:?}");
        assert_eq!(sample.unanswered, 0.0);
        assert!(
            sample.fsyncs_per_1k.is_nan(),
            "nothing is claimed of what was not measured"
        );
    }
}
