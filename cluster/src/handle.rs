//! What `node` may ask of the cluster: one handle, plain types, no Raft.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use actors::device::Command;
use actors::id::{DeviceKey, Gateway, NodeId, ShardId};
use actors::ports::{CallError, CallResult, ReplyTo};
use actors::shell::LivePolicy;
use actors::time::Clock;
use actors::wire::receipt::Receipt;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::admin::{AdminAsk, AdminDone, Denied};
use crate::api::{
    ArbiterHandle, ClusterStatus, DevicePage, DownlinkSink, FeedbackPage, ListQuery, MessagePage, MessageQuery,
    MessagesTaken, ReceiptState, ReplicaDigest, ScrubReport, StartError, TakeMessages, TelemetryPage, TelemetryQuery,
};
use crate::catalog::CatalogCommand;
use crate::config::ClusterConfig;
use crate::faults::Faults;
use crate::node::start::{start, Running};
use crate::raft::log::all_reached;
use crate::router::protocol::{Ask, Told};
use crate::router::TraceSource;
use crate::storage::reached;
use crate::storage::written;

/// Between attempts of a call that was certainly not committed.
const RETRY_PAUSE: Duration = Duration::from_millis(15);

/// One node's part of the cluster. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) running: Arc<Running>,
}

/// The answer was of another kind than the question: a newer peer, or damage.
fn odd(_: Told) -> CallError {
    CallError::Unknown
}

fn only_reads(command: &Command) -> bool {
    matches!(command, Command::ReadDevice | Command::ReadTwin | Command::ReadMessages)
}

impl Cluster {
    /// Opens the directory, joins the peers and starts every replica. Must be called inside an
    /// actix `System`. Returns before the shards serve; see [`Self::wait_ready`].
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(
        config: ClusterConfig,
        clock: Arc<dyn Clock>,
        downlinks: Arc<dyn DownlinkSink>,
    ) -> Result<Self, StartError> {
        Ok(Self {
            running: Arc::new(start(config, clock, downlinks).await?),
        })
    }

    /// This run of this node, as sessions record it.
    pub fn gateway(&self) -> Gateway {
        self.running.me
    }

    /// The arbiter threads; `node` puts its MQTT connections there, so that a message for a shard
    /// led on the same arbiter crosses no thread.
    pub fn arbiters(&self) -> Vec<ArbiterHandle> {
        self.running.arbiter_handles.clone()
    }

    pub fn shard_of(&self, device: &DeviceKey) -> ShardId {
        self.running.router.shard_of(device)
    }

    /// Routes a command to the leader of its device's shard and hands the outcome to `reply`,
    /// from any thread. One attempt: `NotLeader` and `Overloaded` mean that nothing was committed.
    ///
    /// Commands of one session (same `Fence` generation) submitted in order from one thread
    /// arrive in order unless one is refused on the way; the device then answers the later ones
    /// with `OrdinalGap`.
    pub fn submit(&self, device: DeviceKey, command: Command, reply: ReplyTo) {
        self.running.router.submit(device, command, reply);
    }

    /// As [`Self::submit`], but tries again while nothing was committed, until `deadline`.
    ///
    /// # Errors
    /// `Unknown` when an attempt may have been committed (only reads are tried again then).
    pub async fn call(&self, device: &DeviceKey, command: Command, deadline: Duration) -> CallResult {
        let end = Instant::now() + deadline;
        loop {
            let (tx, rx) = oneshot::channel();
            let reply = ReplyTo::new(move |result| {
                let _ = tx.send(result);
            });
            self.submit(device.clone(), command.clone(), reply);
            let result = match tokio::time::timeout_at(end, rx).await {
                Ok(result) => result.unwrap_or(Err(CallError::Unknown)),
                Err(_) => return Err(CallError::Unknown),
            };
            let again = match &result {
                Err(CallError::NotLeader { .. } | CallError::Overloaded { .. }) => true,
                Err(CallError::Unknown) => only_reads(&command),
                _ => false,
            };
            if !again || Instant::now() + RETRY_PAUSE >= end {
                return result;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Rows in order of seq, read after a linearizable look at the device.
    ///
    /// # Errors
    /// `Refused(NotRegistered)`, or as for any read.
    pub async fn telemetry(
        &self,
        device: &DeviceKey,
        query: TelemetryQuery,
        deadline: Duration,
    ) -> Result<TelemetryPage, CallError> {
        let ask = Ask::Telemetry {
            key: device.clone(),
            query,
        };
        match self.running.asking.leader(self.shard_of(device), ask, deadline).await? {
            Told::Telemetry(page) => Ok(page),
            other => Err(odd(other)),
        }
    }

    /// Messages to a device with their content, read after a linearizable look at the device.
    ///
    /// # Errors
    /// As for [`Self::telemetry`].
    pub async fn messages(
        &self,
        device: &DeviceKey,
        query: MessageQuery,
        deadline: Duration,
    ) -> Result<MessagePage, CallError> {
        let ask = Ask::Messages {
            key: device.clone(),
            query,
        };
        match self.running.asking.leader(self.shard_of(device), ask, deadline).await? {
            Told::Messages(page) => Ok(page),
            other => Err(odd(other)),
        }
    }

    /// What became of a device's messages, in the order of their ends.
    ///
    /// # Errors
    /// As for [`Self::telemetry`].
    pub async fn feedback(
        &self,
        device: &DeviceKey,
        (after_seq, limit): (u64, u32),
        deadline: Duration,
    ) -> Result<FeedbackPage, CallError> {
        let ask = Ask::Feedback {
            key: device.clone(),
            after_seq,
            limit,
        };
        match self.running.asking.leader(self.shard_of(device), ask, deadline).await? {
            Told::Feedback(page) => Ok(page),
            other => Err(odd(other)),
        }
    }

    /// Hands messages over to a connection; asking again is harmless.
    ///
    /// # Errors
    /// `Refused(StaleSession)` when the connection is not the live one any more, or as for a read.
    pub async fn take_messages(
        &self,
        device: &DeviceKey,
        take: TakeMessages,
        deadline: Duration,
    ) -> Result<MessagesTaken, CallError> {
        let ask = Ask::TakeMessages {
            key: device.clone(),
            take,
        };
        match self.running.asking.leader(self.shard_of(device), ask, deadline).await? {
            Told::MessagesTaken(taken) => Ok(taken),
            other => Err(odd(other)),
        }
    }

    /// Devices over all shards in the order of their ids; each shard is read at its leader.
    ///
    /// # Errors
    /// `NotLeader` or `Overloaded` when a shard did not answer in time: no partial page.
    pub async fn list_devices(&self, query: ListQuery, deadline: Duration) -> Result<DevicePage, CallError> {
        let asks = (0..self.running.config.shards).map(ShardId).map(|shard| {
            let query = query.clone();
            async move {
                match self
                    .running
                    .asking
                    .leader(shard, Ask::List { shard, query }, deadline)
                    .await?
                {
                    Told::Devices(page) => Ok(page),
                    other => Err(odd(other)),
                }
            }
        });
        let pages = futures::future::try_join_all(asks).await?;
        Ok(merge(pages, query.limit.clamp(1, 1000) as usize))
    }

    /// What became of the write a receipt names.
    ///
    /// # Errors
    /// As for a read.
    pub async fn receipt(&self, receipt: Receipt, deadline: Duration) -> Result<ReceiptState, CallError> {
        if receipt.shard.0 >= self.running.config.shards {
            return Ok(ReceiptState::Absent);
        }
        match self
            .running
            .asking
            .leader(receipt.shard, Ask::Receipt(receipt), deadline)
            .await?
        {
            Told::Receipt(state) => Ok(state),
            other => Err(odd(other)),
        }
    }

    /// One digest per replica, all taken at the same log index: at `index` if given and still
    /// remembered (see the error text otherwise), else at a marker this call writes.
    ///
    /// # Errors
    /// `NotLeader` when the shard has no leader, or does not exist.
    pub async fn digest(
        &self,
        shard: ShardId,
        index: Option<u64>,
        deadline: Duration,
    ) -> Result<Vec<ReplicaDigest>, CallError> {
        let catalog = self.running.catalog.borrow().clone();
        let placement = catalog
            .placement(shard)
            .ok_or(CallError::NotLeader { shard, leader: None })?;
        let index = match index {
            Some(index) => index,
            None => match self
                .running
                .asking
                .leader(shard, Ask::MarkDigest { shard }, deadline)
                .await?
            {
                Told::Index(index) => index,
                other => return Err(odd(other)),
            },
        };
        let digests = placement.voters.iter().map(|node| async move {
            match self
                .running
                .asking
                .node(*node, Ask::DigestAt { shard, index }, deadline)
                .await
            {
                Ok(Told::Digest(digest)) => digest,
                Ok(_) => failed_digest(*node, "answered something else"),
                Err(error) => failed_digest(*node, &error.to_string()),
            }
        });
        Ok(futures::future::join_all(digests).await)
    }

    pub async fn status(&self) -> ClusterStatus {
        crate::status::of(&self.running).await
    }

    /// Asks whoever leads the catalog for a change of the cluster as a whole.
    ///
    /// # Errors
    /// `NotLeader` when the catalog has no leader (nothing was changed), `Unknown` when it may have
    /// been. What was denied is no error.
    pub async fn admin(&self, ask: AdminAsk, deadline: Duration) -> Result<Result<AdminDone, Denied>, CallError> {
        let ask = Ask::Admin(ask);
        match self.running.asking.leader(ShardId::CATALOG, ask, deadline).await? {
            Told::Admin(done) => Ok(done),
            other => Err(odd(other)),
        }
    }

    /// Asks a node to read everything it has stored, now; progress is in [`Self::status`].
    ///
    /// # Errors
    /// `NotLeader` when it was not reached, `Unknown` when it did not answer.
    pub async fn scrub(&self, node: NodeId, deadline: Duration) -> Result<ScrubReport, CallError> {
        match self.running.asking.node(node, Ask::Scrub, deadline).await? {
            Told::Scrub(report) => Ok(report),
            other => Err(odd(other)),
        }
    }

    /// Marks a node as draining (or not) in the catalog. The drained node moves its leaderships
    /// away and then reports `drained()`.
    ///
    /// # Errors
    /// `NotLeader` when the catalog has no leader; nothing was changed.
    pub async fn set_draining(&self, node: NodeId, draining: bool, deadline: Duration) -> Result<(), CallError> {
        let ask = Ask::Catalog(CatalogCommand::SetDraining { node, draining });
        self.running
            .asking
            .leader(ShardId::CATALOG, ask, deadline)
            .await
            .map(|_| ())
    }

    /// Whether this node is marked as draining: gateways refuse connections and `/readyz` fails.
    pub fn draining(&self) -> bool {
        self.quarantine().is_some() || self.running.catalog.borrow().is_draining(self.running.me.node)
    }

    /// Why this node takes no part in anything, if it does not: what it promised is lost or in
    /// doubt. It answers about itself and the cluster, and refuses devices as a draining one does.
    pub fn quarantine(&self) -> Option<&str> {
        self.running.service.quarantine.as_deref()
    }

    /// Whether this node is draining and leads nothing any more: gateways close gently now.
    pub fn drained(&self) -> bool {
        self.quarantine().is_some() || self.draining() && self.running.keeper.drained.load(Ordering::Acquire)
    }

    /// Whether every shard is known to have a leader.
    pub fn ready(&self) -> bool {
        self.running.router.ready()
    }

    /// Waits until [`Self::ready`], at most `deadline`; says whether it is.
    pub async fn wait_ready(&self, deadline: Duration) -> bool {
        let mut changes = self.leadership_changes();
        let wait = async {
            while !self.ready() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(deadline, wait).await;
        self.ready()
    }

    /// The known leader of a shard, for `submit` retries and re-announcements.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.running.router.leader(shard)
    }

    /// Changes whenever the leader of any shard is known to have changed.
    pub fn leadership_changes(&self) -> watch::Receiver<u64> {
        self.running.router.leadership_changes()
    }

    /// Hands leaderships over, settles what is pending, closes the stores. Idempotent.
    pub async fn shutdown(&self, deadline: Duration) {
        let running = &self.running;
        let end = Instant::now() + deadline;
        running.keeper.leaving.store(true, Ordering::Release);
        // Nothing that a drill holds up may hold up the stop.
        running.faults.heal_all();
        let others = running
            .transport
            .peers()
            .into_iter()
            .any(|id| running.peers.is_connected(id));
        while others && !running.keeper.leads_nothing() && Instant::now() + deadline / 2 < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running.stop.send_replace(true);
        if let Some(house) = running.house.lock().await.take() {
            house.stop(Duration::from_secs(2)).await;
        }
        running.replicas.stop_all(Duration::from_secs(2)).await;
        for group in running.peers.groups() {
            group.shutdown().await;
        }
        running.transport.shutdown();
        let shards: Vec<ShardId> = running.peers.groups().iter().map(|group| group.shard).collect();
        let dir = running.config.data_dir.clone();
        let (state, log) = (running.state.clone(), running.log.clone());
        let closed = running.background.call(move || {
            // Only saves replay at the next start.
            let flushed = state.flush();
            log.close();
            // What was queued is on the disk now, or the log has failed and claims no more.
            written::note(&dir, log.durable_changes())?;
            reached::note(&dir, &all_reached(&*log, &shards)?).and(flushed)
        });
        if let Ok(Err(error)) = closed.await {
            tracing::warn!(%error, "state was not flushed; the next start replays the log");
        }
        for arbiter in std::mem::take(&mut *running.arbiters.lock().expect("no holder of this lock panics")) {
            arbiter.stop();
        }
        running.lock.lock().expect("no holder of this lock panics").take();
    }

    /// Why this node takes no telemetry, if it does not.
    pub fn refuses_telemetry(&self) -> Option<&'static str> {
        let env = &self.running.replicas.env;
        if env.disk.level() > crate::storage::reserve::DiskLevel::Ample {
            return Some("disk_nearly_full");
        }
        env.memory_full.load(Ordering::Relaxed).then_some("memory_full")
    }

    /// Tells the shards how much memory the process uses: `pressed`, and idle devices leave memory
    /// without waiting for their time; `full`, and telemetry is refused.
    pub fn set_memory_pressure(&self, pressed: bool, full: bool) {
        let env = &self.running.replicas.env;
        env.memory_pressure.store(pressed, Ordering::Relaxed);
        if env.memory_full.swap(full, Ordering::Relaxed) != full {
            tracing::warn!(full, "memory limit: telemetry is refused while it is full");
        }
    }

    /// Where the trace of the running task comes from, so that it crosses nodes with forwarded
    /// commands. Without one, none is sent.
    pub fn set_trace_source(&self, source: TraceSource) {
        self.running.router.set_trace_source(source);
    }

    /// The fault leases of this node.
    pub fn faults(&self) -> Arc<Faults> {
        self.running.faults.clone()
    }

    /// Resolves, with the reason, when a part failed that ends the process (a failed fsync, a
    /// corrupt replica).
    pub async fn fatal(&self) -> String {
        let mut fatal = self.running.fatal.clone();
        let reason = fatal
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// What devices are judged by; setting it takes effect with the next decision.
    pub fn policy(&self) -> LivePolicy {
        self.running.config.policy.clone()
    }

    /// What the two stores say of themselves, for a person: log, then state.
    pub fn store_properties(&self) -> [Vec<(&'static str, String)>; 2] {
        [self.running.log.properties(), self.running.state.properties()]
    }

    /// Resolves, with the reason, when damage was met: it is written down beside the data, and this
    /// process must begin anew, so that the start does what there is to do.
    pub async fn must_begin_anew(&self) -> String {
        let mut again = self.running.again.clone();
        let reason = again
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Fsyncs of the log since the start; for metrics.
    pub fn log_counters(&self) -> crate::storage::LogCounters {
        self.running.log.counters()
    }
}

fn failed_digest(node: NodeId, reason: &str) -> ReplicaDigest {
    ReplicaDigest {
        node,
        applied: None,
        digest: None,
        error: Some(reason.to_owned()),
    }
}

/// Merges the shards' pages; nothing beyond the place where some shard stopped early.
fn merge(pages: Vec<DevicePage>, limit: usize) -> DevicePage {
    let bound = pages.iter().filter_map(|page| page.next.clone()).min();
    let mut devices: Vec<_> = pages.into_iter().flat_map(|page| page.devices).collect();
    devices.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(bound) = &bound {
        devices.retain(|device| device.id <= *bound);
    }
    let next = if devices.len() > limit {
        devices.truncate(limit);
        devices.last().map(|device| device.id.clone())
    } else {
        bound
    };
    DevicePage { devices, next }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
