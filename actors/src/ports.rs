//! What the device actors need from below, as traits. `cluster` implements them with Raft and
//! RocksDB, tests with memory.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::device::{Answer, DeviceState, Event, Message, Qos, Refusal, TakenMessage};
use crate::id::{DeviceKey, Gateway, NodeId, ShardId};
use crate::time::Timestamp;
use crate::wire::receipt::Receipt;

/// Where a device's events become durable. One per led shard, on the shard's arbiter (`!Send`).
pub trait Journal {
    /// Takes the next item of its device and returns at once. Items of one shard are committed,
    /// and answered, in the order of submission. An item without events is answered once all
    /// earlier ones are, and once this node is known to lead still (read-index).
    fn submit(&self, item: Submission) -> Ticket;

    /// Every item with a ticket up to this one has been answered.
    fn settled(&self) -> Ticket;
}

/// The order of submissions of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One decided command on its way to the disks.
pub struct Submission {
    pub key: DeviceKey,
    /// The device's version before `events`. An item that does not fit is a counted no-op.
    pub prev_version: u64,
    /// When the leader decided; travels with the events.
    pub at: Timestamp,
    pub events: Vec<Event>,
    /// What the caller learns, should this commit. A refusal may rest on uncommitted state, so it
    /// waits like everything else.
    pub outcome: Result<Answer, Refusal>,
    pub reply: ReplyTo,
    /// Sent once this has committed; dropped otherwise.
    pub downlinks: Vec<Downlink>,
}

/// Where a device's state comes from when it is activated.
pub trait Store {
    /// The committed state; the default state for a device nobody has heard of.
    ///
    /// # Errors
    /// The disk failed or holds corrupt bytes; the shard host stops.
    fn load(&self, key: &DeviceKey) -> io::Result<DeviceState>;
}

/// A note to the gateway that holds a device's connection. Volatile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Downlink {
    pub gateway: Gateway,
    pub key: DeviceKey,
    pub generation: u64,
    pub body: DownlinkBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DownlinkBody {
    /// A newer connection took the session over.
    TakenOver,
    /// The device was disabled or deleted.
    NotAuthorised,
    /// To be published to `devices/{id}/twin/desired` at `qos`: the desired patch as JSON text,
    /// with `"$version"`.
    DesiredChanged { json: String, qos: Qos },
    /// A message that is this connection's to deliver, if it has what was queued before.
    Message(Box<MessagePushed>),
    /// The queue holds messages for this connection to ask for.
    MessagesWaiting,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessagePushed {
    /// Number of the message before it in the queue; 0 if it is the first.
    pub previous: u64,
    pub taken: TakenMessage,
    pub message: Message,
}

/// A positive answer. Everything in it is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub answer: Answer,
    /// There for writes: where in the log it stands.
    pub receipt: Option<Receipt>,
}

/// Why there is no positive answer. Only `Unknown` may have been committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CallError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was committed; ask `leader` if it is named, else try again shortly.
    #[error("shard {shard} is not led here")]
    NotLeader { shard: ShardId, leader: Option<NodeId> },
    /// Nothing was committed; come back later.
    #[error("too much is waiting already ({what})")]
    Overloaded { what: String },
    /// It may have been committed. Read back, or send again with the same id.
    #[error("the outcome is unknown")]
    Unknown,
}

pub type CallResult = Result<Reply, CallError>;

/// Answers exactly once. Dropped unanswered (a panic, a shutdown), it says `Unknown`.
pub struct ReplyTo(Option<Box<dyn FnOnce(CallResult) + Send>>);

impl ReplyTo {
    pub fn new(answer: impl FnOnce(CallResult) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// For commands whose answer interests nobody.
    pub fn nobody() -> Self {
        Self(None)
    }

    pub fn send(mut self, result: CallResult) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(CallError::Unknown));
        }
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyTo")
    }
}
