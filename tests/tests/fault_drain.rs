#![allow(clippy::unwrap_used)]
//! Taking a node out of service and back under load: no failed request, nothing lost, leaders
//! move away and come back.

use std::time::Duration;

use holdfast_tests::harness::{count, eventually, Cluster};
use holdfast_tests::register::Operators;
use holdfast_tests::workload::{Plan, Workload};

const STRETCH: u64 = 1_000;
const MOVE: Duration = Duration::from_secs(60);

/// Operators write to and read from all nodes, the draining one included; devices are connected
/// to all of them.
#[test]
fn a_drain_and_its_end_fail_no_request_and_lose_nothing() {
    let cluster = Cluster::up(3);
    eventually("leaders are spread", MOVE, || cluster.leaders_are_spread());
    let work = Workload::start(&cluster, Plan::busy("drain"));
    let operators = Operators::start(&cluster, "twin", 32, 6);
    for round in 0..count("DRAIN_ROUNDS", 1, 10) {
        let victim = cluster.ids()[round as usize % 3];
        work.acknowledge(STRETCH);
        cluster.command(&["cluster", "drain", &victim.to_string()]);
        let status = cluster.status().unwrap();
        assert!(
            status.shards.iter().all(|shard| shard.leader != Some(victim)),
            "{status:?}"
        );
        work.every_shard_acknowledges();
        work.acknowledge(STRETCH);
        cluster.command(&["cluster", "undrain", &victim.to_string()]);
        eventually("leaders come back", MOVE, || cluster.leaders_are_spread());
        work.every_shard_acknowledges();
    }
    let history = operators.finish();
    assert!(history.operations() > 100, "too few to say anything");
    assert!(
        history.failures.is_empty(),
        "{} of {} requests failed: {:#?}",
        history.failures.len(),
        history.operations(),
        &history.failures[..history.failures.len().min(20)]
    );
    history.assert_linearizable();
    assert_eq!(work.final_refusals(), 0, "a device was told never to come back");
    work.finish_and_judge(&cluster);
    cluster.digests_agree(MOVE);
}

/// A restarted node leads its share again.
#[test]
fn leaders_are_spread_evenly_after_a_restart() {
    let mut cluster = Cluster::up(3);
    eventually("leaders are spread", MOVE, || cluster.leaders_are_spread());
    let victim = cluster.busiest_leader();
    cluster.kill(victim);
    eventually("the others take over evenly", MOVE, || cluster.leaders_are_spread());
    cluster.start(victim);
    eventually("leaders come back", MOVE, || cluster.leaders_are_spread());
}
