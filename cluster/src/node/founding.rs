//! The first start of a cluster: its founders make sure that they are new, write the first
//! memberships and the first placement. A node that joined later has no part in this.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use tokio::sync::watch;

use super::replicas::Replicas;
use crate::catalog::{placement, Catalog, CatalogCommand, NodeRecord, Stage};
use crate::config::Member;
use crate::raft::group::Group;
use crate::router::protocol::Ask;

/// How long other voters leave the first membership to the one that should write it.
const INITIALISE_AFTER: Duration = Duration::from_millis(1_500);

/// How long a founder that knows of nobody else listens before it makes a cluster: nodes that it
/// has forgotten dial it at least once a second, and tell.
const LISTEN_FIRST: Duration = Duration::from_millis(1_300);

/// The catalog's first voters: the same on every founder.
pub fn first_catalog_voters(members: &[Member]) -> Vec<NodeId> {
    let voters = placement::initial(members, 1, placement::catalog_voters(members.len()));
    voters.into_iter().next().unwrap_or_default()
}

impl Replicas {
    /// An empty directory may be a lost one: whoever has met this id under another directory
    /// refuses the connection, so being admitted by a majority of the others is the proof.
    pub(super) async fn wait_until_id_is_free(&self) {
        let config = &self.env.config;
        let majority = config.members.len() / 2 + 1;
        let needed = majority.min(config.members.len().saturating_sub(1));
        let mut waited = 0u32;
        let alone = config.members.len() == 1;
        let listened = tokio::time::Instant::now() + LISTEN_FIRST;
        loop {
            let met = config
                .members
                .iter()
                .filter(|m| m.id != config.node_id && self.peers.is_connected(m.id))
                .count();
            if self.refused().is_some() {
                self.alarm.quarantine("directory", self.used_before());
                return std::future::pending().await;
            }
            if met >= needed && (!alone || tokio::time::Instant::now() >= listened) {
                return;
            }
            if waited.is_multiple_of(100) && !alone {
                tracing::info!(
                    met,
                    needed,
                    "empty data directory: waiting for peers to confirm that this id is new"
                );
            }
            waited += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn used_before(&self) -> String {
        let config = &self.env.config;
        format!(
            "node id {} was used before with another data directory, and {} was empty: what the node promised is not \
             in here",
            config.node_id,
            config.data_dir.display()
        )
    }

    /// The chosen voter writes the first membership; the others only if it does not come.
    pub(super) async fn initialise(&self, group: &Group, voters: &BTreeSet<NodeId>, chosen: Option<NodeId>) {
        if group.is_initialized().await {
            return;
        }
        if chosen != Some(self.peers.me.node) {
            let deadline = tokio::time::Instant::now() + INITIALISE_AFTER;
            while tokio::time::Instant::now() < deadline {
                if group.is_initialized().await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        group.initialize(voters).await;
    }

    /// Makes sure that the catalog says who there is and where the shards are.
    pub(super) async fn place(&self, watched: &watch::Receiver<Arc<Catalog>>) {
        let config = &self.env.config;
        let mut pause = Duration::from_millis(20);
        while watched.borrow().shards.is_empty() {
            let command = CatalogCommand::Place {
                replication: config.replication,
                replication_wanted: placement::wanted(config.replication, config.members.len()),
                nodes: config
                    .members
                    .iter()
                    .map(|member| (member.id, founder(member)))
                    .collect(),
                group: first_catalog_voters(&config.members),
                shards: placement::initial(&config.members, config.shards, config.replication),
            };
            if let Err(error) = self
                .asking
                .leader(ShardId::CATALOG, Ask::Catalog(command), Duration::from_secs(2))
                .await
            {
                tracing::debug!(%error, "placement not written yet");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

/// A founder that has not told of itself yet.
pub fn founder(member: &Member) -> NodeRecord {
    NodeRecord {
        uuid: 0,
        boot: 0,
        zone: member.zone.clone(),
        version: String::new(),
        mqtt: member.mqtt.to_string(),
        http: member.http.to_string(),
        peer: member.peer.to_string(),
        draining: false,
        stage: Stage::Member,
    }
}
