//! The log of a group: what openraft may rely on, and what a crash leaves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::RaftLogReader;
use proptest::prelude::*;

use crate::raft::log::GroupLog;
use crate::raft::types::{Entry, TypeConfig, Vote};
use crate::storage::memory::MemoryLog;
use crate::testing::{log_id, normal, run, SHARD};

fn open(store: &Arc<MemoryLog>) -> GroupLog {
    GroupLog::open(SHARD, store.clone()).unwrap()
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    normal(term, index, Bytes::from(vec![index as u8; len]))
}

async fn append(log: &mut GroupLog, entries: Vec<Entry>) {
    log.append(entries, IOFlushed::<TypeConfig>::noop()).await.unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        count: usize,
        len: usize,
    },
    /// Drops this many entries from the end; a new term follows.
    Truncate(u64),
    /// Drops up to this many entries from the start.
    Purge(u64),
    Vote(u64),
    Committed,
    Reopen,
    Read {
        skip: u64,
        count: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..40usize, 0..50usize).prop_map(|(count, len)| Step::Append { count, len }),
        2 => (0..30u64).prop_map(Step::Truncate),
        2 => (1..30u64).prop_map(Step::Purge),
        1 => (1..50u64).prop_map(Step::Vote),
        1 => Just(Step::Committed),
        1 => Just(Step::Reopen),
        4 => (0..60u64, 0..60u64).prop_map(|(skip, count)| Step::Read { skip, count }),
    ]
}

/// What the log should hold.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: Option<u64>,
    term: u64,
    vote: Option<Vote>,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.entries.keys().next_back().copied().or(self.purged);
        last.map_or(0, |last| last + 1)
    }
}

async fn check(log: &mut GroupLog, model: &Model) -> Result<(), TestCaseError> {
    let state = log.get_log_state().await.unwrap();
    prop_assert_eq!(state.last_purged_log_id.map(|id| id.index), model.purged);
    prop_assert_eq!(state.last_log_id.map_or(0, |id| id.index + 1), model.next());
    prop_assert_eq!(log.read_vote().await.unwrap(), model.vote);
    let all = log.try_get_log_entries(..).await.unwrap();
    prop_assert_eq!(all, model.entries.values().cloned().collect::<Vec<_>>());
    Ok(())
}

async fn story(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    let mut model = Model {
        term: 1,
        ..Model::default()
    };
    for step in steps {
        match step {
            Step::Append { count, len } => {
                let first = model.next();
                let new: Vec<_> = (first..first + count as u64)
                    .map(|i| entry(model.term, i, len))
                    .collect();
                model.entries.extend(new.iter().map(|e| (e.log_id.index, e.clone())));
                append(&mut log, new).await;
            }
            Step::Truncate(count) => {
                let keep = model
                    .next()
                    .saturating_sub(count)
                    .max(model.purged.map_or(0, |p| p + 1));
                model.entries.split_off(&keep);
                model.term += 1;
                let last = keep.checked_sub(1).map(|index| log_id(1, index));
                log.truncate_after(last).await.unwrap();
            }
            Step::Purge(count) => {
                let Some(up_to) = model.entries.keys().copied().take(count as usize).last() else {
                    continue;
                };
                let id = model.entries[&up_to].log_id;
                model.entries = model.entries.split_off(&(up_to + 1));
                model.purged = Some(up_to);
                log.purge(id).await.unwrap();
            }
            Step::Vote(term) => {
                let vote = Vote::new(term, 1);
                log.save_vote(&vote).await.unwrap();
                model.vote = Some(vote);
            }
            Step::Committed => {
                let committed = model.entries.values().next_back().map(|e| e.log_id);
                log.save_committed(committed).await.unwrap();
                prop_assert_eq!(log.read_committed().await.unwrap(), committed);
            }
            Step::Reopen => {
                store.crash();
                log = open(&store);
            }
            Step::Read { skip, count } => {
                let from = model.purged.map_or(0, |p| p + 1) + skip;
                let expected: Vec<_> = model
                    .entries
                    .range(from..from + count)
                    .map(|(_, e)| e.clone())
                    .collect();
                let cached = log.try_get_log_entries(from..from + count).await.unwrap();
                let disk = open(&store).try_get_log_entries(from..from + count).await.unwrap();
                prop_assert_eq!(&cached, &expected, "as it is in memory");
                prop_assert_eq!(&disk, &expected, "as it is on disk");
            }
        }
    }
    check(&mut log, &model).await?;
    store.crash();
    check(&mut open(&store), &model).await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn memory_and_disk_tell_the_same_log(steps in proptest::collection::vec(step(), 1..40)) {
        run(story(steps))?;
    }
}

/// More than the tail in memory keeps, and entries too large to keep many of.
#[test]
fn entries_older_than_the_tail_are_read_from_disk() {
    run(async {
        for (count, len) in [(5_000, 10), (30, 1024 * 1024)] {
            let store = Arc::new(MemoryLog::new());
            let mut log = open(&store);
            for i in 0..count {
                append(&mut log, vec![entry(1, i, len)]).await;
            }
            for from in [0, count / 2, count - 1] {
                let found = log.try_get_log_entries(from..count).await.unwrap();
                let indexes: Vec<_> = found.iter().map(|e| e.log_id.index).collect();
                assert_eq!(indexes, (from..count).collect::<Vec<_>>());
                let some = log.limited_get_log_entries(from, count).await.unwrap();
                assert_eq!(
                    some.first().map(|e| e.log_id.index),
                    Some(from),
                    "at least one, from the first"
                );
            }
        }
    });
}

/// A vote is on disk before it is answered.
#[test]
fn a_vote_is_not_given_before_it_is_durable() {
    run(async {
        let store = Arc::new(MemoryLog::with_manual_sync());
        let mut log = open(&store);
        let given = Arc::new(AtomicBool::new(false));
        let (mut voting, flag) = (log.clone(), given.clone());
        let task = tokio::task::spawn_local(async move {
            voting.save_vote(&Vote::new(3, 1)).await.unwrap();
            flag.store(true, Ordering::Relaxed);
        });
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert!(!given.load(Ordering::Relaxed));
        assert_eq!(
            log.read_vote().await.unwrap(),
            None,
            "nobody sees a vote that may be lost"
        );
        store.sync();
        task.await.unwrap();
        store.crash();
        assert_eq!(open(&store).read_vote().await.unwrap(), Some(Vote::new(3, 1)));
    });
}

/// Whatever prefix of the writes a crash keeps, no entry is there without the vote before it.
#[test]
fn the_order_of_votes_and_entries_survives_a_crash() {
    run(async {
        for kept in 0..=4 {
            let store = Arc::new(MemoryLog::with_manual_sync());
            let mut log = open(&store);
            let mut tasks = Vec::new();
            for term in 1..=2u64 {
                let mut voting = log.clone();
                tasks.push(tokio::task::spawn_local(async move {
                    let _ = voting.save_vote(&Vote::new(term, 1)).await;
                }));
                tokio::task::yield_now().await;
                append(&mut log, vec![entry(term, term - 1, 5)]).await;
            }
            store.crash_keeping(kept);
            let mut log = open(&store);
            let vote = log.read_vote().await.unwrap().map_or(0, |v| v.leader_id.term);
            let last = log.get_log_state().await.unwrap().last_log_id;
            let term = last.map_or(0, |id| crate::raft::types::term_of(&id));
            assert!(term <= vote, "an entry of term {term} with a vote of term {vote}");
            assert_eq!(
                (vote, last.map_or(0, |id| id.index + 1)),
                ((kept as u64).div_ceil(2), kept as u64 / 2)
            );
        }
    });
}

/// A failed write is told to openraft, not swallowed.
#[test]
fn a_failed_append_is_reported() {
    run(async {
        let store = Arc::new(MemoryLog::new());
        let mut log = open(&store);
        store.fail_next_sync();
        let (tx, rx) = TypeConfig::oneshot();
        let callback = IOFlushed::<TypeConfig>::signal(tx);
        log.append([entry(1, 0, 1)], callback).await.unwrap();
        assert!(rx.await.unwrap().is_err());
        assert!(log.save_vote(&Vote::new(1, 1)).await.is_err());
    });
}
