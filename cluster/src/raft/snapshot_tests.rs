//! A received snapshot and a crash at every point of it: between chunks, before the flip, before
//! the flush, before the old rows are deleted, after.

use std::collections::BTreeSet;

use openraft::storage::RaftStateMachine;

use super::*;
use crate::background::Background;
use crate::raft::machine::GroupMachine;
use crate::shard::apply::ShardApply;
use crate::storage::memory::MemoryState;
use crate::storage::{keys, StateStore};
use crate::testing::fleet::Fleet;
use crate::testing::tape::{wrecks, Mark, TapedState};
use crate::testing::{fingerprint, normal, rows_of, run, SHARD};

fn background() -> Arc<Background> {
    Arc::new(Background::start("test background").unwrap())
}

fn open(state: Arc<dyn StateStore>) -> (Arc<GroupShared>, GroupMachine) {
    let shared = Arc::new(GroupShared::open(SHARD, state, background(), background()).unwrap());
    let machine = GroupMachine::new(shared.clone(), Box::new(ShardApply::new(&shared)));
    (shared, machine)
}

/// Applies `entries` rows of telemetry from index 1 on.
async fn fill(machine: &mut GroupMachine, entries: u64) {
    let mut fleet = Fleet::default();
    let all = (1..=entries).map(|index| {
        let body = vec![index as u8; 8_000];
        Ok((normal(1, index, fleet.report(&format!("d{}", index % 7), body)), None))
    });
    machine.apply(futures::stream::iter(all)).await.unwrap();
}

/// What a leader at index 100 would send.
async fn sent(from: &mut GroupMachine) -> (Begin, Vec<Vec<u8>>) {
    let snapshot = from.get_current_snapshot().await.unwrap().unwrap();
    let SnapshotData::View {
        view,
        generation,
        terms,
    } = snapshot.snapshot
    else {
        panic!("a leader sends a view");
    };
    let begin = Begin {
        session: 100,
        vote: Vote::new(1, 1),
        meta: snapshot.meta,
        terms,
    };
    let range = Space {
        shard: SHARD,
        generation,
    }
    .all();
    let (mut chunks, mut from) = (Vec::new(), range.from);
    loop {
        let (rows, next) = read_chunk(&*view, &from, &range.to).unwrap();
        let number = chunks.len() as u64;
        chunks.push(codec::encode(&Chunk {
            session: 100,
            number,
            rows,
        }));
        match next {
            Some(key) => from = key,
            None => return (begin, chunks),
        }
    }
}

fn generations(state: &dyn StateStore) -> BTreeSet<u32> {
    let all = keys::all_generations(SHARD);
    let mut found = BTreeSet::new();
    state
        .view()
        .scan(&all.from, &all.to, &mut |key, _| {
            found.insert(u32::from_be_bytes(key[3..7].try_into().unwrap()));
            true
        })
        .unwrap();
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Ingesting,
    IngestedNotFlipped,
    FlippedNotFlushed,
    FlushedNotDeleted,
    Deleted,
}

/// How far the disk of a crashed follower had come: the marks before the crash and the batches it kept.
fn stage(marks: &[Mark], base: usize, batches: usize, chunks: usize) -> Option<Stage> {
    let flushed = marks.iter().rposition(|m| matches!(m, Mark::Flushed { .. }));
    let ingested = base + 1 + chunks;
    let flip = ingested + 1;
    Some(match batches {
        b if b <= base => return None,
        b if b < ingested => Stage::Ingesting,
        b if b == ingested => Stage::IngestedNotFlipped,
        b if b == flip && flushed.is_some_and(|at| at > flip) => Stage::FlushedNotDeleted,
        b if b == flip => Stage::FlippedNotFlushed,
        _ => Stage::Deleted,
    })
}

/// G: after a crash at any point of an install, a replica has all of the old state or all of the
/// new one, the applied index says which, and nothing of other generations stays behind.
#[test]
fn a_crash_during_an_install_leaves_the_old_state_or_the_new() {
    run(async {
        let (_, mut leader) = open(Arc::new(MemoryState::new()));
        fill(&mut leader, 100).await;
        let (begin, chunks) = sent(&mut leader).await;
        assert!(chunks.len() >= 3, "several chunks are needed to stand between them");

        let state = Arc::new(TapedState::default());
        let tape = state.tape.clone();
        let (shared, mut follower) = open(state.clone());
        fill(&mut follower, 10).await;
        shared.settle().unwrap();
        state.flush().unwrap();
        let old = fingerprint(&rows_of(&*state, 0));
        let base = tape.marks().iter().filter(|m| matches!(m, Mark::State(_))).count();
        let receiver = Receiver::new(shared.clone());
        let (meta, terms) = (begin.meta.clone(), begin.terms.clone());
        receiver.begin(1, &codec::encode(&begin)).unwrap();
        for chunk in &chunks {
            receiver.chunk(1, chunk).unwrap();
        }
        let generation = receiver.lock().take().unwrap().generation;
        follower
            .install_snapshot(&meta, SnapshotData::Received { generation, terms })
            .await
            .unwrap();
        let new = fingerprint(&rows_of(&*state, generation));
        assert_ne!(old, new);

        let marks = tape.marks();
        let first = marks.iter().position(|m| matches!(m, Mark::Flushed { .. })).unwrap();
        let mut seen = BTreeSet::new();
        // At every moment any prefix of what was written since the last flush may be on the disk.
        for written in wrecks(&marks, |at| at >= first) {
            let stage = stage(&marks[..written.at], base, written.batches, chunks.len());
            seen.extend(stage);
            let (shared, _) = open(written.state.clone());
            let meta = shared.meta();
            let rows = fingerprint(&rows_of(&*written.state, meta.generation));
            let expected = if stage >= Some(Stage::FlippedNotFlushed) {
                (100, new)
            } else {
                (10, old)
            };
            assert_eq!((meta.applied_index(), rows), expected, "{stage:?}");
            assert_eq!(
                generations(&*written.state),
                BTreeSet::from([meta.generation]),
                "{stage:?}"
            );
            assert_eq!(shared.note().unwrap().map(|n| n.0.index), Some(expected.0), "{stage:?}");
        }
        let all = [
            Stage::Ingesting,
            Stage::IngestedNotFlipped,
            Stage::FlippedNotFlushed,
            Stage::FlushedNotDeleted,
            Stage::Deleted,
        ];
        assert_eq!(seen, BTreeSet::from(all));
    });
}

/// A flip whose flush failed may or may not be on disk; the group stops instead of purging on it.
#[test]
fn an_install_whose_flush_fails_is_not_reported_as_done() {
    run(async {
        let (_, mut leader) = open(Arc::new(MemoryState::new()));
        fill(&mut leader, 20).await;
        let (begin, chunks) = sent(&mut leader).await;
        let state = Arc::new(MemoryState::new());
        let (shared, mut follower) = open(state.clone());
        let receiver = Receiver::new(shared.clone());
        receiver.begin(1, &codec::encode(&begin)).unwrap();
        for chunk in &chunks {
            receiver.chunk(1, chunk).unwrap();
        }
        state.fail_next_sync();
        let data = SnapshotData::Received {
            generation: 1,
            terms: begin.terms.clone(),
        };
        assert!(follower.install_snapshot(&begin.meta, data).await.is_err());
        state.crash();
        assert_eq!(open(state).0.meta().applied_index(), 0);
    });
}

/// Chunks of one snapshot arrive in order, from whoever began it, or not at all.
#[test]
fn chunks_out_of_turn_are_refused() {
    run(async {
        let (_, mut leader) = open(Arc::new(MemoryState::new()));
        fill(&mut leader, 100).await;
        let (begin, chunks) = sent(&mut leader).await;
        let (shared, _follower) = open(Arc::new(MemoryState::new()));
        let receiver = Receiver::new(shared);
        assert!(receiver.chunk(1, &chunks[0]).is_err(), "nothing was begun");
        receiver.begin(1, &codec::encode(&begin)).unwrap();
        assert!(receiver.chunk(1, &chunks[1]).is_err(), "a chunk is missing before it");
        assert!(receiver.chunk(2, &chunks[0]).is_err(), "another node began it");
        receiver.chunk(1, &chunks[0]).unwrap();
        assert!(receiver.chunk(1, &chunks[0]).is_err(), "it has come already");
        assert!(receiver.chunk(1, &chunks[1][..9]).is_err(), "it is cut short");
    });
}

/// Between the end of one snapshot and its flip another may begin (a new leader's). What is about
/// to count must not be touched by it.
#[test]
fn a_snapshot_that_begins_during_an_install_does_not_touch_it() {
    run(async {
        let source = Arc::new(MemoryState::new());
        let (_leading, mut leader) = open(source.clone());
        fill(&mut leader, 100).await;
        let (begin, chunks) = sent(&mut leader).await;
        let state = Arc::new(MemoryState::new());
        let (shared, mut follower) = open(state.clone());
        let receiver = Receiver::new(shared.clone());
        receiver.begin(1, &codec::encode(&begin)).unwrap();
        for chunk in &chunks {
            receiver.chunk(1, chunk).unwrap();
        }
        // The end was received; openraft has not called the state machine yet.
        let ended = receiver.lock().take().unwrap();
        receiver.begin(2, &codec::encode(&begin)).unwrap();
        receiver.chunk(2, &chunks[0]).unwrap();
        let data = SnapshotData::Received {
            generation: ended.generation,
            terms: ended.begin.terms,
        };
        follower.install_snapshot(&ended.begin.meta, data).await.unwrap();
        let sent = rows_of(&*source, 0);
        let installed = rows_of(&*state, shared.meta().generation);
        assert_eq!(fingerprint(&installed), fingerprint(&sent));
    });
}
