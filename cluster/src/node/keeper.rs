//! Keeps leaderships where they should be: moves them off a draining node, and back to each
//! shard's preferred leader once that is well.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::shell::house::{PartError, StopSignal};
use tokio::sync::watch;

use super::peers::Peers;
use crate::catalog::Catalog;
use crate::raft::group::Group;
use crate::shard::runtime::ShardMsg;

const TICK: Duration = Duration::from_millis(200);
/// How long a preferred leader must have been connected before it leads again.
const SETTLED_MS: u64 = 3_000;
/// How lately a successor must have answered the leader.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// How far behind a successor may be.
const LAG_MAX: u64 = 64;
/// How long the catalog's successor may take.
const CATALOG_DEADLINE_MS: u64 = 2_000;
/// Hand-overs begun per tick when nothing is urgent.
const MOVES_PER_TICK: usize = 2;

pub struct Keeper {
    pub peers: Arc<Peers>,
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// This node is marked as draining.
    pub draining: AtomicBool,
    /// … and leads nothing any more.
    pub drained: AtomicBool,
    /// The process is stopping: leads are handed over as for a drain.
    pub leaving: AtomicBool,
    /// The catalog's hand-over that was asked for: to whom, and when.
    pub catalog_hand_over: Mutex<Option<(NodeId, u64)>>,
}

impl Keeper {
    /// # Errors
    /// Never; the signature is that of a part.
    pub async fn run(&self, mut stop: StopSignal) -> Result<(), PartError> {
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(TICK) => {}
            }
            self.look().await;
        }
    }

    pub async fn look(&self) {
        let catalog = self.catalog.borrow().clone();
        let draining = catalog.is_draining(self.peers.me.node);
        self.draining.store(draining, Ordering::Release);
        let leave = draining || self.leaving.load(Ordering::Acquire);
        let led: Vec<Group> = self.peers.groups().into_iter().filter(|g| g.role().leading).collect();
        let alone = |group: &Group| group.voters().len() < 2;
        self.drained.store(draining && led.iter().all(alone), Ordering::Release);
        let mut moves = 0;
        for group in led {
            // Whoever shall have no replica must not lead.
            let going = catalog
                .placement(group.shard)
                .is_some_and(|placement| !placement.target.is_empty() && !placement.target.contains(&group.node));
            let to = if leave || going {
                self.successor(&catalog, &group)
            } else if moves < MOVES_PER_TICK {
                self.preferred(&catalog, &group)
            } else {
                None
            };
            if let Some(to) = to {
                moves += 1;
                self.hand_over(&group, to).await;
            }
        }
    }

    pub fn leads_nothing(&self) -> bool {
        self.peers
            .groups()
            .iter()
            .all(|g| !g.role().leading || g.voters().len() < 2)
    }

    async fn hand_over(&self, group: &Group, to: NodeId) {
        match self.peers.router.handle(group.shard) {
            Some(handle) => handle.send(ShardMsg::Transfer { to }),
            None => self.hand_catalog_over(group, to).await,
        }
    }

    /// The catalog has no devices to settle; but a successor that does not take over must not leave
    /// it unable to write.
    async fn hand_catalog_over(&self, group: &Group, to: NodeId) {
        let now = self.peers.clock.monotonic_ms();
        let asked = *self.catalog_hand_over.lock().expect("no holder of this lock panics");
        let next = match asked {
            Some((_, since)) if now.saturating_sub(since) < CATALOG_DEADLINE_MS => return,
            Some((former, since)) if now.saturating_sub(since) < 2 * CATALOG_DEADLINE_MS => {
                group.end_transfer(former).await;
                None
            }
            _ => {
                group.start_transfer(to).await;
                Some((to, now))
            }
        };
        *self.catalog_hand_over.lock().expect("no holder of this lock panics") = next;
    }

    fn is_fit(&self, catalog: &Catalog, group: &Group, node: NodeId) -> bool {
        node != self.peers.me.node
            && self.peers.is_connected(node)
            && !catalog.is_draining(node)
            // Its process may be connected while this replica of it is being rebuilt.
            && group.hears_from(node, ANSWERED_WITHIN)
            && group.lag().get(&node).is_some_and(|lag| *lag <= LAG_MAX)
    }

    fn successor(&self, catalog: &Catalog, group: &Group) -> Option<NodeId> {
        let voters = group.voters();
        let planned = catalog
            .placement(group.shard)
            .map(|p| p.target.clone())
            .unwrap_or_default();
        let staying = planned.into_iter().filter(|node| voters.contains(node));
        staying
            .chain(voters.iter().copied())
            .find(|node| self.is_fit(catalog, group, *node))
    }

    fn preferred(&self, catalog: &Catalog, group: &Group) -> Option<NodeId> {
        // The catalog may be led by any of its voters.
        let placement = catalog
            .placement(group.shard)
            .filter(|_| group.shard != ShardId::CATALOG)?;
        let preferred = *placement.target.first().filter(|node| group.voters().contains(node))?;
        let now = self.peers.clock.monotonic_ms();
        let settled = self
            .peers
            .link(preferred)
            .is_some_and(|link| now.saturating_sub(link.since_ms) >= SETTLED_MS);
        (settled && self.is_fit(catalog, group, preferred)).then_some(preferred)
    }
}
