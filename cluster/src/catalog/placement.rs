//! Where replicas go: spread over zones, even over nodes, moved as little as that allows. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use actors::id::NodeId;

use crate::config::Member;

/// A node that may have replicas, and its zone.
pub type Site<'a> = (NodeId, &'a str);

/// The largest number of voters that is worth having: no more than wanted, no more than nodes, and
/// rather odd, because an even number survives no more failures than one fewer.
pub fn replication(wanted: u8, nodes: usize) -> u8 {
    let most = usize::from(wanted).min(nodes.max(1));
    let rather = if most < usize::from(wanted) && most.is_multiple_of(2) {
        most - 1
    } else {
        most
    };
    u8::try_from(rather).unwrap_or(wanted)
}

/// What a founder means by a number of replicas: below three nodes it could not ask for more, so
/// the cluster grows into three; with three or more it is what it wants.
pub fn wanted(replication: u8, founders: usize) -> u8 {
    if founders < 3 {
        replication.max(3)
    } else {
        replication
    }
}

/// Voters of the catalog: one, three or five.
pub fn catalog_voters(nodes: usize) -> u8 {
    match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// Where the voters of each shard shall be, the preferred leader first, given where they are.
/// Nodes that are not among `sites` are left.
pub fn targets(sites: &[Site<'_>], present: &[Vec<NodeId>], replication: u8) -> Vec<Vec<NodeId>> {
    let mut plan = Plan::new(sites, present, replication);
    plan.spread_zones();
    plan.fill();
    plan.level();
    plan.with_leaders(present)
}

struct Plan<'a> {
    zones: BTreeMap<NodeId, &'a str>,
    load: BTreeMap<NodeId, usize>,
    shards: Vec<BTreeSet<NodeId>>,
    /// Where they were: of equal moves the one back is better.
    former: Vec<BTreeSet<NodeId>>,
    replicas: usize,
    /// Replicas of one shard in one zone. With three zones or more the loss of any one leaves a
    /// majority.
    zone_max: usize,
}

impl<'a> Plan<'a> {
    fn new(sites: &[Site<'a>], present: &[Vec<NodeId>], replication: u8) -> Self {
        let zones: BTreeMap<NodeId, &str> = sites.iter().copied().collect();
        let names: BTreeSet<&str> = zones.values().copied().collect();
        let replicas = usize::from(replication).min(zones.len());
        let zone_max = replicas
            .div_ceil(names.len().max(1))
            .max(replicas.saturating_sub(1) / 2)
            .max(1);
        let mut plan = Self {
            load: zones.keys().map(|id| (*id, 0)).collect(),
            shards: Vec::new(),
            former: present.iter().map(|voters| voters.iter().copied().collect()).collect(),
            zones,
            replicas,
            zone_max,
        };
        for voters in present {
            let kept: BTreeSet<NodeId> = voters
                .iter()
                .copied()
                .filter(|id| plan.zones.contains_key(id))
                .collect();
            for id in &kept {
                plan.count(*id, 1);
            }
            plan.shards.push(kept);
        }
        plan
    }

    fn count(&mut self, node: NodeId, by: isize) {
        let load = self.load.entry(node).or_default();
        *load = load.saturating_add_signed(by);
    }

    fn put(&mut self, shard: usize, node: NodeId) {
        if self.shards[shard].insert(node) {
            self.count(node, 1);
        }
    }

    fn take(&mut self, shard: usize, node: NodeId) {
        if self.shards[shard].remove(&node) {
            self.count(node, -1);
        }
    }

    fn in_zone(&self, shard: usize, node: NodeId) -> usize {
        let zone = self.zones.get(&node);
        self.shards[shard]
            .iter()
            .filter(|id| self.zones.get(id) == zone)
            .count()
    }

    /// Whether `node` may join the shard, once `leaving` has left.
    fn may_take(&self, shard: usize, node: NodeId, leaving: Option<NodeId>) -> bool {
        let same = leaving.is_some_and(|id| self.zones.get(&id) == self.zones.get(&node));
        !self.shards[shard].contains(&node) && self.in_zone(shard, node) < self.zone_max + usize::from(same)
    }

    /// Takes replicas away where a shard has too many, or too many in one zone: the busiest first.
    fn spread_zones(&mut self) {
        for shard in 0..self.shards.len() {
            while let Some(node) = self.surplus(shard) {
                self.take(shard, node);
            }
        }
    }

    fn surplus(&self, shard: usize) -> Option<NodeId> {
        let too_many = self.shards[shard].len() > self.replicas;
        let here = self.shards[shard].iter().copied();
        here.filter(|id| too_many || self.in_zone(shard, *id) > self.zone_max)
            .max_by_key(|id| (self.in_zone(shard, *id), self.load[id], *id))
    }

    /// Gives every shard as many replicas as it shall have: on the idlest nodes that are allowed.
    fn fill(&mut self) {
        for shard in 0..self.shards.len() {
            while self.shards[shard].len() < self.replicas {
                let fits = |id: &NodeId| self.may_take(shard, *id, None);
                // A zone without enough nodes must not leave a shard short.
                let any = |id: &NodeId| !self.shards[shard].contains(id);
                let idlest = |ids: Vec<NodeId>| {
                    ids.into_iter()
                        .min_by_key(|id| (self.load[id], !self.former[shard].contains(id), *id))
                };
                let all = || self.zones.keys().copied();
                let Some(node) = idlest(all().filter(fits).collect()).or_else(|| idlest(all().filter(any).collect()))
                else {
                    return;
                };
                self.put(shard, node);
            }
        }
    }

    /// Moves single replicas, along a chain of nodes where need be, from the busiest to the idlest
    /// until they differ by one at most, or zones forbid more.
    fn level(&mut self) {
        let mut nodes: Vec<NodeId> = self.zones.keys().copied().collect();
        loop {
            nodes.sort_by_key(|id| (std::cmp::Reverse(self.load[id]), *id));
            let Some(chain) = nodes.iter().find_map(|from| self.chain(*from)) else {
                return;
            };
            for (shard, from, to) in chain {
                self.take(shard, from);
                self.put(shard, to);
            }
        }
    }

    /// The shortest chain of moves that takes one replica off `from` and brings one to a node with
    /// at least two fewer.
    fn chain(&self, from: NodeId) -> Option<Vec<(usize, NodeId, NodeId)>> {
        let goal = self.load[&from].checked_sub(2)?;
        let mut came: BTreeMap<NodeId, (usize, NodeId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            let mut next: Vec<NodeId> = self.zones.keys().copied().filter(|id| *id != from).collect();
            next.sort_by_key(|id| (self.load[id], *id));
            for to in next {
                if came.contains_key(&to) {
                    continue;
                }
                let Some(shard) = self.movable(node, to) else { continue };
                came.insert(to, (shard, node));
                if self.load[&to] <= goal {
                    return Some(walk_back(&came, from, to));
                }
                queue.push_back(to);
            }
        }
        None
    }

    /// A shard that may give its replica on `from` to `to`. Rather one that was brought to `from`
    /// only now, or that was on `to` before: then nothing more is moved.
    fn movable(&self, from: NodeId, to: NodeId) -> Option<usize> {
        (0..self.shards.len())
            .filter(|shard| self.shards[*shard].contains(&from) && self.may_take(*shard, to, Some(from)))
            .min_by_key(|shard| {
                let moved = self.shards[*shard].difference(&self.former[*shard]).count();
                let news = !self.former[*shard].contains(&from) || self.former[*shard].contains(&to);
                (!news, moved, *shard)
            })
    }

    /// Puts each shard's preferred leader first: who is it now, as far as leads stay even.
    fn with_leaders(&self, present: &[Vec<NodeId>]) -> Vec<Vec<NodeId>> {
        let mut leads: BTreeMap<NodeId, usize> = self.zones.keys().map(|id| (*id, 0)).collect();
        let mut leaders: Vec<Option<NodeId>> = vec![None; self.shards.len()];
        for (shard, voters) in present.iter().enumerate() {
            let first = voters.first().filter(|id| self.shards[shard].contains(id));
            if let Some(first) = first {
                leaders[shard] = Some(*first);
                *leads.entry(*first).or_default() += 1;
            }
        }
        for (shard, leader) in leaders.iter_mut().enumerate() {
            if leader.is_none() {
                *leader = self.shards[shard].iter().copied().min_by_key(|id| (leads[id], *id));
                if let Some(id) = leader {
                    *leads.entry(*id).or_default() += 1;
                }
            }
        }
        self.even_leads(&mut leaders, &mut leads);
        let with_first = leaders.iter().zip(&self.shards).enumerate();
        with_first
            .map(|(number, (leader, voters))| {
                let former = &present[number];
                // What is good stays, down to its order.
                if former.first().copied() == *leader && self.former[number] == *voters {
                    return former.clone();
                }
                in_order(number, self.zones.len(), *leader, voters)
            })
            .collect()
    }

    fn even_leads(&self, leaders: &mut [Option<NodeId>], leads: &mut BTreeMap<NodeId, usize>) {
        loop {
            let mut nodes: Vec<NodeId> = leads.keys().copied().collect();
            nodes.sort_by_key(|id| (std::cmp::Reverse(leads[id]), *id));
            let found = nodes.iter().find_map(|from| self.lead_chain(*from, leaders, leads));
            let Some(chain) = found else { return };
            for (shard, from, to) in chain {
                leaders[shard] = Some(to);
                *leads.entry(from).or_default() -= 1;
                *leads.entry(to).or_default() += 1;
            }
        }
    }

    fn lead_chain(
        &self,
        from: NodeId,
        leaders: &[Option<NodeId>],
        leads: &BTreeMap<NodeId, usize>,
    ) -> Option<Vec<(usize, NodeId, NodeId)>> {
        let goal = leads[&from].checked_sub(2)?;
        let mut came: BTreeMap<NodeId, (usize, NodeId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            for (shard, voters) in self.shards.iter().enumerate() {
                if leaders[shard] != Some(node) {
                    continue;
                }
                for to in voters {
                    if *to == from || came.contains_key(to) {
                        continue;
                    }
                    came.insert(*to, (shard, node));
                    if leads[to] <= goal {
                        return Some(walk_back(&came, from, *to));
                    }
                    queue.push_back(*to);
                }
            }
        }
        None
    }
}

/// The moves of a chain, the last first, so that no node is overfull in between.
fn walk_back(came: &BTreeMap<NodeId, (usize, NodeId)>, from: NodeId, to: NodeId) -> Vec<(usize, NodeId, NodeId)> {
    let mut chain = Vec::new();
    let mut at = to;
    while at != from {
        let (shard, before) = came[&at];
        chain.push((shard, before, at));
        at = before;
    }
    chain
}

/// The leader, then the others; who comes next differs from shard to shard, so that a dead node's
/// shards spread over all the others.
fn in_order(shard: usize, nodes: usize, leader: Option<NodeId>, voters: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let mut others: Vec<NodeId> = voters.iter().copied().filter(|id| Some(*id) != leader).collect();
    if !others.is_empty() {
        let turn = shard / nodes.max(1) % others.len();
        others.rotate_left(turn);
    }
    leader.into_iter().chain(others).collect()
}

/// The placement of a new cluster: shard *s* takes `replication` nodes in a row from a ring in
/// which neighbours are in different zones; the first of them should lead.
pub fn initial(members: &[Member], shards: u16, replication: u8) -> Vec<Vec<NodeId>> {
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
            voters
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
#[path = "placement_tests.rs"]
mod tests;
