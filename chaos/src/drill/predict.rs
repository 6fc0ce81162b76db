//! What a fault will do to the cluster, from who leads and votes where at that moment; and
//! afterwards, how right that was.

use serde::{Deserialize, Serialize};

use super::aim::Aimed;
use super::view::View;
use crate::deed::Deed;
use crate::proxy::Toxic;

/// Predicted or measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Impact {
    /// Shards that are without a leader for a moment.
    pub shards_leaderless: u32,
    /// Devices whose connection breaks.
    pub devices_reconnect: u32,
    /// Whether a majority of every shard's replicas is whole.
    pub majority_survives: bool,
}

impl Impact {
    /// The worst of both.
    pub fn worst(self, other: Self) -> Self {
        Self {
            shards_leaderless: self.shards_leaderless.max(other.shards_leaderless),
            devices_reconnect: self.devices_reconnect.max(other.devices_reconnect),
            majority_survives: self.majority_survives && other.majority_survives,
        }
    }
}

/// How a deed touches its node.
struct Touch {
    /// It cannot lead while this lasts.
    loses_leaders: bool,
    /// It cannot vote.
    loses_vote: bool,
    /// Its clients lose their connections.
    loses_clients: bool,
}

fn touch(deed: &Deed) -> Option<(u64, Touch)> {
    let all = Touch {
        loses_leaders: true,
        loses_vote: true,
        loses_clients: true,
    };
    let led = |loses_clients| Touch {
        loses_leaders: true,
        loses_vote: false,
        loses_clients,
    };
    let clients = Touch {
        loses_leaders: false,
        loses_vote: false,
        loses_clients: true,
    };
    Some(match deed {
        Deed::Kill { node }
        | Deed::Stop { node }
        | Deed::CrashLoop { node, .. }
        | Deed::SlowStart { node, .. }
        | Deed::EmptyDisk { node }
        | Deed::Damage { node, .. }
        | Deed::OldCopy { node }
        | Deed::RemoveReadd { node } => (*node, all),
        Deed::Pause { node } => (
            *node,
            Touch {
                loses_clients: false,
                ..all
            },
        ),
        Deed::Drain { node } => (*node, led(true)),
        Deed::Toxic {
            node,
            toxic: Toxic::Reset { .. } | Toxic::Corrupt { .. },
            ..
        } => (*node, clients),
        Deed::Lease { node, fault, .. } | Deed::Flap { node, fault, .. } => {
            let kind = fault
                .get("kind")
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default();
            match kind {
                "disk.full" | "disk.read_only" | "disk.eio" | "disk.sync_fails_once" => (*node, all),
                "link.cut" | "link.drop" if is_cut(fault) && fault.get("peer").is_some_and(|peer| peer == "*") => (
                    *node,
                    Touch {
                        loses_clients: false,
                        ..all
                    },
                ),
                "disk.stall" => (*node, led(false)),
                _ => return None,
            }
        }
        _ => return None,
    })
}

/// `connections`: devices on each node, as far as that is known.
pub fn predict(aimed: &Aimed, view: &View, connections: &dyn Fn(u64) -> u32) -> Impact {
    let is_power = aimed.deeds.iter().any(|deed| matches!(deed, Deed::PowerCut { .. }));
    let (mut leaderless, mut voteless, mut clientless) = (Vec::new(), Vec::new(), Vec::new());
    for deed in &aimed.deeds {
        if let Some((node, touch)) = touch(deed) {
            leaderless.extend(touch.loses_leaders.then_some(node));
            voteless.extend(touch.loses_vote.then_some(node));
            clientless.extend(touch.loses_clients.then_some(node));
        }
    }
    if is_power {
        (leaderless, voteless, clientless) = (view.ids(), view.ids(), view.ids());
    }
    // Cuts between pairs: whoever hears less than a majority can neither lead nor vote with success.
    for node in cut_off(aimed, view) {
        leaderless.push(node);
        voteless.push(node);
    }
    let shards = view.shards.iter();
    let led = shards
        .clone()
        .filter(|shard| shard.leader.is_some_and(|leader| leaderless.contains(&leader)));
    let quorum = |voters: &[u64]| {
        let whole = voters.iter().filter(|voter| !voteless.contains(voter)).count();
        voters.is_empty() || whole > voters.len() / 2
    };
    clientless.sort_unstable();
    clientless.dedup();
    Impact {
        shards_leaderless: led.count() as u32,
        devices_reconnect: clientless.iter().map(|node| connections(*node)).sum(),
        majority_survives: view.shards.iter().all(|shard| quorum(&shard.voters)),
    }
}

/// Nodes that the cuts of this fault leave without a majority.
fn cut_off(aimed: &Aimed, view: &View) -> Vec<u64> {
    let mut cuts = Vec::new();
    for deed in &aimed.deeds {
        if let Deed::Lease { node, fault, .. } = deed {
            if let (true, Some(peer)) = (is_cut(fault), fault.get("peer").and_then(serde_json::Value::as_u64)) {
                cuts.push((*node, peer));
            }
        }
    }
    if cuts.is_empty() {
        return Vec::new();
    }
    let ids = view.ids();
    let hears = |a: u64, b: u64| !cuts.contains(&(a, b)) && !cuts.contains(&(b, a));
    let heard = |node: &u64| {
        ids.iter()
            .filter(|other| **other == *node || hears(*node, **other))
            .count()
    };
    ids.iter()
        .filter(|node| heard(node) <= ids.len() / 2)
        .copied()
        .collect()
}

/// Whether nothing passes a link.
fn is_cut(fault: &serde_json::Value) -> bool {
    let is = |name: &str, value: serde_json::Value| fault.get(name) == Some(&value);
    is("kind", "link.cut".into()) || (is("kind", "link.drop".into()) && is("percent", 100.into()))
}
