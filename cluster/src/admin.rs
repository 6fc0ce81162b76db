//! What an operator may ask of the cluster as a whole, decided by whoever leads the catalog: who
//! comes in, who leaves, where replicas shall be.
//!
//! Each change is decided on one epoch and written only if that is still the present one.

use std::collections::BTreeSet;
use std::sync::Arc;

use actors::id::{NodeId, ShardId};
use actors::ports::CallError;
use actors::time::{Clock, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::catalog::placement::{self, Site};
use crate::catalog::{token, Catalog, CatalogCommand, JoinToken, NodeRecord, Stage};
use crate::node::peers::Peers;
use crate::raft::group::{Group, ProposeError};
use crate::service::write_catalog;
use crate::transport::Nonces;

/// Attempts at a change that others keep getting ahead of.
const ATTEMPTS: usize = 20;
/// Shortest and longest life of a join token.
pub const TOKEN_LIFE_MS: std::ops::RangeInclusive<u64> = 60_000..=7 * 24 * 3_600_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminAsk {
    Admit(Newcomer),
    Remove {
        node: NodeId,
        /// It does not run and never will.
        dead: bool,
    },
    Rebalance {
        /// Voters each shard shall have, from now on.
        replication: Option<u8>,
    },
    CreateToken {
        life_ms: u64,
    },
    RevokeToken {
        id: String,
    },
}

/// A node that wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    pub uuid: u128,
    /// The only id it will take.
    pub wanted: Option<NodeId>,
    pub zone: String,
    pub version: String,
    pub mqtt: String,
    pub http: String,
    pub peer: String,
    /// A join token, unless an operator vouches for it.
    pub token: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminDone {
    Admitted(Admitted),
    Removing {
        node: NodeId,
    },
    Rebalancing {
        replicas: u32,
        replication: u8,
    },
    TokenCreated {
        id: String,
        token: String,
        expires: Timestamp,
    },
    TokenRevoked,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    pub node: NodeId,
    pub shards: u16,
    /// Everybody's id and peer address.
    pub peers: Vec<(NodeId, String)>,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    pub kind: DeniedKind,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeniedKind {
    /// There is no such node or token.
    NotFound,
    /// It would break a promise of the cluster as it is now.
    Conflict,
    /// The token does not admit anyone.
    Forbidden,
    /// A value that no cluster would take.
    Invalid,
}

fn denied(kind: DeniedKind, reason: impl Into<String>) -> AdminError {
    AdminError::Denied(Denied {
        kind,
        reason: reason.into(),
    })
}

enum AdminError {
    Denied(Denied),
    Call(CallError),
}

impl From<CallError> for AdminError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// Works where the catalog is led.
pub struct Admin {
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub peers: Arc<Peers>,
    pub clock: Arc<dyn Clock>,
    /// Chance for tokens.
    pub nonces: Nonces,
}

impl Admin {
    /// # Errors
    /// `NotLeader` or `Unknown` when the catalog could not be written; what was denied is no error.
    pub async fn answer(&self, ask: AdminAsk) -> Result<Result<AdminDone, Denied>, CallError> {
        // Decides on nothing that is out of date.
        self.up_to_date().await?;
        let done = match ask {
            AdminAsk::Admit(newcomer) => self.admit(newcomer).await,
            AdminAsk::Remove { node, dead } => self.remove(node, dead).await,
            AdminAsk::Rebalance { replication } => self.rebalance(replication).await,
            AdminAsk::CreateToken { life_ms } => self.create_token(life_ms).await,
            AdminAsk::RevokeToken { id } => self.revoke_token(id).await,
        };
        match done {
            Ok(done) => Ok(Ok(done)),
            Err(AdminError::Denied(denied)) => Ok(Err(denied)),
            Err(AdminError::Call(error)) => Err(error),
        }
    }

    /// # Errors
    /// This node does not lead the catalog.
    pub async fn up_to_date(&self) -> Result<(), CallError> {
        self.group()?.read_index().await.map_err(|leader| CallError::NotLeader {
            shard: ShardId::CATALOG,
            leader,
        })
    }

    /// The catalog's group; not open yet at the very start, and never in quarantine.
    fn group(&self) -> Result<Group, CallError> {
        let unknown = CallError::NotLeader {
            shard: ShardId::CATALOG,
            leader: None,
        };
        self.peers.service.catalog.get().cloned().ok_or(unknown)
    }

    pub fn now(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// Whether the change was accepted.
    async fn write(&self, command: CatalogCommand) -> Result<bool, CallError> {
        match write_catalog(&self.group()?, &command).await {
            Ok(accepted) => Ok(accepted),
            Err(ProposeError::Rejected { leader }) => Err(CallError::NotLeader {
                shard: ShardId::CATALOG,
                leader,
            }),
            Err(ProposeError::NotNow) => Err(CallError::NotLeader {
                shard: ShardId::CATALOG,
                leader: None,
            }),
            Err(ProposeError::Unknown) => Err(CallError::Unknown),
        }
    }

    async fn admit(&self, newcomer: Newcomer) -> Result<AdminDone, AdminError> {
        if let Some(text) = &newcomer.token {
            self.check_token(text)?;
        }
        check_newcomer(&newcomer)?;
        let (uuid, wanted) = (newcomer.uuid, newcomer.wanted);
        let command = CatalogCommand::Admit {
            wanted: newcomer.wanted,
            vacant: self.vacant(),
            record: NodeRecord {
                uuid,
                boot: 0,
                zone: newcomer.zone,
                version: newcomer.version,
                mqtt: newcomer.mqtt,
                http: newcomer.http,
                peer: newcomer.peer,
                draining: false,
                stage: Stage::Joining,
            },
        };
        if !self.write(command).await? {
            let catalog = self.now();
            let next = catalog.next_node;
            let other = wanted.filter(|id| catalog.nodes.get(id).is_some_and(|known| known.uuid != uuid));
            if let Some(id) = other {
                let reason = format!(
                    "node {id} is known with another data directory: what it promised is not in this one; replace it \
                     (`holdfast cluster repair {id} --replace`)"
                );
                return Err(denied(DeniedKind::Conflict, reason));
            }
            let reason = format!(
                "its id or one of its addresses belongs to another node, it was removed before, or the cluster is \
                 full; the next free id is {next}"
            );
            return Err(denied(DeniedKind::Conflict, reason));
        }
        let catalog = self.now();
        let node = catalog
            .present()
            .find(|(_, record)| record.uuid == uuid)
            .map(|(id, _)| id);
        let node = node.ok_or(AdminError::Call(CallError::Unknown))?;
        let peers = catalog
            .present()
            .map(|(id, record)| (id, record.peer.clone()))
            .collect();
        Ok(AdminDone::Admitted(Admitted {
            node,
            shards: u16::try_from(catalog.shards.len()).unwrap_or(u16::MAX),
            peers,
        }))
    }

    /// Nodes that do not run, or take no part: another one may run where they did.
    fn vacant(&self) -> BTreeSet<NodeId> {
        let catalog = self.now();
        let nodes = catalog.present().map(|(id, _)| id);
        nodes.filter(|id| !self.peers.is_connected(*id)).collect()
    }

    fn check_token(&self, text: &str) -> Result<(), AdminError> {
        let known = token::parse(text).and_then(|(id, secret)| Some((self.now().tokens.get(id)?.clone(), secret)));
        let admits = known.is_some_and(|(token, secret)| token.admits(secret, self.clock.now()));
        if admits {
            return Ok(());
        }
        Err(denied(
            DeniedKind::Forbidden,
            "the join token is unknown, revoked or expired; make another with `holdfast cluster token create`",
        ))
    }

    async fn rebalance(&self, replication: Option<u8>) -> Result<AdminDone, AdminError> {
        if replication.is_some_and(|wanted| !(1..=7).contains(&wanted)) {
            return Err(denied(DeniedKind::Invalid, "replication must be 1 to 7"));
        }
        for _ in 0..ATTEMPTS {
            let catalog = self.now();
            let wanted = replication.unwrap_or(catalog.replication_wanted);
            if self.write(aim(&catalog, wanted, None, self.clock.now())).await? {
                let catalog = self.now();
                return Ok(AdminDone::Rebalancing {
                    replicas: catalog.replicas_missing(),
                    replication: catalog.replication,
                });
            }
        }
        Err(AdminError::Call(CallError::Overloaded {
            what: "the catalog changes too fast".into(),
        }))
    }

    async fn remove(&self, node: NodeId, dead: bool) -> Result<AdminDone, AdminError> {
        for _ in 0..ATTEMPTS {
            let catalog = self.now();
            let alive = |id: NodeId| self.peers.is_connected(id);
            if let Some(done) = may_remove(&catalog, node, dead, &alive)? {
                return Ok(done);
            }
            let command = aim(
                &catalog,
                catalog.replication_wanted,
                Some((node, dead)),
                self.clock.now(),
            );
            if self.write(command).await? {
                return Ok(AdminDone::Removing { node });
            }
        }
        Err(AdminError::Call(CallError::Overloaded {
            what: "the catalog changes too fast".into(),
        }))
    }

    async fn create_token(&self, life_ms: u64) -> Result<AdminDone, AdminError> {
        if !TOKEN_LIFE_MS.contains(&life_ms) {
            return Err(denied(
                DeniedKind::Invalid,
                "a join token lives from a minute to seven days",
            ));
        }
        let chance = [(self.nonces)(), (self.nonces)(), (self.nonces)()].concat();
        let id = token::hex(&chance[..6]);
        let secret = token::hex(&chance[8..8 + token::SECRET_BYTES]);
        let created = self.clock.now();
        let expires = created.plus_millis(life_ms);
        let command = CatalogCommand::AddToken {
            id: id.clone(),
            token: JoinToken {
                hash: token::hash(&secret),
                created,
                expires,
            },
        };
        if !self.write(command).await? {
            let reason = format!("{} join tokens are valid already; revoke some", token::TOKENS_MAX);
            return Err(denied(DeniedKind::Conflict, reason));
        }
        Ok(AdminDone::TokenCreated {
            token: token::compose(&id, &secret),
            id,
            expires,
        })
    }

    async fn revoke_token(&self, id: String) -> Result<AdminDone, AdminError> {
        if self.write(CatalogCommand::RevokeToken { id: id.clone() }).await? {
            return Ok(AdminDone::TokenRevoked);
        }
        Err(denied(DeniedKind::NotFound, format!("there is no join token {id}")))
    }
}

fn check_newcomer(newcomer: &Newcomer) -> Result<(), AdminError> {
    let address = |text: &str| text.parse::<std::net::SocketAddr>().is_ok_and(|at| at.port() != 0);
    let zone = &newcomer.zone;
    let fine = (1..=64).contains(&zone.len()) && zone.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if newcomer.uuid == 0 || newcomer.version.len() > 64 || newcomer.wanted == Some(0) {
        return Err(denied(DeniedKind::Invalid, "uuid, version or id is no such thing"));
    }
    if !fine {
        return Err(denied(DeniedKind::Invalid, format!("{zone:?} is no zone")));
    }
    match [&newcomer.mqtt, &newcomer.http, &newcomer.peer]
        .into_iter()
        .find(|text| !address(text))
    {
        Some(text) => Err(denied(
            DeniedKind::Invalid,
            format!("{text:?} is no address; write IP:PORT"),
        )),
        None => Ok(()),
    }
}

/// `Some`: there is nothing left to do.
fn may_remove(
    catalog: &Catalog,
    node: NodeId,
    dead: bool,
    alive: &dyn Fn(NodeId) -> bool,
) -> Result<Option<AdminDone>, AdminError> {
    let conflict = |reason: String| Err(denied(DeniedKind::Conflict, reason));
    match catalog.stage(node) {
        None | Some(Stage::Removed) => {
            return Err(denied(DeniedKind::NotFound, format!("there is no node {node}")));
        }
        Some(Stage::Lost) => return Ok(Some(AdminDone::Removing { node })),
        Some(Stage::Leaving) if !dead => return Ok(Some(AdminDone::Removing { node })),
        Some(Stage::Joining) => return Ok(None),
        Some(Stage::Member | Stage::Leaving) => {}
    }
    let left = catalog.members().filter(|(id, _)| *id != node).count();
    if left < usize::from(catalog.replication) {
        return conflict(format!(
            "{left} nodes would be left for {} replicas of each shard; add a node first",
            catalog.replication
        ));
    }
    if dead && alive(node) {
        return conflict(format!(
            "node {node} is up; remove it without --dead, so that it hands over what it has"
        ));
    }
    if !dead && !alive(node) {
        return conflict(format!(
            "node {node} is down; start it, or if it is gone for good remove it with --dead"
        ));
    }
    if dead {
        let groups = catalog
            .shards
            .iter()
            .enumerate()
            .map(|(shard, placement)| (format!("shard {shard}"), placement));
        let groups = groups.chain([("the catalog".to_owned(), &catalog.group)]);
        for (name, placement) in groups.filter(|(_, placement)| placement.voters.contains(&node)) {
            let living = placement.voters.iter().filter(|id| **id != node && alive(**id)).count();
            if living <= placement.voters.len() / 2 {
                return conflict(format!(
                    "{name} has {living} of {} replicas up without node {node}, which is no majority; bring the \
                     others back first",
                    placement.voters.len()
                ));
            }
        }
    }
    Ok(None)
}

/// Where everything shall be, given who is a member.
fn aim(catalog: &Catalog, replication_wanted: u8, leaving: Option<(NodeId, bool)>, at: Timestamp) -> CatalogCommand {
    let stays = |id: NodeId| leaving.is_none_or(|(gone, _)| gone != id);
    let sites: Vec<Site<'_>> = catalog
        .members()
        .filter(|(id, _)| stays(*id))
        .map(|(id, record)| (id, record.zone.as_str()))
        .collect();
    let replication = placement::replication(replication_wanted, sites.len());
    let present: Vec<Vec<NodeId>> = catalog
        .shards
        .iter()
        .map(|placement| placement.target.clone())
        .collect();
    let group = placement::targets(
        &sites,
        std::slice::from_ref(&catalog.group.target),
        placement::catalog_voters(sites.len()),
    );
    CatalogCommand::Aim {
        epoch: catalog.epoch,
        at,
        replication,
        replication_wanted,
        shards: placement::targets(&sites, &present, replication),
        group: group.into_iter().next().unwrap_or_default(),
        leaving,
    }
}
