#![allow(clippy::unwrap_used)]
//! `kill -9` under load: of one node, of a leader, of two in turn, of all at once.
//!
//! After each: nothing acknowledged is lost, nothing stored twice, order and seq hold, and all
//! replicas agree. KILL_ROUNDS repeats each matrix (1; 10 under `make soak`).

use std::time::Duration;

use holdfast_tests::harness::{count, Cluster};
use holdfast_tests::workload::{Plan, Workload};

/// Acknowledgements before, during and after each fault.
const STRETCH: u64 = 1_500;
const AGREE: Duration = Duration::from_secs(60);

fn rounds() -> u64 {
    count("KILL_ROUNDS", 1, 10)
}

/// Any one node of three may die under load, and come back.
#[test]
fn nothing_is_lost_when_one_node_is_killed() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("one"));
    for round in 0..rounds() {
        for victim in cluster.ids() {
            println!("round {round}: node {victim}");
            work.acknowledge(STRETCH);
            cluster.kill(victim);
            work.every_shard_acknowledges();
            work.acknowledge(STRETCH);
            cluster.start(victim);
        }
    }
    work.acknowledge(STRETCH);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// The node that leads most shards dies while it is busiest, and is not yet back when the fleet
/// is judged: what it had acknowledged is on the others.
#[test]
fn acked_messages_survive_their_leader() {
    let mut cluster = Cluster::up(3);
    for round in 0..rounds() {
        let work = Workload::start(&cluster, Plan::busy(&format!("leader-{round}")));
        work.acknowledge(STRETCH);
        let victim = cluster.busiest_leader();
        cluster.kill(victim);
        work.every_shard_acknowledges();
        work.acknowledge(STRETCH);
        work.finish_and_judge(&cluster);
        cluster.start(victim);
        cluster.digests_agree(AGREE);
    }
}

/// Two nodes die in turn, the first back and caught up before the second goes.
#[test]
fn nothing_is_lost_when_two_nodes_are_killed_in_turn() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("turn"));
    for _ in 0..rounds() {
        let first = cluster.busiest_leader();
        work.acknowledge(STRETCH);
        cluster.kill(first);
        work.acknowledge(STRETCH);
        cluster.start(first);
        // Recovered: every replica, the restarted one included, holds the same state.
        cluster.digests_agree(AGREE);
        let second = cluster.ids().into_iter().find(|id| *id != first).unwrap();
        cluster.kill(second);
        work.every_shard_acknowledges();
        work.acknowledge(STRETCH);
        cluster.start(second);
    }
    work.acknowledge(STRETCH);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// All three die at once and start again: what was acknowledged was on disk.
#[test]
fn nothing_is_lost_when_all_nodes_are_killed_at_once() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("all"));
    for _ in 0..rounds() {
        work.acknowledge(STRETCH);
        cluster.kill_all();
        cluster.start_all();
        work.every_shard_acknowledges();
    }
    work.acknowledge(STRETCH);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// The judge is awake: with one replica of three and its data gone, losses are reported.
#[test]
fn the_judge_reports_what_a_cluster_without_its_data_has_lost() {
    let mut cluster = Cluster::up(1);
    let work = Workload::start(&cluster, Plan::busy("gone"));
    work.acknowledge(STRETCH);
    let ledger = work.abandon();
    cluster.kill_all();
    std::fs::remove_dir_all(cluster.node(1).dir.join("data")).unwrap();
    cluster.start_all();
    let findings = holdfast_tests::workload::findings(&cluster, ledger.clone());
    assert_eq!(findings.lost(), ledger.acknowledged(), "{findings:#?}");
}
