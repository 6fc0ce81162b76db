//! What nodes ask of one another besides Raft, on the Device class.

use std::collections::BTreeSet;

use actors::device::Command;
use actors::id::{DeviceKey, NodeId, ShardId};
use actors::ports::CallError;
use actors::wire::receipt::Receipt;
use serde::{Deserialize, Serialize};

use crate::admin::{AdminAsk, AdminDone, Denied};
pub use crate::api::ScrubReport;
use crate::api::{
    DevicePage, FeedbackPage, ListQuery, LivePage, LiveQuery, MessagePage, MessageQuery, MessagesTaken, ReceiptState,
    ReplicaDigest, ShardStatus, TakeMessages, TelemetryPage, TelemetryQuery,
};
use crate::catalog::CatalogCommand;
use crate::raft::machine::Position;
use crate::raft::membership::{Membership, Step};

/// A command for a device whose shard the receiver leads; answered with a `CallResult`.
pub const KIND_CALL: u8 = 32;
/// An [`Ask`]; answered with a `Result<Told, CallError>`.
pub const KIND_ASK: u8 = 33;
/// A `Downlink`, without an answer.
pub const KIND_DOWNLINK: u8 = 34;
/// A `MethodCall`; answered with a `MethodResult`.
pub const KIND_METHOD: u8 = 40;
/// A `Vec<Lead>`, without an answer: what the sender leads.
pub const KIND_LEADS: u8 = 35;

/// A shard that the sender leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    pub shard: ShardId,
    pub term: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ForwardedCall {
    /// Of the sender's map.
    pub epoch: u64,
    /// W3C `traceparent`, for the receiver's log.
    pub trace: Option<String>,
    pub key: DeviceKey,
    pub command: Command,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    Telemetry {
        key: DeviceKey,
        query: TelemetryQuery,
    },
    List {
        shard: ShardId,
        query: ListQuery,
    },
    Receipt(Receipt),
    /// Writes a digest marker; answered with its index.
    MarkDigest {
        shard: ShardId,
    },
    /// This replica's digest at an index.
    DigestAt {
        shard: ShardId,
        index: u64,
    },
    /// What this node knows of itself.
    Report,
    Catalog(CatalogCommand),
    /// Stream the shard's state to `to`, which has lost its own and needs at least this index.
    SendState {
        shard: ShardId,
        to: NodeId,
        at_least: u64,
    },
    /// What this node, as a leader, knows to be on `node`'s disk.
    Acked {
        node: NodeId,
    },
    /// Read everything stored; answered at once.
    Scrub,
    /// What happened on a shard the receiver has a replica of; waits for something new.
    Live(Box<LiveQuery>),
    Messages {
        key: DeviceKey,
        query: MessageQuery,
    },
    Feedback {
        key: DeviceKey,
        after_seq: u64,
        limit: u32,
    },
    TakeMessages {
        key: DeviceKey,
        take: TakeMessages,
    },
    /// The groups this node leads.
    Memberships,
    /// A step of a group this node leads, from the membership made at `from`.
    Step {
        shard: ShardId,
        from: Position,
        step: Step,
    },
    /// Of the catalog's leader: who may have a replica of the shard, certainly not out of date.
    Holders {
        shard: ShardId,
    },
    Admin(AdminAsk),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    Telemetry(TelemetryPage),
    Devices(DevicePage),
    Receipt(ReceiptState),
    Index(u64),
    Digest(ReplicaDigest),
    Report(NodeReport),
    Done,
    Acked(Vec<Acked>),
    Scrub(ScrubReport),
    Live(Box<LivePage>),
    Messages(MessagePage),
    Feedback(FeedbackPage),
    MessagesTaken(MessagesTaken),
    Memberships(Vec<Membership>),
    Holders(BTreeSet<NodeId>),
    /// Why a step was not taken.
    Refused(String),
    Admin(Result<AdminDone, Denied>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    pub node: NodeId,
    pub shards: Vec<ShardStatus>,
    pub catalog: Option<ShardStatus>,
    pub condition: Condition,
    /// What there is to know of damage that is repaired.
    pub aftermath: Option<String>,
    pub scrub: ScrubReport,
}

/// How a node is, as it sees itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    #[default]
    Whole,
    /// Some of its replicas are without state, and are given it.
    Rebuilding,
    /// It takes no part in anything, for this reason.
    Damaged(String),
}

/// An entry that a replica has acknowledged to the leader of `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    pub shard: ShardId,
    pub term: u64,
    pub at: Position,
}

pub type AskResult = Result<Told, CallError>;
