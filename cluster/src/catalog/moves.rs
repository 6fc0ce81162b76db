//! The mover's next step for one group, from what its leader says and where its voters shall be.
//! Pure: a crash of whoever drives costs nothing, because nothing is remembered between steps.

use std::collections::{BTreeMap, BTreeSet};

use actors::id::NodeId;

use crate::raft::membership::{Membership, Step};

/// Entries a learner may be behind and yet become a voter.
pub const LAG_MAX: u64 = 256;
/// Copies one node takes in at a time.
pub const COPIES_PER_NODE_MAX: usize = 2;

/// Copies that are being taken in, per node.
///
/// A learner that has all of it is none any more, even while its group waits for another one: two
/// groups that each held the place the other one needs would wait for ever.
#[derive(Clone, Debug, Default)]
pub struct Copies(BTreeMap<NodeId, usize>);

impl Copies {
    /// Counts those of a group whose voters shall be `target`.
    pub fn count(&mut self, seen: &Membership, target: &[NodeId]) {
        for id in seen.learners.iter().filter(|id| target.contains(id)) {
            if !is_close(seen, *id) {
                self.begin(*id);
            }
        }
    }

    pub fn may_begin(&self, node: NodeId) -> bool {
        self.0.get(&node).is_none_or(|copies| *copies < COPIES_PER_NODE_MAX)
    }

    pub fn begin(&mut self, node: NodeId) {
        *self.0.entry(node).or_default() += 1;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Step(Step),
    /// Something must happen first that takes no step: a copy, a commit, a change of leader.
    Wait,
    /// The members are as they shall be.
    Settled,
}

/// What is known beside the group itself.
pub struct Around<'a> {
    /// Where the voters shall be.
    pub target: &'a [NodeId],
    /// Who shall follow along as learner for good; of the catalog only.
    pub audience: &'a BTreeSet<NodeId>,
    pub alive: &'a dyn Fn(NodeId) -> bool,
    /// Whether a node may take in one more copy now.
    pub may_receive: &'a dyn Fn(NodeId) -> bool,
}

/// One step at most, and none from a membership that is not committed.
pub fn next(seen: &Membership, around: &Around<'_>) -> Next {
    if !seen.committed {
        return Next::Wait;
    }
    let [voters] = &seen.voters[..] else {
        return Next::Step(Step::Finish);
    };
    let target: BTreeSet<NodeId> = around.target.iter().copied().collect();
    if target.is_empty() {
        return Next::Wait;
    }
    let stray = seen
        .learners
        .iter()
        .find(|id| !target.contains(id) && !around.audience.contains(id));
    if let Some(stray) = stray {
        return Next::Step(Step::RemoveLearner(*stray));
    }
    if let Some(learner) = missing_learner(seen, voters, &target, around) {
        return Next::Step(Step::AddLearner(learner));
    }
    if *voters == target {
        let complete = around
            .audience
            .iter()
            .all(|id| voters.contains(id) || seen.learners.contains(id));
        return if complete { Next::Settled } else { Next::Wait };
    }
    match next_voters(seen, voters, &target, around) {
        Some(next) if majority_is_well(seen, &next, around) => Next::Step(Step::Voters(next)),
        _ => Next::Wait,
    }
}

/// Who shall be a member and is none. Of replacements one at a time; of a growing group all.
fn missing_learner(
    seen: &Membership,
    voters: &BTreeSet<NodeId>,
    target: &BTreeSet<NodeId>,
    around: &Around<'_>,
) -> Option<NodeId> {
    let fits = |id: &NodeId| (around.alive)(*id) && (around.may_receive)(*id);
    let coming: Vec<NodeId> = around
        .target
        .iter()
        .copied()
        .filter(|id| !voters.contains(id))
        .collect();
    let under_way = coming
        .iter()
        .any(|id| seen.learners.contains(id) && (around.alive)(*id));
    let one_by_one = voters.len() == target.len() && around.audience.is_empty();
    if !(one_by_one && under_way) {
        let next = coming.iter().find(|id| !seen.learners.contains(id) && fits(id));
        if next.is_some() {
            return next.copied();
        }
    }
    let outside = |id: &&NodeId| !voters.contains(id) && !seen.learners.contains(id) && (around.alive)(**id);
    around.audience.iter().find(outside).copied()
}

/// The voters to go to from here, if it is time.
fn next_voters(
    seen: &Membership,
    voters: &BTreeSet<NodeId>,
    target: &BTreeSet<NodeId>,
    around: &Around<'_>,
) -> Option<BTreeSet<NodeId>> {
    let coming: BTreeSet<NodeId> = target.difference(voters).copied().collect();
    let ready: BTreeSet<NodeId> = coming
        .iter()
        .copied()
        .filter(|id| is_ready(seen, *id, around))
        .collect();
    let replaced = voters.len() == target.len();
    let wanted = if replaced {
        let new = around.target.iter().copied().find(|id| ready.contains(id))?;
        // A dead one first, the leader last.
        let old = voters
            .difference(target)
            .copied()
            .min_by_key(|id| (*id == seen.leader, (around.alive)(*id), *id))?;
        let mut next = voters.clone();
        next.remove(&old);
        next.insert(new);
        next
    } else if ready == coming {
        target.clone()
    } else {
        return None;
    };
    if wanted.contains(&seen.leader) {
        return Some(wanted);
    }
    // The leader must hand over before it goes, to somebody who stays. Without one, the new come in
    // beside it first.
    let heirs = voters.intersection(target).any(|id| (around.alive)(*id));
    let beside: BTreeSet<NodeId> = voters.union(&wanted).copied().collect();
    (!heirs && beside != *voters).then_some(beside)
}

fn is_ready(seen: &Membership, node: NodeId, around: &Around<'_>) -> bool {
    seen.learners.contains(&node) && is_close(seen, node) && (around.alive)(node)
}

fn is_close(seen: &Membership, node: NodeId) -> bool {
    seen.lag.get(&node).is_some_and(|lag| *lag <= LAG_MAX)
}

/// Never into a membership that could not commit anything.
fn majority_is_well(seen: &Membership, voters: &BTreeSet<NodeId>, around: &Around<'_>) -> bool {
    let well = |id: &&NodeId| **id == seen.leader || (around.alive)(**id);
    voters.iter().filter(well).count() > voters.len() / 2
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
