//! How long a cluster takes to serve again after every node was killed at once, with devices
//! registered and telemetry stored.

use std::time::{Duration, Instant};

use simulator::report::numbers::grouped;

use super::fleet::{Fleet, FleetSpec, Load};
use super::report::{Report, Who};
use super::{memory, note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Large messages fill a disk with little CPU. Unit: bytes.
const FILL_PAYLOAD: u32 = 16 * 1024;
const FILL_DEVICES: u32 = 200;
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
        grouped(args.restart_devices.into()),
        grouped(stored * u64::from(FILL_PAYLOAD) / 1_000_000)
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

/// Returns how many messages were acknowledged: so many bytes of them, and what was on its way.
fn fill(cluster: &LocalCluster, bytes: u64, interrupt: &Interrupt) -> Result<u64, HarnessError> {
    let total = bytes.div_ceil(u64::from(FILL_PAYLOAD));
    let fleet = Fleet::start(&spec(cluster, FILL_DEVICES, "fill", FILL_PAYLOAD))?;
    fleet.wait_publishing(interrupt)?;
    let end = Instant::now() + Duration::from_secs(FILL_SECS_MIN + bytes / FILL_BYTES_PER_SEC_MIN);
    let mut told = Instant::now();
    loop {
        let counts = fleet.counts();
        let done = counts.acked + counts.refused;
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
        interrupt.sleep(Duration::from_millis(20))?;
    }
    let (_, stored) = fleet.finish(DRAIN)?.unknown_and_acked()?;
    Ok(stored)
}

/// Seconds from `started` until every shard has acknowledged a write.
fn first_writes(cluster: &LocalCluster, started: Instant, interrupt: &Interrupt) -> Result<f64, HarnessError> {
    let shards = cluster.file.shards;
    // So many that no shard is without one. They do not wait for one another.
    let devices = u32::from(shards) * 16;
    let spec = FleetSpec {
        // All at once, and they publish as they connect.
        connect_rate: 100_000,
        publish_at: Some(Instant::now()),
        ..spec(cluster, devices, "probe", 256)
    };
    let began = started.elapsed();
    let fleet = Fleet::start(&spec)?;
    loop {
        if let Some(last_us) = fleet.every_shard_acknowledged_us(shards)? {
            fleet.finish(DRAIN)?;
            return Ok((began + Duration::from_micros(last_us)).as_secs_f64());
        }
        if started.elapsed() > WRITE_DEADLINE {
            return Err(HarnessError::Failed(
                "writes are not acknowledged after the restart".into(),
            ));
        }
        interrupt.sleep(Duration::from_millis(100))?;
    }
}

fn spec(cluster: &LocalCluster, devices: u32, prefix: &str, payload_bytes: u32) -> FleetSpec {
    FleetSpec {
        payload_bytes,
        ..FleetSpec::new(cluster.mqtt(), prefix, devices, Load::Closed { window: 8 })
    }
}
