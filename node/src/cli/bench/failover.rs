//! How long each shard acknowledges nothing when the node that leads it is killed or stopped.
//!
//! The devices always wait for something (closed loop), so a shard's silence is the cluster's. A
//! device whose own node went away reconnects elsewhere; that is part of what is measured. In the
//! end everything acknowledged is read back.

use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chaos::process::{Fault, ProcessPause};
use chaos::{read_back, Fact, ReadBack};
use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Load, Progress};

use super::report::{Report, Who};
use super::{ingest, note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

const DEVICES: usize = 300;
/// Messages of one device at most, so that reading back ends.
const MESSAGES_MAX: u32 = 20_000;
/// Load before a fault, so that every shard has acknowledged lately.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the silence is watched; also how long a stopped node is stopped.
const WATCH: Duration = Duration::from_secs(5);
/// How long a returned node may take to lead again.
const REBALANCE_DEADLINE: Duration = Duration::from_secs(15);
const DRAIN: Duration = Duration::from_secs(20);

/// Gaps in milliseconds.
#[derive(Default)]
struct Gaps {
    affected: Vec<f64>,
    others: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Break {
    Kill,
    Stop,
}

pub fn measure(
    args: &BenchArgs,
    cluster: &mut LocalCluster,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let config = FleetConfig {
        endpoints: cluster.mqtt(),
        devices: DEVICES,
        device_prefix: "failover".into(),
        load: Load::Closed { window: 1 },
        payload_bytes: args.payload as usize,
        timing: Timing {
            messages_per_device_max: MESSAGES_MAX,
            ack_timeout: Duration::from_millis(1_500),
            connect_timeout: Duration::from_secs(1),
            ..Default::default()
        },
        message_ids: true,
        shards: cluster.file.shards,
        ..Default::default()
    };
    let fleet = Fleet::start(config).map_err(|e| HarnessError::new("the fleet", e))?;
    ingest::wait_connected(&fleet, interrupt)?;
    fleet.publish();
    for (kind, name) in [
        (Break::Kill, "kill -9 of a leader"),
        (Break::Stop, "SIGSTOP of a leader"),
    ] {
        let mut gaps = Gaps::default();
        for repetition in 1..=args.failover_repetitions {
            once(kind, cluster, &fleet, &mut gaps, interrupt)?;
            let worst = gaps.affected.iter().copied().fold(0.0, f64::max);
            note(&format!(
                "{name} {repetition}/{}: worst gap so far {worst:.0} ms",
                args.failover_repetitions
            ));
        }
        report.add(
            Who::Holdfast,
            format!("{name}: write gap per affected shard"),
            "ms",
            &gaps.affected,
        );
        report.add(
            Who::Holdfast,
            format!("{name}: write gap per other shard"),
            "ms",
            &gaps.others,
        );
    }
    if Progress::read(&fleet.progress.acknowledged) >= DEVICES as u64 * u64::from(MESSAGES_MAX) {
        report.note("failover: the fleet ran out of messages before the end, so the last gaps are too long");
    }
    judge(cluster, fleet, report)
}

fn once(
    kind: Break,
    cluster: &mut LocalCluster,
    fleet: &Fleet,
    gaps: &mut Gaps,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    interrupt.sleep(SETTLE)?;
    let (victim, _) = cluster.busiest_leader()?;
    let leaders = cluster.leaders()?;
    let process = cluster.process(victim)?;
    let failed = |e| HarnessError::new(format!("node {victim}"), e);
    let mut pause = ProcessPause::new(process);
    fleet.progress.reset_gaps();
    match kind {
        Break::Kill => process.kill().map_err(failed)?,
        Break::Stop => pause.inject().map_err(failed)?,
    }
    interrupt.sleep(WATCH)?;
    for (shard, gap) in fleet.progress.shard_gaps().into_iter().enumerate() {
        let Some(gap) = gap.map(|gap| gap.as_secs_f64() * 1_000.0) else {
            continue;
        };
        match leaders.get(shard) == Some(&victim) {
            true => gaps.affected.push(gap),
            false => gaps.others.push(gap),
        }
    }
    match kind {
        Break::Kill => cluster.start(victim)?,
        Break::Stop => pause.heal().map_err(failed)?,
    }
    wait_leading(cluster, victim, interrupt)
}

/// Waits until the returned node leads again and every shard is led, so that the next fault meets a
/// whole cluster. A node that leads nothing after the deadline is no reason to stop: the next victim
/// is another one.
fn wait_leading(cluster: &LocalCluster, node: u64, interrupt: &Interrupt) -> Result<(), HarnessError> {
    let end = Instant::now() + REBALANCE_DEADLINE;
    while Instant::now() < end {
        interrupt.sleep(Duration::from_millis(250))?;
        let leaders = cluster.leaders().unwrap_or_default();
        if leaders.contains(&node) && !leaders.contains(&0) {
            return Ok(());
        }
    }
    note(&format!(
        "node {node} leads nothing {} s after its return",
        REBALANCE_DEADLINE.as_secs()
    ));
    Ok(())
}

fn judge(cluster: &LocalCluster, fleet: Fleet, report: &mut Report) -> Result<(), HarnessError> {
    let ledger = fleet
        .finish(DRAIN)
        .map_err(|e| HarnessError::new("the fleet", e))?
        .ledger;
    note(&format!("reading back {} messages", ledger.acknowledged()));
    let from = ReadBack {
        nodes: cluster.http(),
        token: cluster.file.token.clone(),
        request_deadline: Duration::from_secs(30),
    };
    let reading = read_back(from, Arc::new(ledger), Arc::new(AtomicU64::new(0)));
    let findings = cluster
        .runtime()
        .block_on(reading)
        .map_err(|e| HarnessError::new("reading back", e))?;
    let count = |fact| findings.count(fact) as f64;
    report.add(
        Who::Holdfast,
        "failover: acknowledged",
        "msg",
        &[findings.acknowledged as f64],
    );
    report.add(
        Who::Holdfast,
        "failover: acknowledged and lost",
        "msg",
        &[count(Fact::AckedSurvive)],
    );
    report.add(
        Who::Holdfast,
        "failover: stored twice",
        "msg",
        &[count(Fact::StoredOnce)],
    );
    for (fact, breach) in &findings.breaches {
        report.note(format!(
            "failover: {fact} broken {} times, e.g. {}",
            breach.count,
            breach.examples.join("; ")
        ));
    }
    report.lost(findings.lost());
    Ok(())
}
