//! Brings this node's replicas up: the catalog first, then the shards it places here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::ports::CallError;
use actors::shell::house::{House, HouseHandle, Part, PartError, Restart, StopSignal};
use futures::future::BoxFuture;
use futures::StreamExt;
use tokio::sync::{oneshot, watch, Mutex};

use super::alarm::Alarm;
use super::peers::Peers;
use super::rebuild::AT_ONCE;
use crate::api::StartError;
use crate::asking::Asking;
use crate::background::Background;
use crate::catalog::{placement, Catalog, CatalogApply, CatalogCommand, NodeRecord};
use crate::raft::group::{seeded, Group, GroupError, Parts};
use crate::raft::machine::Apply;
use crate::raft::machine::GroupShared;
use crate::router::protocol::Ask;
use crate::shard::apply::ShardApply;
use crate::shard::runtime::{mailbox, Runtime, ShardEnv};
use crate::storage::ledger::FileLedger;
use crate::storage::{LogStore, StateStore};
use crate::transport::Transport;

/// How long other voters leave the first membership to the one that should write it.
const INITIALISE_AFTER: Duration = Duration::from_millis(1_500);
/// Restarts of one shard's runtime within the window, before the process ends.
const SHARD_RESTARTS: Restart = Restart::Always {
    max: 5,
    within_ms: 60_000,
};

pub struct Replicas {
    pub env: Arc<ShardEnv>,
    pub peers: Arc<Peers>,
    pub transport: Transport,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub background: Arc<Background>,
    pub hashing: Arc<Background>,
    pub arbiters: Vec<actix_rt::ArbiterHandle>,
    pub asking: Arc<Asking>,
    pub node_uuid: u128,
    /// This directory was empty at start.
    pub fresh: bool,
    pub alarm: Arc<Alarm>,
    pub ledger: Arc<FileLedger>,
    /// Until its group is opened.
    pub catalog: Mutex<Option<CatalogApply>>,
    pub houses: Mutex<Vec<HouseHandle>>,
}

/// Runs a task on an arbiter and waits for its result.
///
/// # Errors
/// The arbiter has stopped, or the task panicked.
pub async fn run_on<T: Send + 'static>(
    arbiter: &actix_rt::ArbiterHandle,
    task: impl std::future::Future<Output = T> + Send + 'static,
) -> Result<T, PartError> {
    let (tx, rx) = oneshot::channel();
    arbiter.spawn(async move {
        let _ = tx.send(task.await);
    });
    rx.await
        .map_err(|_| "the task ended without a result: it panicked, or its arbiter stopped".into())
}

fn start_error(dir: &std::path::Path, error: GroupError) -> StartError {
    match error {
        GroupError::Disk { source, .. } if source.kind() != std::io::ErrorKind::InvalidData => StartError::Disk {
            what: format!("reading {}", dir.display()),
            source,
        },
        other => StartError::Corrupt {
            dir: dir.display().to_string(),
            reason: other.to_string(),
        },
    }
}

impl Replicas {
    /// Opens the catalog's group; before that, if need be, gives it its state back.
    async fn open_catalog(&self) -> Result<Group, PartError> {
        let mut app = self
            .catalog
            .lock()
            .await
            .take()
            .ok_or("the catalog was opened before")?;
        let shared = app.shared();
        if let Some(needed) = self.lacks_state(&shared)? {
            let rebuild = self.announce_rebuild(shared.clone(), needed);
            let members: Vec<NodeId> = self.env.config.members.iter().map(|m| m.id).collect();
            self.rebuild(&rebuild, &members).await?;
            app.replaced(shared.space().generation)?;
        }
        let group = self.open(shared, Box::new(app)).await?;
        let _ = self.asking.service.catalog.set(group.clone());
        Ok(group)
    }

    /// The catalog as it lies on the disk, before anything runs.
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn read_catalog(&self) -> Result<watch::Receiver<Arc<Catalog>>, StartError> {
        let shard = ShardId::CATALOG;
        let dir = &self.env.config.data_dir;
        let disk = |source| start_error(dir, GroupError::Disk { shard, source });
        let (app, watched) = CatalogApply::open(self.shared(shard).map_err(disk)?).map_err(disk)?;
        *self.catalog.try_lock().expect("nobody else has it yet") = Some(app);
        Ok(watched)
    }

    fn shared(&self, shard: ShardId) -> std::io::Result<Arc<GroupShared>> {
        GroupShared::open(shard, self.state.clone(), self.background.clone(), self.hashing.clone()).map(Arc::new)
    }

    /// Opens a replica on its arbiter and lets peers reach it.
    async fn open(
        &self,
        shared: Arc<GroupShared>,
        app: Box<dyn crate::raft::machine::Apply>,
    ) -> Result<Group, StartError> {
        let shard = shared.shard;
        let parts = Parts {
            shard,
            log: self.log.clone(),
            shared,
            transport: self.transport.clone(),
            app,
        };
        let env = self.env.clone();
        let seed = self.peers.me.boot ^ (u64::from(shard.0) << 32);
        let opened = run_on(
            self.arbiter(shard),
            seeded(seed, async move { Group::open(&env.config, parts).await }),
        );
        let group = opened
            .await
            .map_err(|e| StartError::Other(format!("shard {shard}: {e}")))?
            .map_err(|e| start_error(&self.env.config.data_dir, e))?;
        self.peers.add(group.clone());
        Ok(group)
    }

    fn arbiter(&self, shard: ShardId) -> &actix_rt::ArbiterHandle {
        &self.arbiters[usize::from(shard.0) % self.arbiters.len()]
    }

    /// From the disk to served shards. Waits for peers as long as it must.
    ///
    /// # Errors
    /// A replica cannot be opened; the node must not serve.
    pub async fn bring_up(&self, watched: watch::Receiver<Arc<Catalog>>) -> Result<(), PartError> {
        if self.asking.service.quarantine.is_some() {
            return std::future::pending().await;
        }
        if self.fresh {
            self.wait_until_id_is_free().await;
        } else if let Some(reason) = self.first_contact().await? {
            self.alarm.quarantine("directory", reason);
            return std::future::pending().await;
        }
        let catalog = self.open_catalog().await?;
        self.ledger
            .learn(watched.borrow().nodes.iter().map(|(id, node)| (*id, node.uuid)));
        let members: BTreeSet<NodeId> = self.env.config.members.iter().map(|m| m.id).collect();
        self.initialise(&catalog, &members, members.first().copied()).await;
        self.follow_catalog_leader(catalog.clone());
        self.place(&watched).await;
        let placed = watched.borrow().clone();
        let (mut whole, mut lacking) = (Vec::new(), Vec::new());
        for (shard, placement) in (0u16..).map(ShardId).zip(&placed.shards) {
            if !placement.voters.contains(&self.peers.me.node) {
                continue;
            }
            let shared = self.shared(shard)?;
            match self.lacks_state(&shared)? {
                None => whole.push((shared, placement.clone())),
                Some(needed) => {
                    lacking.push((self.announce_rebuild(shared.clone(), needed), shared, placement.clone()))
                }
            }
        }
        let mut groups = Vec::new();
        let mut parts = Vec::new();
        for (shared, placement) in whole {
            let group = self.open_shard(shared).await?;
            parts.push(self.shard_part(group.clone()));
            groups.push((group, placement));
        }
        self.start_house(parts).await?;
        let initialising = groups.iter().map(|(group, placement)| {
            let voters = placement.voters.iter().copied().collect();
            async move { self.initialise(group, &voters, placement.voters.first().copied()).await }
        });
        futures::future::join_all(initialising).await;
        self.register().await;
        let rebuilding = lacking.into_iter().map(|(rebuild, shared, placement)| async move {
            self.rebuild(&rebuild, &placement.voters).await?;
            let group = self.open_shard(shared).await?;
            self.start_house(vec![self.shard_part(group)]).await
        });
        let mut rebuilt = futures::stream::iter(rebuilding).buffer_unordered(AT_ONCE);
        while let Some(done) = rebuilt.next().await {
            done?;
        }
        Ok(())
    }

    async fn open_shard(&self, shared: Arc<GroupShared>) -> Result<Group, PartError> {
        let app = Box::new(ShardApply::new(&shared));
        Ok(self.open(shared, app).await?)
    }

    async fn start_house(&self, parts: Vec<Part>) -> Result<(), PartError> {
        let fatal = self.env.fatal.clone();
        let house = House::start(parts, self.env.clock.clone(), move |escalated| {
            fatal(format!("{} failed for good: {}", escalated.part, escalated.reason));
        });
        self.houses.lock().await.push(house.await?);
        Ok(())
    }

    fn shard_part(&self, group: Group) -> Part {
        let shard = group.shard;
        let (handle, rx) = mailbox(group.clone(), self.env.config.shard_queue_max);
        self.peers.router.add(handle);
        let rx = Arc::new(Mutex::new(rx));
        let (env, arbiter) = (self.env.clone(), self.arbiter(group.shard).clone());
        let start = move |_: StopSignal| -> BoxFuture<'static, Result<(), PartError>> {
            let (rx, env, group, arbiter) = (rx.clone(), env.clone(), group.clone(), arbiter.clone());
            Box::pin(async move {
                let (tx, ended) = oneshot::channel();
                // Device actors live on the arbiter, so the task is made there and never leaves.
                arbiter.spawn_fn(move || {
                    actix_rt::spawn(seeded(u64::from(group.shard.0), async move {
                        let mut rx = rx.lock().await;
                        Runtime::run(group, env, &mut rx).await;
                        let _ = tx.send(());
                    }));
                });
                ended.await.map_err(|_| "the shard's task panicked".into())
            })
        };
        // Once per shard and process, so leaking the name is bounded.
        let name = Box::leak(format!("shard {shard}").into_boxed_str());
        Part {
            name,
            restart: SHARD_RESTARTS,
            start: Box::new(start),
        }
    }

    /// An empty directory may be a lost one: whoever has met this id under another directory
    /// refuses the connection, so being admitted by a majority of the others is the proof.
    async fn wait_until_id_is_free(&self) {
        let config = &self.env.config;
        let majority = config.members.len() / 2 + 1;
        let needed = majority.min(config.members.len().saturating_sub(1));
        let mut waited = 0u32;
        loop {
            let met = config
                .members
                .iter()
                .filter(|m| m.id != config.node_id && self.peers.is_connected(m.id))
                .count();
            if met >= needed {
                return;
            }
            if self.refused().is_some() {
                self.alarm.quarantine("directory", self.used_before());
                return std::future::pending().await;
            }
            if waited.is_multiple_of(100) {
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
    async fn initialise(&self, group: &Group, voters: &BTreeSet<NodeId>, chosen: Option<NodeId>) {
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

    fn follow_catalog_leader(&self, group: Group) {
        let role_changed = self.env.role_changed.clone();
        let (fatal, stop) = (self.env.fatal.clone(), self.env.stop.clone());
        self.arbiters[0].spawn(async move {
            let shard = group.shard;
            group
                .follow_role(move |role| {
                    role_changed(shard, &role);
                    true
                })
                .await;
            if !*stop.borrow() {
                fatal("the catalog's Raft task has ended".into());
            }
        });
    }

    /// Makes sure that the catalog says where the shards are.
    async fn place(&self, watched: &watch::Receiver<Arc<Catalog>>) {
        let config = &self.env.config;
        while watched.borrow().shards.is_empty() {
            let shards = placement::initial(&config.members, config.shards, config.replication);
            let command = CatalogCommand::Place {
                replication: config.replication,
                shards,
            };
            if let Err(error) = self
                .asking
                .leader(ShardId::CATALOG, Ask::Catalog(command), Duration::from_secs(2))
                .await
            {
                tracing::debug!(%error, "placement not written yet");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Tells the catalog that this node has started; again until it has heard.
    async fn register(&self) {
        let config = &self.env.config;
        let Some(me) = config.members.iter().find(|m| m.id == config.node_id) else {
            return;
        };
        let record = NodeRecord {
            uuid: self.node_uuid,
            boot: self.peers.me.boot,
            zone: me.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mqtt: me.mqtt.to_string(),
            http: me.http.to_string(),
            peer: me.peer.to_string(),
            draining: false,
        };
        let command = CatalogCommand::Register {
            node: config.node_id,
            record,
        };
        loop {
            match self
                .asking
                .leader(ShardId::CATALOG, Ask::Catalog(command.clone()), Duration::from_secs(2))
                .await
            {
                Ok(_) => return,
                Err(CallError::Refused(refusal)) => return tracing::error!(%refusal, "catalog refused this node"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}
