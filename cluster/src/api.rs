//! The plain types of what `node` may ask of the cluster; the asking is [`crate::Cluster`].

use actors::device::{DeviceView, Message, Outcome, Status, TakenMessage};
use actors::id::{DeviceId, NodeId, ShardId, TenantId};
use actors::ports::Downlink;
use actors::time::Timestamp;
use actors::wire::receipt::Receipt;
use serde::{Deserialize, Serialize};

pub use crate::live::{Interest, LiveEntry, LiveItem, LivePage, LiveQuery};
pub use crate::methods::{MethodAnswer, MethodCall, MethodError, MethodReply, MethodResult, METHOD_BYTES_MAX};

/// Receives notes for connections this node holds. Called from any thread; must not block.
pub trait DownlinkSink: Send + Sync + 'static {
    fn deliver(&self, note: Downlink);

    /// Hands a call to the device's connection; `reply` is answered once, now or later. Whoever
    /// holds no connections drops it, which says so.
    fn invoke(&self, call: MethodCall, reply: MethodReply) {
        drop((call, reply));
    }
}

/// Runs closures on the arbiter threads; `node` puts its MQTT connections there so that a message
/// for a shard led on the same arbiter crosses no thread.
pub type ArbiterHandle = actix_rt::ArbiterHandle;

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
    /// Damage was met and written down: the next start, at once, does what there is to do.
    #[error("{0}")]
    BeginAnew(String),
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
    /// The gateway device that may act for them.
    pub gateway: Option<DeviceId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePage {
    pub devices: Vec<DeviceView>,
    pub next: Option<DeviceId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageSelection {
    /// What waits or is on its way, in the order of delivery.
    Queue,
    /// Dead letters, in the order in which they were queued.
    Dead,
    /// The one with this id, wherever it is.
    Id(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQuery {
    pub which: MessageSelection,
    /// Exclusive.
    pub after_number: u64,
    /// 1..=1000
    pub limit: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageState {
    Queued,
    /// Handed to the live connection, and not settled.
    Delivering,
    Dead {
        reason: Outcome,
        at: Timestamp,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRow {
    pub number: u64,
    pub state: MessageState,
    pub enqueued_at: Timestamp,
    /// `None` for a dead letter.
    pub expires_at: Option<Timestamp>,
    pub deliveries: u16,
    /// Of the write that queued it first.
    pub receipt: Receipt,
    pub message: Message,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagePage {
    pub rows: Vec<MessageRow>,
    /// Number to ask after next; `None` when this page reached the end.
    pub next: Option<u64>,
}

/// How a message ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackRow {
    pub seq: u64,
    pub message_id: String,
    pub outcome: Outcome,
    pub at: Timestamp,
    pub enqueued_at: Timestamp,
    pub deliveries: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackPage {
    pub rows: Vec<FeedbackRow>,
    /// Seq to ask after next; `None` when this page reached the end.
    pub next: Option<u64>,
}

/// What a connection asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeMessages {
    pub generation: u64,
    /// Numbers of what it has and has not settled.
    pub held: Vec<u64>,
    pub count_max: u16,
}

/// What it gets, in the order of delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagesTaken {
    pub messages: Vec<(TakenMessage, Message)>,
    /// There is more in the queue.
    pub more: bool,
    /// So many became dead letters instead.
    pub ended: u32,
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
    /// Some of its replicas lost their state and are being given it by others.
    Rebuilding,
    /// What it has promised is lost or in doubt: it takes no part until it is repaired.
    Damaged,
    /// Has an id, and has not started yet.
    Joining,
    /// Its replicas are being moved away.
    Leaving,
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
    /// What is left to do until every replica is where it shall be.
    #[serde(default)]
    pub moving: Option<MovingStatus>,
    /// The id the next node gets.
    pub next_node: NodeId,
    /// Ids and times of join tokens, never the tokens.
    #[serde(default)]
    pub tokens: Vec<TokenStatus>,
}

/// Replicas on their way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovingStatus {
    pub since: Timestamp,
    /// Replicas to be brought to new nodes, since then, and how many are there.
    pub total: u32,
    pub done: u32,
    /// Estimated from how long those took; `None` before the first is there.
    pub left_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    pub id: String,
    pub created: Timestamp,
    pub expires: Timestamp,
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
    /// Shards of which it may have a replica.
    pub replicas: u32,
    /// Why it is not as it should be, if it is not.
    pub fault: Option<String>,
    /// What there is to know of damage that is repaired.
    pub repaired: Option<String>,
    /// `None`: it does not answer.
    pub scrub: Option<ScrubReport>,
}

/// How far a node has come with reading everything it has stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    pub running: bool,
    /// Passes since its start that found everything whole.
    pub passes: u64,
    /// Bytes read since its start.
    pub bytes: u64,
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
    /// Where its voters shall be, the preferred leader first.
    pub target: Vec<NodeId>,
}

impl ShardStatus {
    /// Of a shard of which nothing is known.
    pub fn unknown(id: ShardId) -> Self {
        Self {
            id,
            leader: None,
            term: 0,
            voters: Vec::new(),
            learners: Vec::new(),
            applied: 0,
            committed: 0,
            lag: Vec::new(),
            fault: None,
            target: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaDigest {
    pub node: NodeId,
    pub applied: Option<u64>,
    /// Hex of xxh3-128 over every row of the shard.
    pub digest: Option<String>,
    pub error: Option<String>,
}
