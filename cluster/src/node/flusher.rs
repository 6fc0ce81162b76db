//! Makes state durable now and then, and lets the log go up to there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::ShardId;
use actors::shell::house::{PartError, StopSignal};

use super::peers::Peers;
use crate::background::Background;
use crate::disk::DiskGuard;
use crate::raft::log::all_reached;
use crate::storage::reached::{self, AllReached};
use crate::storage::room;
use crate::storage::{written, LogStore, StateStore};
use crate::transport::{Refusal, Transport};

const TICK: Duration = Duration::from_secs(1);
/// Twice this, and the applied state of a silent device is no longer kept in memory.
const REST_EVERY: Duration = Duration::from_secs(10);
/// How often the disk is looked at: somebody else may fill it at once.
const DISK_LOOK: Duration = Duration::from_millis(20);
/// Unflushed state that is flushed at once.
const FLUSH_BYTES: u64 = 32 * 1024 * 1024;

pub struct Flusher {
    pub peers: Arc<Peers>,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub transport: Transport,
    pub background: Arc<Background>,
    pub disk: Arc<DiskGuard>,
    /// Time after which anything unflushed is flushed.
    pub interval: Duration,
    pub dir: PathBuf,
    /// What the last flush saw of the logs when it began.
    pub seen: Arc<Seen>,
}

/// How far the logs had come, and how many operations had been submitted by then.
#[derive(Default)]
pub struct Seen(Mutex<(AllReached, u64)>);

impl Seen {
    /// Looks how far the logs have come, and returns what the last look saw, if all of that is on
    /// the disk by now.
    fn look_again(&self, log: &dyn LogStore, shards: &[ShardId]) -> std::io::Result<AllReached> {
        let now = all_reached(log, shards)?;
        let counted = log.counters();
        let mut seen = self.0.lock().expect("no holder of this lock panics");
        let (reached, submitted) = std::mem::replace(&mut *seen, (now, counted.submitted));
        Ok(if counted.ops >= submitted {
            reached
        } else {
            AllReached::new()
        })
    }
}

impl Flusher {
    /// # Errors
    /// A flush failed: what is durable is unknown, the process must end.
    pub async fn run(&self, mut stop: StopSignal) -> Result<(), PartError> {
        let mut waited = Duration::ZERO;
        let mut rested = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.watch_disk() => {}
            }
            waited += TICK;
            rested += TICK;
            if rested >= REST_EVERY {
                rested = Duration::ZERO;
                self.peers.groups().iter().for_each(|group| group.shared.rest());
            }
            let held: usize = self.peers.groups().iter().map(|g| g.shared.held_bytes()).sum();
            let unflushed = self.state.unflushed_bytes().saturating_add(held as u64);
            self.report(unflushed);
            let due = unflushed >= FLUSH_BYTES.min(self.disk.owed_max()) || (waited >= self.interval && unflushed > 0);
            self.note_written().await;
            // A flush that finds no room would stop the state's writes; there is none to gain by it.
            if due && self.disk.can_flush() {
                waited = Duration::ZERO;
                self.flush_if_there_is_room().await?;
            }
        }
    }

    /// How much a killed process will have written for certain. It only ever adds a check.
    async fn note_written(&self) {
        let (log, dir) = (self.log.clone(), self.dir.clone());
        let noted = self
            .background
            .call(move || written::note_soon(&dir, log.durable_changes()))
            .await;
        if let Ok(Err(error)) = noted {
            tracing::debug!(%error, "not noted how much of the log is written");
        }
    }

    /// For the time of one tick.
    async fn watch_disk(&self) {
        for _ in 0..TICK.as_millis() / DISK_LOOK.as_millis() {
            tokio::time::sleep(DISK_LOOK).await;
            self.disk.look(self.state.unflushed_bytes());
        }
    }

    fn report(&self, unflushed: u64) {
        metrics::gauge!("holdfast_state_unflushed_bytes").set(unflushed as f64);
        let log = self.log.counters();
        metrics::counter!("holdfast_log_fsyncs_total").absolute(log.fsyncs);
        metrics::counter!("holdfast_log_bytes_total").absolute(log.bytes);
        for group in self.peers.groups() {
            let shard = group.shard.to_string();
            metrics::gauge!("holdfast_raft_applied", "shard" => shard).set(group.applied_index() as f64);
        }
        for reason in Refusal::ALL {
            let refused = self.transport.counters().refused_for(reason);
            metrics::counter!("holdfast_peer_rejected_total", "reason" => reason.name()).absolute(refused);
        }
    }

    /// Without room nothing was noted as durable, and the log stays: the next tick tries again.
    async fn flush_if_there_is_room(&self) -> Result<(), PartError> {
        match self.flush().await {
            Err(error) if error.downcast_ref().is_some_and(room::is_full) => {
                tracing::error!(%error, "state was not flushed");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Notes what is applied, flushes, and only then lets openraft purge up to the notes.
    async fn flush(&self) -> Result<(), PartError> {
        let groups = self.peers.groups();
        let mut notes = BTreeMap::new();
        for group in &groups {
            notes.insert(group.shard, group.shared.note()?);
            // Settling takes milliseconds, and devices wait for this thread meanwhile.
            tokio::task::yield_now().await;
        }
        let shards: Vec<ShardId> = groups.iter().map(|group| group.shard).collect();
        let (state, log, dir, seen) = (
            self.state.clone(),
            self.log.clone(),
            self.dir.clone(),
            self.seen.clone(),
        );
        self.background
            .call(move || {
                let certain = seen.look_again(&*log, &shards)?;
                state.flush()?;
                reached::note(&dir, &certain)?;
                written::note(&dir, log.durable_changes())
            })
            .await??;
        metrics::counter!("holdfast_state_flushes_total").increment(1);
        for group in groups {
            if group.holds_log() {
                continue;
            }
            let note = notes.get(&group.shard).cloned().flatten();
            if group.shared.set_durable(note) {
                group.snapshot_metadata().await;
            }
        }
        Ok(())
    }
}
