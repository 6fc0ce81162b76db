//! The log store on RocksDB: votes and entries of every shard in one instance with one WAL.
//!
//! Knows neither what an entry means nor when it may be purged.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use actors::id::ShardId;
use bytes::Bytes;
use rocksdb::{DBCompressionType, DBRecoveryMode, IteratorMode, Options, ReadOptions, DB};

use super::entries::{self, Overlay};
use super::queue::Queue;
use super::wal::{self, Mark};
use super::writer::{Fatal, Writer};
use super::{base_options, before_read, io_error, log_keys, open_error, properties, refuse_headless, BlockCache};
use crate::storage::extent::Extent;
use crate::storage::fault::DiskFaults;
use crate::storage::{sealed, Durable, LogCounters, LogOp, LogRecord, LogStore, StorageOpenError};

#[derive(Clone)]
pub struct LogOptions {
    pub cache: BlockCache,
    /// The directory was used before: an empty one is refused, its votes would be forgotten.
    pub must_exist: bool,
    /// Writes that only append are not synced. Exists to show that the power-cut test catches it.
    pub skip_fsync: bool,
    /// As above, for writes that only hold votes.
    pub skip_vote_fsync: bool,
    pub faults: Option<Arc<dyn DiskFaults>>,
}

impl LogOptions {
    pub fn new(cache: BlockCache) -> Self {
        Self {
            cache,
            must_exist: false,
            skip_fsync: false,
            skip_vote_fsync: false,
            faults: None,
        }
    }
}

pub struct RocksLog {
    db: Arc<DB>,
    dir: PathBuf,
    queue: Arc<Queue>,
    faults: Option<Arc<dyn DiskFaults>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl RocksLog {
    /// Opens the log in `dir` (created if missing) and reads all of it once, so that damage is
    /// found before this replica votes. `fatal` is called at most once, from the writer's thread.
    ///
    /// # Errors
    /// `Corrupt` when anything that was durable is damaged or missing. A write that was torn by a
    /// crash was never acknowledged; it is dropped.
    pub fn open(dir: &Path, options: LogOptions, fatal: Fatal) -> Result<Self, StorageOpenError> {
        refuse_headless(dir, options.must_exist)?;
        wal::mend(dir)?;
        let db = DB::open(&rocks_options(&options.cache, dir), dir).map_err(|e| open_error(dir, &e))?;
        let extents = survey(&db).map_err(|e| survey_error(dir, e))?;
        let first_of = |extent: &Extent| extent.present.map(|(first, _)| first);
        let purged_below = extents
            .iter()
            .filter_map(|(shard, e)| Some((*shard, first_of(e)?)))
            .collect();
        let database = wal::database_of(dir).map_err(|e| survey_error(dir, e))?;
        let mark = Mark {
            database: database.unwrap_or_default(),
            // What was recovered was flushed while opening.
            synced: db.latest_sequence_number(),
        };
        let db = Arc::new(db);
        let queue = Arc::new(Queue::new(extents, mark.synced));
        let writer = Writer {
            db: db.clone(),
            queue: queue.clone(),
            fatal: fatal.into(),
            faults: options.faults.clone(),
            skip_fsync: options.skip_fsync,
            skip_vote_fsync: options.skip_vote_fsync,
            purged_below,
            mark,
            scratch: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run())
            .map_err(|source| StorageOpenError::Disk {
                dir: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            db,
            dir: dir.to_owned(),
            queue,
            faults: options.faults,
            writer: Mutex::new(Some(thread)),
        })
    }
}

impl LogStore for RocksLog {
    fn submit(&self, op: LogOp, done: Durable) {
        self.queue(op, done);
        self.wake();
    }

    fn queue(&self, op: LogOp, done: Durable) {
        if let Err(done) = self.queue.push(op, done) {
            done(Err(io::Error::other("the log store is closed")));
        }
    }

    fn wake(&self) {
        self.queue.wake();
    }

    fn entries(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        before_read(&self.faults)?;
        let state = self.queue.lock();
        refuse_failed(&state.failed)?;
        let Some((first, last)) = state.extents.get(&shard).and_then(|extent| extent.present) else {
            return Ok(Vec::new());
        };
        let range = range.start.max(first)..range.end.min(last.saturating_add(1));
        if range.is_empty() {
            return Ok(Vec::new());
        }
        // Taken under the lock: it holds everything that is no longer pending, and nothing that
        // was submitted later.
        let store = self.db.snapshot();
        let pending = state.pending(shard);
        drop(state);
        entries::collect(&store, &Overlay::of(&pending), shard, range, bytes_max)
    }

    fn last_index(&self, shard: ShardId) -> io::Result<Option<u64>> {
        let state = self.queue.lock();
        refuse_failed(&state.failed)?;
        let present = state.extents.get(&shard).and_then(|extent| extent.present);
        Ok(present.map(|(_, last)| last))
    }

    fn record(&self, shard: ShardId, record: LogRecord) -> io::Result<Option<Bytes>> {
        before_read(&self.faults)?;
        let state = self.queue.lock();
        refuse_failed(&state.failed)?;
        if let Some(value) = entries::pending_record(&state.pending(shard), record) {
            return Ok(value);
        }
        drop(state);
        let value = self.db.get(log_keys::record(shard, record)).map_err(|e| io_error(&e))?;
        value
            .map(|value| sealed::open_raw(&value).map(Bytes::copy_from_slice))
            .transpose()
    }

    fn check_files(&self) -> io::Result<()> {
        wal::check(&self.dir)
    }

    fn durable_changes(&self) -> u64 {
        self.queue.lock().durable
    }

    fn counters(&self) -> LogCounters {
        self.queue.lock().counters
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        properties::of(&self.db)
    }

    fn close(&self) {
        self.queue.close();
        // A completion that drops the last handle runs on the writer, which cannot wait for itself.
        if self.queue.on_writer_thread() {
            return;
        }
        let thread = self
            .writer
            .lock()
            .expect("nothing panics while it holds the handle")
            .take();
        if let Some(thread) = thread {
            if thread.join().is_err() {
                tracing::error!("the log writer panicked");
            }
            self.sync_the_rest();
        }
    }
}

impl RocksLog {
    /// Hints are written without a sync. Nothing is written any more, so that all there is counts.
    fn sync_the_rest(&self) {
        let mut state = self.queue.lock();
        if state.failed.is_some() {
            return;
        }
        match self.db.flush_wal(true) {
            Ok(()) => state.durable = self.db.latest_sequence_number(),
            Err(error) => tracing::warn!(%error, "the log's last hints were not synced"),
        }
    }
}

impl Drop for RocksLog {
    fn drop(&mut self) {
        self.close();
    }
}

fn rocks_options(cache: &BlockCache, dir: &Path) -> Options {
    let mut options = base_options("", cache, dir);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(64 << 20);
    options.set_max_write_buffer_number(4);
    options.set_max_total_wal_size(512 << 20);
    options.set_allow_concurrent_memtable_write(false);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_recycle_log_file_num(0);
    options
}

/// Reads every entry and record: checksums, and that each shard's entries are consecutive.
fn survey(db: &DB) -> io::Result<BTreeMap<ShardId, Extent>> {
    let mut extents = BTreeMap::new();
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(2 << 20);
    for pair in db.iterator_opt(IteratorMode::Start, options) {
        let (key, value) = pair.map_err(|e| io_error(&e))?;
        let body = sealed::open_raw(&value);
        let Some((shard, index)) = log_keys::parse_entry(&key) else {
            body?;
            continue;
        };
        body.map_err(|e| entries::damaged(shard, index, &e))?;
        let known: Option<&Extent> = extents.get(&shard);
        let (first, expected) = known
            .and_then(|e| e.present)
            .map_or((index, index), |(f, l)| (f, l + 1));
        if index != expected {
            return Err(entries::hole(shard, expected));
        }
        extents.insert(shard, Extent::of(first, index));
    }
    Ok(extents)
}

fn survey_error(dir: &Path, error: io::Error) -> StorageOpenError {
    let dir = dir.to_owned();
    if error.kind() == io::ErrorKind::InvalidData {
        return StorageOpenError::Corrupt {
            dir,
            reason: error.to_string(),
        };
    }
    StorageOpenError::Disk { dir, source: error }
}

fn refuse_failed(failed: &Option<String>) -> io::Result<()> {
    match failed {
        Some(reason) => Err(io::Error::other(reason.clone())),
        None => Ok(()),
    }
}
