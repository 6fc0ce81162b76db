#![allow(clippy::unwrap_used)]
//! Nodes come and go while devices write: nothing acknowledged is lost, order is kept, and the
//! replicas are where they shall be in the end.

use std::time::Duration;

use holdfast_tests::harness::{eventually, Cluster, Rebalance, Status};
use holdfast_tests::workload::{Plan, Workload};
use simulator::Load;

const STRETCH: u64 = 1_000;
const SETTLE: Duration = Duration::from_secs(120);
const AGREE: Duration = Duration::from_secs(120);

fn plan(prefix: &str) -> Plan {
    Plan {
        load: Load::Closed { window: 2 },
        payload_bytes: 64,
        ..Plan::busy(prefix)
    }
}

fn ids(status: &Status) -> Vec<u64> {
    status.nodes.iter().map(|node| node.id).collect()
}

/// Every shard has `replicas` voters, all of them among `nodes`, and shares are even.
#[track_caller]
fn placed(cluster: &Cluster, nodes: &[u64], replicas: usize) {
    let status = eventually("replicas are where they shall be", SETTLE, || {
        let status = cluster.status()?;
        let settled = status.moves.is_empty() && status.rebalance.is_none();
        settled
            .then_some(status.clone())
            .ok_or_else(|| format!("{:?}", status.moves))
    });
    assert_eq!(ids(&status), nodes);
    for shard in &status.shards {
        assert_eq!(shard.voters.len(), replicas, "{shard:?}");
        assert!(shard.voters.iter().all(|id| nodes.contains(id)), "{shard:?}");
        assert!(shard.learners.is_empty(), "{shard:?}");
    }
    assert!(
        status.catalog.voters.iter().all(|id| nodes.contains(id)),
        "{:?}",
        status.catalog
    );
    assert_eq!(status.catalog.voters.len() % 2, 1, "{:?}", status.catalog);
    let shares: Vec<u32> = status.nodes.iter().map(|node| node.replicas).collect();
    let spread = shares.iter().max().unwrap() - shares.iter().min().unwrap();
    assert!(spread <= 2, "replicas per node: {shares:?}");
}

#[track_caller]
fn refused(cluster: &Cluster, arguments: &[&str], because: &str) {
    let said = cluster.try_command(arguments).expect_err("this must be refused");
    assert!(said.contains("exit status: 65") && said.contains(because), "{said}");
}

#[test]
fn three_nodes_become_five_and_three_again_under_load() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, plan("grow"));
    work.acknowledge(STRETCH);
    refused(
        &cluster,
        &["cluster", "remove", "2"],
        "2 nodes would be left for 3 replicas",
    );
    cluster.command(&["cluster", "add", "--nodes", "2"]);
    cluster.reload();
    placed(&cluster, &[1, 2, 3, 4, 5], 3);
    work.every_shard_acknowledges();
    // Any node answers for any device, whether it has a replica or not.
    for id in cluster.ids() {
        assert_eq!(
            cluster
                .status_of(id)
                .unwrap()
                .shards
                .iter()
                .filter(|s| s.leader.is_some())
                .count(),
            16
        );
    }
    cluster.command(&["cluster", "remove", "1"]);
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "remove", "4"]);
    cluster.reload();
    placed(&cluster, &[2, 3, 5], 3);
    assert_eq!(cluster.ids(), [2, 3, 5], "who has left is not in cluster.json");
    work.every_shard_acknowledges();
    assert_eq!(work.final_refusals(), 0, "nobody was told never to come back");
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// From one replica of each shard to three, and then any node may die.
#[test]
fn a_single_node_grows_to_three_replicas_under_load_and_then_survives_a_kill_of_any() {
    let mut cluster = Cluster::up(1);
    let work = Workload::start(&cluster, plan("single"));
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "add", "--nodes", "2"]);
    cluster.reload();
    placed(&cluster, &[1, 2, 3], 3);
    assert_eq!(cluster.status().unwrap().replication, 3);
    work.every_shard_acknowledges();
    // Its devices know the first node only, which is to die.
    work.finish_and_judge(&cluster);
    let work = Workload::start(&cluster, plan("grown"));
    for id in [1, 2, 3] {
        cluster.kill(id);
        work.every_shard_acknowledges();
        cluster.start(id);
        whole(&cluster);
    }
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// Every node is up, every shard has a leader, and no replica is far behind.
#[track_caller]
fn whole(cluster: &Cluster) {
    eventually("every node is whole again", SETTLE, || {
        let mut applied = Vec::new();
        for id in cluster.ids() {
            let status = cluster.status_of(id)?;
            if let Some(node) = status.nodes.iter().find(|node| node.state != "up") {
                return Err(format!("{node:?}"));
            }
            if let Some(shard) = status.shards.iter().find(|shard| shard.leader.is_none()) {
                return Err(format!("{shard:?}"));
            }
            applied.push(status.shards.iter().map(|shard| shard.applied).sum::<u64>());
        }
        let (least, most) = (applied.iter().min().unwrap(), applied.iter().max().unwrap());
        (most - least < 2_000)
            .then_some(())
            .ok_or_else(|| format!("applied: {applied:?}"))
    });
}

#[test]
fn one_node_becomes_two_then_three_and_says_what_that_means() {
    let mut cluster = Cluster::up(1);
    let work = Workload::start(&cluster, plan("steps"));
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "add"]);
    cluster.reload();
    placed(&cluster, &[1, 2], 1);
    let told = cluster.ask(&["cluster", "status"]);
    assert!(told.contains("one replica, on one of 2 nodes"), "{told}");
    work.every_shard_acknowledges();
    cluster.command(&["cluster", "add"]);
    cluster.reload();
    placed(&cluster, &[1, 2, 3], 3);
    let told = cluster.ask(&["cluster", "status"]);
    assert!(!told.contains("one replica"), "{told}");
    cluster.kill(3);
    work.every_shard_acknowledges();
    cluster.start(3);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// The only replica of a shard and the driver of its move are the same process here.
#[test]
fn the_only_node_may_die_in_the_middle_of_growing() {
    let mut cluster = Cluster::up(1);
    let work = Workload::start(&cluster, plan("middle"));
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "add", "--nodes", "2", "--no-rebalance"]);
    cluster.reload();
    cluster.command(&["cluster", "rebalance", "--no-wait"]);
    // Once at the very beginning, once when some is done; the second time all of it may be.
    for least in [0, 1] {
        let driver = eventually("somebody drives", SETTLE, || {
            let status = cluster.status()?;
            let leader = status.catalog.leader.ok_or("the catalog has no leader")?;
            let far_enough = |moving: &Rebalance| moving.replicas_done >= least;
            let goes_on = status.rebalance.as_ref().is_none_or(far_enough);
            goes_on
                .then_some(leader)
                .ok_or_else(|| format!("{:?}", status.rebalance))
        });
        cluster.kill(driver);
        cluster.start(driver);
    }
    cluster.command(&["cluster", "rebalance"]);
    placed(&cluster, &[1, 2, 3], 3);
    work.every_shard_acknowledges();
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

#[test]
fn whoever_drives_a_rebalance_may_die_in_the_middle_of_it() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, plan("drive"));
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "add", "--no-rebalance"]);
    cluster.reload();
    cluster.command(&["cluster", "rebalance", "--no-wait"]);
    let driver = eventually("some replicas are moved, not all", SETTLE, || {
        let status = cluster.status()?;
        let moving = status.rebalance.as_ref().ok_or("nothing moves")?;
        let middle = moving.replicas_done > 0 && moving.replicas_done < moving.replicas_total;
        let leader = status.catalog.leader.filter(|_| middle);
        leader.ok_or_else(|| format!("{moving:?}"))
    });
    cluster.kill(driver);
    work.every_shard_acknowledges();
    cluster.start(driver);
    cluster.command(&["cluster", "rebalance"]);
    placed(&cluster, &[1, 2, 3, 4], 3);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

#[test]
fn a_dead_node_is_replaced_by_a_new_one() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, plan("dead"));
    work.acknowledge(STRETCH);
    cluster.kill(2);
    refused(&cluster, &["cluster", "remove", "2", "--dead"], "2 nodes would be left");
    cluster.command(&["cluster", "add"]);
    cluster.reload();
    refused(&cluster, &["cluster", "remove", "3", "--dead"], "node 3 is up");
    refused(&cluster, &["cluster", "remove", "2"], "node 2 is down");
    refused(&cluster, &["cluster", "remove", "9"], "there is no node 9");
    cluster.command(&["cluster", "remove", "2", "--dead"]);
    cluster.reload();
    placed(&cluster, &[1, 3, 4], 3);
    work.every_shard_acknowledges();
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}
