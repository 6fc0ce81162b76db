//! One disk per node: a log store and a state store, each as a trait with a RocksDB and an
//! in-memory implementation. RocksDB is named only below here; openraft is not named here at all.
//!
//! Beside them: who a directory belongs to, whom it has met, and how full its disk is.

mod extent;
mod file;
mod sealed;

pub mod book;
pub mod damage;
pub mod fault;
pub mod identity;
pub mod keys;
pub mod ledger;
pub mod memory;
pub mod reached;
pub mod reserve;
pub mod rocks;
pub mod room;
pub mod watched;
pub mod written;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use actors::id::ShardId;
use bytes::Bytes;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum StorageOpenError {
    /// Bytes that were durable are damaged or missing: this replica must be rebuilt from its peers
    /// under a new node id. Opening again will not help.
    #[error("data in {dir} is damaged: {reason}", dir = dir.display())]
    Corrupt { dir: PathBuf, reason: String },
    /// No permission, a full disk, a directory in use by another process. Mend it and start again.
    #[error("cannot open {dir}: {source}", dir = dir.display())]
    Disk {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One change of the log store. Changes of all shards form one queue; its order is kept.
#[derive(Clone, Debug)]
pub enum LogOp {
    /// Entries `first_index..`, consecutive. Overwrites nothing: the tail was truncated before.
    Append {
        shard: ShardId,
        first_index: u64,
        entries: Vec<Bytes>,
    },
    /// Removes every entry after `last_kept` (`None`: all).
    Truncate { shard: ShardId, last_kept: Option<u64> },
    /// Removes every entry up to and including `up_to`, and keeps `record` as
    /// [`LogRecord::Purged`] in the same write.
    Purge { shard: ShardId, up_to: u64, record: Bytes },
    Put {
        shard: ShardId,
        record: LogRecord,
        value: Bytes,
    },
    /// This node has given its replica back: every entry goes, and every record but the vote.
    /// `record` is kept as [`LogRecord::Retired`] in the same write. The log may begin anew anywhere.
    Forget { shard: ShardId, record: Bytes },
}

impl LogOp {
    pub fn shard(&self) -> ShardId {
        match self {
            LogOp::Append { shard, .. }
            | LogOp::Truncate { shard, .. }
            | LogOp::Purge { shard, .. }
            | LogOp::Put { shard, .. }
            | LogOp::Forget { shard, .. } => *shard,
        }
    }

    pub fn payload_bytes(&self) -> usize {
        match self {
            LogOp::Append { entries, .. } => entries.iter().map(Bytes::len).sum(),
            LogOp::Truncate { .. } => 0,
            LogOp::Purge { record, .. } | LogOp::Forget { record, .. } => record.len(),
            LogOp::Put { value, .. } => value.len(),
        }
    }

    /// Whether losing it would break a promise. A lost [`LogRecord::Committed`] only costs a
    /// restarted replica the time until its leader says how far the log is committed.
    pub fn needs_sync(&self) -> bool {
        match self {
            LogOp::Append { entries, .. } => !entries.is_empty(),
            LogOp::Put { record, .. } => *record != LogRecord::Committed,
            LogOp::Truncate { .. } | LogOp::Purge { .. } | LogOp::Forget { .. } => true,
        }
    }
}

/// Small records beside the entries of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogRecord {
    Vote,
    Committed,
    Purged,
    /// That this node once gave its replica back, and where its log had ended.
    Retired,
}

/// Called exactly once, on an unspecified thread, in the order of submission (after `close`, at
/// once with an error). May read and submit, must not block.
pub type Durable = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Synchronous in effect, asynchronous in use: votes and entries of all shards share one ordered
/// writer and one fsync per flush (group commit, no timer).
pub trait LogStore: Send + Sync + 'static {
    /// Queues `op`; `done` runs once it and everything before it is on disk. The first failed
    /// write or sync fails this and every later operation for good (the process then ends), and so
    /// does an append that would overwrite an entry or leave a hole.
    ///
    /// A [`LogRecord::Committed`] is a hint: alone it is written but not worth a sync, so its
    /// `done` promises less, and after a power cut an older one may be read.
    ///
    /// Callers bound what they have in flight; a full queue makes them wait here.
    fn submit(&self, op: LogOp, done: Durable);

    /// As [`Self::submit`], by somebody who has more of it coming: it is written with what is
    /// submitted next, or after [`Self::wake`], which the caller sees to.
    fn queue(&self, op: LogOp, done: Durable) {
        self.submit(op, done);
    }

    /// Has what was queued written.
    fn wake(&self) {}

    /// Entries of `range` that are there (purged ones are left out), without holes, at least one
    /// if any, then up to about `bytes_max` bytes. Sees everything submitted before.
    ///
    /// # Errors
    /// `InvalidData` for a hole or a checksum that does not match.
    fn entries(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(u64, Bytes)>>;

    /// Index of the last entry, if any.
    ///
    /// # Errors
    /// As [`Self::entries`].
    fn last_index(&self, shard: ShardId) -> io::Result<Option<u64>>;

    /// # Errors
    /// As [`Self::entries`].
    fn record(&self, shard: ShardId, record: LogRecord) -> io::Result<Option<Bytes>>;

    /// Reads the files behind what is held in memory, as a start would.
    ///
    /// # Errors
    /// `InvalidData` when something that was durable cannot be read there.
    fn check_files(&self) -> io::Result<()> {
        Ok(())
    }

    /// How many changes certainly are on the disk. It only grows, also from run to run; less than
    /// it once was means that something was lost.
    fn durable_changes(&self) -> u64;

    /// Counters since the start.
    fn counters(&self) -> LogCounters;

    /// What the implementation says of itself, for a person: names and values.
    fn properties(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Stops the writer after what is queued is on disk. Later submissions fail.
    fn close(&self);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounters {
    pub fsyncs: u64,
    /// Operations that were submitted.
    pub submitted: u64,
    /// Those of them that are done.
    pub ops: u64,
    pub bytes: u64,
    /// Sum of the time spent in write and sync, in microseconds.
    pub sync_us: u64,
}

/// One atomic change of the state store.
#[derive(Clone, Debug, Default)]
pub struct StateBatch {
    pub ops: Vec<StateOp>,
}

#[derive(Clone, Debug)]
pub enum StateOp {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    /// End exclusive.
    DeleteRange {
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

/// Ordered key-value state without a write-ahead log: a write is visible at once, durable only
/// after a flush that began later. After a crash the store holds the effect of some prefix of the
/// batches, whole batches only.
pub trait StateStore: Send + Sync + 'static {
    /// # Errors
    /// The disk is full or failed; the batch was not written.
    fn write(&self, batch: StateBatch) -> io::Result<()>;

    /// # Errors
    /// `InvalidData` when the bytes are damaged.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// A consistent view of this moment, cheap to take and to hold for minutes.
    fn view(&self) -> Box<dyn StateView>;

    /// As [`Self::view`], but of what lies on the disk, past everything that is cached; dear to take.
    ///
    /// # Errors
    /// `InvalidData` when the bytes are damaged.
    fn on_disk(&self) -> io::Result<Box<dyn StateView>> {
        Ok(self.view())
    }

    /// Blocks until everything written before the call is durable.
    ///
    /// # Errors
    /// The disk is full or failed; what is durable is unknown.
    fn flush(&self) -> io::Result<()>;

    /// Bytes held in memory that a flush would write.
    fn unflushed_bytes(&self) -> u64;

    /// As [`LogStore::properties`].
    fn properties(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

pub trait StateView: Send + 'static {
    /// # Errors
    /// `InvalidData` when the bytes are damaged.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Calls `each` with the pairs of `from..to` in key order until it returns `false`.
    ///
    /// # Errors
    /// `InvalidData` when the bytes are damaged.
    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()>;
}
