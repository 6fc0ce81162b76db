//! From any node to the leader of a device's shard and back.
//!
//! Knows who leads what (from this node's own replicas), forwards what is led elsewhere, and
//! turns every way a request can end into an outcome, a retryable refusal, or *unknown*.

mod leads;
pub mod protocol;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use actors::device::Command;
use actors::id::{DeviceKey, NodeId, ShardId};
use actors::ports::{CallError, CallResult, ReplyTo};
use actors::wire::codec;
use bytes::Bytes;
use tokio::sync::watch;

use crate::raft::group::Role;
use crate::shard::runtime::{ShardHandle, ShardMsg};
use crate::shard::stages;
use crate::transport::{Class, SendError, Transport};
use leads::KnownLead;
use protocol::{ForwardedCall, Lead, KIND_CALL};

/// How long a forwarded command may stay unanswered. A change of leadership ends it earlier.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);

/// How long a former leader may take to answer what it was sent before it lost the lead.
const FORMER_LEADER_GRACE: Duration = Duration::from_millis(500);

/// Where forwarded commands wait for their answer, by shard, so that a change of leadership can
/// end those the former leader will not answer any more.
#[derive(Default)]
struct Outstanding {
    calls: BTreeMap<(ShardId, u64), (NodeId, ReplyTo)>,
    next: u64,
}

/// The W3C `traceparent` of the task that runs, if it has one.
pub type TraceSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

pub struct Router {
    pub node: NodeId,
    shards: u16,
    handles: RwLock<BTreeMap<ShardId, ShardHandle>>,
    /// By shard; the catalog's is the last.
    leads: Vec<KnownLead>,
    changes: watch::Sender<u64>,
    transport: OnceLock<Transport>,
    outstanding: Arc<Mutex<Outstanding>>,
    epoch: AtomicU64,
    trace: OnceLock<TraceSource>,
}

impl Router {
    pub fn new(node: NodeId, shards: u16) -> Self {
        Self {
            node,
            shards,
            handles: RwLock::default(),
            leads: (0..=shards).map(|_| KnownLead::default()).collect(),
            changes: watch::channel(0).0,
            transport: OnceLock::new(),
            outstanding: Arc::default(),
            epoch: AtomicU64::new(0),
            trace: OnceLock::new(),
        }
    }

    pub fn connect(&self, transport: Transport) {
        // A node has one transport; a second one would be a mistake in start-up.
        assert!(self.transport.set(transport).is_ok(), "the transport is set once");
    }

    pub fn set_trace_source(&self, source: TraceSource) {
        let _ = self.trace.set(source);
    }

    /// The `traceparent` of the running task.
    pub fn trace(&self) -> Option<String> {
        self.trace.get().and_then(|source| source())
    }

    pub fn transport(&self) -> Option<&Transport> {
        self.transport.get()
    }

    pub fn add(&self, handle: ShardHandle) {
        let mut handles = self.handles.write().expect("no holder of this lock panics");
        handles.insert(handle.group.shard, handle);
    }

    /// This node has no replica of the shard any more.
    pub fn remove(&self, shard: ShardId) {
        self.handles
            .write()
            .expect("no holder of this lock panics")
            .remove(&shard);
        self.learn(shard, KnownLead::closed);
    }

    pub fn handle(&self, shard: ShardId) -> Option<ShardHandle> {
        self.handles
            .read()
            .expect("no holder of this lock panics")
            .get(&shard)
            .cloned()
    }

    pub fn handles(&self) -> Vec<ShardHandle> {
        self.handles
            .read()
            .expect("no holder of this lock panics")
            .values()
            .cloned()
            .collect()
    }

    pub fn shard_of(&self, key: &DeviceKey) -> ShardId {
        key.shard(self.shards)
    }

    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    fn known(&self, shard: ShardId) -> Option<&KnownLead> {
        if shard == ShardId::CATALOG {
            return self.leads.last();
        }
        self.leads.get(usize::from(shard.0)).filter(|_| shard.0 < self.shards)
    }

    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.known(shard)?.leader()
    }

    pub fn leadership_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether every shard is known to have a leader.
    pub fn ready(&self) -> bool {
        let shards = &self.leads[..usize::from(self.shards)];
        shards.iter().all(|known| known.leader().is_some())
    }

    /// A replica of this node saw its group's role change.
    pub fn role_changed(&self, shard: ShardId, role: &Role) {
        self.learn(shard, |known| known.seen(role.term, role.leader));
    }

    /// A peer says which shards it leads; counts where this node has no replica that knows better.
    pub fn told(&self, peer: NodeId, leads: &[Lead]) {
        for lead in leads {
            self.learn(lead.shard, |known| known.told(lead.term, peer));
        }
    }

    /// The process of a peer is gone, and with it what it led.
    pub fn gone(&self, peer: NodeId) {
        for shard in (0..self.shards).map(ShardId) {
            self.learn(shard, |known| known.gone(peer));
        }
    }

    /// What this node's own replicas lead, for its peers.
    pub fn led_here(&self) -> Vec<Lead> {
        let lead = |handle: ShardHandle| {
            let role = handle.group.role();
            role.leading.then_some(Lead {
                shard: handle.group.shard,
                term: role.term,
            })
        };
        self.handles().into_iter().filter_map(lead).collect()
    }

    fn learn(&self, shard: ShardId, news: impl FnOnce(&KnownLead) -> Option<Option<NodeId>>) {
        let Some(changed) = self.known(shard).and_then(news) else {
            return;
        };
        self.changes.send_modify(|n| *n += 1);
        if let Some(leader) = changed {
            self.give_up_on_former(shard, leader);
        }
    }

    /// The former leader may be paused for long; whoever still waits for it after a while can ask
    /// the new one. One that is alive has answered by then.
    fn give_up_on_former(&self, shard: ShardId, leader: NodeId) {
        let outstanding = self.outstanding.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(FORMER_LEADER_GRACE).await;
            for reply in take_former(&outstanding, shard, leader) {
                reply.send(Err(CallError::Unknown));
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outstanding> {
        self.outstanding.lock().expect("no holder of this lock panics")
    }

    /// One attempt at the leader this node knows of.
    pub fn submit(&self, key: DeviceKey, command: Command, reply: ReplyTo) {
        let shard = self.shard_of(&key);
        match self.leader(shard) {
            Some(leader) if leader != self.node => self.forward(leader, shard, key, command, reply),
            _ => self.submit_here(shard, key, command, reply),
        }
    }

    /// To this node's own replica, whoever leads.
    pub fn submit_here(&self, shard: ShardId, key: DeviceKey, command: Command, reply: ReplyTo) {
        let handles = self.handles.read().expect("no holder of this lock panics");
        match handles.get(&shard) {
            Some(handle) => handle.send(ShardMsg::Call {
                key,
                command,
                reply,
                queued: stages::sample(),
            }),
            None => reply.send(Err(CallError::NotLeader { shard, leader: None })),
        }
    }

    fn forward(&self, leader: NodeId, shard: ShardId, key: DeviceKey, command: Command, reply: ReplyTo) {
        let Some(transport) = self.transport() else {
            return reply.send(Err(CallError::NotLeader { shard, leader: None }));
        };
        let body = Bytes::from(codec::encode(&ForwardedCall {
            epoch: self.epoch(),
            trace: self.trace(),
            key,
            command,
        }));
        let id = {
            let mut outstanding = self.lock();
            outstanding.next += 1;
            let id = (shard, outstanding.next);
            outstanding.calls.insert(id, (leader, reply));
            id
        };
        let outstanding = self.outstanding.clone();
        let done = move |result: Result<Bytes, SendError>| {
            let waiting = outstanding
                .lock()
                .expect("no holder of this lock panics")
                .calls
                .remove(&id);
            let Some((_, reply)) = waiting else { return };
            reply.send(match result {
                Ok(bytes) => codec::decode::<CallResult>(&bytes).unwrap_or(Err(CallError::Unknown)),
                Err(SendError::NotSent(_)) => Err(CallError::NotLeader { shard, leader: None }),
                Err(SendError::NoAnswer(_)) => Err(CallError::Unknown),
            });
        };
        transport.request_with(leader, Class::Device, KIND_CALL, body, FORWARD_DEADLINE, Box::new(done));
    }
}

/// Takes out what waits for another node than `leader`.
fn take_former(outstanding: &Mutex<Outstanding>, shard: ShardId, leader: NodeId) -> Vec<ReplyTo> {
    let mut outstanding = outstanding.lock().expect("no holder of this lock panics");
    let ids: Vec<_> = outstanding
        .calls
        .range((shard, 0)..=(shard, u64::MAX))
        .filter(|(_, (peer, _))| *peer != leader)
        .map(|(id, _)| *id)
        .collect();
    ids.into_iter()
        .filter_map(|id| outstanding.calls.remove(&id))
        .map(|(_, reply)| reply)
        .collect()
}

#[cfg(test)]
mod tests;
