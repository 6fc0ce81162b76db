//! Resident bytes per idle connection, and per registered device in memory and out of it.
//!
//! Seen from outside: growth of the resident memory of all nodes, divided. That includes what the
//! stores keep in memory for these devices, on every replica. Two clusters, alike but for the time
//! after which an idle device leaves memory, tell what being active costs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fleet::{Fleet, FleetSpec, Load};
use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Requests in flight while registering.
const REGISTRARS: usize = 128;
/// Attempts per device; a 429 or 503 means that nothing was done.
const ATTEMPTS_MAX: u32 = 20;
const ACTIVE_GAUGE: &str = "holdfast_devices_active";
const PASSIVATE_DEADLINE: Duration = Duration::from_secs(60);
/// Connections and devices that warm up pools and buffers before the first reading.
const WARM_UP_DEVICES: u32 = 100;

pub fn measure(args: &BenchArgs, report: &mut Report, interrupt: &Interrupt) -> Result<(), HarnessError> {
    note(&format!("memory: {} idle connections", args.idle_connections));
    let cluster = LocalCluster::up(args.plan(), interrupt)?;
    let connection = per_connection(args, &cluster, interrupt)?;
    report.add(Who::Holdfast, "memory per idle connection", "bytes", &[connection]);
    drop(cluster);
    let active = per_device(args, "1h", interrupt)?;
    report.add(
        Who::Holdfast,
        "memory per registered device, active",
        "bytes",
        &[active.bytes],
    );
    let passive = per_device(args, "1s", interrupt)?;
    report.add(
        Who::Holdfast,
        "memory per registered device, passive",
        "bytes",
        &[passive.bytes],
    );
    report.add(
        Who::Holdfast,
        "devices in memory after passivation",
        "devices",
        &[passive.active],
    );
    report.add(
        Who::Holdfast,
        "memory that being active costs",
        "bytes",
        &[active.bytes - passive.bytes],
    );
    report.add(
        Who::Holdfast,
        "registration over HTTP",
        "devices/s",
        &[active.rate, passive.rate],
    );
    Ok(())
}

fn per_connection(args: &BenchArgs, cluster: &LocalCluster, interrupt: &Interrupt) -> Result<f64, HarnessError> {
    let hold = |devices: u32, prefix: &str| {
        let fleet = Fleet::start(&FleetSpec::new(cluster.mqtt(), prefix, devices, Load::Idle))?;
        fleet.wait_connected(interrupt).map(|()| fleet)
    };
    let _warm = hold(WARM_UP_DEVICES, "warm")?;
    interrupt.sleep(Duration::from_secs(1))?;
    let before = cluster.resident_bytes()?;
    let devices = args.idle_connections;
    let _idle = hold(devices, "idle")?;
    interrupt.sleep(Duration::from_secs(2))?;
    let after = cluster.resident_bytes()?;
    Ok(after.saturating_sub(before) as f64 / f64::from(devices))
}

struct PerDevice {
    bytes: f64,
    /// How many are in memory at the reading; NaN when no node tells.
    active: f64,
    rate: f64,
}

fn per_device(args: &BenchArgs, passivate_after: &str, interrupt: &Interrupt) -> Result<PerDevice, HarnessError> {
    note(&format!(
        "memory: {} devices, passivated after {passivate_after}",
        args.registered_devices
    ));
    let mut plan = args.plan();
    plan.env
        .push(("HOLDFAST_LIMITS_PASSIVATE_AFTER", passivate_after.to_owned()));
    let cluster = LocalCluster::up(plan, interrupt)?;
    register(&cluster, "warm", WARM_UP_DEVICES, interrupt)?;
    let before = cluster.resident_bytes()?;
    let started = Instant::now();
    register(&cluster, "reg", args.registered_devices, interrupt)?;
    let rate = f64::from(args.registered_devices) / started.elapsed().as_secs_f64();
    let active = match passivate_after {
        "1s" => wait_passive(&cluster, interrupt)?,
        _ => cluster.counter(ACTIVE_GAUGE),
    };
    let after = cluster.resident_bytes()?;
    Ok(PerDevice {
        bytes: after.saturating_sub(before) as f64 / f64::from(args.registered_devices),
        active: active.unwrap_or(f64::NAN),
        rate,
    })
}

/// Until nothing is active any more, or the deadline; returns what is left.
fn wait_passive(cluster: &LocalCluster, interrupt: &Interrupt) -> Result<Option<f64>, HarnessError> {
    let end = Instant::now() + PASSIVATE_DEADLINE;
    loop {
        let active = cluster.counter(ACTIVE_GAUGE);
        if active == Some(0.0) || Instant::now() >= end {
            return Ok(active);
        }
        interrupt.sleep(Duration::from_millis(500))?;
    }
}

/// Registers `{prefix}-1` to `{prefix}-{count}` over HTTP, at all nodes in turn.
///
/// # Errors
/// A device could not be registered after several attempts, or the user interrupted.
pub fn register(cluster: &LocalCluster, prefix: &str, count: u32, interrupt: &Interrupt) -> Result<(), HarnessError> {
    let next = Arc::new(AtomicU32::new(1));
    cluster.runtime().block_on(async {
        let mut registrars = tokio::task::JoinSet::new();
        for registrar in 0..REGISTRARS {
            let (next, nodes, client) = (next.clone(), cluster.http(), cluster.client().clone());
            let (token, prefix, interrupt) = (cluster.file.token.clone(), prefix.to_owned(), interrupt.clone());
            registrars.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > count {
                        return Ok(());
                    }
                    interrupt.check()?;
                    let mut last = String::new();
                    let mut done = false;
                    for attempt in 0..ATTEMPTS_MAX {
                        let node = nodes[(registrar + attempt as usize) % nodes.len()];
                        let url = format!("http://{node}/api/v1/devices/{prefix}-{number}");
                        match client
                            .put(url)
                            .bearer_auth(&token)
                            .json(&serde_json::json!({}))
                            .send()
                            .await
                        {
                            Ok(answer) if answer.status().is_success() => done = true,
                            Ok(answer) => last = answer.status().to_string(),
                            Err(error) => last = error.to_string(),
                        }
                        if done {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    if !done {
                        return Err(HarnessError::new(format!("registering {prefix}-{number}"), last));
                    }
                }
            });
        }
        while let Some(ended) = registrars.join_next().await {
            ended.map_err(|e| HarnessError::new("registering", e))??;
        }
        Ok(())
    })
}
