//! What `node` may ask of the cluster: one handle, plain types, no Raft.

use std::sync::Arc;
use std::time::Duration;

use actors::device::{Command, DeviceView, Status};
use actors::id::{DeviceId, DeviceKey, Gateway, NodeId, ShardId, TenantId};
use actors::ports::{CallError, CallResult, Downlink, ReplyTo};
use actors::time::{Clock, Timestamp};
use actors::wire::receipt::Receipt;
use serde::{Deserialize, Serialize};

use crate::config::ClusterConfig;

/// Receives notes for connections this node holds. Called from any thread; must not block.
pub trait DownlinkSink: Send + Sync + 'static {
    fn deliver(&self, note: Downlink);
}

/// Runs closures on the arbiter threads; `node` puts its MQTT connections there so that a message
/// for a shard led on the same arbiter crosses no thread.
pub type ArbiterHandle = actix_rt::ArbiterHandle;

/// One node's part of the cluster. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {}

/// Why a node does not start. Each variant has its own exit code in `node`.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory belongs to another cluster or node, or its id was used before (exit 74).
    #[error("{0}")]
    Identity(String),
    /// Corrupt bytes on disk: this replica must be rebuilt under a new node id (exit 74).
    #[error("data in {dir} is damaged: {reason}")]
    Corrupt { dir: String, reason: String },
    /// No permission, full disk, missing directory (exit 74).
    #[error("{what}: {source}")]
    Disk { what: String, source: std::io::Error },
    /// The peer port is taken (exit 69).
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        addr: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("{0}")]
    Other(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryQuery {
    pub after_seq: u64,
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    /// 1..=1000
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryRow {
    pub seq: u64,
    pub enqueued_at: Timestamp,
    pub receipt: Receipt,
    pub will: bool,
    pub telemetry: actors::device::Telemetry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryPage {
    pub rows: Vec<TelemetryRow>,
    /// Seq to ask after next; `None` when this page reached the end.
    pub next: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListQuery {
    pub tenant: TenantId,
    /// Exclusive; devices come in the order of their ids.
    pub after: Option<DeviceId>,
    /// 1..=1000
    pub limit: u32,
    pub id_prefix: Option<String>,
    pub status: Option<Status>,
    pub connected: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePage {
    pub devices: Vec<DeviceView>,
    pub next: Option<DeviceId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiptState {
    Committed,
    Absent,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Up,
    Draining,
    /// Does not answer its peers.
    Down,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub epoch: u64,
    pub cluster_id: String,
    /// The node that answers.
    pub answered_by: NodeId,
    pub nodes: Vec<NodeStatus>,
    pub shards: Vec<ShardStatus>,
    /// The catalog group, in the same shape.
    pub catalog: ShardStatus,
    pub replication: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub id: NodeId,
    pub zone: String,
    pub state: NodeState,
    pub version: String,
    pub mqtt: String,
    pub http: String,
    pub peer: String,
    pub leads: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    pub id: ShardId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Applied on the node that answers.
    pub applied: u64,
    pub committed: u64,
    /// Entries each replica is behind the leader; known to the leader only.
    pub lag: Vec<(NodeId, u64)>,
    /// Why this replica does not take part, if it does not.
    pub fault: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaDigest {
    pub node: NodeId,
    pub applied: Option<u64>,
    /// Hex of xxh3-128 over every row of the shard.
    pub digest: Option<String>,
    pub error: Option<String>,
}

impl Cluster {
    /// Opens the directory, joins the peers and starts every replica. Must be called inside an
    /// actix `System`.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(
        _config: ClusterConfig,
        _clock: Arc<dyn Clock>,
        _downlinks: Arc<dyn DownlinkSink>,
    ) -> Result<Self, StartError> {
        todo!()
    }

    /// This run of this node, as sessions record it.
    pub fn gateway(&self) -> Gateway {
        todo!()
    }

    /// The arbiter threads, for the gateways.
    pub fn arbiters(&self) -> Vec<ArbiterHandle> {
        todo!()
    }

    pub fn shard_of(&self, _device: &DeviceKey) -> ShardId {
        todo!()
    }

    /// Routes a command to the leader of its device's shard and hands the outcome to `reply`,
    /// from any thread. One attempt: `NotLeader` and `Overloaded` mean that nothing was committed.
    ///
    /// Commands of one session (same `Fence` generation) submitted in order from one thread
    /// arrive in order unless one is refused on the way; the device then answers the later ones
    /// with `OrdinalGap`.
    pub fn submit(&self, _device: DeviceKey, _command: Command, _reply: ReplyTo) {
        todo!()
    }

    /// As [`Self::submit`], but tries again while nothing was committed, until `deadline`.
    ///
    /// # Errors
    /// `Unknown` when an attempt may have been committed (never tried again).
    pub async fn call(&self, _device: &DeviceKey, _command: Command, _deadline: Duration) -> CallResult {
        todo!()
    }

    /// Rows in order of seq, read after a linearizable look at the device.
    ///
    /// # Errors
    /// `Refused(NotRegistered)`, or as for any read.
    pub async fn telemetry(
        &self,
        _device: &DeviceKey,
        _query: TelemetryQuery,
        _deadline: Duration,
    ) -> Result<TelemetryPage, CallError> {
        todo!()
    }

    /// Devices over all shards in the order of their ids; each shard is read at its leader.
    ///
    /// # Errors
    /// `NotLeader` or `Overloaded` when a shard did not answer in time: no partial page.
    pub async fn list_devices(&self, _query: ListQuery, _deadline: Duration) -> Result<DevicePage, CallError> {
        todo!()
    }

    /// What became of the write a receipt names.
    ///
    /// # Errors
    /// As for a read.
    pub async fn receipt(&self, _receipt: Receipt, _deadline: Duration) -> Result<ReceiptState, CallError> {
        todo!()
    }

    pub async fn status(&self) -> ClusterStatus {
        todo!()
    }

    /// One digest per replica, all taken at the same log index: at `index` if given and still
    /// remembered (see the error text otherwise), else at a marker this call writes.
    ///
    /// # Errors
    /// `NotLeader` when the shard has no leader.
    pub async fn digest(
        &self,
        _shard: ShardId,
        _index: Option<u64>,
        _deadline: Duration,
    ) -> Result<Vec<ReplicaDigest>, CallError> {
        todo!()
    }

    /// Marks a node as draining (or not) in the catalog. The drained node moves its leaderships
    /// away and then reports `drained()`.
    ///
    /// # Errors
    /// `NotLeader` when the catalog has no leader; nothing was changed.
    pub async fn set_draining(&self, _node: NodeId, _draining: bool, _deadline: Duration) -> Result<(), CallError> {
        todo!()
    }

    /// Whether this node is marked as draining: gateways refuse connections and `/readyz` fails.
    pub fn draining(&self) -> bool {
        todo!()
    }

    /// Whether this node is draining and leads nothing any more: gateways close gently now.
    pub fn drained(&self) -> bool {
        todo!()
    }

    /// Whether every shard is known to have a leader.
    pub fn ready(&self) -> bool {
        todo!()
    }

    /// Waits until [`Self::ready`], at most `deadline`; says whether it is.
    pub async fn wait_ready(&self, _deadline: Duration) -> bool {
        todo!()
    }

    /// The known leader of a shard, for `submit` retries and re-announcements.
    pub fn leader(&self, _shard: ShardId) -> Option<NodeId> {
        todo!()
    }

    /// Changes whenever the leader of any shard is known to have changed.
    pub fn leadership_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        todo!()
    }

    /// Hands leaderships over, settles what is pending, closes the stores. Idempotent.
    pub async fn shutdown(&self, _deadline: Duration) {
        todo!()
    }

    /// Resolves, with the reason, when a part failed that ends the process (a failed fsync, a
    /// corrupt replica).
    pub async fn fatal(&self) -> String {
        todo!()
    }
}
