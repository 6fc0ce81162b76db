//! The catalog: which nodes there are, what they are doing, and where each shard's replicas are
//! and shall be.
//!
//! A small replicated document with an epoch that every change raises. Each node holds a replica
//! and reads it without asking anyone; nothing here sends messages.

pub mod change;
pub mod moves;
pub mod placement;
pub mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use actors::id::{NodeId, ShardId};
use actors::time::Timestamp;
use actors::wire::codec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use change::CatalogCommand;
pub use token::JoinToken;

use crate::raft::machine::{Apply, GroupMeta, GroupShared, Position, Rows};
use crate::raft::types::Applied;
use crate::storage::keys::{self, Space};
use crate::storage::StateStore;

/// The replicated document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Raised by every change; requests carry it, so that a stale map is noticed.
    pub epoch: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Name to number; `default` is 1.
    pub tenants: BTreeMap<String, u32>,
    /// Voters each shard shall have now.
    pub replication: u8,
    pub shards: Vec<Placement>,
    /// … and would have with enough nodes.
    pub replication_wanted: u8,
    /// The catalog's own voters. Every other node is a learner of it.
    pub group: Placement,
    /// The id the next node gets. Only ever raised.
    pub next_node: NodeId,
    /// By id.
    pub tokens: BTreeMap<String, JoinToken>,
    /// Replicas are being moved.
    pub moving: Option<Moving>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Of its directory; a node id is bound to it for ever. 0: not known yet.
    pub uuid: u128,
    /// Of its last start; 0: it has not started yet.
    pub boot: u64,
    pub zone: String,
    pub version: String,
    pub mqtt: String,
    pub http: String,
    pub peer: String,
    pub draining: bool,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Has an id and has not started yet.
    Joining,
    #[default]
    Member,
    /// Its replicas are being moved away.
    Leaving,
    /// … and it does not run.
    Lost,
    /// Nothing of it is left. The record stays, because the id is never used again.
    Removed,
}

/// Where one shard's replicas are; see `docs/adr/0021`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Where its voters were when the mover last looked.
    pub voters: Vec<NodeId>,
    /// Where they shall be; the first is the preferred leader.
    pub target: Vec<NodeId>,
    /// Every node that may have a replica.
    pub holders: BTreeSet<NodeId>,
    /// The first voters, who write the first membership.
    pub founders: Vec<NodeId>,
    /// The membership that `voters` tells of.
    pub noted: Position,
}

impl Placement {
    pub fn founded(voters: Vec<NodeId>) -> Self {
        Self {
            holders: voters.iter().copied().collect(),
            target: voters.clone(),
            founders: voters.clone(),
            voters,
            noted: Position::default(),
        }
    }

    /// The voters are where they shall be, and nobody else has a replica.
    pub fn is_settled(&self) -> bool {
        let target: BTreeSet<NodeId> = self.target.iter().copied().collect();
        target == self.voters.iter().copied().collect() && target == self.holders
    }

    /// Voters that are not there yet.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.target.iter().copied().filter(|node| !self.voters.contains(node))
    }
}

/// Since when replicas are being moved, and how many there were to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    pub since: Timestamp,
    pub replicas: u32,
}

impl Catalog {
    pub fn placement(&self, shard: ShardId) -> Option<&Placement> {
        if shard == ShardId::CATALOG {
            return Some(&self.group);
        }
        self.shards.get(usize::from(shard.0))
    }

    pub fn is_draining(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|record| record.draining)
    }

    /// Everybody whose process may take part.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        let present = self.nodes.iter().filter(|(_, record)| record.stage != Stage::Removed);
        present.map(|(id, record)| (*id, record))
    }

    /// Those that may be given replicas.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        self.present().filter(|(_, record)| record.stage == Stage::Member)
    }

    pub fn stage(&self, node: NodeId) -> Option<Stage> {
        self.nodes.get(&node).map(|record| record.stage)
    }

    /// Whom to dial, and where.
    pub fn addresses(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.present()
            .filter_map(|(id, record)| Some((id, record.peer.parse().ok()?)))
            .collect()
    }

    /// Replicas that are still to be moved.
    pub fn replicas_missing(&self) -> u32 {
        let missing: usize = self.shards.iter().map(|placement| placement.missing().count()).sum();
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    /// Whether some list of some group names the node as one that has, or shall have, a replica.
    pub fn is_needed(&self, node: NodeId) -> bool {
        let named = |placement: &Placement| {
            placement.holders.contains(&node) || placement.voters.contains(&node) || placement.target.contains(&node)
        };
        self.shards.iter().any(named) || self.group.voters.contains(&node) || self.group.target.contains(&node)
    }

    pub fn is_settled(&self) -> bool {
        self.shards.iter().all(Placement::is_settled) && {
            let target: BTreeSet<NodeId> = self.group.target.iter().copied().collect();
            target == self.group.voters.iter().copied().collect()
        }
    }
}

/// Keeps the catalog's row, and tells this node of every change.
pub struct CatalogApply {
    shared: Arc<GroupShared>,
    catalog: Catalog,
    published: watch::Sender<Arc<Catalog>>,
}

const ROW: &[u8] = b"catalog";

impl CatalogApply {
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn open(shared: Arc<GroupShared>) -> io::Result<(Self, watch::Receiver<Arc<Catalog>>)> {
        let catalog = read(&shared)?;
        let (published, watched) = watch::channel(Arc::new(catalog.clone()));
        Ok((
            Self {
                shared,
                catalog,
                published,
            },
            watched,
        ))
    }
}

impl CatalogApply {
    pub fn shared(&self) -> Arc<GroupShared> {
        self.shared.clone()
    }
}

fn read(shared: &GroupShared) -> io::Result<Catalog> {
    match shared.store.get(&shared.space().extra(ROW))? {
        Some(bytes) => codec::decode(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string())),
        None => Ok(Catalog::default()),
    }
}

/// The catalog as it lies on the disk, before anything of it is opened; an empty one if there is none.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn on_disk(store: &dyn StateStore) -> io::Result<Catalog> {
    let invalid = |e: codec::CodecError| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let shard = ShardId::CATALOG;
    let Some(meta) = store.get(&keys::meta(shard))? else {
        return Ok(Catalog::default());
    };
    let generation = codec::decode::<GroupMeta>(&meta).map_err(invalid)?.generation;
    match store.get(&Space { shard, generation }.extra(ROW))? {
        Some(bytes) => codec::decode(&bytes).map_err(invalid),
        None => Ok(Catalog::default()),
    }
}

/// What an entry answers that changed nothing, because it was refused.
const REFUSED: u32 = 0;

impl Apply for CatalogApply {
    fn apply(&mut self, at: Position, payload: &Bytes, rows: &mut Rows<'_>) -> io::Result<Applied> {
        let mut applied = Applied::default();
        match codec::decode::<CatalogCommand>(payload) {
            Ok(command) => {
                let before = self.catalog.epoch;
                if !self.catalog.apply(command) {
                    applied.misfits.push(REFUSED);
                }
                if self.catalog.epoch != before {
                    rows.put(rows.space.extra(ROW), codec::encode(&self.catalog));
                }
            }
            Err(error) => tracing::error!(index = at.index, %error, "catalog command cannot be read"),
        }
        Ok(applied)
    }

    fn chunk_applied(&mut self) {
        let changed = self.published.borrow().epoch != self.catalog.epoch;
        if changed {
            self.published.send_replace(Arc::new(self.catalog.clone()));
        }
    }

    fn replaced(&mut self, _generation: u32) -> io::Result<()> {
        self.catalog = read(&self.shared)?;
        self.chunk_applied();
        Ok(())
    }
}
