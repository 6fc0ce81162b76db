//! Node-to-node frames: checksummed, multiplexed, authenticated, bounded.
//!
//! Knows nothing of Raft or devices: it moves opaque bodies between nodes, in classes that do not
//! wait for one another. Runs on any byte stream; TCP is one of them.
//!
//! Each node dials each peer once per [`Class`]; the dialer sends requests and notices, the
//! acceptor answers on the same connection. Within a class, messages to a peer arrive in the order
//! they were sent, or their connection is lost.

mod acceptor;
mod belief;
mod config;
mod connector;
mod counters;
mod dialer;
mod frame;
mod handshake;
mod hello;
mod incoming;
mod line;
mod link;
mod message;
mod outbox;
mod peer;
mod pending;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actors::id::NodeId;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

pub use config::{Nonces, TransportConfig};
pub use connector::{ByteStream, Connector, Listener, TcpConnector};
pub use counters::TransportCounters;
pub use handshake::Refusal;
pub use incoming::Answer;
pub use pending::Done;

use counters::{Counters, Quiet};
use message::Role;
use peer::Peer;

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

    fn byte(self) -> u8 {
        self as u8
    }

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It never left this node: the peer is not connected, its queue is full, or the body is
    /// larger than [`Transport::body_bytes_max`].
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
    ///
    /// `body` is a slice of what was read at once (some 64 KiB): copy what is kept for long.
    fn request(&self, from: NodeId, class: Class, kind: u8, body: Bytes, answer: Answer);

    /// A message without an answer. Must not block.
    fn notice(&self, from: NodeId, class: Class, kind: u8, body: Bytes);

    /// What is known of a peer's process has changed. Must not block.
    fn peer(&self, peer: NodeId, event: PeerEvent);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// The handshake succeeded; `boot` tells runs of the same node apart.
    Connected { boot: u64 },
    /// The connection was closed and connecting again is refused, or another boot answers: the
    /// process that was connected last is gone.
    ProcessGone,
    /// The connection was lost or is silent; the peer may be alive.
    Lost,
}

/// One run of a node's process, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Stands for its directory.
    pub uuid: u128,
    /// How often the directory was started, this time included.
    pub starts: u64,
    /// Stands for this run.
    pub boot: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// New, or the same directory in the same or a later run.
    Admitted,
    OtherDirectory,
    /// The directory, as it was before a run that was seen: what it promised since is forgotten.
    OlderCopy,
}

/// Remembers, durably, in which directory and run each node id was seen.
pub trait PeerLedger: Send + Sync + 'static {
    /// Asked once per connection, only about peers that have proven themselves.
    fn admit(&self, node: NodeId, run: Run) -> Admission;
}

/// Requests and notices to peers. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

/// What a quarantined node dials: it asks and is asked, and that is all.
fn classes(quarantined: bool) -> &'static [Class] {
    if quarantined {
        &[Class::Device]
    } else {
        &Class::ALL
    }
}

/// What every task of the transport sees.
struct Shared {
    config: TransportConfig,
    connector: Arc<dyn Connector>,
    handler: Arc<dyn Handler>,
    ledger: Arc<dyn PeerLedger>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    counters: Arc<Counters>,
    quiet: Quiet,
    shutdown: CancellationToken,
    /// Where every task of the transport runs.
    runtime: tokio::runtime::Handle,
}

impl Shared {
    fn peer(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.peers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    fn is_peer(&self, id: NodeId) -> bool {
        self.peers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&id)
    }
}

impl Transport {
    /// Listens, and begins to connect to every peer. All tasks run on the present tokio runtime
    /// until [`shutdown`](Self::shutdown); dropping the handle does not stop them.
    ///
    /// # Errors
    /// A bad configuration (naming the field), or an address that cannot be listened on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        config: TransportConfig,
        connector: Arc<dyn Connector>,
        handler: Arc<dyn Handler>,
        ledger: Arc<dyn PeerLedger>,
    ) -> io::Result<Self> {
        config.check()?;
        let listener = connector.listen(config.listen)?;
        let counters = Arc::<Counters>::default();
        let peers = config.peers.clone();
        let quiet = Quiet::new(config.clock.clone());
        let shutdown = CancellationToken::new();
        let shared = Arc::new(Shared {
            config,
            connector,
            handler,
            ledger,
            peers: RwLock::default(),
            counters,
            quiet,
            shutdown,
            runtime: tokio::runtime::Handle::current(),
        });
        acceptor::start(shared.clone(), listener);
        let transport = Self { shared };
        transport.set_peers(&peers);
        Ok(transport)
    }

    /// From now on exactly these are peers: others are dialed no more, their connections end and
    /// they are refused. This node itself, if named, is skipped. Returns who is no longer a peer;
    /// the handler is not told of those.
    pub fn set_peers(&self, wanted: &[(NodeId, SocketAddr)]) -> Vec<NodeId> {
        let shared = &self.shared;
        let mut wanted: BTreeMap<NodeId, SocketAddr> = wanted.iter().copied().collect();
        wanted.remove(&shared.config.node_id);
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        {
            let mut peers = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            peers.retain(|id, peer| {
                let stays = wanted.get(id) == Some(&peer.address);
                if !stays {
                    peer.closed.cancel();
                    gone.push(*id);
                }
                stays
            });
            for (id, at) in wanted {
                peers.entry(id).or_insert_with(|| {
                    let closed = shared.shutdown.child_token();
                    let peer = Arc::new(Peer::new(id, at, &shared.config, &shared.counters, closed));
                    new.push(peer.clone());
                    peer
                });
            }
        }
        for peer in new {
            for class in classes(shared.config.quarantined) {
                dialer::start(shared.clone(), peer.clone(), *class);
            }
        }
        gone
    }

    pub fn peers(&self) -> Vec<NodeId> {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.keys().copied().collect()
    }

    /// Sends a request now (not when first polled) and yields its answer.
    ///
    /// # Errors
    /// `NotSent` at once; `NoAnswer` when the deadline passes, the connection is lost, or the peer
    /// says that it will not answer.
    pub fn request(
        &self,
        to: NodeId,
        class: Class,
        kind: u8,
        body: Bytes,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, SendError>> + Send + 'static {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done = Box::new(move |outcome| {
            // Whoever asked may have stopped waiting.
            let _ = sender.send(outcome);
        });
        self.request_with(to, class, kind, body, deadline, done);
        async move { receiver.await.unwrap_or(Err(SendError::NoAnswer(to))) }
    }

    /// As [`request`](Self::request), without a future: `done` is called exactly once, before this
    /// returns if nothing can be sent, else on the transport's thread. It must not block.
    pub fn request_with(&self, to: NodeId, class: Class, kind: u8, body: Bytes, deadline: Duration, done: Done) {
        match self.shared.peer(to) {
            Some(peer) => peer.link(class).request(kind, &body, deadline, done),
            None => done(Err(SendError::NotSent(to))),
        }
    }

    /// Sends a message without an answer; it may still be lost with the connection.
    ///
    /// # Errors
    /// `NotSent`: it was not even queued.
    pub fn notify(&self, to: NodeId, class: Class, kind: u8, body: Bytes) -> Result<(), SendError> {
        let peer = self.shared.peer(to).ok_or(SendError::NotSent(to))?;
        peer.link(class).notify(kind, Role::Notice, &body)
    }

    /// Which run of `peer` is connected on the Control class now.
    pub fn boot_of(&self, peer: NodeId) -> Option<u64> {
        self.shared.peer(peer)?.boot()
    }

    /// When anything was last received from `peer`, on the clock's monotonic milliseconds; `None`:
    /// never since start.
    pub fn last_heard_ms(&self, peer: NodeId) -> Option<u64> {
        self.shared.peer(peer)?.last_heard_ms()
    }

    /// Longest body that can be sent.
    pub fn body_bytes_max(&self) -> usize {
        self.shared.config.frame_bytes_max - message::MESSAGE_HEADER_LEN
    }

    pub fn counters(&self) -> TransportCounters {
        self.shared.counters.snapshot()
    }

    /// Stops listening and connecting, and closes every connection. Requests still waiting end as
    /// `NotSent` or `NoAnswer` shortly after.
    pub fn shutdown(&self) {
        self.shared.shutdown.cancel();
    }
}
