//! The state store on RocksDB, without a write-ahead log.
//!
//! Everything is in one column family on purpose: its memtables are flushed, and entered into the
//! manifest, in the order in which they were filled, and a batch is never split between two of
//! them. So what a crash leaves is the effect of a prefix of the batches. With several families
//! that would need atomic flushes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{
    DBCompressionType, DBIteratorWithThreadMode, Direction, FlushOptions, IteratorMode, Options, ReadOptions, Snapshot,
    WriteBatch, WriteOptions, DB,
};
use self_cell::self_cell;

use super::on_disk::{self, OnDisk};
use super::{base_options, before_read, io_error, open_error, properties, refuse_headless, BlockCache};
use crate::storage::fault::DiskFaults;
use crate::storage::{sealed, StateBatch, StateOp, StateStore, StateView, StorageOpenError};

#[derive(Clone)]
pub struct StateOptions {
    pub cache: BlockCache,
    /// The directory was used before: an empty one is refused, what was purged from the log is
    /// nowhere else.
    pub must_exist: bool,
    /// Bytes of one memtable; up to four are held. Default 64 MiB, 1 MiB..=1 GiB.
    pub memtable_bytes: usize,
    pub faults: Option<Arc<dyn DiskFaults>>,
}

impl StateOptions {
    pub fn new(cache: BlockCache) -> Self {
        Self {
            cache,
            must_exist: false,
            memtable_bytes: 64 << 20,
            faults: None,
        }
    }
}

pub struct RocksState {
    db: Arc<DB>,
    dir: PathBuf,
    faults: Option<Arc<dyn DiskFaults>>,
}

impl RocksState {
    /// Opens the state in `dir` (created if missing).
    ///
    /// # Errors
    /// `Corrupt` when files are damaged or missing, as far as opening looks at them; the rest is
    /// found when it is read.
    pub fn open(dir: &Path, options: StateOptions) -> Result<Self, StorageOpenError> {
        refuse_headless(dir, options.must_exist)?;
        on_disk::clear(dir).map_err(|source| StorageOpenError::Disk {
            dir: dir.to_owned(),
            source,
        })?;
        let db = DB::open(&rocks_options(&options, dir), dir).map_err(|e| open_error(dir, &e))?;
        Ok(Self {
            db: Arc::new(db),
            dir: dir.to_owned(),
            faults: options.faults,
        })
    }
}

impl StateStore for RocksState {
    fn write(&self, batch: StateBatch) -> io::Result<()> {
        if let Some(faults) = &self.faults {
            faults.before_write()?;
        }
        let mut sealed_value = Vec::new();
        let mut rows = WriteBatch::with_capacity_bytes(batch.ops.iter().map(room).sum());
        for op in &batch.ops {
            match op {
                StateOp::Put { key, value } => {
                    sealed_value.clear();
                    sealed::seal_into(&mut sealed_value, value);
                    rows.put(key, &sealed_value);
                }
                StateOp::Delete { key } => rows.delete(key),
                // RocksDB takes a range that ends before it begins for damage; it means nothing.
                StateOp::DeleteRange { from, to } if from < to => rows.delete_range(from, to),
                StateOp::DeleteRange { .. } => {}
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(rows, &options).map_err(|e| io_error(&e))
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        before_read(&self.faults)?;
        opened(self.db.get_pinned(key))
    }

    fn view(&self) -> Box<dyn StateView> {
        Box::new(View {
            pinned: PinnedSnapshot::new(self.db.clone(), |db| db.snapshot()),
            faults: self.faults.clone(),
        })
    }

    fn on_disk(&self) -> io::Result<Box<dyn StateView>> {
        let options = StateOptions::new(BlockCache::new(on_disk::CACHE_BYTES));
        Ok(Box::new(OnDisk::open(
            &self.db,
            &self.dir,
            &rocks_options(&options, &self.dir),
        )?))
    }

    fn flush(&self) -> io::Result<()> {
        if let Some(faults) = &self.faults {
            faults.before_sync()?;
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(|e| io_error(&e))
    }

    fn unflushed_bytes(&self) -> u64 {
        let used = self.db.property_int_value("rocksdb.cur-size-all-mem-tables");
        used.ok().flatten().unwrap_or(0)
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        properties::of(&self.db)
    }
}

self_cell! {
    /// A snapshot together with the database it belongs to.
    struct PinnedSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: Snapshot,
    }
}

struct View {
    pinned: PinnedSnapshot,
    faults: Option<Arc<dyn DiskFaults>>,
}

impl StateView for View {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        before_read(&self.faults)?;
        opened(self.pinned.borrow_dependent().get_pinned(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        before_read(&self.faults)?;
        if from >= to {
            return Ok(());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let start = IteratorMode::From(from, Direction::Forward);
        let rows: DBIteratorWithThreadMode<'_, DB> = self.pinned.borrow_dependent().iterator_opt(start, options);
        for row in rows {
            let (key, value) = row.map_err(|e| io_error(&e))?;
            let body = sealed::open_raw(&value).map_err(|e| damaged(&key, &e))?;
            if !each(&key, body) {
                break;
            }
        }
        Ok(())
    }
}

/// About what an operation takes in a batch; growing one costs copies.
fn room(op: &StateOp) -> usize {
    const FRAMING: usize = 32;
    FRAMING
        + match op {
            StateOp::Put { key, value } => key.len() + value.len(),
            StateOp::Delete { key } => key.len(),
            StateOp::DeleteRange { from, to } => from.len() + to.len(),
        }
}

pub(super) fn opened(
    found: Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>,
) -> io::Result<Option<Vec<u8>>> {
    let found = found.map_err(|e| io_error(&e))?;
    found
        .map(|value| sealed::open_raw(&value).map(<[u8]>::to_vec))
        .transpose()
}

pub(super) fn damaged(key: &[u8], why: &io::Error) -> io::Error {
    let text = format!("the row {} is damaged: {why}", key.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn rocks_options(options: &StateOptions, dir: &Path) -> Options {
    // A flush at shutdown would only hide whether the log can replay what was not flushed.
    let mut rocks = base_options("avoid_flush_during_shutdown=true", &options.cache, dir);
    rocks.set_compression_type(DBCompressionType::Lz4);
    rocks.set_write_buffer_size(options.memtable_bytes);
    rocks.set_max_write_buffer_number(4);
    rocks.set_min_write_buffer_number_to_merge(1);
    rocks.set_level_zero_file_num_compaction_trigger(8);
    rocks.set_level_zero_slowdown_writes_trigger(40);
    rocks.set_level_zero_stop_writes_trigger(80);
    rocks
}
