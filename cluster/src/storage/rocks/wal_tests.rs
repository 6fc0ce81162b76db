//! Which damage is told from which torn write. The WALs are RocksDB's own.

use std::sync::mpsc;

use actors::id::ShardId;
use bytes::Bytes;

use super::*;
use crate::storage::rocks::{BlockCache, LogOptions, RocksLog};
use crate::storage::{LogOp, LogRecord, LogStore};

/// The WAL that these operations leave, each waited for, and where each of them begins in it.
struct Wal {
    database: u64,
    bytes: Vec<u8>,
    begins: Vec<usize>,
}

impl Wal {
    fn of(ops: Vec<LogOp>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions::new(BlockCache::new(1 << 20));
        let log = RocksLog::open(dir.path(), options, Box::new(|_| {})).unwrap();
        let file = wal_files(dir.path()).unwrap().pop().unwrap();
        let mut begins = Vec::new();
        for op in ops {
            begins.push(skip_trailer(fs::metadata(&file).unwrap().len() as usize));
            let (tx, rx) = mpsc::channel();
            log.submit(op, Box::new(move |outcome| tx.send(outcome).unwrap()));
            rx.recv().unwrap().unwrap();
        }
        Wal {
            database: database_of(dir.path()).unwrap().unwrap(),
            bytes: fs::read(&file).unwrap(),
            begins,
        }
    }

    fn verdict(&self, change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
        let mut bytes = self.bytes.clone();
        change(&mut bytes);
        let mut scan = Scan::new(Some(self.database));
        scan.file(0, &bytes);
        scan.verdict()
    }

    fn torn_at(&self, op: usize) -> Verdict {
        Verdict::Torn {
            file: 0,
            len: self.begins[op],
        }
    }
}

fn append(index: u64, bytes: usize) -> LogOp {
    LogOp::Append {
        shard: ShardId(1),
        first_index: index,
        entries: vec![Bytes::from(vec![b'x'; bytes])],
    }
}

fn committed() -> LogOp {
    LogOp::Put {
        shard: ShardId(1),
        record: LogRecord::Committed,
        value: Bytes::from_static(b"7"),
    }
}

/// Wherever a bit flips before the last write, lengths and types included, it is damage: the write
/// behind it says that it was durable. In the last write it cannot be told from a torn one.
#[test]
fn every_flipped_bit_is_noticed_and_only_the_last_write_may_go() {
    let wal = Wal::of((1..=6).map(|index| append(index, 40)).collect());
    assert_eq!(wal.verdict(|_| ()), Verdict::Intact);
    let last = wal.begins[5];
    for bit in 0..wal.bytes.len() * 8 {
        let verdict = wal.verdict(|bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        if bit / 8 < last {
            assert!(matches!(verdict, Verdict::Damaged { .. }), "bit {bit}: {verdict:?}");
        } else {
            assert_eq!(verdict, wal.torn_at(5), "bit {bit}");
        }
    }
}

#[test]
fn a_write_cut_short_anywhere_is_torn_where_it_began() {
    let wal = Wal::of(vec![append(1, 40), append(2, 100_000)]);
    for len in (wal.begins[1] + 1..wal.bytes.len()).step_by(997) {
        assert_eq!(wal.verdict(|bytes| bytes.truncate(len)), wal.torn_at(1), "{len} bytes");
    }
    assert_eq!(wal.verdict(|bytes| bytes.truncate(wal.begins[1])), Verdict::Intact);
}

/// Pages of one write reach the disk in any order.
#[test]
fn pages_missing_inside_the_last_write_are_torn_inside_an_earlier_one_damage() {
    let wal = Wal::of(vec![append(1, 40), append(2, 200_000), append(3, 200_000)]);
    let pages = wal.bytes.len() / 4096;
    for page in 0..pages {
        let zeroed = page * 4096..(page + 1) * 4096;
        let verdict = wal.verdict(|bytes| bytes[zeroed.clone()].fill(0));
        if zeroed.start >= wal.begins[2] {
            assert_eq!(verdict, wal.torn_at(2), "page {page}");
        } else {
            assert!(matches!(verdict, Verdict::Damaged { .. }), "page {page}: {verdict:?}");
        }
    }
}

/// Zeros where the file was extended but nothing arrived.
#[test]
fn zeros_behind_the_last_write_are_cut_off() {
    let wal = Wal::of(vec![append(1, 40), append(2, 40)]);
    let len = wal.bytes.len();
    let verdict = wal.verdict(|bytes| bytes.resize(len + 100_000, 0));
    assert_eq!(verdict, Verdict::Torn { file: 0, len });
}

/// A committed record is written without a sync: the next write does not vouch for it, the one
/// after that does.
#[test]
fn an_unsynced_write_is_vouched_for_only_after_the_next_sync() {
    let wal = Wal::of(vec![append(1, 40), committed(), append(2, 40)]);
    let damaged = |wal: &Wal| wal.verdict(|bytes| bytes[wal.begins[1] + 20] ^= 1);
    assert_eq!(damaged(&wal), wal.torn_at(1));
    let wal = Wal::of(vec![append(1, 40), committed(), append(2, 40), append(3, 40)]);
    assert!(matches!(damaged(&wal), Verdict::Damaged { .. }));
}

/// A device that sends the image of a WAL record cannot keep a node from starting.
#[test]
fn what_a_device_sends_is_never_taken_for_a_mark() {
    let forged = Wal::of((1..=6).map(|index| append(index, 40)).collect());
    let op = LogOp::Append {
        shard: ShardId(1),
        first_index: 2,
        entries: vec![Bytes::from(forged.bytes)],
    };
    let wal = Wal::of(vec![append(1, 40), op]);
    let verdict = wal.verdict(|bytes| bytes[wal.begins[1] + 10] ^= 1);
    assert_eq!(verdict, wal.torn_at(1));
}
