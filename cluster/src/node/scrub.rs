//! Reads everything this node has stored, now and then, so that rot is found while other replicas
//! are whole. What it meets is told by the stores themselves (`storage/watched.rs`).
//!
//! Slow on purpose: it yields to everything else, on the thread that hashes digests.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actors::id::ShardId;
use actors::shell::house::{PartError, StopSignal};
use tokio::sync::Notify;

use super::peers::Peers;
use crate::background::Background;
use crate::router::protocol::ScrubReport;
use crate::storage::{LogStore, StateStore, StateView};

/// Bytes read in one go, and the pause after them: 16 MiB/s at most.
const STEP_BYTES: usize = 1 << 20;
const STEP_PAUSE: Duration = Duration::from_millis(60);
/// Log entries looked at in one go, however small.
const STEP_ENTRIES: u64 = 65_536;

/// When the first pass begins: the node has other things to do first.
const FIRST_AFTER: Duration = Duration::from_secs(3);

/// How a scrub is asked for, and what came of the last one.
#[derive(Default)]
pub struct Scrubbing {
    wanted: Notify,
    running: AtomicBool,
    passes: AtomicU64,
    bytes: AtomicU64,
}

impl Scrubbing {
    /// Asks for a pass now; one that runs already counts.
    pub fn begin(&self) -> ScrubReport {
        if !self.running.swap(true, Ordering::AcqRel) {
            self.wanted.notify_one();
        }
        self.report()
    }

    pub fn report(&self) -> ScrubReport {
        ScrubReport {
            running: self.running.load(Ordering::Acquire),
            passes: self.passes.load(Ordering::Acquire),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

pub struct Scrub {
    pub scrubbing: Arc<Scrubbing>,
    pub peers: Arc<Peers>,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub background: Arc<Background>,
    /// From the end of one pass to the beginning of the next.
    pub interval: Duration,
}

impl Scrub {
    /// # Errors
    /// Never: a pass that fails is tried again; damage has ended this process by then.
    pub async fn run(&self, mut stop: StopSignal) -> Result<(), PartError> {
        // Opening looks at little of the state; what happened while this node was away is found now.
        let mut pause = FIRST_AFTER.min(self.interval);
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.scrubbing.wanted.notified() => {}
                () = tokio::time::sleep(pause) => self.scrubbing.running.store(true, Ordering::Release),
            }
            pause = self.interval;
            let passed = tokio::select! {
                () = stop.stopped() => return Ok(()),
                passed = self.pass() => passed,
            };
            match passed {
                Ok(bytes) => {
                    tracing::info!(bytes, "everything stored was read and is whole");
                    self.scrubbing.passes.fetch_add(1, Ordering::AcqRel);
                    metrics::counter!("holdfast_scrub_passes_total").increment(1);
                }
                Err(error) => tracing::error!(%error, "the stored data could not be read through"),
            }
            self.scrubbing.running.store(false, Ordering::Release);
        }
    }

    async fn pass(&self) -> io::Result<u64> {
        let before = self.scrubbing.bytes.load(Ordering::Relaxed);
        let log = self.log.clone();
        self.background.call(move || log.check_files()).await??;
        for group in self.peers.groups() {
            self.read_log(group.shard).await?;
        }
        self.read_state().await?;
        Ok(self.scrubbing.bytes.load(Ordering::Relaxed) - before)
    }

    async fn read_log(&self, shard: ShardId) -> io::Result<()> {
        let mut next = 0;
        while let Some(last) = self.log.last_index(shard)?.filter(|last| next <= *last) {
            let log = self.log.clone();
            let range = next..last.min(next.saturating_add(STEP_ENTRIES)).saturating_add(1);
            let end = range.end;
            let found = self
                .background
                .call(move || log.entries(shard, range, STEP_BYTES))
                .await??;
            // Purged entries are passed over at once: the store leaves them out.
            next = found.last().map_or(end, |(index, _)| index + 1);
            self.seen(found.iter().map(|(_, entry)| entry.len()).sum()).await;
        }
        Ok(())
    }

    async fn read_state(&self) -> io::Result<()> {
        let state = self.state.clone();
        let mut view = self.background.call(move || state.on_disk()).await??;
        let mut from = Vec::new();
        loop {
            let (returned, read) = self
                .background
                .call(move || {
                    let read = read_step(&*view, &from);
                    (view, read)
                })
                .await?;
            let (bytes, next) = read?;
            view = returned;
            self.seen(bytes).await;
            match next {
                Some(key) => from = key,
                None => return self.background.call(move || drop(view)).await,
            }
        }
    }

    async fn seen(&self, bytes: usize) {
        self.scrubbing.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics::counter!("holdfast_scrub_bytes_total").increment(bytes as u64);
        tokio::time::sleep(STEP_PAUSE.mul_f64((bytes as f64 / STEP_BYTES as f64).min(1.0))).await;
    }
}

/// About [`STEP_BYTES`] of rows from `from` on, and where to go on.
fn read_step(view: &dyn StateView, from: &[u8]) -> io::Result<(usize, Option<Vec<u8>>)> {
    let mut bytes = 0;
    let mut next = None;
    view.scan(from, &[0xff; 8], &mut |key, value| {
        if bytes >= STEP_BYTES {
            next = Some(key.to_vec());
            return false;
        }
        bytes += key.len() + value.len();
        true
    })?;
    Ok((bytes, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryState;
    use crate::storage::{StateBatch, StateOp};

    #[test]
    fn steps_pass_over_every_row_once() {
        let state = MemoryState::new();
        let row = |n: u32| StateOp::Put {
            key: [b"S", &n.to_be_bytes()[..]].concat(),
            value: vec![1; 40_000],
        };
        let ops = (0..100).map(row).collect();
        state.write(StateBatch { ops }).unwrap();
        let (mut from, mut bytes, mut steps) = (Vec::new(), 0, 0);
        loop {
            let (read, next) = read_step(&*state.view(), &from).unwrap();
            (bytes, steps) = (bytes + read, steps + 1);
            match next {
                Some(key) => from = key,
                None => break,
            }
        }
        assert_eq!((bytes, steps), (100 * 40_005, 4));
    }
}
