//! Node-to-node frames: checksummed, multiplexed, authenticated, bounded.
//!
//! Knows nothing of Raft or devices: it moves opaque bodies between nodes, in classes that do not
//! wait for one another. Runs on any byte stream; TCP is one of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actors::id::NodeId;
use bytes::Bytes;

/// A connection of its own for each, so that a snapshot never delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Raft appends.
    Append,
    /// Heartbeats, votes, leadership transfers; its loss is evidence that a process died.
    Control,
    Snapshot,
    /// Forwarded commands and downlinks.
    Device,
}

impl Class {
    pub const ALL: [Class; 4] = [Class::Append, Class::Control, Class::Snapshot, Class::Device];
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It never left this node: the peer is not connected or its queue is full.
    #[error("node {0} is not reachable")]
    NotSent(NodeId),
    /// It left, and no answer came: the peer may have acted on it.
    #[error("no answer from node {0}")]
    NoAnswer(NodeId),
}

/// Serves what peers send. Called on the arbiter (or runtime) the transport runs on.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request by calling `answer` once, now or later, from any thread; dropping it
    /// unanswered tells the peer that there will be none. Must not block.
    fn request(&self, from: NodeId, class: Class, kind: u8, body: Bytes, answer: Answer);

    /// A message without an answer.
    fn notice(&self, from: NodeId, class: Class, kind: u8, body: Bytes);

    /// What is known of a peer's process has changed.
    fn peer(&self, peer: NodeId, event: PeerEvent);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// The handshake succeeded; `boot` tells runs of the same node apart.
    Connected { boot: u64 },
    /// The connection was closed and connecting again is refused: the process is gone.
    ProcessGone,
    /// The connection was lost or is silent; the peer may be alive.
    Lost,
}

/// How a request is answered.
pub struct Answer(pub(crate) Box<dyn FnOnce(Option<Bytes>) + Send>);

impl Answer {
    pub fn send(self, body: Bytes) {
        (self.0)(Some(body));
    }
}

#[derive(Clone)]
pub struct TransportConfig {
    pub cluster_id: String,
    pub node_id: NodeId,
    /// Stands for this run of this node's process.
    pub boot: u64,
    /// Stands for this node's directory: a peer known under another one is refused.
    pub node_uuid: u128,
    pub secret: crate::config::Secret,
    pub listen: SocketAddr,
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// Bytes queued per peer and class. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// Bytes of one frame. Default 16 MiB.
    pub frame_bytes_max: usize,
    pub connect_timeout: Duration,
}

/// Remembers, durably, which directory (uuid) each node id was seen with. `true`: new or the same.
pub trait PeerLedger: Send + Sync + 'static {
    fn admit(&self, node: NodeId, uuid: u128) -> bool;
}

/// Requests and notices to peers.
#[derive(Clone)]
pub struct Transport {
    _inner: Arc<()>,
}
