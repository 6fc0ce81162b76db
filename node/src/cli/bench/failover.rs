//! How long each shard acknowledges nothing when the node that leads it is killed or stopped.
//!
//! The devices always wait for something (closed loop), so a shard's silence is the cluster's. A
//! device whose own node went away reconnects elsewhere; that is part of what is measured. In the
//! end everything acknowledged is read back.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use chaos::process::{Fault, ProcessPause};
use simulator::audit::{audit, Claims, Fact, HttpSource};
use simulator::drive::Endpoints;

use super::fleet::{Fleet, FleetSpec, Load};
use super::recorded::Recorded;
use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

const DEVICES: u32 = 300;
const READ_DEADLINE: Duration = Duration::from_secs(30);
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

#[derive(Clone, Copy, PartialEq, Eq)]
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
    let fleet = Fleet::start(&FleetSpec {
        payload_bytes: args.payload,
        message_ids: true,
        ack_timeout: Duration::from_millis(1_500),
        connect_timeout: Duration::from_secs(1),
        ..FleetSpec::new(cluster.mqtt(), "failover", DEVICES, Load::Closed { window: 1 })
    })?;
    fleet.wait_publishing(interrupt)?;
    let mut faults = Vec::new();
    for (kind, name) in [
        (Break::Kill, "kill -9 of a leader"),
        (Break::Stop, "SIGSTOP of a leader"),
    ] {
        for repetition in 1..=args.failover_repetitions {
            note(&format!("{name} {repetition}/{}", args.failover_repetitions));
            faults.push(once(kind, cluster, &fleet, interrupt)?);
        }
    }
    let recorded = fleet.finish(DRAIN)?;
    let times = recorded.acknowledged_us(cluster.file.shards)?;
    for (kind, name) in [
        (Break::Kill, "kill -9 of a leader"),
        (Break::Stop, "SIGSTOP of a leader"),
    ] {
        let mut gaps = Gaps::default();
        let of_kind = faults.iter().filter(|fault| fault.kind == kind);
        of_kind.for_each(|fault| gaps.add(fault, &times));
        let named = |whose: &str| format!("{name}: write gap per {whose} shard");
        report.add(Who::Holdfast, named("affected"), "ms", &gaps.affected);
        report.add(Who::Holdfast, named("other"), "ms", &gaps.others);
    }
    judge(cluster, &recorded, report)
}

/// One fault, and when it was watched. Real µs since the fleet began.
struct Watched {
    kind: Break,
    victim: u64,
    leaders: Vec<u64>,
    from_us: u64,
    to_us: u64,
}

impl Gaps {
    /// `times`: when each shard acknowledged something, sorted.
    fn add(&mut self, fault: &Watched, times: &[Vec<u64>]) {
        for (shard, times) in times.iter().enumerate() {
            let Some(gap) = longest_gap_us(times, fault.from_us, fault.to_us) else {
                continue;
            };
            match fault.leaders.get(shard) == Some(&fault.victim) {
                true => self.affected.push(gap as f64 / 1e3),
                false => self.others.push(gap as f64 / 1e3),
            }
        }
    }
}

/// The longest time without an acknowledgement that ends, or still goes on, between two moments;
/// it may have begun before. `None`: nothing was acknowledged before, so there is no device.
fn longest_gap_us(times: &[u64], from_us: u64, to_us: u64) -> Option<u64> {
    let first = times.partition_point(|at| *at < from_us);
    let mut last = times.get(first.checked_sub(1)?).copied()?;
    let mut longest = 0;
    for at in times[first..].iter().copied().take_while(|at| *at < to_us) {
        longest = longest.max(at - last);
        last = at;
    }
    Some(longest.max(to_us - last))
}

fn once(
    kind: Break,
    cluster: &mut LocalCluster,
    fleet: &Fleet,
    interrupt: &Interrupt,
) -> Result<Watched, HarnessError> {
    interrupt.sleep(SETTLE)?;
    let (victim, _) = cluster.busiest_leader()?;
    let leaders = cluster.leaders()?;
    let process = cluster.process(victim)?;
    let failed = |e| HarnessError::new(format!("node {victim}"), e);
    let mut pause = ProcessPause::new(process);
    let from_us = fleet.now_us();
    match kind {
        Break::Kill => process.kill().map_err(failed)?,
        Break::Stop => pause.inject().map_err(failed)?,
    }
    interrupt.sleep(WATCH)?;
    let to_us = fleet.now_us();
    match kind {
        Break::Kill => cluster.start(victim)?,
        Break::Stop => pause.heal().map_err(failed)?,
    }
    wait_leading(cluster, victim, interrupt)?;
    Ok(Watched {
        kind,
        victim,
        leaders,
        from_us,
        to_us,
    })
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

fn judge(cluster: &LocalCluster, recorded: &Recorded, report: &mut Report) -> Result<(), HarnessError> {
    note("reading back what was acknowledged");
    let failed = |e: &dyn std::fmt::Display| HarnessError::new("reading back", e);
    let endpoints = Endpoints {
        http: cluster.http(),
        token: Some(cluster.file.token.clone()),
        ..Endpoints::default()
    };
    let source = HttpSource::new(&endpoints, READ_DEADLINE).map_err(|e| failed(&e))?;
    let (history, read) = (recorded.history(), AtomicU64::new(0));
    let claims = Claims {
        plan: &recorded.plan,
        history: &history,
        runs: &[1],
        sending_ended_us: recorded.ended_us,
        scratch: history.join("scratch"),
        read: &read,
    };
    let audited = cluster.runtime().block_on(audit(&claims, &source));
    let findings = audited.map_err(|e| failed(&e))?;
    for (what, count) in [
        ("failover: acknowledged", findings.acked),
        ("failover: acknowledged and lost", findings.count(Fact::AckedSurvive)),
        ("failover: stored twice", findings.count(Fact::StoredOnce)),
    ] {
        report.add(Who::Holdfast, what, "msg", &[count as f64]);
    }
    for (fact, count) in &findings.counts {
        let example = findings.violations.iter().find(|violation| violation.fact == *fact);
        let example = example.map_or_else(String::new, |violation| format!(", e.g. {violation}"));
        report.note(format!("failover: {fact} broken {count} times{example}"));
    }
    report.lost(findings.count(Fact::AckedSurvive));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: when the shard acknowledged, the watched stretch, its longest silence.
    #[test]
    fn gaps_begin_with_the_last_acknowledgement_before_the_fault() {
        let rows: [(&[u64], _, _, _); 5] = [
            (&[10, 20, 30, 40], 25, 45, Some(10)),
            (&[10, 20, 90, 95], 25, 100, Some(70)), // began before the fault
            (&[10, 20], 25, 100, Some(80)),         // still silent
            (&[10, 20, 150], 25, 100, Some(80)),    // what comes later is not watched
            (&[30, 40], 25, 100, None),             // nobody was there before
        ];
        for (times, from_us, to_us, expected) in rows {
            assert_eq!(longest_gap_us(times, from_us, to_us), expected, "{times:?}");
        }
    }
}
