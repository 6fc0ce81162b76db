//! How long a cluster takes to serve again after every node was killed at once, with devices
//! registered and telemetry stored.

use std::time::{Duration, Instant};

use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Load, Progress};

use super::report::{Report, Who};
use super::{ingest, memory, note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Large messages fill a disk with little CPU. Unit: bytes.
const FILL_PAYLOAD: usize = 16 * 1024;
const FILL_DEVICES: u64 = 200;
/// The slowest filling that is waited for.
const FILL_BYTES_PER_SEC_MIN: u64 = 1_000_000;
const FILL_SECS_MIN: u64 = 60;
const WRITE_DEADLINE: Duration = Duration::from_secs(120);
const DRAIN: Duration = Duration::from_secs(20);

pub fn measure(args: &BenchArgs, report: &mut Report, interrupt: &Interrupt) -> Result<(), HarnessError> {
    note(&format!(
        "restart: registering {} devices, storing {} bytes",
        args.restart_devices, args.restart_bytes
    ));
    let mut cluster = LocalCluster::up(args.plan(), interrupt)?;
    memory::register(&cluster, "reg", args.restart_devices, interrupt)?;
    let stored = fill(&cluster, args.restart_bytes, interrupt)?;
    note(&format!("restart: kill -9 of all nodes with {stored} messages stored"));
    for process in cluster.processes()? {
        process.kill().map_err(|e| HarnessError::new("the kill", e))?;
    }
    let started = Instant::now();
    cluster.start_all()?;
    let led = started.elapsed().as_secs_f64();
    let wrote = first_writes(&cluster, started, interrupt)?;
    let what = format!(
        "restart with {} devices and {} MB of telemetry",
        chaos::verdict::grouped(args.restart_devices.into()),
        chaos::verdict::grouped(stored * FILL_PAYLOAD as u64 / 1_000_000)
    );
    report.add(Who::Holdfast, format!("{what}: every shard led"), "s", &[led]);
    report.add(
        Who::Holdfast,
        format!("{what}: a write acknowledged in every shard"),
        "s",
        &[wrote],
    );
    Ok(())
}

/// Returns how many messages were acknowledged.
fn fill(cluster: &LocalCluster, bytes: u64, interrupt: &Interrupt) -> Result<u64, HarnessError> {
    let messages = bytes.div_ceil(FILL_PAYLOAD as u64);
    let per_device = messages.div_ceil(FILL_DEVICES);
    let fleet = start(
        cluster,
        FILL_DEVICES as usize,
        "fill",
        FILL_PAYLOAD,
        u32::try_from(per_device).unwrap_or(u32::MAX),
    )?;
    ingest::wait_connected(&fleet, interrupt)?;
    fleet.publish();
    let total = per_device * FILL_DEVICES;
    let end = Instant::now() + Duration::from_secs(FILL_SECS_MIN + bytes / FILL_BYTES_PER_SEC_MIN);
    let mut told = Instant::now();
    loop {
        let done = Progress::read(&fleet.progress.acknowledged) + Progress::read(&fleet.progress.refused);
        if done >= total {
            break;
        }
        if Instant::now() > end {
            return Err(HarnessError::Failed(format!(
                "only {done} of {total} messages were stored in time"
            )));
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            note(&format!("restart: {done} of {total} messages stored"));
        }
        interrupt.sleep(Duration::from_millis(100))?;
    }
    let stored = Progress::read(&fleet.progress.acknowledged);
    fleet.finish(DRAIN).map_err(|e| HarnessError::new("the fleet", e))?;
    Ok(stored)
}

/// Seconds from `started` until every shard has acknowledged a write.
fn first_writes(cluster: &LocalCluster, started: Instant, interrupt: &Interrupt) -> Result<f64, HarnessError> {
    // So many that no shard is without one.
    let devices = usize::from(cluster.file.shards) * 16;
    let fleet = start(cluster, devices, "probe", 256, u32::MAX)?;
    fleet.publish();
    while !fleet.progress.shard_gaps().iter().all(Option::is_some) {
        if started.elapsed() > WRITE_DEADLINE {
            return Err(HarnessError::Failed(
                "writes are not acknowledged after the restart".into(),
            ));
        }
        interrupt.sleep(Duration::from_millis(5))?;
    }
    let took = started.elapsed().as_secs_f64();
    fleet.finish(DRAIN).map_err(|e| HarnessError::new("the fleet", e))?;
    Ok(took)
}

fn start(
    cluster: &LocalCluster,
    devices: usize,
    prefix: &str,
    payload_bytes: usize,
    messages: u32,
) -> Result<Fleet, HarnessError> {
    let config = FleetConfig {
        endpoints: cluster.mqtt(),
        devices,
        device_prefix: prefix.into(),
        load: Load::Closed { window: 8 },
        timing: Timing {
            messages_per_device_max: messages,
            ack_timeout: Duration::from_secs(20),
            ..Default::default()
        },
        payload_bytes,
        shards: cluster.file.shards,
        record: false,
        ..Default::default()
    };
    Fleet::start(config).map_err(|e| HarnessError::new("the fleet", e))
}
