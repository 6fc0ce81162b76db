//! The one thread that writes the log: everything queued becomes one RocksDB write and one sync.
//!
//! There is no timer. While a sync runs the queue grows, so the next batch is bigger; with one
//! client each write starts at once. The first failure is final (a second fsync after a failed
//! one may report success for pages that were dropped).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use actors::id::ShardId;
use rocksdb::{WriteBatch, WriteOptions, DB};

use super::queue::{Item, Queue};
use super::wal::Mark;
use super::{io_error, log_keys};
use crate::storage::fault::DiskFaults;
use crate::storage::{sealed, LogOp, LogRecord};

/// Told the reason when the store failed for good; the process then ends.
pub type Fatal = Box<dyn Fn(String) + Send + Sync>;

/// Entries a purge must remove before whole files are dropped at once instead of by compaction.
const PURGE_FILES_FROM: u64 = 100_000;

/// Bytes of an operation in a batch beside its payload, about; growing one costs copies.
const OP_ROOM: usize = 128;

pub struct Writer {
    pub db: Arc<DB>,
    pub queue: Arc<Queue>,
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub faults: Option<Arc<dyn DiskFaults>>,
    pub skip_fsync: bool,
    pub skip_vote_fsync: bool,
    /// Per shard, the index below which nothing is left. A purge deletes from here: deletions that
    /// all began at 0 would overlap, and cost reads the square of their number.
    pub purged_below: BTreeMap<ShardId, u64>,
    /// What the next batch says about those before it.
    pub mark: Mark,
    /// Reused for sealing.
    pub scratch: Vec<u8>,
}

impl Writer {
    pub fn run(mut self) {
        let guard = FailOnPanic {
            queue: self.queue.clone(),
            fatal: self.fatal.clone(),
        };
        let mut announced = false;
        while let Some(items) = self.queue.take() {
            let outcome = self.write(&items);
            let failure = self.settle(&items, outcome);
            if let (Some(reason), false) = (&failure, announced) {
                announced = true;
                (self.fatal)(reason.clone());
            }
            for item in items {
                (item.done)(
                    failure
                        .as_ref()
                        .map_or(Ok(()), |reason| Err(io::Error::other(reason.clone()))),
                );
            }
        }
        drop(guard);
    }

    /// Makes what was written visible to readers and counts it; says why the store is failed, if
    /// it is.
    fn settle(&self, items: &[Item], outcome: io::Result<Written>) -> Option<String> {
        let mut state = self.queue.lock();
        state.writing.clear();
        match outcome {
            Ok(written) if state.failed.is_none() => {
                state.counters.fsyncs += u64::from(written.synced);
                state.counters.ops += items.len() as u64;
                state.counters.bytes += items.iter().map(|item| item.op.payload_bytes() as u64).sum::<u64>();
                state.counters.sync_us += written.took_us;
                state.durable = self.mark.synced;
            }
            Ok(_) => {}
            Err(error) if state.failed.is_none() => state.failed = Some(format!("log write failed: {error}")),
            Err(_) => {}
        }
        state.failed.clone()
    }

    fn write(&mut self, items: &[Item]) -> io::Result<Written> {
        if let Some(reason) = self.queue.lock().failed.clone() {
            return Err(io::Error::other(reason));
        }
        let room = items.iter().map(|item| OP_ROOM + item.op.payload_bytes()).sum();
        let mut batch = WriteBatch::with_capacity_bytes(room);
        // First and last, where `wal` looks for it.
        batch.put_log_data(self.mark.bytes());
        let mut emptied = Vec::new();
        for item in items {
            self.encode(&item.op, &mut batch, &mut emptied);
        }
        if batch.is_empty() {
            return Ok(Written {
                synced: false,
                took_us: 0,
            });
        }
        batch.put_log_data(self.mark.bytes());
        let synced = items.iter().any(|item| self.needs_sync(&item.op));
        let watch = Stopwatch::start();
        let faults = self.faults.as_ref().filter(|faults| faults.acts());
        if let Some(faults) = faults {
            faults.before_write()?;
        }
        let mut options = WriteOptions::default();
        options.set_sync(synced && faults.is_none());
        self.db.write_opt(batch, &options).map_err(|e| io_error(&e))?;
        if let (true, Some(faults)) = (synced, faults) {
            faults.before_sync()?;
            self.db.flush_wal(true).map_err(|e| io_error(&e))?;
        }
        let took_us = watch.micros();
        if synced {
            let seconds = took_us as f64 / 1e6;
            metrics::histogram!("holdfast_log_sync_seconds").record(seconds);
            metrics::histogram!("holdfast_stage_seconds", "stage" => "fsync").record(seconds);
            self.mark.synced = self.db.latest_sequence_number();
        }
        for (from, to) in emptied {
            self.db.delete_file_in_range(from, to).map_err(|e| io_error(&e))?;
        }
        Ok(Written { synced, took_us })
    }

    fn needs_sync(&self, op: &LogOp) -> bool {
        #[cfg(feature = "planted")]
        if matches!(op, LogOp::Append { .. }) && actors::planted::is(actors::planted::Planted::AckBeforeFsync) {
            return false;
        }
        let skipped = match op {
            LogOp::Append { .. } => self.skip_fsync,
            LogOp::Put {
                record: LogRecord::Vote,
                ..
            } => self.skip_vote_fsync,
            _ => false,
        };
        op.needs_sync() && !skipped
    }

    /// Operations act in the order in which they enter the batch: a deletion does not touch what
    /// is put after it.
    fn encode(&mut self, op: &LogOp, batch: &mut WriteBatch, emptied: &mut Vec<(LogKey, LogKey)>) {
        match op {
            LogOp::Append {
                shard,
                first_index,
                entries,
            } => {
                if let Some(below) = self.purged_below.get_mut(shard) {
                    *below = (*below).min(*first_index);
                }
                for (index, entry) in (*first_index..).zip(entries) {
                    batch.put(log_keys::entry(*shard, index), self.sealed(entry));
                }
            }
            LogOp::Truncate { shard, last_kept } => {
                let from = last_kept.map_or(0, |kept| kept.saturating_add(1));
                batch.delete_range(&log_keys::entry(*shard, from)[..], &log_keys::entries_end(*shard)[..]);
            }
            LogOp::Purge { shard, up_to, record } => {
                let below = self.purged_below.entry(*shard).or_insert(0);
                let end = up_to.saturating_add(1);
                if end > *below {
                    let range = (log_keys::entry(*shard, *below), log_keys::entry(*shard, end));
                    batch.delete_range(range.0, range.1);
                    if end - *below >= PURGE_FILES_FROM {
                        emptied.push(range);
                    }
                    *below = end;
                }
                batch.put(log_keys::record(*shard, LogRecord::Purged), self.sealed(record));
            }
            LogOp::Forget { shard, record } => {
                batch.delete_range(&log_keys::entry(*shard, 0)[..], &log_keys::entries_end(*shard)[..]);
                for gone in [LogRecord::Committed, LogRecord::Purged] {
                    batch.delete(log_keys::record(*shard, gone));
                }
                self.purged_below.remove(shard);
                batch.put(log_keys::record(*shard, LogRecord::Retired), self.sealed(record));
            }
            LogOp::Put { shard, record, value } => batch.put(log_keys::record(*shard, *record), self.sealed(value)),
        }
    }

    fn sealed(&mut self, body: &[u8]) -> &[u8] {
        self.scratch.clear();
        sealed::seal_into(&mut self.scratch, body);
        &self.scratch
    }
}

type LogKey = [u8; log_keys::ENTRY_KEY_LEN];

struct Written {
    synced: bool,
    took_us: u64,
}

/// A completion that panics would leave every later submitter waiting for ever.
struct FailOnPanic {
    queue: Arc<Queue>,
    fatal: Arc<dyn Fn(String) + Send + Sync>,
}

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.queue
                .lock()
                .failed
                .get_or_insert_with(|| "the log writer panicked".into());
            // Dropped without a call: nobody may be told anything any more, nor wait for ever.
            drop(self.queue.abandon());
            (self.fatal)("the log writer panicked".into());
        }
    }
}

/// Measures the disk for a counter; nothing is decided by it, so it need not be the given clock.
struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods)]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
