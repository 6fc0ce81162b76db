//! The stores on RocksDB: two instances, so that the log's syncs and the state's flushes do not
//! wait for one another. Here: what both share.

mod entries;
mod log;
mod log_keys;
mod on_disk;
mod properties;
mod queue;
mod state;
mod wal;
mod writer;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Once};

use rocksdb::{BlockBasedOptions, Cache, Env, ErrorKind, Options};

use super::fault::DiskFaults;
use super::StorageOpenError;

pub use log::{LogOptions, RocksLog};
pub use state::{RocksState, StateOptions};

/// Files one instance keeps open. A node may hold 20,000 descriptors, mostly for devices.
const OPEN_FILES_MAX: i32 = 512;
/// Threads that flush and compact: one each, shared by the instances of a process.
const BACKGROUND_JOBS: i32 = 2;
/// How much those yield to the threads that serve devices, who would wait a tenth of a second for a
/// flush on a machine with few cores. Not so much that a busy machine never flushes.
const BACKGROUND_NICE: i32 = 10;

/// Uncompressed blocks in memory, shared by both instances of a node.
#[derive(Clone)]
pub struct BlockCache(Cache);

impl BlockCache {
    pub fn new(bytes: usize) -> Self {
        Self(Cache::new_lru_cache(bytes))
    }

    pub fn bytes_used(&self) -> usize {
        self.0.get_usage()
    }
}

/// Options both instances start from, for a store in `dir`. `extra` is RocksDB's own option text,
/// for what the binding does not offer.
fn base_options(extra: &str, cache: &BlockCache, dir: &Path) -> Options {
    start_background();
    // From the text first: options made of text forget the cache they were given before.
    let mut options = Options::default()
        .get_options_from_string(extra)
        .expect("the option text is a constant of this module");
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_bytes_per_sync(1 << 20);
    // Tables past the page cache: without a copy, and without dirty pages that the file system
    // writes before it lets a sync of the log return.
    options.set_use_direct_io_for_flush_and_compaction(takes_direct_io(dir));
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache.0);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    table.set_format_version(6);
    options.set_block_based_table_factory(&table);
    options
}

/// Starts the threads that flush and compact, once per process. RocksDB offers no name for their
/// politeness between none and the utmost, but threads inherit it from who starts them.
fn start_background() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let starter = std::thread::spawn(|| {
            if let Err(error) = rustix::process::nice(BACKGROUND_NICE) {
                tracing::warn!(%error, "flushes and compactions run at the priority of everything else");
            }
            let mut env = Env::new()?;
            env.set_high_priority_background_threads(BACKGROUND_JOBS / 2);
            env.set_background_threads(BACKGROUND_JOBS / 2);
            Ok::<_, rocksdb::Error>(())
        });
        if !matches!(starter.join(), Ok(Ok(()))) {
            tracing::warn!("flushes and compactions start when they are first needed");
        }
    });
}

/// Whether files in `dir`, which need not exist yet, can be written past the page cache. Tried with
/// a file without a name; where that is not known, nothing is lost but speed.
fn takes_direct_io(dir: &Path) -> bool {
    let place = dir.ancestors().find(|place| place.is_dir());
    place.is_some_and(|place| {
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
            .open(place)
            .is_ok()
    })
}

/// An instance whose `CURRENT` is gone would be created anew, over what it had promised.
fn refuse_headless(dir: &Path, must_exist: bool) -> Result<(), StorageOpenError> {
    let headless = !dir.join("CURRENT").exists();
    let holds_files = dir.read_dir().is_ok_and(|mut files| files.next().is_some());
    if headless && (must_exist || holds_files && !only_bookkeeping(dir)) {
        return Err(StorageOpenError::Corrupt {
            dir: dir.to_owned(),
            reason: "the file CURRENT is missing".into(),
        });
    }
    Ok(())
}

/// Whether a first open ended so early that nothing can have been promised.
fn only_bookkeeping(dir: &Path) -> bool {
    let Ok(files) = dir.read_dir() else { return false };
    files.flatten().all(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        !(name.ends_with(".sst") || name.ends_with(".log"))
    })
}

fn open_error(dir: &Path, error: &rocksdb::Error) -> StorageOpenError {
    let dir = dir.to_owned();
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotSupported => StorageOpenError::Corrupt {
            dir,
            reason: error.to_string(),
        },
        // A file that the manifest names.
        ErrorKind::IOError if error.to_string().contains("No such file or directory") => StorageOpenError::Corrupt {
            dir,
            reason: error.to_string(),
        },
        _ => StorageOpenError::Disk {
            dir,
            source: io_error(error),
        },
    }
}

fn before_read(faults: &Option<Arc<dyn DiskFaults>>) -> io::Result<()> {
    faults.as_ref().map_or(Ok(()), |faults| faults.before_read())
}

fn io_error(error: &rocksdb::Error) -> io::Error {
    let text = error.to_string();
    let kind = match error.kind() {
        ErrorKind::Corruption => io::ErrorKind::InvalidData,
        _ if text.contains("No space left on device") => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, text)
}
