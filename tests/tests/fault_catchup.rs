#![allow(clippy::unwrap_used)]
//! A node that was away while the others wrote catches up while they go on, from the log or, when
//! that has been purged, from a snapshot.
//!
//! CATCHUP_PER_SHARD messages are written to each shard meanwhile (2,000; 100,000 under `make
//! soak`).

use std::time::Duration;

use holdfast_tests::harness::{count, eventually, Cluster};
use holdfast_tests::workload::{Plan, Workload};
use simulator::Load;

const STRETCH: u64 = 1_000;
/// Long enough for the soak's count on a small machine.
const AGREE: Duration = Duration::from_secs(300);

fn plan(prefix: &str, window: u16) -> Plan {
    Plan {
        load: Load::Closed { window },
        payload_bytes: 64,
        ..Plan::busy(prefix)
    }
}

#[test]
fn a_node_that_was_away_catches_up_under_load() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, plan("away", 16));
    work.acknowledge(STRETCH);
    let away = cluster.busiest_leader();
    cluster.kill(away);
    work.acknowledge_within(
        count("CATCHUP_PER_SHARD", 2_000, 100_000) * work.shards().len() as u64,
        Duration::from_secs(3_600),
    );
    cluster.start(away);
    work.acknowledge(STRETCH);
    caught_up(&cluster, away);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// What the returning node lacks is in no log any more: the others have flushed their state and
/// purged below it (they keep 500 entries and flush every 30 s), so they must send snapshots.
#[test]
fn a_node_that_was_away_past_the_log_catches_up_by_snapshot_under_load() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, plan("past", 1));
    work.acknowledge(STRETCH);
    let away = cluster.busiest_leader();
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != away).collect();
    let start = applied(&cluster, others[0]);
    cluster.kill(away);
    let written = work.shards();
    eventually("every shard's log grows", Duration::from_secs(120), || {
        let now = applied(&cluster, others[0]);
        let least = written.iter().map(|shard| now[*shard] - start[*shard]).min().unwrap();
        (least > 1_500).then_some(()).ok_or_else(|| format!("{least} entries"))
    });
    let flushed = |id: u64| cluster.counter(id, "holdfast_state_flushes_total");
    let before: Vec<f64> = others.iter().map(|id| flushed(*id)).collect();
    eventually("the others flush their state", Duration::from_secs(120), || {
        let all = others.iter().zip(&before).all(|(id, before)| flushed(*id) > *before);
        all.then_some(()).ok_or_else(|| "not both".to_owned())
    });
    cluster.start(away);
    work.acknowledge(STRETCH);
    caught_up(&cluster, away);
    let sent = others.iter().any(|id| cluster.log_contains(*id, "network: installed"));
    assert!(sent, "no snapshot was sent: this test tested nothing");
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

fn applied(cluster: &Cluster, id: u64) -> Vec<u64> {
    cluster
        .status_of(id)
        .unwrap()
        .shards
        .iter()
        .map(|shard| shard.applied)
        .collect()
}

/// Every shard of `id` reaches what was applied elsewhere when this is called; the load goes on.
fn caught_up(cluster: &Cluster, id: u64) {
    let other = cluster.ids().into_iter().find(|other| *other != id).unwrap();
    let goal = applied(cluster, other);
    eventually("the node catches up", AGREE, || {
        let now = cluster.status_of(id)?;
        let faults: Vec<_> = now.shards.iter().filter_map(|shard| shard.fault.clone()).collect();
        assert!(faults.is_empty(), "{faults:?}");
        let behind: u64 = now
            .shards
            .iter()
            .zip(&goal)
            .map(|(shard, goal)| goal.saturating_sub(shard.applied))
            .sum();
        (behind == 0)
            .then_some(())
            .ok_or_else(|| format!("{behind} entries behind"))
    });
}
