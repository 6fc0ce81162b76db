#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests run in real time
//! Power cuts on the shipped program: what was not fsynced is gone, nothing acknowledged is.
//!
//! POWER_CUTS cuts under load (3; 20 under `make soak`), by turns with a disk that loses all that
//! was not synced and one that leaves torn writes behind. That the test would notice is shown by
//! switching off the fsync of the log, and that of votes.

use std::collections::BTreeMap;
use std::time::Duration;

use chaos::Verdict;
use holdfast_tests::courier::Courier;
use holdfast_tests::harness::{count, eventually, eventually_true, Cluster};
use holdfast_tests::powercut::{PowerCut, Unsynced};
use holdfast_tests::workload::{findings, Plan, Workload};

const STRETCH: u64 = 1_000;
/// Messages queued before each cut.
const MESSAGES: u64 = 20;
const AGREE: Duration = Duration::from_secs(60);

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    let power = PowerCut::prepare();
    let mut cluster = power.cluster(3, &[]);
    let work = Workload::start(&cluster, Plan::busy("power"));
    let courier = Courier::start(&cluster, "power");
    for cut in 0..count("POWER_CUTS", 3, 20) {
        work.acknowledge(STRETCH);
        courier.acknowledge(MESSAGES);
        cluster.kill_all();
        let unsynced = match cut % 2 {
            0 => Unsynced::Lost,
            _ => Unsynced::Torn { seed: cut },
        };
        let taken = power.cut(&cluster, unsynced);
        println!("cut {cut} ({unsynced:?}): {taken:?}");
        cluster.start_all();
        work.every_shard_acknowledges();
    }
    work.acknowledge(STRETCH);
    courier.finish_and_judge(&cluster);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// The name of a new data directory is made durable before anything in it is promised.
#[test]
fn a_new_data_directory_is_still_there_after_a_power_cut() {
    let power = PowerCut::prepare().data_must_be_synced_too();
    let mut cluster = power.cluster(3, &[]);
    let work = Workload::start(&cluster, Plan::busy("new"));
    work.acknowledge(100);
    cluster.kill_all();
    power.cut(&cluster, Unsynced::Lost);
    for id in cluster.ids() {
        let data = cluster.node(id).dir.join("data");
        assert!(data.exists(), "{} is gone: its parent was never synced", data.display());
    }
    cluster.start_all();
    work.finish_and_judge(&cluster);
}

/// Without the log's fsync the same procedure ends in losses, or in nodes that refuse to start.
#[test]
fn a_log_that_is_not_fsynced_is_noticed() {
    let power = PowerCut::prepare();
    let mut cluster = power.cluster(
        3,
        &[
            ("HOLDFAST_ALLOW_UNSAFE", "1"),
            ("HOLDFAST_STORAGE_UNSAFE_SKIP_LOG_FSYNC", "true"),
        ],
    );
    let work = Workload::start(&cluster, Plan::busy("unsafe"));
    work.acknowledge(STRETCH);
    cluster.kill_all();
    let ledger = work.abandon();
    println!("cut: {:?}", power.cut(&cluster, Unsynced::Lost));
    match cluster.try_start_all() {
        Err(refusal) => println!("the nodes refuse to start: {refusal}"),
        Ok(()) => {
            let findings = findings(&cluster, ledger);
            println!("{} of {} lost", findings.lost(), findings.acknowledged);
            assert!(findings.lost() > 0, "{findings:#?}");
            assert!(matches!(Verdict::of(&findings), Verdict::Violation { .. }));
        }
    }
}

/// A term in which a node was elected is remembered by a majority after a power cut that comes
/// before anything else was written in that term.
#[test]
fn a_granted_vote_survives_a_power_cut() {
    let forgotten = votes_forgotten_by_a_cut(&[]);
    assert!(forgotten.is_empty(), "{forgotten:#?}");
}

#[test]
fn a_vote_that_is_not_fsynced_is_noticed() {
    let forgotten = votes_forgotten_by_a_cut(&[
        ("HOLDFAST_ALLOW_UNSAFE", "1"),
        ("HOLDFAST_STORAGE_UNSAFE_SKIP_VOTE_FSYNC", "true"),
    ]);
    println!("{forgotten:#?}");
    assert!(
        !forgotten.is_empty(),
        "the cut took unsynced votes and nothing was noticed"
    );
}

/// Elections on disks whose syncs do not begin, then a cut: says which leaderships a majority of
/// the voters forgot.
///
/// With its leader killed, a shard elects another. As long as syncs are held, nobody may win: the
/// votes are not durable. Who wins all the same has votes that a cut takes away. If nobody wins,
/// the disks are let go and the cut comes right after the elections.
fn votes_forgotten_by_a_cut(env: &[(&str, &str)]) -> Vec<String> {
    let power = PowerCut::prepare();
    let mut cluster = power.cluster(3, env);
    let dead = cluster.busiest_leader();
    let voters: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != dead).collect();
    let before = terms(&cluster, voters[0]);
    voters.iter().for_each(|id| power.hold_syncs(*id, true));
    cluster.kill(dead);
    eventually_true("a vote or an entry waits for the disk", Duration::from_secs(30), || {
        voters.iter().any(|id| power.counted(*id).held > 0)
    });
    let mut won = claims(&cluster, &voters, &before);
    if won.is_empty() {
        println!("nobody won while votes could not reach the disk");
        voters.iter().for_each(|id| power.hold_syncs(*id, false));
        won = eventually("somebody wins", Duration::from_secs(60), || {
            let won = claims(&cluster, &voters, &before);
            (!won.is_empty()).then_some(won).ok_or_else(|| "nobody".to_owned())
        });
    }
    cluster.kill_all();
    let taken = power.cut(&cluster, Unsynced::Lost);
    println!("won: {won:?}; cut: {taken:?}");
    // Each voter alone: what it says then is what it had on disk.
    let mut remembered: BTreeMap<u64, BTreeMap<u16, u64>> = BTreeMap::new();
    for id in &voters {
        cluster.start(*id);
        remembered.insert(*id, terms(&cluster, *id));
        cluster.kill(*id);
    }
    let forgot = |shard: u16, term: u64| -> Vec<u64> {
        let knows = |id: &&u64| remembered[*id].get(&shard).is_some_and(|t| *t >= term);
        voters.iter().filter(|id| !knows(id)).copied().collect()
    };
    won.into_iter()
        .map(|((shard, term), leader)| (shard, term, leader, forgot(shard, term)))
        // Two of three voters elected it; the third is down. If one of them forgot, no majority is left.
        .filter(|(_, _, _, forgot)| !forgot.is_empty())
        .map(|(shard, term, leader, forgot)| {
            format!("node {leader} led shard {shard} in term {term}, of which nodes {forgot:?} know nothing")
        })
        .collect()
}

/// The term of each shard as a node that is asked tells it. One that has only just started lists
/// shards before it has opened its replicas of them; one that forgot its votes goes on telling 0.
fn terms(cluster: &Cluster, id: u64) -> BTreeMap<u16, u64> {
    let opened_by = std::time::Instant::now() + Duration::from_secs(5);
    eventually("a node tells its terms", Duration::from_secs(30), || {
        let status = cluster.status_of(id)?;
        let terms: BTreeMap<u16, u64> = status.shards.iter().map(|shard| (shard.id, shard.term)).collect();
        let all = !terms.is_empty() && terms.values().all(|term| *term > 0);
        (all || std::time::Instant::now() > opened_by)
            .then_some(terms)
            .ok_or_else(|| "not every replica is open".to_owned())
    })
}

/// Shards and terms newly led by one of `nodes`, as they say themselves.
fn claims(cluster: &Cluster, nodes: &[u64], before: &BTreeMap<u16, u64>) -> BTreeMap<(u16, u64), u64> {
    let mut claims = BTreeMap::new();
    for id in nodes {
        let Ok(status) = cluster.status_of(*id) else { continue };
        for shard in status.shards {
            let newer = shard.term > before.get(&shard.id).copied().unwrap_or(0);
            if let Some(leader) = shard.leader.filter(|leader| newer && nodes.contains(leader)) {
                claims.insert((shard.id, shard.term), leader);
            }
        }
    }
    claims
}
