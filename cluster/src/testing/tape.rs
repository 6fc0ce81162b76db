//! Stores in memory that remember every write, in order, so that a test can look at every crash
//! there might have been.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use actors::id::ShardId;
use bytes::Bytes;

use crate::storage::memory::{MemoryLog, MemoryState};
use crate::storage::{Durable, LogCounters, LogOp, LogRecord, LogStore, StateBatch, StateStore, StateView};

#[derive(Clone, Debug)]
pub enum Mark {
    State(StateBatch),
    /// The first `batches` batches are durable.
    Flushed {
        batches: usize,
    },
    Log(LogOp),
}

#[derive(Default)]
pub struct Tape {
    marks: Mutex<Vec<Mark>>,
}

impl Tape {
    pub fn marks(&self) -> Vec<Mark> {
        self.marks.lock().unwrap().clone()
    }

    pub fn len(&self) -> usize {
        self.marks.lock().unwrap().len()
    }
}

#[derive(Default)]
pub struct TapedState {
    pub inner: MemoryState,
    pub tape: Arc<Tape>,
    /// Held by a test, a flush waits.
    pub flush_gate: Mutex<()>,
}

impl StateStore for TapedState {
    fn write(&self, batch: StateBatch) -> io::Result<()> {
        let mut marks = self.tape.marks.lock().unwrap();
        self.inner.write(batch.clone())?;
        marks.push(Mark::State(batch));
        Ok(())
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        StateStore::get(&self.inner, key)
    }

    fn view(&self) -> Box<dyn StateView> {
        self.inner.view()
    }

    fn flush(&self) -> io::Result<()> {
        let batches = {
            let marks = self.tape.marks.lock().unwrap();
            marks.iter().filter(|mark| matches!(mark, Mark::State(_))).count()
        };
        let gate = self.flush_gate.lock().unwrap();
        self.inner.flush()?;
        drop(gate);
        self.tape.marks.lock().unwrap().push(Mark::Flushed { batches });
        Ok(())
    }

    fn unflushed_bytes(&self) -> u64 {
        self.inner.unflushed_bytes()
    }
}

pub struct TapedLog {
    pub inner: MemoryLog,
    pub tape: Arc<Tape>,
}

impl TapedLog {
    pub fn new(tape: Arc<Tape>) -> Self {
        let inner = MemoryLog::new();
        Self { inner, tape }
    }
}

impl LogStore for TapedLog {
    fn submit(&self, op: LogOp, done: Durable) {
        self.tape.marks.lock().unwrap().push(Mark::Log(op.clone()));
        self.inner.submit(op, done);
    }
    fn entries(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        self.inner.entries(shard, range, bytes_max)
    }
    fn last_index(&self, shard: ShardId) -> io::Result<Option<u64>> {
        self.inner.last_index(shard)
    }
    fn record(&self, shard: ShardId, record: LogRecord) -> io::Result<Option<Bytes>> {
        self.inner.record(shard, record)
    }
    fn durable_changes(&self) -> u64 {
        self.inner.durable_changes()
    }
    fn counters(&self) -> LogCounters {
        self.inner.counters()
    }
    fn close(&self) {
        self.inner.close();
    }
}

/// A node as it stands after losing its power.
pub struct Wreck {
    pub state: Arc<MemoryState>,
    pub log: Arc<MemoryLog>,
    /// Marks before the crash.
    pub at: usize,
    /// Of the state batches written by then, how many the disk had.
    pub batches: usize,
}

/// Every crash of a recorded run: after each mark, with as little and as much of the state on disk
/// as the flushes allow. `wanted` picks the moments to look at.
pub fn wrecks<'a>(marks: &'a [Mark], wanted: impl Fn(usize) -> bool + 'a) -> impl Iterator<Item = Wreck> + 'a {
    let mut progress = Vec::with_capacity(marks.len());
    let (mut written, mut flushed) = (0, 0);
    for mark in marks {
        match mark {
            Mark::State(_) => written += 1,
            Mark::Flushed { batches } => flushed = flushed.max(*batches),
            Mark::Log(_) => {}
        }
        progress.push((flushed, written));
    }
    let moments = progress.into_iter().enumerate();
    moments
        .filter(move |(at, _)| wanted(*at))
        .flat_map(move |(at, (flushed, written))| {
            let mut kept = vec![flushed, written];
            kept.dedup();
            kept.into_iter().map(move |batches| wreck(marks, at + 1, batches))
        })
}

fn wreck(marks: &[Mark], at: usize, batches: usize) -> Wreck {
    let (state, log) = (MemoryState::new(), MemoryLog::new());
    let mut left = batches;
    for mark in &marks[..at] {
        match mark {
            Mark::State(batch) if left > 0 => {
                left -= 1;
                state.write(batch.clone()).unwrap();
            }
            Mark::Log(op) => log.submit(op.clone(), Box::new(|done| done.unwrap())),
            _ => {}
        }
    }
    state.flush().unwrap();
    Wreck {
        state: Arc::new(state),
        log: Arc::new(log),
        at,
        batches,
    }
}

/// The entries of a recorded log as they were last appended, purged or not.
pub fn appended(marks: &[Mark]) -> BTreeMap<u64, Bytes> {
    let mut entries = BTreeMap::new();
    for mark in marks {
        match mark {
            Mark::Log(LogOp::Append {
                first_index,
                entries: new,
                ..
            }) => entries.extend((*first_index..).zip(new.iter().cloned())),
            Mark::Log(LogOp::Truncate { last_kept, .. }) => {
                let from = last_kept.map_or(0, |kept| kept + 1);
                entries.split_off(&from);
            }
            _ => {}
        }
    }
    entries
}
