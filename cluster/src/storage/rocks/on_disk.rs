//! What lies in the files of a store, past everything that is held in memory: for reading all of it
//! once, to find rot.
//!
//! Works on hard links, so that the store may go on and delete what it likes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{Direction, IteratorMode, Options, ReadOptions, DB};

use super::io_error;
use super::state::{damaged, opened};
use crate::storage::{sealed, StateView};

/// Blocks kept while reading; each is read once.
pub const CACHE_BYTES: usize = 1 << 20;
const READ_AHEAD_BYTES: usize = 1 << 20;

pub struct OnDisk {
    /// Closed before its directory is removed.
    db: Option<DB>,
    dir: PathBuf,
}

/// Where the links of the store in `dir` are, while there are any.
pub fn place(dir: &Path) -> PathBuf {
    dir.with_extension("scrub")
}

/// Removes what a process left that ended while it read.
pub fn clear(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(place(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl OnDisk {
    /// # Errors
    /// A file cannot be linked or opened; `InvalidData` when it is damaged.
    pub fn open(live: &DB, dir: &Path, options: &Options) -> io::Result<Self> {
        clear(dir)?;
        let place = place(dir);
        let checkpoint = Checkpoint::new(live).map_err(|e| io_error(&e))?;
        checkpoint.create_checkpoint(&place).map_err(|e| io_error(&e))?;
        let db = DB::open_for_read_only(options, &place, false).map_err(|e| io_error(&e))?;
        Ok(Self {
            db: Some(db),
            dir: dir.to_owned(),
        })
    }

    fn db(&self) -> &DB {
        self.db.as_ref().expect("only dropping takes it")
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        drop(self.db.take());
        if let Err(error) = clear(&self.dir) {
            tracing::warn!(%error, "what was read through could not be let go of");
        }
    }
}

impl StateView for OnDisk {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        opened(self.db().get_pinned(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        options.set_readahead_size(READ_AHEAD_BYTES);
        for row in self
            .db()
            .iterator_opt(IteratorMode::From(from, Direction::Forward), options)
        {
            let (key, value) = row.map_err(|e| io_error(&e))?;
            let body = sealed::open_raw(&value).map_err(|e| damaged(&key, &e))?;
            if !each(&key, body) {
                break;
            }
        }
        Ok(())
    }
}
