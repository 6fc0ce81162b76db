//! The contents of a log in memory, as a function of the operations applied to it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use actors::id::ShardId;
use bytes::Bytes;

use crate::storage::extent::Extent;
use crate::storage::{sealed, LogOp, LogRecord};

#[derive(Clone, Default)]
pub struct Shards(BTreeMap<ShardId, Shard>);

#[derive(Clone, Default)]
struct Shard {
    extent: Extent,
    /// Sealed, as on a disk.
    entries: BTreeMap<u64, Vec<u8>>,
    records: BTreeMap<LogRecord, Vec<u8>>,
}

impl Shards {
    /// # Errors
    /// The append would overwrite or leave a hole; nothing was changed.
    pub fn apply(&mut self, op: &LogOp) -> Result<(), String> {
        let shard = self.0.entry(op.shard()).or_default();
        shard.extent.apply(op)?;
        match op {
            LogOp::Append {
                first_index, entries, ..
            } => {
                let sealed = entries.iter().map(|entry| sealed::seal_raw(entry));
                shard.entries.extend((*first_index..).zip(sealed));
            }
            LogOp::Truncate { last_kept, .. } => {
                let from = last_kept.map_or(0, |kept| kept.saturating_add(1));
                shard.entries.split_off(&from);
            }
            LogOp::Purge { up_to, record, .. } => {
                shard.entries = shard.entries.split_off(&up_to.saturating_add(1));
                shard.records.insert(LogRecord::Purged, sealed::seal_raw(record));
            }
            LogOp::Forget { record, .. } => {
                shard.entries.clear();
                shard.records.retain(|record, _| *record == LogRecord::Vote);
                shard.records.insert(LogRecord::Retired, sealed::seal_raw(record));
            }
            LogOp::Put { record, value, .. } => {
                shard.records.insert(*record, sealed::seal_raw(value));
            }
        }
        Ok(())
    }

    pub fn entries(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let mut out: Vec<(u64, Bytes)> = Vec::new();
        let mut bytes = 0;
        if range.is_empty() {
            return Ok(out);
        }
        let Some(shard) = self.0.get(&shard) else {
            return Ok(out);
        };
        for (index, entry) in shard.entries.range(range) {
            if !out.is_empty() && bytes >= bytes_max {
                break;
            }
            let body = sealed::open_raw(entry)?;
            bytes += body.len();
            out.push((*index, Bytes::copy_from_slice(body)));
        }
        Ok(out)
    }

    pub fn last_index(&self, shard: ShardId) -> Option<u64> {
        Some(self.0.get(&shard)?.extent.present?.1)
    }

    pub fn record(&self, shard: ShardId, record: LogRecord) -> io::Result<Option<Bytes>> {
        let value = self.0.get(&shard).and_then(|shard| shard.records.get(&record));
        value
            .map(|value| sealed::open_raw(value).map(Bytes::copy_from_slice))
            .transpose()
    }

    /// Flips a bit of an entry; says whether it is there.
    pub fn damage(&mut self, shard: ShardId, index: u64) -> bool {
        let entry = self.0.get_mut(&shard).and_then(|shard| shard.entries.get_mut(&index));
        entry
            .and_then(|entry| entry.last_mut())
            .map(|byte| *byte ^= 1)
            .is_some()
    }
}
