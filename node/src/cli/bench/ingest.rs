//! QoS 1 publishes: how many, at what cost, and how long they take.
//!
//! Both servers run all the time and take turns (A, B, A, B), so that what the machine does
//! meanwhile meets both. Closed-loop latency is queueing; service time is the open loop's.

use std::net::SocketAddr;
use std::time::Duration;

use chaos::process::Process;

use super::fleet::{Fleet, FleetSpec, Load};
use super::mosquitto::Mosquitto;
use super::report::{Report, Spread, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

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
    let samples = runs.repeat(
        &servers,
        &name,
        Load::Open {
            per_second: half_load,
            window: 32,
        },
    )?;
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
        let fleet = Fleet::start(&FleetSpec {
            is_holdfast: server.cluster.is_some(),
            run: self.run,
            payload_bytes: self.args.payload,
            threads: self.args.threads,
            ..FleetSpec::new(server.endpoints.clone(), "bench", self.args.devices, load)
        })?;
        fleet.wait_publishing(self.interrupt)?;
        self.interrupt.sleep(self.args.warm_up)?;
        let marks = self.window(server, &fleet)?;
        let recorded = fleet.finish(DRAIN)?;
        let (unknown, _) = recorded.unknown_and_acked()?;
        let measured = recorded.stretch(marks.from_us, marks.to_us)?;
        let around = recorded.stretch(marks.fsyncs_from_us, marks.fsyncs_to_us)?;
        let per_1k = |amount: f64, count: u64| match count {
            0 => f64::NAN,
            count => amount * 1_000.0 / count as f64,
        };
        let (p50_ms, p99_ms) = measured.p50_p99_ms();
        Ok(Sample {
            rate: measured.acked as f64 * 1e6 / (marks.to_us - marks.from_us).max(1) as f64,
            cpu_ms_per_1k: per_1k(marks.cpu.as_secs_f64() * 1_000.0, measured.acked),
            fsyncs_per_1k: marks.fsyncs.map_or(f64::NAN, |fsyncs| per_1k(fsyncs, around.acked)),
            p50_ms,
            p99_ms,
            unanswered: unknown as f64,
        })
    }

    /// The measured time; the fsync counter is read outside the CPU's window because answering for
    /// it costs CPU as well.
    fn window(&self, server: &Server<'_>, fleet: &Fleet) -> Result<Marks, HarnessError> {
        let (fsyncs, fsyncs_from_us) = (server.fsyncs(), fleet.now_us());
        let (from_us, cpu) = (fleet.now_us(), server.cpu_time());
        self.interrupt.sleep(self.args.time)?;
        let (to_us, cpu) = (fleet.now_us(), server.cpu_time().saturating_sub(cpu));
        let fsyncs = server.fsyncs().zip(fsyncs).map(|(after, before)| after - before);
        Ok(Marks {
            from_us,
            to_us,
            cpu,
            fsyncs,
            fsyncs_from_us,
            fsyncs_to_us: fleet.now_us(),
        })
    }
}

/// What was measured of the server meanwhile, and when. Real µs since the fleet began.
struct Marks {
    from_us: u64,
    to_us: u64,
    cpu: Duration,
    fsyncs: Option<f64>,
    fsyncs_from_us: u64,
    fsyncs_to_us: u64,
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
