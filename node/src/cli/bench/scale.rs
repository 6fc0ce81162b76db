//! What many registered devices cost those that speak: the same load with few registered and with
//! many, the time it takes to register them, and the time to serve again after a kill.

use std::time::{Duration, Instant};

use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Load, Progress};

use super::ingest::wait_connected;
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
    let devices = connected as usize;
    let config = FleetConfig {
        endpoints: cluster.mqtt(),
        devices,
        device_prefix: "reg".into(),
        load: Load::open(f64::from(args.scale_rate), devices, WINDOW),
        payload_bytes: args.payload as usize,
        threads: args.threads as usize,
        record: false,
        timing: Timing {
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
    let acknowledged = || Progress::read(&fleet.progress.acknowledged) as f64;
    let mut costs = Vec::new();
    for run in 1..=args.repetitions {
        let (used, count) = (cpu(), acknowledged());
        interrupt.sleep(args.time)?;
        let (used, count) = (cpu().saturating_sub(used), acknowledged() - count);
        let cost = used.as_secs_f64() * 1_000_000.0 / count.max(1.0);
        note(&format!(
            "scale: {connected} connected, {run}/{}: {:.0} msg/s, {cost:.1} ms/1k",
            args.repetitions,
            count / args.time.as_secs_f64()
        ));
        costs.push(cost);
    }
    fleet.finish(DRAIN).map_err(|e| HarnessError::new("the fleet", e))?;
    Ok(costs)
}
