//! Reading entries: what the store holds, overlaid by what is still on its way there.
//!
//! A reader never waits for the disk to sync, so it may be called from a completion.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use actors::id::ShardId;
use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, ReadOptions, Snapshot};

use super::{io_error, log_keys};
use crate::storage::{sealed, LogOp, LogRecord};

/// The combined effect of operations that may or may not be in the store already: applying them
/// again changes nothing.
#[derive(Default)]
pub struct Overlay {
    entries: BTreeMap<u64, Bytes>,
    /// Entries of the store from this index on are gone.
    cut: Option<u64>,
}

impl Overlay {
    pub fn of(pending: &[Arc<LogOp>]) -> Self {
        let mut overlay = Self::default();
        for op in pending {
            overlay.apply(op);
        }
        overlay
    }

    fn apply(&mut self, op: &LogOp) {
        match op {
            LogOp::Append {
                first_index, entries, ..
            } => self.entries.extend((*first_index..).zip(entries.iter().cloned())),
            LogOp::Truncate { last_kept, .. } => {
                let from = last_kept.map_or(0, |kept| kept.saturating_add(1));
                self.entries.split_off(&from);
                self.cut = Some(self.cut.map_or(from, |cut| cut.min(from)));
            }
            LogOp::Forget { .. } => {
                self.entries.clear();
                self.cut = Some(0);
            }
            // The caller's range begins after what was purged.
            LogOp::Purge { .. } | LogOp::Put { .. } => {}
        }
    }

    /// Where the store's own entries end: from the first one on its way, all that follow are too.
    fn store_end(&self) -> u64 {
        let queued = self.entries.keys().next().copied();
        queued.unwrap_or(u64::MAX).min(self.cut.unwrap_or(u64::MAX))
    }
}

/// What the operations on their way leave of a record: a value, or nothing. `None`: they do not
/// touch it.
pub fn pending_record(pending: &[Arc<LogOp>], wanted: LogRecord) -> Option<Option<Bytes>> {
    pending.iter().rev().find_map(|op| match &**op {
        LogOp::Put { record, value, .. } if *record == wanted => Some(Some(value.clone())),
        LogOp::Purge { record, .. } if wanted == LogRecord::Purged => Some(Some(record.clone())),
        LogOp::Forget { record, .. } if wanted == LogRecord::Retired => Some(Some(record.clone())),
        LogOp::Forget { .. } if wanted != LogRecord::Vote => Some(None),
        _ => None,
    })
}

/// Collects `range`, every index of which must be there, until about `bytes_max` bytes.
pub fn collect(
    store: &Snapshot<'_>,
    overlay: &Overlay,
    shard: ShardId,
    range: Range<u64>,
    bytes_max: usize,
) -> io::Result<Vec<(u64, Bytes)>> {
    let mut out = Collector {
        shard,
        next: range.start,
        bytes_left: bytes_max,
        entries: Vec::new(),
    };
    let store_range = range.start..range.end.min(overlay.store_end());
    if !store_range.is_empty() {
        read_store(store, store_range, &mut out)?;
    }
    let queued = range.start.max(overlay.store_end())..range.end;
    if !queued.is_empty() {
        for (index, entry) in overlay.entries.range(queued) {
            if !out.wants_more() {
                break;
            }
            out.add(*index, entry.clone())?;
        }
    }
    if out.wants_more() && out.next < range.end {
        return Err(hole(shard, out.next));
    }
    Ok(out.entries)
}

fn read_store(store: &Snapshot<'_>, range: Range<u64>, out: &mut Collector) -> io::Result<()> {
    let from = log_keys::entry(out.shard, range.start);
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(&log_keys::entry(out.shard, range.end)[..]);
    for pair in store.iterator_opt(IteratorMode::From(&from, Direction::Forward), options) {
        if !out.wants_more() {
            break;
        }
        let (key, value) = pair.map_err(|e| io_error(&e))?;
        let (_, index) = log_keys::parse_entry(&key).ok_or_else(|| hole(out.shard, out.next))?;
        let body = sealed::open_raw(&value).map_err(|e| damaged(out.shard, index, &e))?;
        out.add(index, Bytes::copy_from_slice(body))?;
    }
    Ok(())
}

struct Collector {
    shard: ShardId,
    next: u64,
    bytes_left: usize,
    entries: Vec<(u64, Bytes)>,
}

impl Collector {
    fn wants_more(&self) -> bool {
        self.entries.is_empty() || self.bytes_left > 0
    }

    fn add(&mut self, index: u64, entry: Bytes) -> io::Result<()> {
        if index != self.next {
            return Err(hole(self.shard, self.next));
        }
        self.next += 1;
        self.bytes_left = self.bytes_left.saturating_sub(entry.len());
        self.entries.push((index, entry));
        Ok(())
    }
}

pub fn hole(shard: ShardId, index: u64) -> io::Error {
    let text = format!("entry {index} of shard {shard} is missing from the log");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

pub fn damaged(shard: ShardId, index: u64, why: &io::Error) -> io::Error {
    let text = format!("entry {index} of shard {shard} is damaged: {why}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
