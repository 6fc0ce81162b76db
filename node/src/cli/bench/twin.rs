//! Twin reports over MQTT: each device patches its reported properties, one patch at a time, and
//! waits for the answer with the version. What a replicated put costs.

use std::time::{Duration, Instant};

use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Load, Progress};

use super::ingest::wait_connected;
use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Shorter than any answer takes, so that the next patch leaves with the answer to the last one.
const INTERVAL: Duration = Duration::from_micros(1);
const DRAIN: Duration = Duration::from_secs(10);

pub fn measure(
    args: &BenchArgs,
    cluster: &LocalCluster,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for run in 1..=args.repetitions {
        let (rate, cost) = once(args, cluster, run, interrupt)?;
        note(&format!(
            "twin reports, {} devices, {run}/{}: {rate:.0} patches/s, {cost:.1} ms/1k",
            args.devices, args.repetitions
        ));
        rates.push(rate);
        costs.push(cost);
    }
    let name = format!("twin reports, {} devices", args.devices);
    report.add(Who::Holdfast, format!("{name}: throughput"), "patches/s", &rates);
    report.add(Who::Holdfast, format!("{name}: server CPU"), "ms/1k patches", &costs);
    Ok(())
}

/// Patches a second, and CPU milliseconds of all nodes per 1,000 of them.
fn once(args: &BenchArgs, cluster: &LocalCluster, run: u32, interrupt: &Interrupt) -> Result<(f64, f64), HarnessError> {
    let config = FleetConfig {
        endpoints: cluster.mqtt(),
        devices: args.devices as usize,
        device_prefix: "twin".into(),
        run,
        load: Load::Idle,
        threads: args.threads as usize,
        record: false,
        seed: u64::from(run),
        timing: Timing {
            twin_interval: Some(INTERVAL),
            ack_timeout: Duration::from_secs(20),
            ..Default::default()
        },
        ..Default::default()
    };
    let fleet = Fleet::start(config).map_err(|e| HarnessError::new("the fleet", e))?;
    wait_connected(&fleet, interrupt)?;
    fleet.publish();
    interrupt.sleep(args.warm_up)?;
    let processes = cluster.processes()?;
    let cpu = || -> Duration { processes.iter().filter_map(chaos::process::Process::cpu_time).sum() };
    let patches = || Progress::read(&fleet.progress.twin_acknowledged) as f64;
    let (started, cpu_before, before) = (Instant::now(), cpu(), patches());
    interrupt.sleep(args.time)?;
    let (time, used, count) = (started.elapsed(), cpu().saturating_sub(cpu_before), patches() - before);
    fleet.finish(DRAIN).map_err(|e| HarnessError::new("the fleet", e))?;
    if count < 1.0 {
        return Err(HarnessError::Failed("no twin report was answered".into()));
    }
    Ok((count / time.as_secs_f64(), used.as_secs_f64() * 1_000_000.0 / count))
}
