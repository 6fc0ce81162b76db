//! A peer's process has died, on evidence: its groups need not wait for timers.
//!
//! Nothing here reads by lease, so each voter may let go of the dead leader's. The first of the
//! voters that are alive stands for election at once, the others after it, one stagger each.

use std::sync::Arc;
use std::time::Duration;

use actors::id::NodeId;

use super::peers::Peers;
use crate::raft::group::Group;

/// Between the candidacies of two voters of one group.
const STAGGER: Duration = Duration::from_millis(200);

/// Runs on the transport's runtime; returns when every group it concerns has been seen to.
pub async fn take_over(peers: &Arc<Peers>, dead: NodeId) {
    let led: Vec<Group> = peers.groups().into_iter().filter(|g| g.role().leader == Some(dead)).collect();
    if led.is_empty() {
        return;
    }
    tracing::info!(dead, groups = led.len(), "leader's process has died, electing successors");
    let mut later = Vec::new();
    for group in led {
        let rank = rank(peers, &group, dead);
        group.give_up_on(dead, rank == 0).await;
        if rank > 0 {
            later.push((rank, group));
        }
    }
    later.sort_by_key(|(rank, _)| *rank);
    let mut waited = 0;
    for (rank, group) in later {
        if rank > waited {
            tokio::time::sleep(STAGGER * (rank - waited)).await;
            waited = rank;
        }
        group.give_up_on(dead, true).await;
    }
}

/// This node's place among the voters that are alive, in an order that differs from group to
/// group, so that successors spread.
fn rank(peers: &Peers, group: &Group, dead: NodeId) -> u32 {
    let mut alive: Vec<NodeId> =
        group.voters().into_iter().filter(|id| *id != dead && peers.is_connected(*id)).collect();
    alive.sort_unstable();
    if alive.is_empty() {
        return 0;
    }
    // Shards of one leader are `nodes` apart, so the quotient tells them apart.
    let turn = usize::from(group.shard.0) / (alive.len() + 1) % alive.len();
    alive.rotate_left(turn);
    let place = alive.iter().position(|id| *id == group.node).unwrap_or(alive.len());
    u32::try_from(place).unwrap_or(u32::MAX)
}
