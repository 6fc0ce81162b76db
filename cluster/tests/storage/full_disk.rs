//! Stores on a disk without room: they wait, nothing is torn, and go on when there is some.
//!
//! On a small file system in memory, which takes the right to mount one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};

use cluster::storage::rocks::{LogOptions, RocksLog, RocksState, StateOptions};
use cluster::storage::{LogStore, StateBatch, StateOp, StateStore};

use super::cache;
use super::log_contract::{append, read, write, A};

struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn of(megabytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "the right to mount a file system in memory: run the tests as root"
        );
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let block = vec![0; 64 << 10];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// More than a memtable, so that a flush meets the full disk, and the file the log writes to next.
const ENTRIES: u64 = 90;

fn megabyte(index: u64) -> String {
    format!("{index:04}").repeat(1 << 18)
}

#[test]
fn a_log_on_a_full_disk_waits_and_loses_nothing() {
    let disk = SmallDisk::of(400);
    let dir = disk.path().join("log");
    let fatal = Arc::new(AtomicUsize::new(0));
    let called = fatal.clone();
    let on_fatal = Box::new(move |_| {
        called.fetch_add(1, Ordering::SeqCst);
    });
    let log = RocksLog::open(&dir, LogOptions::new(cache()), on_fatal).unwrap();
    write(&log, append(A, 1, &["before"])).unwrap();
    disk.fill();
    let (tx, rx) = mpsc::channel();
    for index in 2..2 + ENTRIES {
        let tx = tx.clone();
        log.submit(
            append(A, index, &[&megabyte(index)]),
            Box::new(move |done| tx.send(done.map_err(|e| e.to_string())).unwrap()),
        );
    }
    let first = rx.recv_timeout(std::time::Duration::from_secs(5));
    let counted = rx.try_iter().count() as u64;
    assert!(
        counted < ENTRIES - 1,
        "{counted} of {ENTRIES} were written on a full disk"
    );
    disk.empty();
    let patience = std::time::Duration::from_secs(60);
    for _ in counted + u64::from(first.is_ok())..ENTRIES {
        rx.recv_timeout(patience).unwrap().unwrap();
    }
    drop(log);
    assert_eq!(fatal.load(Ordering::SeqCst), 0);
    let log = RocksLog::open(&dir, LogOptions::new(cache()), Box::new(|_| {})).unwrap();
    assert_eq!(log.last_index(A).unwrap(), Some(1 + ENTRIES));
    for index in [2, 1 + ENTRIES] {
        let found = log.entries(A, index..index + 1, usize::MAX).unwrap();
        assert!(found[0].1.ends_with(megabyte(index).as_bytes()), "entry {index}");
    }
}

#[test]
fn a_log_that_is_told_of_no_room_writes_nothing_and_can_be_closed() {
    let root = tempfile::tempdir().unwrap();
    let there_is = Arc::new(AtomicBool::new(false));
    let asked = there_is.clone();
    let options = LogOptions {
        room: Arc::new(move || asked.load(Ordering::SeqCst)),
        ..LogOptions::new(cache())
    };
    let log = RocksLog::open(root.path(), options, Box::new(|_| {})).unwrap();
    let (tx, rx) = mpsc::channel();
    let done = tx.clone();
    log.submit(
        append(A, 1, &["a"]),
        Box::new(move |outcome| done.send(outcome).unwrap()),
    );
    assert!(rx.recv_timeout(std::time::Duration::from_millis(200)).is_err());
    there_is.store(true, Ordering::SeqCst);
    rx.recv().unwrap().unwrap();
    assert_eq!(read(&log, A), "1=a");
    there_is.store(false, Ordering::SeqCst);
    log.submit(append(A, 2, &["b"]), Box::new(move |outcome| tx.send(outcome).unwrap()));
    log.close();
    rx.recv().unwrap().unwrap();
}

#[test]
fn a_state_whose_flush_found_no_room_goes_on_when_there_is_some() {
    let disk = SmallDisk::of(300);
    let state = RocksState::open(&disk.path().join("state"), StateOptions::new(cache())).unwrap();
    let put = |n: u64| {
        state.write(StateBatch {
            ops: vec![StateOp::Put {
                key: n.to_be_bytes().to_vec(),
                value: vec![7; 1 << 20],
            }],
        })
    };
    (0..8).for_each(|n| put(n).unwrap());
    disk.fill();
    let error = state.flush().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| put(8));
        disk.empty();
        writing.join().unwrap().unwrap();
    });
    state.flush().unwrap();
    for n in 0..=8u64 {
        assert!(state.get(&n.to_be_bytes()).unwrap().is_some(), "{n}");
    }
}
