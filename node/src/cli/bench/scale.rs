//! What many registered devices cost those that speak: the same load with few registered and with
//! many, the time it takes to register them, and the time to serve again after a kill.

use std::time::{Duration, Instant};

use super::fleet::{Fleet, FleetSpec, Load};
use super::report::{Report, Who};
use super::{memory, note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Registered in the cluster that is compared with.
const FEW: u32 = 1_000;
const DRAIN: Duration = Duration::from_secs(10);
/// Publishes a device may have outstanding.
const WINDOW: u16 = 32;

pub fn measure(args: &BenchArgs, report: &mut Report, interrupt: &Interrupt) -> Result<(), HarnessError> {
    let few = {
        let cluster = LocalCluster::up(args.plan(), interrupt)?;
        samples(args, &cluster, FEW, interrupt)?
    };
    let rate = f64::from(args.scale_rate);
    report.add(
        Who::Holdfast,
        format!("{rate:.0} msg/s with {FEW} registered and connected: server CPU"),
        "ms/1k msg",
        &few,
    );
    let mut cluster = LocalCluster::up(args.plan(), interrupt)?;
    note(&format!("scale: registering {} devices", args.scale_devices));
    let started = Instant::now();
    memory::register(&cluster, "reg", args.scale_devices, interrupt)?;
    let registered = f64::from(args.scale_devices) / started.elapsed().as_secs_f64();
    report.add(
        Who::Holdfast,
        "scale: registration over HTTP",
        "devices/s",
        &[registered],
    );
    let resident = cluster.resident_bytes()? as f64;
    report.add(
        Who::Holdfast,
        "scale: resident memory of all nodes",
        "bytes",
        &[resident],
    );
    let many = samples(args, &cluster, args.scale_connected, interrupt)?;
    report.add(
        Who::Holdfast,
        format!(
            "{rate:.0} msg/s with {} registered, {} connected: server CPU",
            args.scale_devices, args.scale_connected
        ),
        "ms/1k msg",
        &many,
    );
    let ratios: Vec<f64> = many.iter().zip(&few).map(|(many, few)| many / few).collect();
    report.add(Who::Holdfast, "scale: cost per message, many to few", "ratio", &ratios);
    note("scale: kill -9 of all nodes");
    for process in cluster.processes()? {
        process.kill().map_err(|e| HarnessError::new("the kill", e))?;
    }
    let started = Instant::now();
    cluster.start_all()?;
    let name = format!("scale: restart with {} registered, every shard led", args.scale_devices);
    report.add(Who::Holdfast, name, "s", &[started.elapsed().as_secs_f64()]);
    Ok(())
}

/// CPU milliseconds of all nodes per 1,000 messages, while `connected` devices together publish
/// at the same rate.
fn samples(
    args: &BenchArgs,
    cluster: &LocalCluster,
    connected: u32,
    interrupt: &Interrupt,
) -> Result<Vec<f64>, HarnessError> {
    let load = Load::Open {
        per_second: f64::from(args.scale_rate),
        window: WINDOW,
    };
    let fleet = Fleet::start(&FleetSpec {
        payload_bytes: args.payload,
        threads: args.threads,
        ..FleetSpec::new(cluster.mqtt(), "reg", connected, load)
    })?;
    fleet.wait_publishing(interrupt)?;
    interrupt.sleep(args.warm_up)?;
    let processes = cluster.processes()?;
    let cpu = || -> Duration { processes.iter().filter_map(chaos::process::Process::cpu_time).sum() };
    let mut marks = Vec::new();
    for _ in 0..args.repetitions {
        let (from_us, used) = (fleet.now_us(), cpu());
        interrupt.sleep(args.time)?;
        marks.push((from_us, fleet.now_us(), cpu().saturating_sub(used)));
    }
    let recorded = fleet.finish(DRAIN)?;
    let mut costs = Vec::new();
    for (run, (from_us, to_us, used)) in marks.into_iter().enumerate() {
        let count = recorded.stretch(from_us, to_us)?.acked as f64;
        let cost = used.as_secs_f64() * 1_000_000.0 / count.max(1.0);
        note(&format!(
            "scale: {connected} connected, {}/{}: {:.0} msg/s, {cost:.1} ms/1k",
            run + 1,
            args.repetitions,
            count * 1e6 / (to_us - from_us).max(1) as f64
        ));
        costs.push(cost);
    }
    Ok(costs)
}
