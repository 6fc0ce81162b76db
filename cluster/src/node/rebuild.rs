//! Replicas whose applied state was lost are given another replica's, before their Raft starts.
//!
//! Safe under the same node id: votes and log are whole, so nothing this replica promised is
//! forgotten. Until its state is there again it neither votes nor serves.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use bytes::Bytes;

use super::replicas::Replicas;
use crate::api::ShardStatus;
use crate::raft::machine::GroupShared;
use crate::raft::snapshot::{Into, Receiver};
use crate::raft::{log, rpc};
use crate::router::protocol::Ask;

/// Shards that are rebuilt at the same time.
pub const AT_ONCE: usize = 2;
/// A sender that has sent nothing for so long is given up.
const STALL: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// Between rounds in which nobody could send.
const ROUND_PAUSE: Duration = Duration::from_millis(300);
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// One replica that is being rebuilt, or waits for its turn.
pub struct Rebuild {
    shared: Arc<GroupShared>,
    receiver: Receiver,
    /// The state must reach this index; what is below is in no log of this node any more.
    needed: u64,
    /// Who sends; 0 for nobody yet.
    source: AtomicU64,
}

impl Rebuild {
    fn is_done(&self) -> bool {
        self.shared.with_meta(|meta| meta.applied.map(|id| id.index)) >= Some(self.needed)
    }

    fn describe(&self) -> String {
        match self.source.load(Ordering::Relaxed) {
            0 => "rebuilding: its state was lost, waiting for another replica to send it".to_owned(),
            source => format!(
                "rebuilding: its state was lost, node {source} has sent {:.1} MiB",
                self.receiver.bytes_received() as f64 / f64::from(1 << 20)
            ),
        }
    }
}

/// The replicas of this node that are being rebuilt.
#[derive(Default)]
pub struct Rebuilds {
    running: Mutex<BTreeMap<ShardId, Arc<Rebuild>>>,
}

impl Rebuilds {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, Arc<Rebuild>>> {
        self.running.lock().expect("no holder of this lock panics")
    }

    fn add(&self, rebuild: Arc<Rebuild>) {
        let mut running = self.lock();
        running.insert(rebuild.shared.shard, rebuild);
        metrics::gauge!("holdfast_replicas_rebuilding").set(running.len() as f64);
    }

    fn remove(&self, shard: ShardId) {
        let mut running = self.lock();
        running.remove(&shard);
        metrics::gauge!("holdfast_replicas_rebuilding").set(running.len() as f64);
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Serves one snapshot message; `None` when nothing of this shard is being rebuilt.
    pub fn serve(
        &self,
        shard: ShardId,
        from: NodeId,
        kind: u8,
        body: Bytes,
    ) -> Option<impl std::future::Future<Output = Bytes> + Send + 'static> {
        let snapshot = matches!(
            kind,
            rpc::KIND_SNAPSHOT_BEGIN | rpc::KIND_SNAPSHOT_CHUNK | rpc::KIND_SNAPSHOT_END
        );
        let rebuild = self.lock().get(&shard).filter(|_| snapshot).cloned()?;
        Some(async move { rebuild.receiver.serve(Into::Store, from, kind, body).await })
    }

    /// The replicas as they see themselves.
    pub fn status(&self) -> Vec<ShardStatus> {
        let running = self.lock();
        let rows = running.iter().map(|(shard, rebuild)| ShardStatus {
            applied: rebuild.shared.with_meta(crate::raft::machine::GroupMeta::applied_index),
            fault: Some(rebuild.describe()),
            ..ShardStatus::unknown(*shard)
        });
        rows.collect()
    }
}

impl Replicas {
    /// How far the state must at least reach, if it does not: what is purged from the log is
    /// nowhere else on this node.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn lacks_state(&self, shared: &GroupShared) -> io::Result<Option<u64>> {
        let purged = log::purged(&*self.log, shared.shard)?.map(|id| id.index);
        let applied = shared.with_meta(|meta| meta.applied.map(|id| id.index));
        Ok(purged.filter(|purged| applied.is_none_or(|applied| applied < *purged)))
    }

    /// Announces a replica that will be rebuilt, so that status tells of it while it waits.
    pub fn announce_rebuild(&self, shared: Arc<GroupShared>, needed: u64) -> Arc<Rebuild> {
        tracing::warn!(shard = %shared.shard, needed, "state lost, rebuilding it from another replica");
        let rebuild = Arc::new(Rebuild {
            receiver: Receiver::new(shared.clone()),
            shared,
            needed,
            source: AtomicU64::new(0),
        });
        self.peers.rebuilds.add(rebuild.clone());
        rebuild
    }

    /// Waits until another replica has sent its state; asks one after the other, for as long as it
    /// takes. Afterwards the group may be opened.
    ///
    /// # Errors
    /// The own disk failed.
    pub async fn rebuild(&self, rebuild: &Rebuild, sources: &[NodeId]) -> io::Result<()> {
        let shard = rebuild.shared.shard;
        while !rebuild.is_done() {
            for source in sources.iter().filter(|id| **id != self.peers.me.node) {
                let ask = Ask::SendState {
                    shard,
                    to: self.peers.me.node,
                    at_least: rebuild.needed,
                };
                match self.asking.node(*source, ask, ASK_DEADLINE).await {
                    Ok(_) => self.receive(rebuild, *source).await,
                    Err(error) => tracing::debug!(%shard, source, %error, "cannot send its state"),
                }
                if rebuild.is_done() {
                    break;
                }
            }
            if !rebuild.is_done() {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
        if let Some(applied) = rebuild.shared.with_meta(|meta| meta.applied) {
            log::make_way(&*self.log, shard, applied).await?;
        }
        tracing::info!(%shard, bytes = rebuild.receiver.bytes_received(), "rebuilt");
        metrics::counter!("holdfast_replicas_rebuilt_total").increment(1);
        self.peers.rebuilds.remove(shard);
        Ok(())
    }

    /// Waits until the state is there, or its sender has fallen silent.
    async fn receive(&self, rebuild: &Rebuild, source: NodeId) {
        rebuild.source.store(source, Ordering::Relaxed);
        let (mut seen, mut silent) = (rebuild.receiver.bytes_received(), Duration::ZERO);
        while !rebuild.is_done() && silent < STALL {
            tokio::time::sleep(POLL).await;
            let now = rebuild.receiver.bytes_received();
            silent = if now == seen { silent + POLL } else { Duration::ZERO };
            seen = now;
        }
        rebuild.source.store(0, Ordering::Relaxed);
    }
}
