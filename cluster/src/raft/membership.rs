//! Who belongs to a group, and changing it one step at a time.
//!
//! A step is bound to the membership it was decided on: whoever decides on an old one is refused.

use std::collections::{BTreeMap, BTreeSet};

use actors::id::{NodeId, ShardId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, RaftError};
use openraft::{ChangeMembers, Precondition};
use serde::{Deserialize, Serialize};

use super::group::Group;
use super::machine::Position;
use super::types::{term_of, ClientWriteError, TypeConfig};

/// A group as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub shard: ShardId,
    pub leader: NodeId,
    pub term: u64,
    /// Of the entry that made it what it is.
    pub at: Position,
    /// That entry is committed.
    pub committed: bool,
    /// One set of voters, or two while a change of them is under way.
    pub voters: Vec<BTreeSet<NodeId>>,
    pub learners: BTreeSet<NodeId>,
    /// Entries each other replica is behind. One that has none yet is not named.
    pub lag: BTreeMap<NodeId, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    AddLearner(NodeId),
    RemoveLearner(NodeId),
    /// From the present voters to these, through a joint membership; each must be a learner or a
    /// voter. Whoever is left out is no member any more.
    Voters(BTreeSet<NodeId>),
    /// Leaves a joint membership that somebody else's change was left in.
    Finish,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error("this node does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was changed, or half of it: look again.
    #[error("{0}")]
    Refused(String),
}

impl Group {
    /// `None` unless this node leads.
    pub fn membership(&self) -> Option<Membership> {
        let role = self.role();
        if !role.leading {
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        let at = (*stored.log_id())?;
        let progress = self.progress_in(&metrics).into_iter();
        let begun = progress.filter(|(_, progress)| progress.begun);
        Some(Membership {
            shard: self.shard,
            leader: self.node,
            term: role.term,
            at: Position {
                term: term_of(&at),
                index: at.index,
            },
            committed: metrics.cluster_committed.is_some_and(|committed| committed >= at),
            voters: stored.membership().get_joint_config().clone(),
            learners: stored.membership().learner_ids().collect(),
            lag: begun.map(|(id, progress)| (id, progress.lag)).collect(),
        })
    }

    /// Takes one step from the membership that was made at `from`, and returns when it is
    /// committed.
    ///
    /// # Errors
    /// The membership is another one by now, this node does not lead, or a former step is not
    /// committed yet.
    pub async fn step(&self, from: Position, step: Step) -> Result<(), StepError> {
        let (changes, retain) = match step {
            Step::AddLearner(node) => (ChangeMembers::AddNodes(BTreeMap::from([(node, ())])), true),
            Step::RemoveLearner(node) => (ChangeMembers::RemoveNodes(BTreeSet::from([node])), true),
            Step::Voters(voters) => (ChangeMembers::ReplaceAllVoters(voters), false),
            Step::Finish => (ChangeMembers::AddVoterIds(BTreeSet::new()), false),
        };
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: Some(super::log::log_id(from.term, from.index)),
        };
        match self.raft.change_membership_if(changes, retain, [unchanged]).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refusal(error)),
        }
    }
}

fn refusal(error: RaftError<TypeConfig, ClientWriteError>) -> StepError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => StepError::NotLeader {
            leader: forward.leader_id,
        },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))) => {
            StepError::Refused("the step before is not committed yet".into())
        }
        other => StepError::Refused(other.to_string()),
    }
}
