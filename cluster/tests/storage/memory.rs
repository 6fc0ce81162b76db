//! The stores in memory: the same contracts, and what a simulated power cut leaves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use cluster::storage::memory::{MemoryLog, MemoryState};
use cluster::storage::{LogRecord, LogStore, StateStore};

use super::log_contract::{append, purge, put, read, truncate, write, A, B};

mod log {
    use super::*;
    log_contract_tests!(|_: &std::path::Path| MemoryLog::new());
}

mod state {
    use super::*;
    state_contract_tests!(|_: &std::path::Path| MemoryState::new());
}

/// At every point between operations, a crash leaves exactly what was synced, or a prefix of the
/// rest that the disk happened to keep.
#[test]
fn a_crash_at_any_point_leaves_a_prefix_that_holds_everything_completed() {
    let ops = [
        append(A, 1, &["a", "b"]),
        put(A, LogRecord::Vote, "v"),
        append(B, 1, &["z"]),
        truncate(A, Some(1)),
        append(A, 2, &["x", "y"]),
        purge(A, 2),
        append(B, 2, &["w"]),
    ];
    let after = |count: usize| {
        let log = MemoryLog::new();
        ops[..count].iter().for_each(|op| write(&log, op.clone()).unwrap());
        (read(&log, A), read(&log, B), log.record(A, LogRecord::Vote).unwrap())
    };
    for written in 0..=ops.len() {
        for synced in 0..=written {
            for kept in synced..=written {
                let log = MemoryLog::with_manual_sync();
                let completed = Arc::new(AtomicUsize::new(0));
                for (n, op) in ops[..written].iter().enumerate() {
                    let completed = completed.clone();
                    log.submit(
                        op.clone(),
                        Box::new(move |outcome| {
                            outcome.unwrap();
                            completed.fetch_add(1, Ordering::Relaxed);
                        }),
                    );
                    if n + 1 == synced {
                        log.sync();
                    }
                }
                assert_eq!(completed.load(Ordering::Relaxed), synced);
                log.crash_keeping(kept - synced);
                let found = (read(&log, A), read(&log, B), log.record(A, LogRecord::Vote).unwrap());
                assert_eq!(found, after(kept), "written {written}, synced {synced}, kept {kept}");
            }
        }
    }
}

#[test]
fn a_failed_sync_fails_everything_after_it_until_the_restart() {
    let log = MemoryLog::new();
    write(&log, append(A, 1, &["a"])).unwrap();
    log.fail_next_sync();
    write(&log, append(A, 2, &["b"])).unwrap_err();
    write(&log, append(A, 3, &["c"])).unwrap_err();
    log.last_index(A).unwrap_err();
    log.crash();
    assert_eq!(read(&log, A), "1=a");
    log.fail_next_write();
    write(&log, append(A, 2, &["b"])).unwrap_err();
    write(&log, append(A, 2, &["b"])).unwrap_err();
    log.crash();
    write(&log, append(A, 2, &["b"])).unwrap();
}

/// Durable is not the same as answered: a crash in between keeps the entry, and nobody was told.
#[test]
fn held_completions_run_only_when_released() {
    let log = MemoryLog::new();
    let completed = Arc::new(AtomicUsize::new(0));
    log.hold_completions();
    for index in 1..=3 {
        let completed = completed.clone();
        log.submit(
            append(A, index, &["a"]),
            Box::new(move |_| {
                completed.fetch_add(1, Ordering::Relaxed);
            }),
        );
    }
    assert_eq!(completed.load(Ordering::Relaxed), 0);
    log.release_completions();
    assert_eq!(completed.load(Ordering::Relaxed), 3);
    log.hold_completions();
    log.submit(append(A, 4, &["a"]), Box::new(|_| panic!("its process is dead")));
    log.crash();
    assert_eq!(log.last_index(A).unwrap(), Some(4));
}

#[test]
fn a_lone_committed_record_is_not_worth_a_sync() {
    let log = MemoryLog::new();
    write(&log, put(A, LogRecord::Committed, "1")).unwrap();
    assert_eq!(log.counters().fsyncs, 0);
    log.crash();
    assert_eq!(log.record(A, LogRecord::Committed).unwrap(), None);
    write(&log, put(A, LogRecord::Committed, "1")).unwrap();
    write(&log, append(A, 1, &["a"])).unwrap();
    log.crash();
    assert_eq!(log.record(A, LogRecord::Committed).unwrap().unwrap(), "1");
}

#[test]
fn a_damaged_entry_is_never_served() {
    let log = MemoryLog::new();
    write(&log, append(A, 1, &["a", "b"])).unwrap();
    assert!(log.damage(A, 2));
    let error = log.entries(A, 1..3, usize::MAX).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn a_crash_of_the_state_leaves_a_prefix_of_whole_batches() {
    use super::state_contract::{put, read, write};
    for flushed in 0..=3 {
        let state = MemoryState::new();
        for batch in 1..=3 {
            let n = batch.to_string();
            write(&state, vec![put("applied", &n), put(&format!("row{n}"), &n)]);
        }
        state.flush_some(flushed);
        state.crash();
        let expected = [
            "",
            "applied=1 row1=1",
            "applied=2 row1=1 row2=2",
            "applied=3 row1=1 row2=2 row3=3",
        ][flushed];
        assert_eq!(read(&*state.view()), expected);
    }
}

#[test]
fn failed_writes_and_flushes_of_the_state_leave_it_as_it_was() {
    use super::state_contract::{put, write};
    let state = MemoryState::new();
    write(&state, vec![put("a", "1")]);
    state.fail_next_write();
    state
        .write(cluster::storage::StateBatch {
            ops: vec![put("a", "2")],
        })
        .unwrap_err();
    assert_eq!(state.get(b"a").unwrap().unwrap(), b"1");
    state.fail_next_sync();
    state.flush().unwrap_err();
    assert_eq!(state.unflushed_batches(), 1);
    assert!(state.damage(b"a"));
    assert_eq!(state.get(b"a").unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    state.crash();
    assert_eq!(state.get(b"a").unwrap(), None);
}
