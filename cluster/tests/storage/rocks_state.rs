//! What only the RocksDB state can be asked: crashes and damage.

use std::io::ErrorKind;
use std::path::Path;

use cluster::storage::rocks::{RocksState, StateOptions};
use cluster::storage::{StateStore, StorageOpenError};

use super::state_contract::{put, read, write};
use super::{cache, copy_dir, damage_file, files};

fn open(dir: &Path) -> RocksState {
    RocksState::open(dir, StateOptions::new(cache())).unwrap()
}

state_contract_tests!(open);

/// Small memtables are flushed whenever they are full; whatever a crash finds on disk is a prefix:
/// the applied index in it fits the rows in it.
#[test]
fn a_crash_at_any_moment_leaves_a_prefix_of_whole_batches() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    let options = StateOptions {
        memtable_bytes: 1 << 20,
        ..StateOptions::new(cache())
    };
    let state = RocksState::open(&live, options).unwrap();
    let filler = "x".repeat(10_000);
    let mut seen = Vec::new();
    for batch in 1..=600_u32 {
        write(
            &state,
            vec![
                put("applied", &format!("{batch:05}")),
                put(&format!("row{batch:05}"), &filler),
            ],
        );
        if batch % 200 == 0 {
            let copy = root.path().join(batch.to_string());
            // Stands for the power cut. Flushing first would hide what it shall show; but files
            // must not come and go under the copy, so the store is closed, which flushes nothing.
            if batch == 600 {
                break;
            }
            if copy_stable(&live, &copy) {
                seen.push(applied(&copy));
            }
        }
    }
    drop(state);
    seen.push(applied(&live));
    assert!(
        seen.iter().any(|applied| (1..600).contains(applied)),
        "some flushed, some lost: {seen:?}"
    );
    assert!(seen.is_sorted(), "{seen:?}");
}

/// Copies a directory in use; says whether no file was removed meanwhile.
fn copy_stable(from: &Path, to: &Path) -> bool {
    std::panic::catch_unwind(|| copy_dir(from, to)).is_ok() && files(from, "sst") == files(to, "sst")
}

/// Opens what a crash left, checks that it is a prefix, and returns its applied index.
fn applied(dir: &Path) -> u32 {
    let state = open(dir);
    let applied = state
        .get(b"applied")
        .unwrap()
        .map_or(0, |text| String::from_utf8(text).unwrap().parse().unwrap());
    let mut rows = 0;
    state
        .view()
        .scan(b"row", b"rox", &mut |_, _| {
            rows += 1;
            true
        })
        .unwrap();
    assert_eq!(rows, applied, "as many rows as the applied index says");
    applied
}

#[test]
fn what_was_flushed_survives_and_the_rest_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    write(&state, vec![put("a", "1")]);
    state.flush().unwrap();
    write(&state, vec![put("a", "2"), put("b", "2")]);
    drop(state);
    assert_eq!(read(&*open(dir.path()).view()), "a=1");
}

#[test]
fn a_damaged_block_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    write(
        &state,
        (0..100).map(|n| put(&format!("row{n:03}"), "some telemetry")).collect(),
    );
    state.flush().unwrap();
    drop(state);
    damage_file(&files(dir.path(), "sst")[0], 100);
    let state = open(dir.path());
    assert_eq!(state.get(b"row000").unwrap_err().kind(), ErrorKind::InvalidData);
    let scanned = state.view().scan(b"row", b"rox", &mut |_, _| true);
    assert_eq!(scanned.unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn a_directory_that_lost_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    write(&state, vec![put("a", "1")]);
    state.flush().unwrap();
    drop(state);
    for lost in [dir.path().join("CURRENT"), files(dir.path(), "sst")[0].clone()] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        std::fs::remove_file(copy.path().join(lost.file_name().unwrap())).unwrap();
        let outcome = RocksState::open(copy.path(), StateOptions::new(cache()));
        assert!(
            matches!(outcome, Err(StorageOpenError::Corrupt { .. })),
            "without {lost:?}"
        );
    }
    let empty = tempfile::tempdir().unwrap();
    let mut options = StateOptions::new(cache());
    options.must_exist = true;
    assert!(matches!(
        RocksState::open(empty.path(), options),
        Err(StorageOpenError::Corrupt { .. })
    ));
}

#[test]
fn a_second_open_is_an_error_of_the_disk_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let second = RocksState::open(dir.path(), StateOptions::new(cache()));
    assert!(matches!(second, Err(StorageOpenError::Disk { .. })));
}
