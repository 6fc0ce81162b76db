//! What RocksDB says of itself, for whoever has to find out why a disk is slow or full.

use rocksdb::DB;

/// Read as they are: names are RocksDB's own.
const NAMES: &[&str] = &[
    "rocksdb.estimate-num-keys",
    "rocksdb.total-sst-files-size",
    "rocksdb.live-sst-files-size",
    "rocksdb.cur-size-all-mem-tables",
    "rocksdb.num-immutable-mem-table",
    "rocksdb.num-running-flushes",
    "rocksdb.num-running-compactions",
    "rocksdb.estimate-pending-compaction-bytes",
    "rocksdb.is-write-stopped",
    "rocksdb.actual-delayed-write-rate",
    "rocksdb.background-errors",
    "rocksdb.block-cache-usage",
    "rocksdb.estimate-table-readers-mem",
    "rocksdb.num-snapshots",
    "rocksdb.oldest-snapshot-time",
    "rocksdb.levelstats",
];

/// Those that this version of RocksDB knows.
pub fn of(db: &DB) -> Vec<(&'static str, String)> {
    let read = |name: &&'static str| Some((*name, db.property_value(*name).ok()??));
    NAMES.iter().filter_map(read).collect()
}
