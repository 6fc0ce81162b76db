//! Where replicas go: spread over zones, leaders even over nodes. Pure.

use std::collections::BTreeMap;

use actors::id::NodeId;

use super::Placement;
use crate::config::Member;

/// The placement of a new cluster: shard *s* takes `replication` nodes in a row from a ring in
/// which neighbours are in different zones; the first of them should lead.
pub fn initial(members: &[Member], shards: u16, replication: u8) -> Vec<Placement> {
    let ring = ring(members);
    let replicas = usize::from(replication).min(ring.len());
    (0..usize::from(shards))
        .map(|shard| {
            // Shards that share a preferred leader differ in who comes next, so that a dead
            // node's shards spread over all the others.
            let turn = shard / ring.len().max(1);
            let mut voters: Vec<NodeId> = (0..replicas).map(|i| ring[(shard + i) % ring.len()]).collect();
            if voters.len() > 1 {
                let others = voters.len() - 1;
                voters[1..].rotate_left(turn % others);
            }
            Placement { voters }
        })
        .collect()
}

fn ring(members: &[Member]) -> Vec<NodeId> {
    let mut zones: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    let mut sorted: Vec<&Member> = members.iter().collect();
    sorted.sort_by_key(|m| m.id);
    for member in sorted {
        zones.entry(&member.zone).or_default().push(member.id);
    }
    let mut ring = Vec::new();
    let longest = zones.values().map(Vec::len).max().unwrap_or(0);
    for row in 0..longest {
        ring.extend(zones.values().filter_map(|nodes| nodes.get(row)));
    }
    ring
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(zones: &[&str]) -> Vec<Member> {
        let addr = "127.0.0.1:1".parse().expect("an address");
        let member = |(i, zone): (usize, &&str)| Member {
            id: i as NodeId + 1,
            peer: addr,
            mqtt: addr,
            http: addr,
            zone: (*zone).to_owned(),
        };
        zones.iter().enumerate().map(member).collect()
    }

    #[test]
    fn leaders_are_even_and_replicas_distinct() {
        let placed = initial(&members(&["a", "b", "c"]), 16, 3);
        let mut leads = BTreeMap::new();
        for placement in &placed {
            let mut voters = placement.voters.clone();
            *leads.entry(voters[0]).or_insert(0) += 1;
            voters.sort_unstable();
            voters.dedup();
            assert_eq!(voters.len(), 3);
        }
        assert_eq!(leads.values().max().unwrap() - leads.values().min().unwrap(), 1);
    }

    #[test]
    fn a_dead_nodes_shards_spread_over_the_others() {
        let placed = initial(&members(&["a", "b", "c"]), 16, 3);
        let next: Vec<NodeId> = placed.iter().filter(|p| p.voters[0] == 1).map(|p| p.voters[1]).collect();
        assert!(next.contains(&2) && next.contains(&3), "{next:?}");
    }

    #[test]
    fn losing_a_zone_leaves_a_quorum() {
        let nodes = members(&["a", "a", "b", "b", "c", "c"]);
        for placement in initial(&nodes, 64, 3) {
            for zone in ["a", "b", "c"] {
                let left = placement.voters.iter().filter(|id| nodes[**id as usize - 1].zone != zone).count();
                assert!(left >= 2, "{placement:?} loses its quorum with zone {zone}");
            }
        }
    }
}
