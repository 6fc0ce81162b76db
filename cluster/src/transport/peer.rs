//! What is kept per peer: a link for each class, when it was last heard, which run of it is connected.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use actors::id::NodeId;
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::link::Link;
use super::{Class, TransportConfig};

pub struct Peer {
    pub id: NodeId,
    pub address: SocketAddr,
    links: [Arc<Link>; Class::ALL.len()],
    boot: Mutex<Option<u64>>,
    /// One more than the clock's milliseconds; 0 for never.
    heard: AtomicU64,
    /// Ends every connection with this peer: the transport stops, or the peer is no member any more.
    pub closed: CancellationToken,
}

impl Peer {
    pub fn new(
        id: NodeId,
        address: SocketAddr,
        config: &TransportConfig,
        counters: &Arc<Counters>,
        closed: CancellationToken,
    ) -> Self {
        let links = Class::ALL.map(|_| Arc::new(Link::new(id, config, counters.clone())));
        Self {
            id,
            address,
            links,
            boot: Mutex::new(None),
            heard: AtomicU64::new(0),
            closed,
        }
    }

    pub fn link(&self, class: Class) -> &Arc<Link> {
        &self.links[usize::from(class.byte())]
    }

    pub fn boot(&self) -> Option<u64> {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_boot(&self, boot: Option<u64>) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = boot;
    }

    pub fn heard(&self, now_ms: u64) {
        self.heard.fetch_max(now_ms.saturating_add(1), Relaxed);
    }

    pub fn last_heard_ms(&self) -> Option<u64> {
        self.heard.load(Relaxed).checked_sub(1)
    }

    /// The run `boot` of this peer is alive: connections to any other lead nowhere, and those that
    /// are waiting to be tried again need not wait.
    pub fn is_alive(&self, boot: u64) {
        for link in &self.links {
            link.kick(Some(boot));
        }
    }

    /// Nothing comes back from this peer: no connection to it is worth keeping.
    pub fn is_dead(&self) {
        for link in &self.links {
            link.kick(None);
        }
    }
}
