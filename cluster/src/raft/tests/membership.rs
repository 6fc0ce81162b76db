//! Replicas come and go while the group writes; a replica that was given back keeps its promises.

use std::collections::BTreeSet;
use std::sync::Arc;

use actors::wire::codec;
use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};

use crate::raft::log::decode_entry;
use crate::raft::membership::{Membership, Step, StepError};
use crate::raft::retire;
use crate::raft::rpc;
use crate::raft::types::{TypeConfig, Vote};
use crate::storage::{LogRecord, LogStore, StateStore};
use crate::testing::fleet::Fleet;
use crate::testing::replicas::{propose, Replica, Replicas};
use crate::testing::{fingerprint, log_id, rows_of, run, SHARD};
use crate::transport::tests::harness::eventually;

async fn write(replica: &Replica, fleet: &mut Fleet, count: u8) {
    for i in 0..count {
        let payload = fleet.report("lamp", vec![i]);
        propose(&replica.group, payload).await.await.unwrap().unwrap();
    }
}

/// What its leader says, once it is committed.
async fn seen(leader: &Replica) -> Membership {
    eventually("the membership is committed", || {
        leader.group.membership().is_some_and(|seen| seen.committed)
    })
    .await;
    leader.group.membership().unwrap()
}

async fn step(leader: &Replica, step: Step) {
    let from = seen(leader).await.at;
    leader.group.step(from, step).await.unwrap();
}

fn set(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

#[test]
fn a_new_replica_copies_then_votes_in_place_of_another() {
    run(async {
        let replicas = Replicas::start_voting(4, 3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        write(leader, &mut fleet, 50).await;
        let out = replicas.followers(leader).find(|r| r.id <= 3).unwrap().id;
        step(leader, Step::AddLearner(4)).await;
        eventually("it has caught up", || {
            leader
                .group
                .membership()
                .is_some_and(|seen| seen.lag.get(&4) == Some(&0))
        })
        .await;
        let mut voters = set(&[1, 2, 3, 4]);
        voters.remove(&out);
        step(leader, Step::Voters(voters.clone())).await;
        let now = seen(leader).await;
        assert_eq!((now.voters, now.learners.len()), (vec![voters], 0));
        write(leader, &mut fleet, 10).await;
        let index = leader.group.applied_index();
        let new = &replicas.all[3];
        eventually("the new one applies", || new.group.applied_index() >= index).await;
        assert_eq!(fingerprint(&new.rows()), fingerprint(&leader.rows()));
    });
}

#[test]
fn a_step_that_was_decided_on_another_membership_is_refused() {
    run(async {
        let replicas = Replicas::start_voting(5, 3).await;
        let leader = replicas.leader().await;
        let old = seen(leader).await.at;
        leader.group.step(old, Step::AddLearner(4)).await.unwrap();
        let late = leader.group.step(old, Step::AddLearner(5)).await;
        assert!(matches!(late, Err(StepError::Refused(_))), "{late:?}");
        assert_eq!(seen(leader).await.learners, set(&[4]));
        let follower = replicas.followers(leader).next().unwrap();
        let refused = follower.group.step(old, Step::AddLearner(5)).await;
        assert_eq!(
            refused,
            Err(StepError::NotLeader {
                leader: Some(leader.id)
            })
        );
        assert_eq!(follower.group.membership(), None, "only a leader tells");
    });
}

/// A voter that is wiped and asked again would help a candidate without committed entries.
#[test]
fn a_replica_that_was_given_back_votes_for_nobody_who_has_less() {
    run(async {
        let replicas = Replicas::start_voting(4, 3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        write(leader, &mut fleet, 20).await;
        let index = leader.group.applied_index();
        let gone = replicas.followers(leader).find(|r| r.id <= 3).unwrap();
        eventually("the follower applies", || gone.group.applied_index() >= index).await;
        let term = leader.group.role().term;
        let vote = gone.log.record(SHARD, LogRecord::Vote).unwrap();
        assert!(vote.is_some());
        gone.group.shutdown().await;
        gone.group.shared.close();
        let log: Arc<dyn LogStore> = gone.log.clone();
        let state = gone.state.clone();
        let flush = || async { StateStore::flush(&*state) };
        retire::give_back(SHARD, log.clone(), &*gone.state, flush)
            .await
            .unwrap();
        assert!(!retire::holds_any(&*log, &*gone.state, SHARD).unwrap());
        assert!(rows_of(&*gone.state, gone.group.shared.space().generation).is_empty());
        assert_eq!(log.record(SHARD, LogRecord::Vote).unwrap(), vote, "the vote stays");
        let retired = retire::retired(&*log, SHARD).unwrap().unwrap();
        assert!(retired.floor >= Some(log_id(term, index)));
        // Held again, it is asked by candidates with more and with less.
        let again = replicas.reopen(gone).await;
        let ask = |last: u64| {
            let request = VoteRequest::<TypeConfig>::new(Vote::new(term + 9, 9), Some(log_id(term, last)));
            Bytes::from(codec::encode(&request))
        };
        assert_eq!(again.serve(9, rpc::KIND_VOTE, ask(index - 1)).await, None);
        assert_eq!(again.serve(9, rpc::KIND_PRE_VOTE, ask(index - 1)).await, None);
        assert!(again.serve(9, rpc::KIND_VOTE, ask(index + 5)).await.is_some());
        assert!(again.is_initialized().await, "it never writes a first membership");
        again.shutdown().await;
    });
}

/// The first membership was itself alone. Read anew, the log comes to that before it comes to what
/// followed; whoever stood for election there would need nobody's vote.
#[test]
fn a_replica_that_reads_its_log_anew_does_not_lead_by_a_membership_of_long_ago() {
    run(async {
        let replicas = Replicas::start_voting(2, 1).await;
        let first = &replicas.all[0];
        let mut fleet = Fleet::default();
        write(first, &mut fleet, 20).await;
        step(first, Step::AddLearner(2)).await;
        step(first, Step::Voters(set(&[1, 2]))).await;
        seen(first).await;
        write(first, &mut fleet, 20).await;
        let had = first.group.applied_index();
        first.group.shutdown().await;
        first.group.shared.close();
        let entries = first.log.entries(SHARD, 0..had + 1, usize::MAX).unwrap();
        let state = first.state.clone();
        let log: Arc<dyn LogStore> = first.log.clone();
        let flush = || async { StateStore::flush(&*state) };
        retire::give_back(SHARD, log.clone(), &*first.state, flush)
            .await
            .unwrap();
        let again = replicas.reopen(first).await;
        // As far as a copy has come in a first moment: the first membership, and a little more.
        let (term, leader) = (again.role().term + 1, 2);
        let append = |count: usize| {
            let entries = entries[..count]
                .iter()
                .map(|(_, bytes)| decode_entry(bytes).unwrap())
                .collect();
            let request = AppendEntriesRequest::<TypeConfig> {
                vote: Vote::new_committed(term, leader),
                prev_log_id: None,
                entries,
                leader_commit: None,
            };
            rpc::encode_append(SHARD, &request).slice(2..)
        };
        assert!(again.serve(2, rpc::KIND_APPEND, append(10)).await.is_some());
        // What the beat of a node does; longer than any election takes.
        for _ in 0..40 {
            again.stand_for_election(true);
            assert!(
                !again.role().leading,
                "it leads a group that has long had another membership"
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(again.role().term, term, "it did not even try");
        let transfer = TransferLeaderRequest::<TypeConfig>::new(Vote::new_committed(term, leader), 1, None);
        let transfer = Bytes::from(codec::encode(&transfer));
        assert_eq!(again.serve(2, rpc::KIND_TRANSFER, transfer).await, None);
        // With all of it, it is a voter like any other: it stands, and needs the other's vote.
        assert!(again.serve(2, rpc::KIND_APPEND, append(entries.len())).await.is_some());
        eventually("it stands once it has what it had", || {
            again.stand_for_election(true);
            again.role().leader != Some(leader)
        })
        .await;
        again.shutdown().await;
    });
}

#[test]
fn a_give_back_that_was_interrupted_is_finished_by_the_next() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        write(leader, &mut fleet, 20).await;
        let gone = replicas.followers(leader).next().unwrap();
        gone.group.shutdown().await;
        gone.group.shared.close();
        let log: Arc<dyn LogStore> = gone.log.clone();
        let fails = || async { Err(std::io::Error::other("the power fails")) };
        assert!(retire::give_back(SHARD, log.clone(), &*gone.state, fails)
            .await
            .is_err());
        assert!(retire::is_half_wiped(&*log, SHARD).unwrap());
        let floor = retire::retired(&*log, SHARD).unwrap().unwrap().floor;
        let fine = || async { Ok(()) };
        retire::give_back(SHARD, log.clone(), &*gone.state, fine).await.unwrap();
        assert!(!retire::holds_any(&*log, &*gone.state, SHARD).unwrap());
        assert_eq!(retire::retired(&*log, SHARD).unwrap().unwrap().floor, floor);
    });
}
