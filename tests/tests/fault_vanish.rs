#![allow(clippy::unwrap_used)]
//! A host that vanishes: no reset, no closed connection, only silence.
//!
//! From the others' side a process that is stopped for good is just that: its kernel holds the
//! sockets open and nothing answers. It never comes back to life; it is killed while still
//! stopped, and later started from its disk.

use std::time::Duration;

use holdfast_tests::harness::{count, Cluster};
use holdfast_tests::register::Operators;
use holdfast_tests::workload::{Plan, Workload};

const STRETCH: u64 = 1_000;

#[test]
fn the_cluster_goes_on_without_a_vanished_host() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("vanish"));
    for round in 0..count("VANISH_ROUNDS", 1, 10) {
        let operators = Operators::start(&cluster, &format!("twin-{round}"), 16, 6);
        work.acknowledge(STRETCH);
        let victim = cluster.busiest_leader();
        println!("round {round}: node {victim}");
        cluster.pause(victim);
        work.every_shard_acknowledges();
        work.acknowledge(STRETCH);
        cluster.kill(victim);
        work.acknowledge(STRETCH);
        operators.finish().assert_linearizable();
        cluster.start(victim);
        cluster.digests_agree(Duration::from_secs(60));
    }
    work.finish_and_judge(&cluster);
    cluster.digests_agree(Duration::from_secs(60));
}
