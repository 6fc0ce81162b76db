//! A state store in memory that distinguishes written from flushed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::{sealed, StateBatch, StateOp, StateStore, StateView};

/// Values are sealed, as on a disk.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
pub struct MemoryState {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What a reader sees; shared with the views that were taken of it.
    written: Arc<Rows>,
    /// What a crash leaves.
    flushed: Rows,
    unflushed: Vec<StateBatch>,
    fail_next_write: bool,
    fail_next_sync: bool,
}

impl MemoryState {
    pub fn new() -> Self {
        Self::default()
    }

    /// The power fails: what was not flushed is gone. The same store stands for the restarted
    /// process.
    pub fn crash(&self) {
        let mut inner = self.lock();
        *inner = Inner {
            written: Arc::new(inner.flushed.clone()),
            flushed: std::mem::take(&mut inner.flushed),
            ..Inner::default()
        };
    }

    /// Makes the first `batches` unflushed batches durable, as a flush of its own accord does.
    pub fn flush_some(&self, batches: usize) {
        self.lock().flush(batches);
    }

    /// Batches a crash would take back.
    pub fn unflushed_batches(&self) -> usize {
        self.lock().unflushed.len()
    }

    /// The next write fails and leaves nothing.
    pub fn fail_next_write(&self) {
        self.lock().fail_next_write = true;
    }

    /// The next flush fails and makes nothing durable.
    pub fn fail_next_sync(&self) {
        self.lock().fail_next_sync = true;
    }

    /// Flips a bit of a row's value, on disk too; says whether it is there.
    pub fn damage(&self, key: &[u8]) -> bool {
        let mut inner = self.lock();
        let on_disk = flip(inner.flushed.get_mut(key));
        flip(Arc::make_mut(&mut inner.written).get_mut(key)) || on_disk
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the state")
    }
}

impl Inner {
    fn flush(&mut self, batches: usize) {
        let batches = batches.min(self.unflushed.len());
        for batch in self.unflushed.drain(..batches) {
            apply(&mut self.flushed, &batch);
        }
    }
}

impl StateStore for MemoryState {
    fn write(&self, batch: StateBatch) -> io::Result<()> {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.fail_next_write) {
            return Err(io::Error::other("state write failed: fault"));
        }
        apply(Arc::make_mut(&mut inner.written), &batch);
        inner.unflushed.push(batch);
        Ok(())
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        get(&self.lock().written, key)
    }

    fn view(&self) -> Box<dyn StateView> {
        Box::new(View(self.lock().written.clone()))
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.fail_next_sync) {
            return Err(io::Error::other("state flush failed: fault"));
        }
        inner.flush(usize::MAX);
        Ok(())
    }

    fn unflushed_bytes(&self) -> u64 {
        self.lock().unflushed.iter().map(bytes_of).sum()
    }
}

struct View(Arc<Rows>);

impl StateView for View {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        get(&self.0, key)
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        for (key, value) in self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if !each(key, sealed::open_raw(value)?) {
                break;
            }
        }
        Ok(())
    }
}

fn get(rows: &Rows, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    rows.get(key)
        .map(|value| sealed::open_raw(value).map(<[u8]>::to_vec))
        .transpose()
}

fn apply(rows: &mut Rows, batch: &StateBatch) {
    for op in &batch.ops {
        match op {
            StateOp::Put { key, value } => {
                rows.insert(key.clone(), sealed::seal_raw(value));
            }
            StateOp::Delete { key } => {
                rows.remove(key);
            }
            StateOp::DeleteRange { from, to } => {
                // A range that ends before it begins deletes nothing.
                let range = (Bound::Included(from.as_slice()), Bound::Excluded(to.as_slice()));
                let gone = if from < to {
                    rows.range::<[u8], _>(range).map(|(key, _)| key.clone()).collect()
                } else {
                    Vec::new()
                };
                for key in gone {
                    rows.remove(&key);
                }
            }
        }
    }
}

fn bytes_of(batch: &StateBatch) -> u64 {
    let bytes = |op: &StateOp| match op {
        StateOp::Put { key, value } => key.len() + value.len(),
        StateOp::Delete { key } => key.len(),
        StateOp::DeleteRange { from, to } => from.len() + to.len(),
    };
    batch.ops.iter().map(|op| bytes(op) as u64).sum()
}

fn flip(value: Option<&mut Vec<u8>>) -> bool {
    value
        .and_then(|value| value.last_mut())
        .map(|byte| *byte ^= 1)
        .is_some()
}
