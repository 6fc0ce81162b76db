//! What may change the catalog, and what each change does. Pure and the same on every replica.

use std::collections::BTreeSet;

use actors::id::{NodeId, ShardId};
use actors::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Catalog, JoinToken, Moving, NodeRecord, Placement, Stage};
use crate::raft::machine::Position;

/// Nodes a cluster may have at once.
pub const NODES_MAX: usize = 256;
/// Nodes a cluster may ever have had: their records stay.
pub const NODES_EVER_MAX: NodeId = 10_000;

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CatalogCommand {
    /// Once, by whoever leads the catalog first; later ones change nothing.
    Place {
        replication: u8,
        replication_wanted: u8,
        nodes: Vec<(NodeId, NodeRecord)>,
        group: Vec<NodeId>,
        shards: Vec<Vec<NodeId>>,
    },
    /// A node has started. Refused when its id is bound to another uuid, or was never given.
    Register {
        node: NodeId,
        record: NodeRecord,
    },
    SetDraining {
        node: NodeId,
        draining: bool,
    },
    /// A new node asks for an id. Repeated with the same uuid, it gets the same.
    Admit {
        /// The only one it may get; `None`: any.
        wanted: Option<NodeId>,
        record: NodeRecord,
        /// Nodes that do not run, whose addresses it may have: it comes in the place of one.
        vacant: BTreeSet<NodeId>,
    },
    /// Where replicas shall be. Refused unless decided on this very epoch.
    Aim {
        epoch: u64,
        at: Timestamp,
        replication: u8,
        replication_wanted: u8,
        shards: Vec<Vec<NodeId>>,
        group: Vec<NodeId>,
        /// Which node shall leave with that, and whether it is dead.
        leaving: Option<(NodeId, bool)>,
    },
    /// What a group's leader said of its committed membership. An older one changes nothing.
    Note {
        shard: ShardId,
        at: Position,
        voters: BTreeSet<NodeId>,
        /// Voters and learners.
        members: BTreeSet<NodeId>,
    },
    /// A leaving node holds nothing any more.
    Gone {
        node: NodeId,
    },
    AddToken {
        id: String,
        token: JoinToken,
    },
    RevokeToken {
        id: String,
    },
}

impl Catalog {
    /// `false` when the command was refused. One that changes nothing is not.
    pub(super) fn apply(&mut self, command: CatalogCommand) -> bool {
        let before = self.clone();
        let accepted = self.change(command);
        if accepted && *self != before {
            if self.is_settled() {
                self.moving = None;
            }
            self.epoch += 1;
        }
        accepted
    }

    fn change(&mut self, command: CatalogCommand) -> bool {
        match command {
            CatalogCommand::Place {
                replication,
                replication_wanted,
                nodes,
                group,
                shards,
            } => {
                if self.shards.is_empty() {
                    self.replication = replication;
                    self.replication_wanted = replication_wanted;
                    self.shards = shards.into_iter().map(Placement::founded).collect();
                    self.group = Placement::founded(group);
                    self.next_node = nodes.iter().map(|(id, _)| id + 1).max().unwrap_or(1);
                    self.nodes = nodes.into_iter().collect();
                    self.tenants.insert("default".into(), actors::id::TenantId::DEFAULT.0);
                }
                true
            }
            CatalogCommand::Register { node, record } => self.register(node, record),
            CatalogCommand::SetDraining { node, draining } => match self.nodes.get_mut(&node) {
                Some(record) if record.stage == Stage::Member => {
                    record.draining = draining;
                    true
                }
                _ => false,
            },
            CatalogCommand::Admit { wanted, record, vacant } => self.admit(wanted, record, &vacant),
            CatalogCommand::Aim {
                epoch,
                at,
                replication,
                replication_wanted,
                shards,
                group,
                leaving,
            } => {
                if epoch != self.epoch || shards.len() != self.shards.len() {
                    return false;
                }
                (self.replication, self.replication_wanted) = (replication, replication_wanted);
                self.aim(shards, group, leaving);
                self.measure(at);
                true
            }
            CatalogCommand::Note {
                shard,
                at,
                voters,
                members,
            } => self.note(shard, at, &voters, members),
            CatalogCommand::Gone { node } => {
                let leaving = matches!(self.stage(node), Some(Stage::Leaving | Stage::Lost));
                let free = leaving && !self.is_needed(node);
                if let Some(record) = self.nodes.get_mut(&node).filter(|_| free) {
                    record.stage = Stage::Removed;
                    record.draining = false;
                }
                free
            }
            CatalogCommand::AddToken { id, token } => {
                self.tokens.retain(|_, known| known.expires > token.created);
                let room = self.tokens.len() < super::token::TOKENS_MAX;
                if room {
                    self.tokens.insert(id, token);
                }
                room
            }
            CatalogCommand::RevokeToken { id } => self.tokens.remove(&id).is_some(),
        }
    }

    fn register(&mut self, node: NodeId, record: NodeRecord) -> bool {
        let Some(known) = self.nodes.get_mut(&node) else {
            return false;
        };
        if (known.uuid != 0 && known.uuid != record.uuid) || known.stage == Stage::Removed {
            return false;
        }
        let stage = match known.stage {
            Stage::Joining => Stage::Member,
            // It lives after all; its replicas go all the same.
            Stage::Lost => Stage::Leaving,
            stage => stage,
        };
        // A restart does not end a drain.
        let draining = known.draining;
        *known = NodeRecord {
            draining,
            stage,
            ..record
        };
        true
    }

    fn admit(&mut self, wanted: Option<NodeId>, record: NodeRecord, vacant: &BTreeSet<NodeId>) -> bool {
        let known = self.nodes.iter().find(|(_, known)| known.uuid == record.uuid);
        if let Some((id, known)) = known {
            return wanted.is_none_or(|wanted| wanted == *id) && known.stage != Stage::Removed;
        }
        // One that was given an id and never came leaves its addresses to the next.
        let taken =
            |known: &NodeRecord| known.peer == record.peer || known.mqtt == record.mqtt || known.http == record.http;
        let rivals = self.present().filter(|(_, known)| taken(known));
        let (rivals, others): (Vec<_>, Vec<_>) = rivals
            .map(|(id, known)| (id, known.stage))
            .partition(|(_, stage)| *stage == Stage::Joining);
        if others.iter().any(|(id, _)| !vacant.contains(id)) {
            return false;
        }
        let id = wanted.unwrap_or(self.next_node);
        let full = self.present().count() >= NODES_MAX + rivals.len() || id >= NODES_EVER_MAX;
        if full || id < self.next_node {
            return false;
        }
        for (rival, _) in rivals {
            self.nodes
                .entry(rival)
                .and_modify(|record| record.stage = Stage::Removed);
        }
        self.next_node = id + 1;
        let record = NodeRecord {
            boot: 0,
            draining: false,
            stage: Stage::Joining,
            ..record
        };
        self.nodes.insert(id, record);
        true
    }

    fn aim(&mut self, shards: Vec<Vec<NodeId>>, group: Vec<NodeId>, leaving: Option<(NodeId, bool)>) {
        let placements = self.shards.iter_mut().zip(shards);
        for (placement, target) in placements {
            placement.holders.extend(&target);
            placement.target = target;
        }
        self.group.target = group;
        if let Some((node, dead)) = leaving {
            if let Some(record) = self.nodes.get_mut(&node) {
                record.stage = if dead { Stage::Lost } else { Stage::Leaving };
                record.draining = true;
            }
        }
    }

    /// How much there is to move from now on; what is under way counts on.
    fn measure(&mut self, at: Timestamp) {
        let missing = self.replicas_missing();
        let moving = self.moving.unwrap_or(Moving { since: at, replicas: 0 });
        self.moving = Some(Moving {
            since: if moving.replicas == 0 { at } else { moving.since },
            replicas: moving.replicas.max(missing),
        });
    }

    fn note(&mut self, shard: ShardId, at: Position, voters: &BTreeSet<NodeId>, members: BTreeSet<NodeId>) -> bool {
        let placement = if shard == ShardId::CATALOG {
            &mut self.group
        } else {
            match self.shards.get_mut(usize::from(shard.0)) {
                Some(placement) => placement,
                None => return false,
            }
        };
        if at < placement.noted {
            return false;
        }
        placement.noted = at;
        // In the order of the target, so that the preferred leader stays first.
        let mut ordered: Vec<NodeId> = placement
            .target
            .iter()
            .copied()
            .filter(|id| voters.contains(id))
            .collect();
        ordered.extend(voters.iter().filter(|id| !placement.target.contains(id)));
        placement.voters = ordered;
        placement.holders = members;
        placement.holders.extend(&placement.target);
        true
    }
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
