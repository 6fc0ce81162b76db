//! Operations on their way to the disk, and what the log looks like once they are there.
//!
//! Bounded by [`OPS_MAX`] and [`BYTES_MAX`] (each may be passed by one operation per submitting
//! thread); a submitter waits for room. Knows nothing of RocksDB.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::ThreadId;

use actors::id::ShardId;

use crate::storage::{Durable, LogCounters, LogOp};

/// Operations that may wait: 1,024 shards with 64 each.
pub const OPS_MAX: usize = 65_536;
/// Bytes that may wait.
pub const BYTES_MAX: usize = 256 << 20;
/// Operations of one write.
pub const BATCH_OPS_MAX: usize = 4096;
/// Bytes of one write, passed by at most one operation.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// Which entries of a shard there are: `first..=last`, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub present: Option<(u64, u64)>,
    /// Where the next append must begin, if known.
    next: Option<u64>,
}

impl Extent {
    pub fn of(first: u64, last: u64) -> Self {
        Self {
            present: Some((first, last)),
            next: Some(last + 1),
        }
    }

    /// # Errors
    /// Says which rule `op` breaks.
    pub fn apply(&mut self, op: &LogOp) -> Result<(), String> {
        match op {
            LogOp::Append {
                shard,
                first_index,
                entries,
            } if !entries.is_empty() => {
                if self.next.is_some_and(|next| next != *first_index) {
                    let next = self.next.unwrap_or_default();
                    return Err(format!(
                        "shard {shard}: append at {first_index}, the log goes on at {next}"
                    ));
                }
                let last = first_index + entries.len() as u64 - 1;
                *self = Self::of(self.present.map_or(*first_index, |(first, _)| first), last);
            }
            LogOp::Truncate { last_kept, .. } => self.truncate(*last_kept),
            LogOp::Purge { up_to, .. } => self.purge(*up_to),
            LogOp::Append { .. } | LogOp::Put { .. } => {}
        }
        Ok(())
    }

    fn truncate(&mut self, last_kept: Option<u64>) {
        let Some((first, last)) = self.present else { return };
        *self = match last_kept {
            Some(kept) if kept >= last => return,
            Some(kept) if kept >= first => Self::of(first, kept),
            // Everything goes; what was there began at `first`, and so does what comes next.
            _ => Self {
                present: None,
                next: Some(first),
            },
        };
    }

    fn purge(&mut self, up_to: u64) {
        match self.present {
            Some((first, last)) if up_to < last => *self = Self::of(first.max(up_to + 1), last),
            Some(_) => {
                *self = Self {
                    present: None,
                    next: Some(up_to + 1),
                }
            }
            // A snapshot was installed over an empty log.
            None => self.next = Some(self.next.map_or(up_to + 1, |next| next.max(up_to + 1))),
        }
    }
}

pub struct Item {
    pub op: Arc<LogOp>,
    pub done: Durable,
}

#[derive(Default)]
pub struct State {
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
    /// Taken by the writer and perhaps not yet visible to readers.
    pub writing: Vec<Arc<LogOp>>,
    pub extents: BTreeMap<ShardId, Extent>,
    /// Set once, for good.
    pub failed: Option<String>,
    closing: bool,
    pub counters: LogCounters,
}

impl State {
    /// Operations of `shard` that may not be visible in the store yet, in order.
    pub fn pending(&self, shard: ShardId) -> Vec<Arc<LogOp>> {
        let queued = self.waiting.iter().map(|item| &item.op);
        let all = self.writing.iter().chain(queued);
        all.filter(|op| shard_of(op) == shard).cloned().collect()
    }

    fn full(&self) -> bool {
        self.waiting.len() >= OPS_MAX || self.waiting_bytes >= BYTES_MAX
    }
}

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    writer: OnceLock<ThreadId>,
}

impl Queue {
    pub fn new(extents: BTreeMap<ShardId, Extent>) -> Self {
        let state = State {
            extents,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            ..Self::default()
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the queue")
    }

    pub fn on_writer_thread(&self) -> bool {
        self.writer.get() == Some(&std::thread::current().id())
    }

    /// Queues an operation, or gives `done` back when the store is closed.
    pub fn push(&self, op: LogOp, done: Durable) -> Result<(), Durable> {
        let mut state = self.lock();
        // The writer itself makes the room: it must never wait for it.
        if !self.on_writer_thread() {
            while state.full() && !state.closing {
                state = self.room.wait(state).expect("nothing panics while it holds the queue");
            }
        }
        if state.closing {
            return Err(done);
        }
        if state.failed.is_none() {
            state.failed = state.extents.entry(shard_of(&op)).or_default().apply(&op).err();
        }
        state.waiting_bytes += bytes_of(&op);
        state.waiting.push_back(Item { op: Arc::new(op), done });
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// The next operations to write together, waiting until there are some; `None` once the store
    /// is closed and everything was taken.
    pub fn take(&self) -> Option<Vec<Item>> {
        self.writer.get_or_init(|| std::thread::current().id());
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.closing {
                return None;
            }
            state = self.work.wait(state).expect("nothing panics while it holds the queue");
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_OPS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(item) = state.waiting.pop_front() else { break };
            bytes += bytes_of(&item.op);
            batch.push(item);
        }
        state.waiting_bytes -= bytes;
        state.writing = batch.iter().map(|item| item.op.clone()).collect();
        drop(state);
        self.room.notify_all();
        Some(batch)
    }

    pub fn close(&self) {
        self.lock().closing = true;
        self.work.notify_all();
        self.room.notify_all();
    }
}

pub fn shard_of(op: &LogOp) -> ShardId {
    match op {
        LogOp::Append { shard, .. }
        | LogOp::Truncate { shard, .. }
        | LogOp::Purge { shard, .. }
        | LogOp::Put { shard, .. } => *shard,
    }
}

/// Payload bytes of an operation.
pub fn bytes_of(op: &LogOp) -> usize {
    match op {
        LogOp::Append { entries, .. } => entries.iter().map(|entry| entry.len()).sum(),
        LogOp::Truncate { .. } => 0,
        LogOp::Purge { record, .. } => record.len(),
        LogOp::Put { value, .. } => value.len(),
    }
}
