//! Every target is reached, from wherever somebody else left off, and no step endangers a majority.

use actors::id::ShardId;
use proptest::prelude::*;

use super::*;
use crate::raft::machine::Position;

/// A group that does what it is told, as openraft would.
#[derive(Clone, Debug)]
struct World {
    seen: Membership,
    dead: BTreeSet<NodeId>,
    target: Vec<NodeId>,
    audience: BTreeSet<NodeId>,
}

fn set(ids: &[NodeId]) -> BTreeSet<NodeId> {
    ids.iter().copied().collect()
}

impl World {
    fn new(voters: &[NodeId], leader: NodeId, target: &[NodeId]) -> Self {
        Self {
            seen: Membership {
                shard: ShardId(0),
                leader,
                term: 1,
                at: Position { term: 1, index: 1 },
                committed: true,
                voters: vec![set(voters)],
                learners: BTreeSet::new(),
                lag: voters.iter().map(|id| (*id, 0)).collect(),
            },
            dead: BTreeSet::new(),
            target: target.to_vec(),
            audience: BTreeSet::new(),
        }
    }

    fn next(&self) -> Next {
        self.next_where(&|_| true)
    }

    fn next_where(&self, may_receive: &dyn Fn(NodeId) -> bool) -> Next {
        next(
            &self.seen,
            &Around {
                target: &self.target,
                audience: &self.audience,
                alive: &|id| !self.dead.contains(&id),
                may_receive,
            },
        )
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::AddLearner(id) => {
                self.seen.learners.insert(id);
                self.seen.lag.insert(id, 10_000);
            }
            Step::RemoveLearner(id) => {
                self.seen.learners.remove(&id);
            }
            Step::Voters(voters) => {
                let former = self.seen.voters.last().unwrap().clone();
                self.seen.learners.retain(|id| !voters.contains(id));
                self.seen.voters = vec![former, voters];
            }
            Step::Finish => self.seen.voters = vec![self.seen.voters.last().unwrap().clone()],
        }
        self.seen.at.index += 1;
        self.check();
    }

    /// A leader can go on: a majority of each set of voters lives.
    fn check(&self) {
        for voters in &self.seen.voters {
            let living = voters.iter().filter(|id| !self.dead.contains(id)).count();
            assert!(living > voters.len() / 2, "{self:?}");
            assert!(
                self.seen.voters.len() > 1 || voters.contains(&self.seen.leader),
                "{self:?}"
            );
        }
    }

    /// What others do while the mover waits: copies arrive, the keeper hands leads over.
    fn wait(&mut self) -> bool {
        let mut moved = false;
        for (id, lag) in &mut self.seen.lag {
            moved |= *lag != 0 && !self.dead.contains(id);
            if !self.dead.contains(id) {
                *lag = 0;
            }
        }
        let voters = self.seen.voters.last().unwrap();
        if !self.target.contains(&self.seen.leader) {
            let heir = self
                .target
                .iter()
                .find(|id| voters.contains(id) && !self.dead.contains(id));
            moved |= heir.is_some();
            self.seen.leader = heir.copied().unwrap_or(self.seen.leader);
        }
        moved
    }

    fn run(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..200 {
            match self.next() {
                Next::Settled => return steps,
                Next::Step(step) => {
                    steps.push(step.clone());
                    self.take(step);
                }
                Next::Wait => assert!(self.wait(), "nothing will ever happen: {self:?}"),
            }
        }
        panic!("does not settle: {self:?}");
    }
}

#[test]
fn a_replacement_is_copied_before_it_votes() {
    let mut world = World::new(&[1, 2, 3], 1, &[1, 2, 4]);
    let steps = world.run();
    assert_eq!(
        steps,
        [Step::AddLearner(4), Step::Voters(set(&[1, 2, 4])), Step::Finish]
    );
}

#[test]
fn a_group_never_grows_through_an_even_number() {
    let mut world = World::new(&[1], 1, &[1, 2, 3]);
    let steps = world.run();
    let changes: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Voters(_))).collect();
    assert_eq!(changes, [&Step::Voters(set(&[1, 2, 3]))]);
}

/// Each needs a place on both nodes, and places are few: none may keep one while it waits for the
/// other, or nobody ever gets both.
#[test]
fn many_groups_grow_at_once_a_few_copies_at_a_time() {
    let mut groups: Vec<World> = (0..16).map(|_| World::new(&[1], 1, &[1, 2, 3])).collect();
    for _ in 0..200 {
        let mut copies = Copies::default();
        for group in &groups {
            copies.count(&group.seen, &group.target);
        }
        for group in &mut groups {
            let next = group.next_where(&|id| copies.may_begin(id));
            let Next::Step(step) = next else { continue };
            if let Step::AddLearner(id) = &step {
                copies.begin(*id);
            }
            group.take(step);
        }
        for node in [2, 3] {
            let being_copied = |group: &&World| group.seen.lag.get(&node).is_some_and(|lag| *lag > LAG_MAX);
            assert!(groups.iter().filter(being_copied).count() <= COPIES_PER_NODE_MAX);
        }
        for group in &mut groups {
            group.wait();
        }
    }
    for group in &groups {
        assert_eq!(group.seen.voters, [set(&[1, 2, 3])], "{group:?}");
    }
}

/// Nothing is known of it yet: that is not the same as being close.
#[test]
fn a_learner_of_which_nothing_is_known_does_not_vote() {
    let mut world = World::new(&[1], 1, &[1, 2, 3]);
    world.take(Step::AddLearner(2));
    world.take(Step::AddLearner(3));
    world.seen.lag = BTreeMap::from([(2, 0)]);
    assert_eq!(world.next(), Next::Wait);
    let mut copies = Copies::default();
    copies.count(&world.seen, &world.target);
    copies.begin(3);
    assert!(copies.may_begin(2) && !copies.may_begin(3));
}

#[test]
fn a_leader_that_goes_hands_over_first() {
    let mut world = World::new(&[1, 2, 3], 1, &[2, 3, 4]);
    world.take(Step::AddLearner(4));
    world.seen.lag.insert(4, 0);
    assert_eq!(world.next(), Next::Wait, "1 still leads");
    world.seen.leader = 2;
    assert_eq!(world.next(), Next::Step(Step::Voters(set(&[2, 3, 4]))));
}

#[test]
fn the_only_replica_moves_by_voting_side_by_side_for_a_moment() {
    let mut world = World::new(&[1], 1, &[2]);
    let changes: Vec<_> = world
        .run()
        .into_iter()
        .filter(|s| matches!(s, Step::Voters(_)))
        .collect();
    assert_eq!(changes, [Step::Voters(set(&[1, 2])), Step::Voters(set(&[2]))]);
}

#[test]
fn what_somebody_else_left_half_done_is_finished() {
    let mut world = World::new(&[1, 2, 3], 1, &[1, 2, 3]);
    world.seen.voters = vec![set(&[1, 2, 3]), set(&[1, 2, 4])];
    assert_eq!(world.next(), Next::Step(Step::Finish));
    world.seen.committed = false;
    assert_eq!(world.next(), Next::Wait);
    let mut stray = World::new(&[1, 2, 3], 1, &[1, 2, 3]);
    stray.take(Step::AddLearner(5));
    assert_eq!(
        stray.next(),
        Next::Step(Step::RemoveLearner(5)),
        "its target has changed since"
    );
}

#[test]
fn a_learner_that_lags_or_died_does_not_vote() {
    let mut world = World::new(&[1, 2, 3], 1, &[1, 2, 4]);
    world.take(Step::AddLearner(4));
    world.seen.lag.insert(4, LAG_MAX + 1);
    assert_eq!(world.next(), Next::Wait);
    world.seen.lag.insert(4, LAG_MAX);
    world.dead.insert(4);
    assert_eq!(world.next(), Next::Wait);
    world.dead.clear();
    assert_eq!(world.next(), Next::Step(Step::Voters(set(&[1, 2, 4]))));
}

#[test]
fn the_catalog_keeps_everybody_else_as_learner() {
    let mut world = World::new(&[1, 2, 3], 1, &[1, 2, 3]);
    world.audience = set(&[1, 2, 3, 4, 5]);
    world.run();
    assert_eq!(world.seen.learners, set(&[4, 5]));
    world.target = vec![1, 2, 3, 4, 5];
    world.run();
    assert_eq!(world.seen.voters, [set(&[1, 2, 3, 4, 5])]);
    world.target = vec![3, 4, 5];
    world.audience = set(&[3, 4, 5]);
    world.run();
    assert_eq!(
        (world.seen.voters[0].clone(), world.seen.learners.len()),
        (set(&[3, 4, 5]), 0)
    );
}

proptest! {
    /// Whatever is aimed at, at whatever moment, and whoever of a minority is dead: the group gets
    /// there, and could commit all the way.
    #[test]
    fn every_target_is_reached(
        voters in prop::sample::subsequence((1..=7u64).collect::<Vec<_>>(), 1..=5),
        targets in prop::collection::vec(
            (prop::sample::subsequence((1..=7u64).collect::<Vec<_>>(), 1..=5), 0usize..12), 1..4),
        dead in prop::option::of(1..=7u64),
    ) {
        let mut world = World::new(&voters, voters[0], &targets[0].0);
        for (target, after) in targets {
            for _ in 0..after {
                match world.next() {
                    Next::Step(step) => world.take(step),
                    Next::Wait => { world.wait(); }
                    Next::Settled => break,
                }
            }
            world.target = target;
        }
        // One that the group can do without, and nobody wants.
        if let Some(dead) = dead {
            let spare = world.seen.voters.iter().all(|set| !set.contains(&dead) || set.len() >= 3);
            if spare && dead != world.seen.leader && !world.target.contains(&dead) {
                world.dead.insert(dead);
            }
        }
        world.run();
        prop_assert_eq!(&world.seen.voters, &vec![set(&world.target)]);
        prop_assert!(world.seen.learners.is_empty());
    }
}
