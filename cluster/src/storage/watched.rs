//! Stores that tell of damage the moment anybody meets it, whoever that is and whatever they do
//! with the error.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use actors::id::ShardId;
use bytes::Bytes;

use super::{Durable, LogCounters, LogOp, LogRecord, LogStore, StateBatch, StateStore, StateView};

/// Called with what was met; perhaps often, from any thread. Must not read the store.
pub type OnDamage = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// Whether an error means that bytes which were durable are damaged or gone.
pub fn is_damage(error: &io::Error) -> bool {
    // RocksDB meets a file that somebody has removed only when it opens it.
    error.kind() == io::ErrorKind::InvalidData || error.to_string().contains("No such file or directory")
}

fn told<T>(result: io::Result<T>, on_damage: &OnDamage) -> io::Result<T> {
    if let Err(error) = &result {
        if is_damage(error) {
            on_damage(error);
        }
    }
    result
}

pub struct WatchedState {
    pub store: Arc<dyn StateStore>,
    pub on_damage: OnDamage,
}

impl StateStore for WatchedState {
    fn write(&self, batch: StateBatch) -> io::Result<()> {
        told(self.store.write(batch), &self.on_damage)
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        told(self.store.get(key), &self.on_damage)
    }

    fn view(&self) -> Box<dyn StateView> {
        Box::new(WatchedView {
            view: self.store.view(),
            on_damage: self.on_damage.clone(),
        })
    }

    fn on_disk(&self) -> io::Result<Box<dyn StateView>> {
        Ok(Box::new(WatchedView {
            view: told(self.store.on_disk(), &self.on_damage)?,
            on_damage: self.on_damage.clone(),
        }))
    }

    fn flush(&self) -> io::Result<()> {
        told(self.store.flush(), &self.on_damage)
    }

    fn unflushed_bytes(&self) -> u64 {
        self.store.unflushed_bytes()
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        self.store.properties()
    }
}

struct WatchedView {
    view: Box<dyn StateView>,
    on_damage: OnDamage,
}

impl StateView for WatchedView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        told(self.view.get(key), &self.on_damage)
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        told(self.view.scan(from, to, each), &self.on_damage)
    }
}

pub struct WatchedLog {
    pub store: Arc<dyn LogStore>,
    pub on_damage: OnDamage,
}

impl LogStore for WatchedLog {
    fn submit(&self, op: LogOp, done: Durable) {
        self.store.submit(op, done);
    }

    fn queue(&self, op: LogOp, done: Durable) {
        self.store.queue(op, done);
    }

    fn wake(&self) {
        self.store.wake();
    }

    fn entries(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        told(self.store.entries(shard, range, bytes_max), &self.on_damage)
    }

    fn last_index(&self, shard: ShardId) -> io::Result<Option<u64>> {
        told(self.store.last_index(shard), &self.on_damage)
    }

    fn record(&self, shard: ShardId, record: LogRecord) -> io::Result<Option<Bytes>> {
        told(self.store.record(shard, record), &self.on_damage)
    }

    fn check_files(&self) -> io::Result<()> {
        told(self.store.check_files(), &self.on_damage)
    }

    fn durable_changes(&self) -> u64 {
        self.store.durable_changes()
    }

    fn counters(&self) -> LogCounters {
        self.store.counters()
    }

    fn close(&self) {
        self.store.close();
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        self.store.properties()
    }
}
