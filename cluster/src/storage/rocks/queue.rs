//! Operations on their way to the disk, and what the log looks like once they are there.
//!
//! Bounded by [`OPS_MAX`] and [`BYTES_MAX`] (each may be passed by one operation per submitting
//! thread); a submitter waits for room. Knows nothing of RocksDB.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::ThreadId;

use actors::id::ShardId;

use crate::storage::extent::Extent;
use crate::storage::{Durable, LogCounters, LogOp};

/// Operations that may wait: 1,024 shards with 64 each.
pub const OPS_MAX: usize = 65_536;
/// Bytes that may wait.
pub const BYTES_MAX: usize = 256 << 20;
/// Operations of one write.
pub const BATCH_OPS_MAX: usize = 4096;
/// Bytes of one write, passed by at most one operation.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

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
    /// Changes that are on the disk, by RocksDB's own count.
    pub durable: u64,
    /// Set once, for good.
    pub failed: Option<String>,
    closing: bool,
    /// What waits is to be written, not only to be kept until more has come.
    due: bool,
    pub counters: LogCounters,
}

impl State {
    /// Operations of `shard` that may not be visible in the store yet, in order.
    pub fn pending(&self, shard: ShardId) -> Vec<Arc<LogOp>> {
        let queued = self.waiting.iter().map(|item| &item.op);
        let all = self.writing.iter().chain(queued);
        all.filter(|op| op.shard() == shard).cloned().collect()
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
    pub fn new(extents: BTreeMap<ShardId, Extent>, durable: u64) -> Self {
        let state = State {
            extents,
            durable,
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

    /// Queues an operation, or gives `done` back when the store is closed. The writer is not woken
    /// for it before [`Self::wake`].
    pub fn push(&self, op: LogOp, done: Durable) -> Result<(), Durable> {
        let mut state = self.lock();
        // The writer itself makes the room: it must never wait for it.
        if !self.on_writer_thread() {
            while state.full() && !state.closing {
                state.due = true;
                self.work.notify_one();
                state = self.room.wait(state).expect("nothing panics while it holds the queue");
            }
        }
        if state.closing {
            return Err(done);
        }
        if state.failed.is_none() {
            state.failed = state.extents.entry(op.shard()).or_default().apply(&op).err();
        }
        state.counters.submitted += 1;
        state.waiting_bytes += op.payload_bytes();
        state.waiting.push_back(Item { op: Arc::new(op), done });
        Ok(())
    }

    /// What is queued is to be written.
    pub fn wake(&self) {
        let mut state = self.lock();
        if state.waiting.is_empty() || std::mem::replace(&mut state.due, true) {
            return;
        }
        drop(state);
        self.work.notify_one();
    }

    /// The next operations to write together, waiting until there are some; `None` once the store
    /// is closed and everything was taken.
    pub fn take(&self) -> Option<Vec<Item>> {
        self.writer.get_or_init(|| std::thread::current().id());
        let mut state = self.lock();
        while state.waiting.is_empty() || !state.due && !state.closing {
            if state.closing {
                return None;
            }
            state = self.work.wait(state).expect("nothing panics while it holds the queue");
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_OPS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(item) = state.waiting.pop_front() else { break };
            bytes += item.op.payload_bytes();
            batch.push(item);
        }
        state.waiting_bytes -= bytes;
        // What was left is as due as before.
        state.due = !state.waiting.is_empty();
        state.writing = batch.iter().map(|item| item.op.clone()).collect();
        drop(state);
        self.room.notify_all();
        Some(batch)
    }

    /// Closes the queue and takes what nobody will write any more.
    pub fn abandon(&self) -> VecDeque<Item> {
        self.close();
        std::mem::take(&mut self.lock().waiting)
    }

    pub fn is_closing(&self) -> bool {
        self.lock().closing
    }

    pub fn close(&self) {
        self.lock().closing = true;
        self.work.notify_all();
        self.room.notify_all();
    }
}
