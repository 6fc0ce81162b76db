//! A log store in memory that distinguishes written from synced.
//!
//! Completions run inside `submit`, `sync` or `release_completions`, never while a lock is held,
//! one at a time; what they submit is completed after them.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use actors::id::ShardId;
use bytes::Bytes;

use super::shards::Shards;
use crate::storage::{Durable, LogCounters, LogOp, LogRecord, LogStore};

pub struct MemoryLog {
    auto_sync: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What a reader sees.
    written: Shards,
    /// What a crash leaves.
    synced: Shards,
    unsynced: Vec<LogOp>,
    /// Of operations that were written and wait for a sync.
    waiting: Vec<Durable>,
    ready: VecDeque<(Durable, Result<(), String>)>,
    completing: bool,
    holding: bool,
    fail_next_write: bool,
    fail_next_sync: bool,
    failed: Option<String>,
    closed: bool,
    counters: LogCounters,
    /// Operations that were synced, in all runs.
    durable: u64,
}

impl MemoryLog {
    /// Every operation is synced and completed before `submit` returns.
    pub fn new() -> Self {
        Self::with(true)
    }

    /// Nothing is durable or completed before [`Self::sync`].
    pub fn with_manual_sync() -> Self {
        Self::with(false)
    }

    fn with(auto_sync: bool) -> Self {
        Self {
            auto_sync,
            inner: Mutex::default(),
        }
    }

    /// Makes everything written durable, then completes it.
    pub fn sync(&self) {
        self.lock().sync();
        self.complete();
    }

    /// The power fails: what was not synced is gone and its completions are never called. The same
    /// store stands for the restarted process.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// As [`Self::crash`], but the disk happens to have kept the first `ops` unsynced operations.
    pub fn crash_keeping(&self, ops: usize) {
        let mut inner = self.lock();
        let mut synced = std::mem::take(&mut inner.synced);
        let mut durable = inner.durable;
        for op in inner.unsynced.iter().take(ops) {
            synced.apply(op).expect("it was applied to the same entries before");
            durable += 1;
        }
        // The completions may own handles of this store; they are dropped without the lock.
        let dead = std::mem::replace(
            &mut *inner,
            Inner {
                written: synced.clone(),
                synced,
                durable,
                ..Inner::default()
            },
        );
        drop(inner);
        drop(dead);
    }

    /// The next operation fails as it is written, and with it every later one.
    pub fn fail_next_write(&self) {
        self.lock().fail_next_write = true;
    }

    /// The next sync fails, and with it every later operation; a crash then shows what the disk
    /// kept.
    pub fn fail_next_sync(&self) {
        self.lock().fail_next_sync = true;
    }

    /// Completions are kept back, whatever becomes durable, until [`Self::release_completions`].
    pub fn hold_completions(&self) {
        self.lock().holding = true;
    }

    pub fn release_completions(&self) {
        self.lock().holding = false;
        self.complete();
    }

    /// Flips a bit of an entry, on disk too; says whether it is there.
    pub fn damage(&self, shard: ShardId, index: u64) -> bool {
        let mut inner = self.lock();
        let on_disk = inner.synced.damage(shard, index);
        inner.written.damage(shard, index) || on_disk
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the log")
    }

    fn complete(&self) {
        if std::mem::replace(&mut self.lock().completing, true) {
            return;
        }
        loop {
            let mut inner = self.lock();
            let next = if inner.holding { None } else { inner.ready.pop_front() };
            let Some((done, outcome)) = next else {
                inner.completing = false;
                return;
            };
            drop(inner);
            done(outcome.map_err(io::Error::other));
        }
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    fn write(&mut self, op: LogOp, done: Durable) {
        if self.failed.is_none() && self.closed {
            self.ready.push_back((done, Err("the log store is closed".into())));
            return;
        }
        self.waiting.push(done);
        if self.failed.is_none() && std::mem::take(&mut self.fail_next_write) {
            self.failed = Some("log write failed: fault".into());
        }
        if self.failed.is_none() {
            self.failed = self.written.apply(&op).err();
        }
        if self.failed.is_some() {
            self.complete_waiting();
            return;
        }
        self.counters.submitted += 1;
        self.counters.ops += 1;
        self.counters.bytes += op.payload_bytes() as u64;
        self.unsynced.push(op);
    }

    fn sync(&mut self) {
        if self.failed.is_none() && self.unsynced.iter().any(LogOp::needs_sync) {
            if std::mem::take(&mut self.fail_next_sync) {
                self.failed = Some("log sync failed: fault".into());
            } else {
                self.counters.fsyncs += 1;
                for op in std::mem::take(&mut self.unsynced) {
                    self.durable += 1;
                    self.synced
                        .apply(&op)
                        .expect("it was applied to the same entries before");
                }
            }
        }
        self.complete_waiting();
    }

    fn complete_waiting(&mut self) {
        let outcome = self.failed.clone().map_or(Ok(()), Err);
        let waiting = std::mem::take(&mut self.waiting);
        self.ready
            .extend(waiting.into_iter().map(|done| (done, outcome.clone())));
    }

    fn readable(&self) -> io::Result<&Shards> {
        match &self.failed {
            Some(reason) => Err(io::Error::other(reason.clone())),
            None => Ok(&self.written),
        }
    }
}

impl LogStore for MemoryLog {
    fn submit(&self, op: LogOp, done: Durable) {
        let mut inner = self.lock();
        inner.write(op, done);
        if self.auto_sync {
            inner.sync();
        }
        drop(inner);
        self.complete();
    }

    fn entries(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        self.lock().readable()?.entries(shard, range, bytes_max)
    }

    fn last_index(&self, shard: ShardId) -> io::Result<Option<u64>> {
        Ok(self.lock().readable()?.last_index(shard))
    }

    fn record(&self, shard: ShardId, record: LogRecord) -> io::Result<Option<Bytes>> {
        self.lock().readable()?.record(shard, record)
    }

    fn durable_changes(&self) -> u64 {
        self.lock().durable
    }

    fn counters(&self) -> LogCounters {
        self.lock().counters
    }

    fn close(&self) {
        self.sync();
        self.lock().closed = true;
    }
}
