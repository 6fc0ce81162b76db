//! What only the RocksDB log can be asked: group commit, crashes, damage.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Barrier, Mutex};

use cluster::storage::fault::DiskFaults;
use cluster::storage::rocks::{LogOptions, RocksLog};
use cluster::storage::{LogRecord, LogStore, StorageOpenError};

use super::log_contract::{append, purge, put, read, truncate, write, A, B};
use super::{cache, copy_dir, damage_file, files};

fn open(dir: &Path) -> RocksLog {
    RocksLog::open(dir, LogOptions::new(cache()), Box::new(|_| {})).unwrap()
}

log_contract_tests!(open);

/// A disk whose next sync waits, or fails.
#[derive(Default)]
struct Disk {
    gate: Mutex<Option<(Arc<Barrier>, Arc<Barrier>)>>,
    fail_sync: Mutex<bool>,
    fail_write: Mutex<bool>,
}

impl DiskFaults for Disk {
    fn before_write(&self) -> io::Result<()> {
        if *self.fail_write.lock().unwrap() {
            return Err(io::Error::other("no disk"));
        }
        Ok(())
    }

    fn before_sync(&self) -> io::Result<()> {
        let gate = self.gate.lock().unwrap().take();
        if let Some((reached, go_on)) = gate {
            reached.wait();
            go_on.wait();
        }
        if *self.fail_sync.lock().unwrap() {
            return Err(io::Error::other("medium error"));
        }
        Ok(())
    }
}

fn open_faulty(dir: &Path, disk: &Arc<Disk>) -> (RocksLog, Arc<AtomicUsize>) {
    let fatal = Arc::new(AtomicUsize::new(0));
    let called = fatal.clone();
    let options = LogOptions {
        faults: Some(disk.clone()),
        ..LogOptions::new(cache())
    };
    let on_fatal = Box::new(move |_| {
        called.fetch_add(1, Ordering::SeqCst);
    });
    (RocksLog::open(dir, options, on_fatal).unwrap(), fatal)
}

/// While one sync is slow, everybody else's operations gather behind it and share the next one.
#[test]
fn operations_that_wait_for_a_slow_sync_share_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::default());
    let (log, _) = open_faulty(dir.path(), &disk);
    let (reached, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    *disk.gate.lock().unwrap() = Some((reached.clone(), go_on.clone()));
    let (tx, rx) = mpsc::channel();
    let first = tx.clone();
    log.submit(append(A, 1, &["a"]), Box::new(move |_| first.send(0).unwrap()));
    reached.wait();
    std::thread::scope(|scope| {
        for shard in 1..=50 {
            let (log, tx) = (&log, tx.clone());
            scope.spawn(move || {
                for index in 1..=4 {
                    let tx = tx.clone();
                    let op = append(actors::id::ShardId(shard), index, &["x"]);
                    log.submit(
                        op,
                        Box::new(move |outcome| {
                            outcome.unwrap();
                            tx.send(u64::from(shard) * 10 + index).unwrap();
                        }),
                    );
                }
            });
        }
    });
    assert!(rx.try_recv().is_err(), "nothing is acknowledged before its sync");
    go_on.wait();
    let order: Vec<u64> = rx.iter().take(201).collect();
    assert_eq!(order[0], 0);
    for shard in 1..=50 {
        let own: Vec<u64> = order.iter().copied().filter(|n| n / 10 == shard && *n > 0).collect();
        assert_eq!(own, (1..=4).map(|index| shard * 10 + index).collect::<Vec<_>>());
    }
    let counters = log.counters();
    assert_eq!((counters.fsyncs, counters.ops), (2, 201));
}

#[test]
fn the_first_failed_sync_or_write_is_final_and_announced_once() {
    for fail_write in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::default());
        let (log, fatal) = open_faulty(dir.path(), &disk);
        write(&log, append(A, 1, &["a"])).unwrap();
        let fault = if fail_write { &disk.fail_write } else { &disk.fail_sync };
        *fault.lock().unwrap() = true;
        write(&log, append(A, 2, &["b"])).unwrap_err();
        *fault.lock().unwrap() = false;
        write(&log, append(A, 3, &["c"])).unwrap_err();
        write(&log, put(B, LogRecord::Vote, "v")).unwrap_err();
        log.entries(A, 0..9, usize::MAX).unwrap_err();
        assert_eq!(fatal.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn acknowledged_operations_are_there_after_a_crash() {
    let root = tempfile::tempdir().unwrap();
    let log = open(&root.path().join("live"));
    for index in 1..=20 {
        write(&log, append(A, index, &["a"])).unwrap();
        write(&log, append(B, index, &["b"])).unwrap();
    }
    write(&log, purge(A, 18)).unwrap();
    write(&log, truncate(B, Some(1))).unwrap();
    write(&log, append(B, 2, &["x"])).unwrap();
    write(&log, put(B, LogRecord::Vote, "v")).unwrap();
    // Nothing is in flight: the copy is what a killed process leaves.
    copy_dir(&root.path().join("live"), &root.path().join("copy"));
    for dir in ["copy", "live"] {
        if dir == "live" {
            log.close();
            continue;
        }
        let again = open(&root.path().join(dir));
        assert_eq!(read(&again, A), "19=a 20=a");
        assert_eq!(read(&again, B), "1=b 2=x");
        assert_eq!(again.last_index(A).unwrap(), Some(20));
        assert_eq!(again.record(B, LogRecord::Vote).unwrap().unwrap(), "v");
        write(&again, append(A, 22, &["hole"])).unwrap_err();
    }
}

#[test]
fn without_their_sync_skipped_votes_and_appends_cost_none() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        skip_fsync: true,
        ..LogOptions::new(cache())
    };
    let log = RocksLog::open(dir.path(), options, Box::new(|_| {})).unwrap();
    write(&log, append(A, 1, &["a"])).unwrap();
    write(&log, put(A, LogRecord::Committed, "c")).unwrap();
    assert_eq!(log.counters().fsyncs, 0);
    write(&log, put(A, LogRecord::Vote, "v")).unwrap();
    assert_eq!(log.counters().fsyncs, 1);
    drop(log);
    let options = LogOptions {
        skip_vote_fsync: true,
        ..LogOptions::new(cache())
    };
    let log = RocksLog::open(dir.path(), options, Box::new(|_| {})).unwrap();
    write(&log, put(A, LogRecord::Vote, "w")).unwrap();
    assert_eq!(log.counters().fsyncs, 0);
    write(&log, append(A, 2, &["b"])).unwrap();
    assert_eq!(log.counters().fsyncs, 1);
}

fn refused(dir: &Path) -> bool {
    let outcome = RocksLog::open(dir, LogOptions::new(cache()), Box::new(|_| {}));
    matches!(outcome, Err(StorageOpenError::Corrupt { .. }))
}

/// A directory with a WAL of 50 acknowledged writes, as a killed process leaves it.
fn killed(root: &Path) -> std::path::PathBuf {
    let log = open(&root.join("live"));
    for index in 1..=50 {
        write(&log, append(A, index, &["some event"])).unwrap();
    }
    let copy = root.join("killed");
    copy_dir(&root.join("live"), &copy);
    copy
}

#[test]
fn damage_in_the_middle_of_the_wal_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let killed = killed(root.path());
    let wal = files(&killed, "log").pop().unwrap();
    let len = std::fs::metadata(&wal).unwrap().len() as usize;
    for offset in (0..len * 9 / 10).step_by(len / 40) {
        let copy = root.path().join(format!("at-{offset}"));
        copy_dir(&killed, &copy);
        damage_file(&copy.join(wal.file_name().unwrap()), offset);
        assert!(refused(&copy), "a flipped bit at {offset} of {len}");
    }
}

#[test]
fn a_torn_last_write_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let killed = killed(root.path());
    let wal = files(&killed, "log").pop().unwrap();
    let len = std::fs::metadata(&wal).unwrap().len();
    for torn in [1, 5, 20, 40] {
        let copy = root.path().join(format!("torn-{torn}"));
        copy_dir(&killed, &copy);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(copy.join(wal.file_name().unwrap()))
            .unwrap();
        file.set_len(len - torn).unwrap();
        let log = open(&copy);
        assert_eq!(log.last_index(A).unwrap(), Some(49), "without the last {torn} bytes");
        write(&log, append(A, 50, &["again"])).unwrap();
    }
}

#[test]
fn a_log_that_lost_its_head_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let killed = killed(root.path());
    std::fs::remove_file(killed.join("CURRENT")).unwrap();
    assert!(refused(&killed));
    let options = LogOptions {
        must_exist: true,
        ..LogOptions::new(cache())
    };
    let outcome = RocksLog::open(&root.path().join("empty"), options, Box::new(|_| {}));
    assert!(matches!(outcome, Err(StorageOpenError::Corrupt { .. })));
}

/// RocksDB itself would take this for a torn tail and drop what was acknowledged.
#[test]
fn a_damaged_length_is_refused_although_it_points_behind_the_end() {
    let root = tempfile::tempdir().unwrap();
    let killed = killed(root.path());
    let wal = files(&killed, "log").pop().unwrap();
    // The length of the first record: `checksum u32 | length u16 | type u8`.
    let mut bytes = std::fs::read(&wal).unwrap();
    bytes[5] = 0x7f;
    std::fs::write(&wal, bytes).unwrap();
    assert!(refused(&killed));
}

/// RocksDB itself would take this for damage and never open again.
#[test]
fn a_last_write_that_lost_pages_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    let log = open(&live);
    write(&log, append(A, 1, &["a"])).unwrap();
    write(&log, append(A, 2, &[&"x".repeat(300_000)])).unwrap();
    let copy = root.path().join("copy");
    copy_dir(&live, &copy);
    let wal = files(&copy, "log").pop().unwrap();
    let mut bytes = std::fs::read(&wal).unwrap();
    bytes[100_000..140_000].fill(0);
    std::fs::write(&wal, bytes).unwrap();
    let log = open(&copy);
    assert_eq!(read(&log, A), "1=a");
    write(&log, append(A, 2, &["b"])).unwrap();
    drop(log);
    assert_eq!(read(&open(&copy), A), "1=a 2=b");
}

/// Damage in a table is found when the log opens, before the replica votes.
#[test]
fn a_damaged_table_is_refused_at_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("live");
    let log = open(&dir);
    write(&log, append(A, 1, &["a", "b", "c"])).unwrap();
    drop(log);
    // Opening moves what the WAL held into a table.
    drop(open(&dir));
    damage_file(&files(&dir, "sst")[0], 30);
    assert!(refused(&dir));
}

/// What a log says, all of it that must not be forgotten.
fn all_of(log: &dyn LogStore) -> String {
    let records = [A, B].map(|shard| {
        [LogRecord::Vote, LogRecord::Purged, LogRecord::Retired].map(|record| log.record(shard, record).unwrap())
    });
    format!("{} | {} | {records:?}", read(log, A), read(log, B))
}

/// A log that was closed in good order, after three runs: with tables, a manifest that has grown,
/// and a WAL. Returns how many changes it had.
fn closed(dir: &Path) -> u64 {
    for run in 0..3 {
        let log = open(dir);
        for index in 1..=20 {
            let index = run * 20 + index;
            write(&log, append(A, index, &["some event"])).unwrap();
            write(&log, append(B, index, &[&"x".repeat(3_000)])).unwrap();
            write(&log, put(A, LogRecord::Committed, &index.to_string())).unwrap();
        }
        write(&log, put(B, LogRecord::Vote, &format!("vote {run}"))).unwrap();
        write(&log, purge(A, run * 20 + 5)).unwrap();
        write(&log, put(A, LogRecord::Committed, "the last")).unwrap();
        log.close();
        if run == 2 {
            return log.durable_changes();
        }
    }
    unreachable!("the last run returns");
}

/// Whichever file is cut, and wherever: the log is refused, or it has fewer changes than it is known
/// to have had, or nothing of it was lost.
#[test]
fn no_cut_of_a_closed_log_passes_unnoticed() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    let had = closed(&live);
    let all = {
        let copy = root.path().join("whole");
        copy_dir(&live, &copy);
        let log = open(&copy);
        assert_eq!(log.durable_changes(), had, "counted the same from run to run");
        all_of(&log)
    };
    let names: Vec<_> = live.read_dir().unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(names.len() > 5, "{names:?}");
    for (n, name) in names.iter().enumerate() {
        let file = live.join(name);
        let len = std::fs::metadata(&file).unwrap().len();
        let is_wal = file.extension().is_some_and(|extension| extension == "log");
        let cuts = if is_wal { 40 } else { 6 };
        let at = (0..cuts).map(|cut| len * cut / cuts);
        for cut in at
            .chain([1, 30, 60].map(|less| len.saturating_sub(less)))
            .filter(|cut| *cut < len)
        {
            let copy = root.path().join(format!("{n}-{cut}"));
            copy_dir(&live, &copy);
            let opened = std::fs::OpenOptions::new().write(true).open(copy.join(name)).unwrap();
            opened.set_len(cut).unwrap();
            let what = format!("{name:?} cut to {cut} of {len}");
            match RocksLog::open(&copy, LogOptions::new(cache()), Box::new(|_| {})) {
                Err(StorageOpenError::Corrupt { .. }) => {}
                Err(other) => panic!("{what}: {other}"),
                Ok(log) if log.durable_changes() < had => {}
                Ok(log) => {
                    assert!(!is_wal, "{what} was not noticed");
                    assert_eq!(all_of(&log), all, "{what}");
                }
            }
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
}

/// After a power cut only what was synced is there, and only that was ever counted.
#[test]
fn what_is_counted_as_durable_is_what_a_crash_leaves() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    let log = open(&live);
    let mut counted = log.durable_changes();
    for index in 1..=10 {
        write(&log, append(A, index, &["a"])).unwrap();
        assert!(log.durable_changes() > counted);
        counted = log.durable_changes();
        let copy = root.path().join(index.to_string());
        copy_dir(&live, &copy);
        assert!(open(&copy).durable_changes() >= counted);
    }
}

/// A panic ends the process through `fatal`; until then nobody waits for an answer in vain.
#[test]
fn a_completion_that_panics_is_fatal_and_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (log, fatal) = open_faulty(dir.path(), &Arc::new(Disk::default()));
    let (tx, rx) = mpsc::channel::<()>();
    log.submit(
        append(A, 1, &["a"]),
        Box::new(move |_| {
            // Until the next operation is queued.
            rx.recv().unwrap_err();
            panic!("the panic of this test");
        }),
    );
    let (answer, answered) = mpsc::channel();
    log.submit(
        append(A, 2, &["b"]),
        Box::new(move |outcome| answer.send(outcome).unwrap()),
    );
    drop(tx);
    answered.recv().unwrap_err();
    log.close();
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    write(&log, append(A, 3, &["c"])).unwrap_err();
}
