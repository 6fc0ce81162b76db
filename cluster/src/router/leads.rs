//! Who leads one shard, from two sources: this node's own replica, and what leaders tell their
//! peers of themselves. The later term is right.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use actors::id::NodeId;

#[derive(Default)]
pub struct KnownLead {
    /// 0: nobody is known.
    leader: AtomicU64,
    sources: Mutex<Sources>,
}

#[derive(Clone, Copy, Default)]
struct Sources {
    /// Of the replica here.
    seen: (u64, Option<NodeId>),
    told: (u64, Option<NodeId>),
}

impl Sources {
    fn leader(&self) -> Option<NodeId> {
        // A replica that knows nobody in this term may not have heard yet.
        let (seen, told) = (self.seen, self.told);
        if (told.0, told.1.is_some()) > (seen.0, seen.1.is_some()) {
            told.1
        } else {
            seen.1
        }
    }
}

impl KnownLead {
    pub fn leader(&self) -> Option<NodeId> {
        Some(self.leader.load(Ordering::Acquire)).filter(|id| *id != 0)
    }

    /// What the replica here sees. `Some` when the leader is another one now.
    pub fn seen(&self, term: u64, leader: Option<NodeId>) -> Option<Option<NodeId>> {
        self.update(|sources| sources.seen = (term, leader))
    }

    /// There is no replica here any more.
    pub fn closed(&self) -> Option<Option<NodeId>> {
        self.update(|sources| {
            // What it saw last is as good as being told.
            if sources.seen > sources.told {
                sources.told = sources.seen;
            }
            sources.seen = (0, None);
        })
    }

    pub fn told(&self, term: u64, leader: NodeId) -> Option<Option<NodeId>> {
        self.update(|sources| {
            if term >= sources.told.0 {
                sources.told = (term, Some(leader));
            }
        })
    }

    pub fn gone(&self, peer: NodeId) -> Option<Option<NodeId>> {
        self.update(|sources| {
            if sources.told.1 == Some(peer) {
                sources.told.1 = None;
            }
        })
    }

    fn update(&self, change: impl FnOnce(&mut Sources)) -> Option<Option<NodeId>> {
        let mut sources = self.sources.lock().expect("no holder of this lock panics");
        change(&mut sources);
        let leader = sources.leader();
        let new = leader.unwrap_or(0);
        (self.leader.swap(new, Ordering::AcqRel) != new).then_some(leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_term_is_right_whoever_says_it() {
        let known = KnownLead::default();
        assert_eq!(known.told(3, 1), Some(Some(1)));
        assert_eq!(
            known.seen(0, None),
            None,
            "a replica that was only just opened knows nothing"
        );
        assert_eq!(known.seen(4, None), Some(None), "an election is going on");
        assert_eq!(known.told(3, 1), None, "an old leader says so again");
        assert_eq!(known.seen(4, Some(2)), Some(Some(2)));
        assert_eq!(known.told(5, 3), Some(Some(3)));
        assert_eq!(known.gone(3), Some(None), "2 led an older term");
    }

    #[test]
    fn what_a_closed_replica_knew_is_remembered() {
        let known = KnownLead::default();
        known.seen(7, Some(2));
        assert_eq!(known.closed(), None);
        assert_eq!(known.leader(), Some(2));
        assert_eq!(known.told(6, 1), None, "older");
        assert_eq!(known.gone(2), Some(None));
    }
}
