//! Files of a log that lost their end while nothing ran: noticed, wherever they are cut, or nothing
//! was lost.

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use actors::id::ShardId;
use actors::wire::codec;
use bytes::Bytes;

use crate::node::disk::missing;
use crate::raft::log::{all_reached, encode_entry, log_id};
use crate::raft::types::{Entry, EntryPayload, Payload, Vote};
use crate::storage::reached as positions;
use crate::storage::rocks::{BlockCache, LogOptions, RocksLog};
use crate::storage::{written, LogOp, LogRecord, LogStore, StorageOpenError};

const SHARDS: u16 = 3;
/// Nothing is written to it after the first run: all it has is in a table.
const QUIET: ShardId = ShardId(2);

fn open(dir: &Path) -> Result<RocksLog, StorageOpenError> {
    RocksLog::open(
        &dir.join("log"),
        LogOptions::new(BlockCache::new(1 << 20)),
        Box::new(|_| {}),
    )
}

fn write(log: &RocksLog, op: LogOp) {
    let (tx, rx) = mpsc::channel();
    log.submit(op, Box::new(move |outcome| tx.send(outcome).unwrap()));
    rx.recv().unwrap().unwrap();
}

fn append(log: &RocksLog, shard: ShardId, term: u64, index: u64) {
    let entry = Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Payload(Bytes::from(vec![7; 200]))),
    };
    let entries = vec![encode_entry(&entry)];
    write(
        log,
        LogOp::Append {
            shard,
            first_index: index,
            entries,
        },
    );
}

fn put(log: &RocksLog, shard: ShardId, record: LogRecord, value: Vec<u8>) {
    write(
        log,
        LogOp::Put {
            shard,
            record,
            value: Bytes::from(value),
        },
    );
}

/// What a node does when it stops.
fn stop(dir: &Path, log: &RocksLog) {
    log.close();
    written::note(dir, log.durable_changes()).unwrap();
    let shards: Vec<ShardId> = (0..SHARDS).map(ShardId).collect();
    positions::note(dir, &all_reached(log, &shards).unwrap()).unwrap();
}

/// Three runs, each in a term of its own.
fn stopped(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for run in 0..3 {
        let log = open(dir).unwrap();
        assert_eq!(missing(dir, SHARDS, &log).unwrap(), None);
        for shard in (0..SHARDS).map(ShardId).filter(|shard| run == 0 || *shard != QUIET) {
            put(
                &log,
                shard,
                LogRecord::Vote,
                codec::encode(&Vote::new_committed(run + 1, 1)),
            );
            for index in run * 10..run * 10 + 10 {
                append(&log, shard, run + 1, index);
            }
            put(
                &log,
                shard,
                LogRecord::Committed,
                codec::encode(&Some(log_id(run + 1, run * 10 + 8))),
            );
        }
        stop(dir, &log);
    }
}

fn all_of(log: &RocksLog) -> Vec<String> {
    let shards = (0..SHARDS).map(ShardId);
    shards
        .map(|shard| {
            let entries = log.entries(shard, 0..u64::MAX, usize::MAX).unwrap();
            format!("{:?} {entries:?}", log.record(shard, LogRecord::Vote).unwrap())
        })
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn no_cut_of_a_stopped_log_is_voted_with() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    stopped(&live);
    let whole = root.path().join("whole");
    copy(&live, &whole);
    let all = all_of(&open(&whole).unwrap());
    let mut noticed = std::collections::BTreeMap::<String, usize>::new();
    for file in fs::read_dir(live.join("log")).unwrap() {
        let (name, len) = (
            file.as_ref().unwrap().file_name(),
            file.unwrap().metadata().unwrap().len(),
        );
        let name = name.to_string_lossy().into_owned();
        // A manifest is short, and each of its records is a way to lose a table.
        let step = if name.starts_with("MANIFEST") {
            3
        } else {
            (len / 12).max(1)
        };
        let kind = name.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        for kept in (0..len)
            .step_by(usize::try_from(step).unwrap())
            .chain([len.saturating_sub(1)])
        {
            let dir = root.path().join("cut");
            copy(&live, &dir);
            let cut = fs::OpenOptions::new()
                .write(true)
                .open(dir.join("log").join(&name))
                .unwrap();
            cut.set_len(kept).unwrap();
            match open(&dir) {
                Err(StorageOpenError::Corrupt { .. }) => *noticed.entry(kind.clone()).or_default() += 1,
                Err(other) => panic!("{name} cut to {kept} of {len}: {other}"),
                Ok(log) if missing(&dir, SHARDS, &log).unwrap().is_some() => {
                    *noticed.entry(kind.clone()).or_default() += 1;
                }
                Ok(log) => assert_eq!(all_of(&log), all, "{name} cut to {kept} of {len} was not noticed"),
            }
            fs::remove_dir_all(&dir).unwrap();
        }
    }
    for kind in [".log", ".sst", "MANIFEST-"] {
        assert!(noticed.get(kind).is_some_and(|times| *times > 5), "{kind}: {noticed:?}");
    }
}
