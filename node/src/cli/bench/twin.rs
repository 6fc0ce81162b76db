//! Twin reports over MQTT: each device patches its reported properties, one patch at a time, and
//! waits for the answer with the version. What a replicated put costs.

use std::time::Duration;

use super::fleet::{Fleet, FleetSpec, Load};
use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

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
    let fleet = Fleet::start(&FleetSpec {
        run,
        threads: args.threads,
        reports: true,
        ..FleetSpec::new(cluster.mqtt(), "twin", args.devices, Load::Idle)
    })?;
    fleet.wait_publishing(interrupt)?;
    interrupt.sleep(args.warm_up)?;
    let processes = cluster.processes()?;
    let cpu = || -> Duration { processes.iter().filter_map(chaos::process::Process::cpu_time).sum() };
    let (from_us, cpu_before) = (fleet.now_us(), cpu());
    interrupt.sleep(args.time)?;
    let (to_us, used) = (fleet.now_us(), cpu().saturating_sub(cpu_before));
    let count = fleet.finish(DRAIN)?.reports(from_us, to_us)? as f64;
    if count < 1.0 {
        return Err(HarnessError::Failed("no twin report was answered".into()));
    }
    let seconds = (to_us - from_us) as f64 / 1e6;
    Ok((count / seconds, used.as_secs_f64() * 1_000_000.0 / count))
}
