//! Three replicas of one group: what is acknowledged stays, what is not never looks like it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use actors::id::NodeId;

use crate::raft::group::{ProposeError, Role};
use crate::raft::machine::Digest;
use crate::testing::fleet::{device, Fleet};
use crate::testing::replicas::{propose, Replica, Replicas};
use crate::testing::{fingerprint, run, stored};
use crate::transport::tests::harness::eventually;

fn last_seq(replica: &Replica, name: &str) -> u64 {
    stored(&replica.group.shared, &device(name)).telemetry.last_seq
}

async fn same_rows(replicas: &Replicas) {
    let marker = replicas.leader().await.group.digest_marker().await.unwrap().at.index;
    replicas.applied(marker).await;
    let mut digests = BTreeSet::new();
    for replica in replicas.all.iter().filter(|r| replicas.net.carries(r.id, r.id)) {
        let digest = || replica.group.shared.digest_at(marker);
        eventually("a digest is taken", || {
            !matches!(digest(), None | Some(Digest::Pending))
        })
        .await;
        digests.insert(match digest() {
            Some(Digest::Done(digest)) => digest,
            other => panic!("no digest: {other:?}"),
        });
    }
    assert_eq!(digests.len(), 1, "replicas differ at index {marker}");
}

#[test]
fn what_commits_is_applied_by_every_replica_at_positions_that_grow() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        let mut last = None;
        for i in 0..50u8 {
            let payload = fleet.report("lamp", vec![i]);
            let done = propose(&leader.group, payload).await.await.unwrap().unwrap();
            assert!(done.misfits.is_empty());
            assert!(Some(done.at) > last);
            last = Some(done.at);
            assert!(
                leader.group.applied_index() >= done.at.index,
                "acknowledged before it was applied"
            );
        }
        same_rows(&replicas).await;
        assert!(replicas.all.iter().all(|replica| last_seq(replica, "lamp") == 50));
    });
}

#[test]
fn what_was_acknowledged_outlives_its_leader() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        let mut outcomes = Vec::new();
        for i in 0..200u8 {
            outcomes.push(propose(&leader.group, fleet.report("lamp", vec![i])).await);
            if i == 150 {
                for outcome in outcomes.iter_mut().take(100) {
                    outcome.await.unwrap().unwrap();
                }
                outcomes.drain(..100);
                replicas.net.cut(leader.id);
                leader.group.shutdown().await;
            }
        }
        let mut acknowledged = 100;
        for outcome in outcomes {
            match outcome.await.unwrap() {
                Ok(_) => acknowledged += 1,
                Err(ProposeError::Rejected { .. } | ProposeError::NotNow | ProposeError::Unknown) => {}
            }
        }
        let next = replicas.leader().await;
        assert_ne!(next.id, leader.id);
        assert!(last_seq(next, "lamp") >= acknowledged, "acknowledged and lost");
    });
}

#[test]
fn a_deposed_leaders_proposals_never_end_as_success() {
    run(async {
        let replicas = Replicas::start(3).await;
        let old = replicas.leader().await;
        let mut fleet = Fleet::default();
        propose(&old.group, fleet.report("lamp", vec![0]))
            .await
            .await
            .unwrap()
            .unwrap();
        replicas.net.cut(old.id);
        let mut lost = Vec::new();
        for i in 0..20u8 {
            lost.push(propose(&old.group, fleet.report("lamp", vec![i])).await);
        }
        let new = replicas.leader().await;
        assert_ne!(new.id, old.id);
        let mut other = Fleet::default();
        for i in 0..20u8 {
            propose(&new.group, other.report("clock", vec![i]))
                .await
                .await
                .unwrap()
                .unwrap();
        }
        replicas.net.heal();
        for outcome in lost {
            assert!(
                outcome.await.unwrap().is_err(),
                "success for what a new leader overwrote"
            );
        }
        same_rows(&replicas).await;
        assert!(replicas.all.iter().all(|replica| last_seq(replica, "lamp") == 1));
        assert!(replicas.all.iter().all(|replica| last_seq(replica, "clock") == 20));
    });
}

#[test]
fn a_leader_that_hears_nobody_cannot_confirm_that_it_leads() {
    run(async {
        let replicas = Replicas::start(3).await;
        let old = replicas.leader().await;
        assert_eq!(old.group.read_index().await, Ok(()));
        replicas.net.cut(old.id);
        assert!(old.group.read_index().await.is_err(), "a stale read");
        replicas.leader().await;
        replicas.net.heal();
        same_rows(&replicas).await;
    });
}

#[test]
fn a_barrier_has_everything_before_it_applied_and_only_a_leader_has_one() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        let mut outcomes = Vec::new();
        for i in 0..100u8 {
            outcomes.push(propose(&leader.group, fleet.report("lamp", vec![i])).await);
        }
        let at = leader.group.barrier().await.unwrap().at;
        assert_eq!(last_seq(leader, "lamp"), 100);
        for mut outcome in outcomes {
            let position = outcome.try_recv().expect("settled before the barrier").unwrap().at;
            assert!(position < at);
        }
        let follower = replicas.followers(leader).next().unwrap();
        let refused = follower.group.barrier().await.unwrap_err();
        assert_eq!(
            refused,
            ProposeError::Rejected {
                leader: Some(leader.id)
            }
        );
    });
}

#[test]
fn leadership_moves_to_whom_it_is_handed() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        propose(&leader.group, fleet.report("lamp", vec![1]))
            .await
            .await
            .unwrap()
            .unwrap();
        let to: NodeId = replicas.followers(leader).last().unwrap().id;
        leader.group.start_transfer(to).await;
        let led = |role: Role| role.leader == Some(to);
        eventually("everybody follows the successor", || {
            replicas.all.iter().all(|replica| led(replica.group.role()))
        })
        .await;
        let new = replicas.leader().await;
        assert_eq!(new.id, to);
        propose(&new.group, fleet.report("lamp", vec![2]))
            .await
            .await
            .unwrap()
            .unwrap();
        same_rows(&replicas).await;
    });
}

/// On evidence that the leader is dead, its voters need not wait for timers.
#[test]
fn a_voter_that_gives_up_on_the_leader_takes_over_at_once() {
    run(async {
        let replicas = Replicas::start(3).await;
        let dead = replicas.leader().await;
        replicas.net.cut(dead.id);
        let alive: Vec<_> = replicas.followers(dead).collect();
        alive[1].group.give_up_on(dead.id, false).await;
        alive[0].group.give_up_on(dead.id, true).await;
        let next = replicas.leader().await;
        assert_ne!(next.id, dead.id);
        // Evidence about somebody who does not lead changes nothing.
        let term = next.group.role().term;
        next.group.give_up_on(dead.id, true).await;
        next.group.barrier().await.unwrap();
        assert_eq!(next.group.role().term, term);
    });
}

#[test]
fn a_snapshot_installed_over_the_transport_gives_the_same_rows() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let away = replicas.followers(leader).next().unwrap();
        let mut fleet = Fleet::default();
        replicas.net.cut(away.id);
        for round in 0..2 {
            let mut outcomes = Vec::new();
            for i in 0..600u64 {
                outcomes.push(propose(&leader.group, fleet.report("lamp", vec![round; 500 + i as usize])).await);
            }
            for outcome in outcomes {
                outcome.await.unwrap().unwrap();
            }
            leader.flush().await;
        }
        replicas.net.heal();
        same_rows(&replicas).await;
        assert!(away.snapshots.load(Ordering::Relaxed) > 0);
        assert_eq!(fingerprint(&away.rows()), fingerprint(&leader.rows()));
        let terms = |replica: &Replica| replica.group.shared.meta().terms;
        assert_eq!(
            terms(away),
            terms(leader),
            "receipts can be judged by the new replica too"
        );
    });
}
