//! The catalog: which nodes there are, what they are doing, and where each shard's replicas are.
//!
//! A small replicated document with an epoch that every change raises. Each node holds a replica
//! and reads it without asking anyone; nothing here sends messages.

pub mod placement;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use actors::id::{NodeId, ShardId};
use actors::wire::codec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::raft::machine::{Apply, GroupShared, Position, Rows};
use crate::raft::types::Applied;

/// The replicated document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Raised by every change; requests carry it, so that a stale map is noticed.
    pub epoch: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Name to number; `default` is 1.
    pub tenants: BTreeMap<String, u32>,
    pub replication: u8,
    pub shards: Vec<Placement>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Of its directory; a node id is bound to it for ever.
    pub uuid: u128,
    pub boot: u64,
    pub zone: String,
    pub version: String,
    pub mqtt: String,
    pub http: String,
    pub peer: String,
    pub draining: bool,
}

/// Where one shard's replicas are; the first voter is its preferred leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub voters: Vec<NodeId>,
}

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CatalogCommand {
    /// Once, by whoever leads the catalog first; later ones change nothing.
    Place {
        replication: u8,
        shards: Vec<Placement>,
    },
    /// A node has started. Refused (without effect) when its id is bound to another uuid.
    Register {
        node: NodeId,
        record: NodeRecord,
    },
    SetDraining {
        node: NodeId,
        draining: bool,
    },
}

impl Catalog {
    /// Whether the command changed anything.
    fn apply(&mut self, command: CatalogCommand) -> bool {
        let before = self.clone();
        match command {
            CatalogCommand::Place { replication, shards } => {
                if self.shards.is_empty() {
                    self.replication = replication;
                    self.shards = shards;
                    self.tenants.insert("default".into(), actors::id::TenantId::DEFAULT.0);
                }
            }
            CatalogCommand::Register { node, record } => {
                let bound = self.nodes.get(&node);
                if bound.is_none_or(|known| known.uuid == record.uuid) {
                    // A restart does not end a drain.
                    let draining = bound.is_some_and(|known| known.draining);
                    self.nodes.insert(node, NodeRecord { draining, ..record });
                }
            }
            CatalogCommand::SetDraining { node, draining } => {
                if let Some(record) = self.nodes.get_mut(&node) {
                    record.draining = draining;
                }
            }
        }
        let changed = *self != before;
        self.epoch += u64::from(changed);
        changed
    }

    pub fn placement(&self, shard: ShardId) -> Option<&Placement> {
        self.shards.get(usize::from(shard.0))
    }

    pub fn is_draining(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|record| record.draining)
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

impl Apply for CatalogApply {
    fn apply(&mut self, at: Position, payload: &Bytes, rows: &mut Rows<'_>) -> io::Result<Applied> {
        match codec::decode::<CatalogCommand>(payload) {
            Ok(command) => {
                if self.catalog.apply(command) {
                    rows.put(rows.space.extra(ROW), codec::encode(&self.catalog));
                }
            }
            Err(error) => tracing::error!(index = at.index, %error, "catalog command cannot be read"),
        }
        Ok(Applied::default())
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
