//! What faults do to the traffic with one peer: asked by the transport for every frame.
//!
//! Decides only; the transport drops, delays, flips and closes. A stream has no lost or swapped
//! frames, so what stands for them here keeps to what a network can do to TCP: see the catalogue.

use std::sync::Arc;
use std::time::Duration;

use actors::id::NodeId;
use tokio::sync::watch;

use super::kind::{Area, Fault, Way};
use super::table::Faults;

/// One node's traffic with `peer`, on every connection between the two.
#[derive(Clone)]
pub struct Wire {
    faults: Arc<Faults>,
    peer: NodeId,
}

/// How an outgoing frame is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Not before so long; nothing behind it on the same connection is earlier.
    pub hold: Duration,
    /// How long the line is busy with it.
    pub busy: Duration,
    /// This bit of the frame is the wrong way round.
    pub flipped: Option<usize>,
    /// Written a second time.
    pub twice: bool,
    /// Only so many bytes, and the connection ends.
    pub cut_after: Option<usize>,
}

/// How a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Both sides see it.
    Cut,
    /// Only this side; the other one's stays open, and nothing comes over it.
    HalfOpen,
}

/// What becomes of a connection that somebody opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    Open,
    /// Refused, as where nobody listens.
    Refused,
    /// What is said vanishes.
    Vanishes,
}

impl Wire {
    pub(super) fn new(faults: Arc<Faults>, peer: NodeId) -> Self {
        Self { faults, peer }
    }

    /// Whether any link of this node has a fault; `false` costs nothing.
    pub fn asked(&self) -> bool {
        self.faults.asked(Area::Link)
    }

    /// Whether the messages of a frame that goes `way` vanish.
    pub fn drops(&self, way: Way) -> bool {
        self.asked() && self.loses(|direction| direction.covers(way))
    }

    fn loses(&self, concerns: impl Fn(Way) -> bool) -> bool {
        let losing = self.faults.acting(|fault| match fault {
            Fault::LinkDrop {
                peer,
                direction,
                percent,
            } if peer.include(self.peer) && concerns(*direction) => Some(*percent),
            _ => None,
        });
        losing.iter().any(|(lease, percent)| lease.strikes(*percent))
    }

    /// What becomes of a connection that is dialed, or that comes in.
    pub fn entry(&self) -> Entry {
        if !self.asked() {
            return Entry::Open;
        }
        match self.torn() {
            Some(Tear::Cut) => return Entry::Refused,
            Some(Tear::HalfOpen) => return Entry::Vanishes,
            None => {}
        }
        // What either side says is lost: nobody gets to know the other.
        match self.loses(|_| true) {
            true => Entry::Vanishes,
            false => Entry::Open,
        }
    }

    /// How the next frame of `bytes` bytes is written.
    pub fn shape(&self, bytes: usize) -> Shape {
        let mut shape = Shape::default();
        let acting = self.faults.acting(|fault| match fault {
            Fault::LinkLatency { peer, .. }
            | Fault::LinkDuplicate { peer, .. }
            | Fault::LinkReorder { peer, .. }
            | Fault::LinkCorrupt { peer, .. }
            | Fault::LinkBandwidth { peer, .. }
            | Fault::LinkReset { peer, .. }
                if peer.include(self.peer) =>
            {
                Some(fault.clone())
            }
            _ => None,
        });
        for (lease, fault) in acting {
            match fault {
                Fault::LinkLatency { ms, jitter_ms, .. } => {
                    lease.hit();
                    shape.hold += Duration::from_millis(ms + lease.below(jitter_ms + 1));
                }
                Fault::LinkReorder { percent, ms, .. } if lease.strikes(percent) => {
                    shape.hold += Duration::from_millis(ms);
                }
                Fault::LinkBandwidth { bytes_per_second, .. } => {
                    lease.hit();
                    shape.busy += Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
                }
                Fault::LinkDuplicate { percent, .. } if lease.strikes(percent) => shape.twice = true,
                Fault::LinkCorrupt { percent, .. } if lease.strikes(percent) => {
                    shape.flipped = Some(lease.below(bytes as u64 * 8) as usize);
                }
                Fault::LinkReset { percent, .. } if lease.strikes(percent) => {
                    shape.cut_after = Some(lease.below(bytes as u64) as usize);
                }
                _ => {}
            }
        }
        shape
    }

    /// Whether frames are held back.
    pub fn holds_back(&self) -> bool {
        let holding = self.faults.acting(|fault| match fault {
            Fault::LinkLatency { peer, .. } | Fault::LinkReorder { peer, .. } | Fault::LinkBandwidth { peer, .. }
                if peer.include(self.peer) =>
            {
                Some(())
            }
            _ => None,
        });
        !holding.is_empty()
    }

    /// Returns when no frame need be held back any more.
    pub async fn lets_go(&self) {
        let mut changes = self.faults.changes();
        loop {
            changes.borrow_and_update();
            if !self.holds_back() {
                return;
            }
            changed(&mut changes).await;
        }
    }

    fn torn(&self) -> Option<Tear> {
        let torn = self.faults.acting(|fault| match fault {
            Fault::LinkCut { peer } if peer.include(self.peer) => Some(Tear::Cut),
            Fault::LinkHalfOpen { peer } if peer.include(self.peer) => Some(Tear::HalfOpen),
            _ => None,
        });
        let (lease, tear) = torn.into_iter().next()?;
        lease.hit();
        Some(tear)
    }

    /// Returns when a connection with this peer must end, and how.
    pub async fn tears(&self) -> Tear {
        let mut changes = self.faults.changes();
        loop {
            changes.borrow_and_update();
            if let Some(tear) = self.asked().then(|| self.torn()).flatten() {
                return tear;
            }
            changed(&mut changes).await;
        }
    }

    /// Returns when connections that are open on one side only need not be kept any more.
    pub async fn mends(&self) {
        let mut changes = self.faults.changes();
        loop {
            changes.borrow_and_update();
            let half_open = self.faults.acting(|fault| match fault {
                Fault::LinkHalfOpen { peer } if peer.include(self.peer) => Some(()),
                _ => None,
            });
            if half_open.is_empty() {
                return;
            }
            changed(&mut changes).await;
        }
    }
}

async fn changed(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
