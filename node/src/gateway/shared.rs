//! What all connections of one gateway share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use actors::shell::LivePolicy;

use super::auth::Authenticator;
use super::gate::Gates;
use super::limits::Limits;
use super::mailbox::Stop;
use super::port::Devices;
use super::registry::Registry;

pub struct Shared {
    pub limits: Limits,
    /// For the checks of twin writes that need no state.
    pub policy: LivePolicy,
    pub devices: Arc<dyn Devices>,
    pub authenticator: Arc<dyn Authenticator>,
    pub registry: Arc<Registry>,
    /// Whose pages may open a WebSocket, beside those of this machine.
    pub ws_origins: Vec<String>,
    /// Payload bytes in flight over all connections.
    pub in_flight_bytes: Budget,
    /// Bytes that connections buffer; see [`super::session::SessionGuard::buffer`].
    pub buffered: AtomicUsize,
    /// What is let through to each shard.
    pub gates: Arc<Gates>,
    pub connections: Budget,
    /// Clients whose CONNECT is being decided.
    pub handshakes: Budget,
    /// Clients that are being told that there is no room.
    pub turning_away: Budget,
    /// Ends of sessions that are not committed yet.
    pub closes: Budget,
    stopping: OnceLock<Stop>,
}

impl Shared {
    pub fn new(
        limits: Limits,
        policy: LivePolicy,
        devices: Arc<dyn Devices>,
        authenticator: Arc<dyn Authenticator>,
        registry: Arc<Registry>,
        ws_origins: Vec<String>,
        gates: Arc<Gates>,
    ) -> Self {
        Self {
            in_flight_bytes: Budget::new(limits.node_in_flight_bytes_max),
            buffered: AtomicUsize::new(0),
            gates,
            connections: Budget::new(limits.connections_max),
            handshakes: Budget::new(limits.handshakes_max),
            turning_away: Budget::new(limits.turning_away_max),
            closes: Budget::new(limits.closes_max),
            stopping: OnceLock::new(),
            limits,
            policy,
            devices,
            authenticator,
            registry,
            ws_origins,
        }
    }

    /// Why no new connection is accepted any more.
    pub fn stopping(&self) -> Option<Stop> {
        let draining = || self.devices.draining().then_some(Stop::Draining);
        self.stopping.get().copied().or_else(draining)
    }

    pub fn stop_accepting(&self) {
        // The first call wins; there is one reason only.
        let _ = self.stopping.set(Stop::ShuttingDown);
    }
}

/// A count that never grows beyond its bound; the bound may be moved.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
}

impl Budget {
    pub fn new(max: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max: AtomicUsize::new(max),
        }
    }

    /// Says whether there was room.
    pub fn take(&self, amount: usize) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let more = |used: usize| used.checked_add(amount).filter(|sum| *sum <= max);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes one for as long as the returned value lives; `None`: there was no room.
    pub fn hold(&self) -> Option<Hold<'_>> {
        self.take(1).then(|| Hold(self))
    }

    pub fn give_back(&self, amount: usize) {
        self.used.fetch_sub(amount, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// One of a budget, given back however its holder ends.
pub struct Hold<'a>(&'a Budget);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.give_back(1);
    }
}
