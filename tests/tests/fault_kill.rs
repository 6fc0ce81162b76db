#![allow(clippy::unwrap_used)]
//! `kill -9` under load: of one node, of a leader, of two in turn, of all at once.
//!
//! After each: nothing acknowledged is lost, nothing stored twice, order and seq hold, and all
//! replicas agree. Messages to devices are held to the same. KILL_ROUNDS repeats each matrix (1; 10 under `make soak`).

use std::time::Duration;

use holdfast_tests::clients::http::Http;
use holdfast_tests::clients::mailbox::{Login, Mailbox};
use holdfast_tests::courier::Courier;
use holdfast_tests::harness::{count, eventually, Cluster};
use holdfast_tests::workload::{Plan, Workload};

/// Acknowledgements before, during and after each fault.
const STRETCH: u64 = 1_500;
/// Messages queued around each fault.
const MESSAGES: u64 = 20;
const AGREE: Duration = Duration::from_secs(60);

fn rounds() -> u64 {
    count("KILL_ROUNDS", 1, 10)
}

/// Any one node of three may die under load, and come back.
#[test]
fn nothing_is_lost_when_one_node_is_killed() {
    let mut cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("one"));
    let courier = Courier::start(&cluster, "one");
    for round in 0..rounds() {
        for victim in cluster.ids() {
            println!("round {round}: node {victim}");
            work.acknowledge(STRETCH);
            cluster.kill(victim);
            work.every_shard_acknowledges();
            work.acknowledge(STRETCH);
            courier.acknowledge(MESSAGES);
            cluster.start(victim);
        }
    }
    work.acknowledge(STRETCH);
    courier.finish_and_judge(&cluster);
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
    let courier = Courier::start(&cluster, "all");
    for _ in 0..rounds() {
        work.acknowledge(STRETCH);
        courier.acknowledge(MESSAGES);
        cluster.kill_all();
        cluster.start_all();
        work.every_shard_acknowledges();
    }
    work.acknowledge(STRETCH);
    courier.finish_and_judge(&cluster);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// A device holds messages that it has not acknowledged while the leader of its shard dies, and
/// then the node it is connected to. It gets all of them again, in order, and each ends once.
#[test]
fn messages_survive_their_leader_and_their_gateway() {
    let mut cluster = Cluster::up(3);
    let (device, ids) = ("patient", ["a", "b", "c", "d", "e", "f"]);
    let path = format!("/api/v1/devices/{device}");
    let http = |cluster: &Cluster, id: u64| Http::new(cluster.node(id).http, &cluster.file.token);
    http(&cluster, 1).send("PUT", &path, &[], "").expect(201);
    let shard = http(&cluster, 1).get(&path).expect(200).json()["shard"]
        .as_u64()
        .unwrap();
    let status = cluster.status_of(1).unwrap();
    let leader = status.shards[shard as usize].leader.expect("every shard is led");
    let gateway = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let third = cluster
        .ids()
        .into_iter()
        .find(|id| ![leader, gateway].contains(id))
        .unwrap();

    let mut held = Mailbox::subscribed(cluster.node(gateway).mqtt, device, Login::RESUMED);
    let (before, after) = ids.split_at(3);
    let queue = |cluster: &Cluster, id: &str| {
        let body = format!(r#"{{"payload":"{id}","message_id":"{id}"}}"#);
        let sent = || {
            http(cluster, third).try_send(
                reqwest::Method::POST,
                &format!("{path}/messages"),
                &[],
                body.clone().into(),
            )
        };
        eventually("a message is queued", AGREE, || match sent() {
            Some(answer) if matches!(answer.status, 200 | 201) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    before.iter().for_each(|id| queue(&cluster, id));
    let mut came: Vec<String> = before.iter().map(|_| held.take().unwrap().message_id).collect();
    cluster.kill(leader);
    after.iter().for_each(|id| queue(&cluster, id));
    came.extend(
        after
            .iter()
            .map(|_| held.take().expect("it stays connected").message_id),
    );
    assert_eq!(came, ids, "the new leader's come over the same connection");
    cluster.start(leader);
    cluster.digests_agree(AGREE);

    cluster.kill(gateway);
    let login = Login::RESUMED;
    let mut again = eventually("another node lets it in", AGREE, || {
        Mailbox::try_open(cluster.node(third).mqtt, device, login).ok_or_else(|| "refused".to_owned())
    });
    assert!(again.session_present);
    for id in ids {
        let delivery = again.take().expect("all of them come again");
        assert_eq!((delivery.message_id.as_str(), delivery.dup), (id, true));
        again.acknowledge(&delivery);
    }
    eventually("each has ended", AGREE, || {
        let feedback = http(&cluster, third)
            .get(&format!("{path}/messages/feedback"))
            .expect(200)
            .json();
        let items = feedback["items"].as_array().unwrap().clone();
        let ended = |id: &&str| items.iter().any(|item| item["message_id"] == *id);
        let completed = items.iter().all(|item| item["outcome"] == "completed");
        let all = items.len() == ids.len() && completed && ids.iter().all(ended);
        all.then_some(()).ok_or_else(|| feedback.to_string())
    });
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
