//! A replica that loses its power at any moment of its life: what is applied agrees with the rows,
//! and the log still holds what the rows lack.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::RaftLogReader;

use crate::background::Background;
use crate::raft::log::{decode_entry, GroupLog};
use crate::raft::machine::{GroupMachine, GroupShared};
use crate::raft::types::Entry;
use crate::shard::apply::ShardApply;
use crate::storage::memory::MemoryState;
use crate::storage::{LogOp, StateStore};
use crate::testing::fleet::Fleet;
use crate::testing::replicas::{propose, Replica, Replicas};
use crate::testing::tape::{appended, wrecks, Mark};
use crate::testing::{fingerprint, rows_of, run, SHARD};
use crate::transport::tests::harness::eventually;

/// openraft keeps 500 entries below a snapshot; more than that makes it purge.
const PAST_THE_KEPT_LOG: u64 = 700;

fn open(state: Arc<dyn StateStore>, background: &Arc<Background>) -> (Arc<GroupShared>, GroupMachine) {
    let shared = Arc::new(GroupShared::open(SHARD, state, background.clone(), background.clone()).unwrap());
    let machine = GroupMachine::new(shared.clone(), Box::new(ShardApply::new(&shared)));
    (shared, machine)
}

async fn apply(machine: &mut GroupMachine, entries: Vec<Entry>) {
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
}

/// The rows after each index, as a replica that never failed has them.
async fn history(log: &BTreeMap<u64, Bytes>, background: &Arc<Background>) -> BTreeMap<u64, u128> {
    let state = Arc::new(MemoryState::new());
    let (shared, mut machine) = open(state.clone(), background);
    let mut history = BTreeMap::from([(0, fingerprint(&rows_of(&*state, 0)))]);
    for (index, bytes) in log {
        apply(&mut machine, vec![decode_entry(bytes).unwrap()]).await;
        shared.settle().unwrap();
        history.insert(*index, fingerprint(&rows_of(&*state, 0)));
    }
    history
}

async fn write(replica: &Replica, fleet: &mut Fleet, entries: u64, body: usize) {
    let mut outcomes = Vec::new();
    for i in 0..entries {
        let payload = fleet.report(&format!("d{}", i % 5), vec![i as u8; body]);
        outcomes.push(propose(&replica.group, payload).await);
        if i % 16 == 0 {
            // Without this all of it becomes one write.
            replica.group.barrier().await.unwrap();
            replica.group.shared.settle().unwrap();
        }
    }
    for outcome in outcomes {
        outcome.await.unwrap().unwrap();
    }
}

async fn check_every_crash(marks: &[Mark], history: &BTreeMap<u64, u128>, wanted: impl Fn(usize) -> bool) -> usize {
    let background = Arc::new(Background::start("test background").unwrap());
    let mut checked = 0;
    for wreck in wrecks(marks, wanted) {
        let at = format!("after {} marks, {} batches on disk", wreck.at, wreck.batches);
        let (shared, mut machine) = open(wreck.state.clone(), &background);
        let meta = shared.meta();
        let rows = |generation| fingerprint(&rows_of(&*wreck.state, generation));
        assert_eq!(
            Some(&rows(meta.generation)),
            history.get(&meta.applied_index()),
            "rows of another index, {at}"
        );

        let mut log = GroupLog::open(SHARD, wreck.log.clone()).unwrap();
        let purged = log.get_log_state().await.unwrap().last_purged_log_id;
        assert!(purged <= meta.applied, "the log lacks what the state lacks too, {at}");
        let next = meta.applied.map_or(0, |id| id.index + 1);
        let rest = log.try_get_log_entries(next..).await.unwrap();
        let indexes: Vec<u64> = rest.iter().map(|entry| entry.log_id.index).collect();
        let expected: Vec<u64> = (next..next + rest.len() as u64).collect();
        assert_eq!(indexes, expected, "a hole between state and log, {at}");
        let last = indexes.last().copied().unwrap_or(meta.applied_index());
        apply(&mut machine, rest).await;
        shared.settle().unwrap();
        assert_eq!(
            Some(&rows(meta.generation)),
            history.get(&last),
            "replay leads elsewhere, {at}"
        );
        checked += 1;
    }
    checked
}

fn purges(marks: &[Mark]) -> usize {
    marks
        .iter()
        .filter(|m| matches!(m, Mark::Log(LogOp::Purge { .. })))
        .count()
}

/// The durable-index rule, on a replica that writes, flushes and purges.
#[test]
fn whatever_is_purged_was_durable_before_and_replay_leads_to_the_same_rows() {
    run(async {
        let replicas = Replicas::start(1).await;
        let one = &replicas.all[0];
        let mut fleet = Fleet::default();
        for _ in 0..3 {
            write(one, &mut fleet, PAST_THE_KEPT_LOG / 2, 10).await;
            one.flush().await;
        }
        // Enough is written between a flush and what it lets go to tell the one's index from the other's.
        write(one, &mut fleet, 20, 10).await;
        let noted = one.group.shared.note().unwrap();
        one.state.flush().unwrap();
        write(one, &mut fleet, PAST_THE_KEPT_LOG, 10).await;
        assert!(one.group.shared.set_durable(noted));
        one.group.snapshot_metadata().await;
        write(one, &mut fleet, 20, 10).await;
        eventually("the log is purged", || purges(&one.log.tape.marks()) > 0).await;
        one.group.barrier().await.unwrap();
        let marks = one.log.tape.marks();
        let background = Arc::new(Background::start("test background").unwrap());
        let history = history(&appended(&marks), &background).await;
        assert!(check_every_crash(&marks, &history, |_| true).await > 20);
    });
}

/// A follower that missed more than the log keeps gets a snapshot; at every moment of that it may
/// lose its power.
#[test]
fn a_follower_may_crash_at_any_moment_of_catching_up_by_snapshot() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let mut fleet = Fleet::default();
        write(leader, &mut fleet, 20, 10).await;
        let away = replicas.followers(leader).next().unwrap();
        replicas.applied(leader.group.applied_index()).await;
        away.flush().await;
        replicas.net.cut(away.id);
        write(leader, &mut fleet, PAST_THE_KEPT_LOG, 1_000).await;
        leader.flush().await;
        eventually("the leader purges", || purges(&leader.log.tape.marks()) > 0).await;

        let before = away.log.tape.len();
        replicas.net.heal();
        // Writes go on meanwhile.
        write(replicas.leader().await, &mut fleet, 50, 10).await;
        let marker = replicas.leader().await.group.digest_marker().await.unwrap().at.index;
        replicas.applied(marker).await;
        assert!(
            away.snapshots.load(Ordering::Relaxed) > 0,
            "it caught up by log, nothing was tested"
        );
        assert_eq!(fingerprint(&away.rows()), fingerprint(&leader.rows()));

        let marks = away.log.tape.marks();
        let background = Arc::new(Background::start("test background").unwrap());
        let history = history(&appended(&leader.log.tape.marks()), &background).await;
        let catching_up = |at: usize| at + 1 >= before;
        assert!(check_every_crash(&marks, &history, catching_up).await > 10);
    });
}

/// note → flush → set_durable: what is written in between does not count.
#[test]
fn what_is_written_while_a_flush_runs_does_not_count_as_durable() {
    run(async {
        let replicas = Replicas::start(1).await;
        let one = &replicas.all[0];
        let mut fleet = Fleet::default();
        write(one, &mut fleet, 10, 10).await;
        let shared = &one.group.shared;
        let noted = shared.note().unwrap();
        let at = one.group.applied_index();
        one.state.flush().unwrap();
        write(one, &mut fleet, 10, 10).await;
        assert!(shared.set_durable(noted));
        assert!(one.group.applied_index() > at);
        use openraft::storage::RaftSnapshotBuilder;
        let (_, mut machine) = (0, GroupMachine::new(shared.clone(), Box::new(ShardApply::new(shared))));
        let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        assert_eq!(
            built.meta.last_log_id.map(|id| id.index),
            Some(at),
            "purging is bounded by what was noted"
        );
        assert!(!shared.set_durable(None), "durability never goes back");
    });
}
