//! Keeps open on this node exactly the replicas that the catalog says it holds: the catalog first,
//! then those placed here, and from then on whatever comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::ports::CallError;
use actors::shell::house::{House, HouseHandle, Part, PartError, Restart, StopSignal};
use futures::future::BoxFuture;
use futures::StreamExt;
use tokio::sync::{oneshot, watch, Mutex};

use super::alarm::Alarm;
use super::peers::Peers;
use super::rebuild::{Rebuild, AT_ONCE};
use crate::api::StartError;
use crate::asking::Asking;
use crate::background::Background;
use crate::catalog::{Catalog, CatalogApply, CatalogCommand, NodeRecord, Placement, Stage};
use crate::raft::group::{seeded, Group, GroupError, Parts};
use crate::raft::machine::{Apply, GroupShared};
use crate::raft::retire;
use crate::router::protocol::{Ask, Told};
use crate::shard::apply::ShardApply;
use crate::shard::runtime::{mailbox, Runtime, ShardEnv};
use crate::storage::book::Book;
use crate::storage::ledger::FileLedger;
use crate::storage::{LogStore, StateStore};
use crate::transport::Transport;

/// Restarts of one shard's runtime within the window, before the process ends.
const SHARD_RESTARTS: Restart = Restart::Always {
    max: 5,
    within_ms: 60_000,
};
/// How long a replica that is given back may take to come to rest.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// How often the catalog is looked at when nothing in it changes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    pub open: Mutex<BTreeMap<ShardId, OpenShard>>,
    /// Shards that are opened once another replica has sent their state.
    pub lacking: std::sync::Mutex<BTreeSet<ShardId>>,
}

/// A replica that lost its state, and whom to ask for it.
struct Lacking {
    rebuild: Arc<Rebuild>,
    shared: Arc<GroupShared>,
    sources: Vec<NodeId>,
}

/// A replica that runs here.
pub struct OpenShard {
    group: Group,
    stop: watch::Sender<bool>,
    house: HouseHandle,
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
            self.rebuild(&rebuild, &self.transport.peers()).await?;
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
        let opened = opened
            .await
            .map_err(|e| StartError::Other(format!("shard {shard}: {e}")))?;
        let group = match opened.map_err(|e| start_error(&self.env.config.data_dir, e)) {
            Ok(group) => group,
            // What a replica has promised does not fit together; nobody else's word is needed.
            Err(StartError::Corrupt { reason, .. }) => {
                self.alarm.quarantine("log", reason);
                return std::future::pending().await;
            }
            Err(error) => return Err(error),
        };
        self.peers.add(group.clone());
        Ok(group)
    }

    fn arbiter(&self, shard: ShardId) -> &actix_rt::ArbiterHandle {
        &self.arbiters[usize::from(shard.0) % self.arbiters.len()]
    }

    /// From the disk to served shards, and on from there until the node stops. Waits for peers as
    /// long as it must.
    ///
    /// # Errors
    /// A replica cannot be opened; the node must not serve.
    pub async fn run(&self, mut watched: watch::Receiver<Arc<Catalog>>) -> Result<(), PartError> {
        if self.asking.service.quarantine.is_some() {
            return std::future::pending().await;
        }
        let founder = !self.env.config.members.is_empty();
        if self.fresh {
            // One that joined was given its id by the catalog, bound to its directory.
            if founder {
                self.wait_until_id_is_free().await;
            }
        } else if let Some(reason) = self.first_contact().await? {
            self.alarm.quarantine("directory", reason);
            return std::future::pending().await;
        }
        let catalog = self.open_catalog().await?;
        let known = watched.borrow().clone();
        let bound = known.nodes.iter().filter(|(_, node)| node.uuid != 0);
        self.ledger.learn(bound.map(|(id, node)| (*id, node.uuid)));
        self.found(&catalog, &watched).await;
        let placed = watched.borrow_and_update().clone();
        self.meet(&placed, &catalog);
        let lacking = self.open_all(&placed).await?;
        self.register().await;
        let rebuilding = self.rebuild_all(lacking);
        let following = async {
            loop {
                let now = watched.borrow_and_update().clone();
                self.meet(&now, &catalog);
                self.follow(&now).await?;
                tokio::select! {
                    changed = watched.changed() => changed?,
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
            }
            #[allow(unreachable_code)] // says what an error would be
            Ok::<(), PartError>(())
        };
        let ((), ()) = tokio::try_join!(rebuilding, following)?;
        Ok(())
    }

    /// Gives replicas that lost their state another one's, then opens them.
    async fn rebuild_all(&self, lacking: Vec<Lacking>) -> Result<(), PartError> {
        let rebuilding = lacking.into_iter().map(|lacking| async move {
            let Lacking {
                rebuild,
                shared,
                sources,
            } = lacking;
            let shard = shared.shard;
            self.rebuild(&rebuild, &sources).await?;
            self.open_with(shared).await?;
            self.lacking
                .lock()
                .expect("no holder of this lock panics")
                .remove(&shard);
            Ok::<_, PartError>(())
        });
        let mut rebuilt = futures::stream::iter(rebuilding).buffer_unordered(AT_ONCE);
        while let Some(done) = rebuilt.next().await {
            done?;
        }
        Ok(())
    }

    /// Makes the cluster, or waits until it has let this node in.
    async fn found(&self, catalog: &Group, watched: &watch::Receiver<Arc<Catalog>>) {
        let config = &self.env.config;
        let founder = !config.members.is_empty();
        if founder {
            let voters = super::founding::first_catalog_voters(&config.members);
            if voters.contains(&config.node_id) {
                let all = voters.iter().copied().collect();
                self.initialise(catalog, &all, voters.first().copied()).await;
            }
        }
        self.follow_catalog_leader(catalog.clone());
        if founder {
            return self.place(watched).await;
        }
        let mut watched = watched.clone();
        let me = config.node_id;
        let known = |catalog: &Arc<Catalog>| catalog.stage(me).is_some();
        if !known(&watched.borrow()) {
            tracing::info!("waiting for the catalog");
        }
        // An error means that the catalog's task has ended, which is noticed where it is followed.
        let _ = watched.wait_for(known).await;
    }

    /// Dials whoever the catalog names, and nobody else.
    fn meet(&self, catalog: &Catalog, group: &Group) {
        if catalog.nodes.is_empty() {
            return;
        }
        let mut peers = catalog.addresses();
        // A node that was removed hears of it before it is cut off.
        for id in group.voters().into_iter().chain(group.learners()) {
            let record = catalog.nodes.get(&id);
            if let Some(at) = record.and_then(|record| record.peer.parse().ok()) {
                peers.entry(id).or_insert(at);
            }
        }
        let wanted: Vec<_> = peers.iter().map(|(id, at)| (*id, *at)).collect();
        for gone in self.transport.set_peers(&wanted) {
            self.peers.forget(gone);
        }
        let dir = &self.env.config.data_dir;
        let book = Book {
            peers,
            ..Book::default()
        };
        if Book::read(dir).is_ok_and(|known| known == book) {
            return;
        }
        if let Err(error) = book.write(dir) {
            tracing::warn!(%error, "the addresses of the other nodes were not written down");
        }
    }

    /// Opens what is placed here, and what is on disk: only the catalog's leader knows for certain
    /// that a replica is not needed any more.
    async fn open_all(&self, catalog: &Catalog) -> Result<Vec<Lacking>, PartError> {
        let (mut opened, mut lacking) = (Vec::new(), Vec::new());
        for (shard, placement) in (0u16..).map(ShardId).zip(&catalog.shards) {
            let on_disk = retire::holds_any(&*self.log, &*self.state, shard)?;
            if !on_disk && !placement.holders.contains(&self.peers.me.node) {
                continue;
            }
            let shared = self.prepared(shard).await?;
            match self.lacks_state(&shared)? {
                None => opened.push((self.open_with(shared).await?, placement)),
                Some(needed) => {
                    self.lacking
                        .lock()
                        .expect("no holder of this lock panics")
                        .insert(shard);
                    lacking.push(Lacking {
                        rebuild: self.announce_rebuild(shared.clone(), needed),
                        shared,
                        sources: placement.voters.clone(),
                    });
                }
            }
        }
        self.initialise_founded(&opened).await;
        Ok(lacking)
    }

    async fn initialise_founded(&self, opened: &[(Group, &Placement)]) {
        let me = self.peers.me.node;
        let founded = opened.iter().filter(|(_, placement)| placement.founders.contains(&me));
        let initialising = founded.map(|(group, placement)| {
            let voters = placement.founders.iter().copied().collect();
            async move {
                self.initialise(group, &voters, placement.founders.first().copied())
                    .await
            }
        });
        futures::future::join_all(initialising).await;
    }

    /// Opens what has come, and gives back what has gone.
    async fn follow(&self, catalog: &Catalog) -> Result<(), PartError> {
        let me = self.peers.me.node;
        let open: BTreeSet<ShardId> = self.open.lock().await.keys().copied().collect();
        let lacking = self.lacking.lock().expect("no holder of this lock panics").clone();
        let placed = || (0u16..).map(ShardId).zip(&catalog.shards);
        let mut opened = Vec::new();
        for (shard, placement) in placed() {
            if placement.holders.contains(&me) && !open.contains(&shard) && !lacking.contains(&shard) {
                let shared = self.prepared(shard).await?;
                opened.push((self.open_with(shared).await?, placement));
            }
        }
        self.initialise_founded(&opened).await;
        for (shard, placement) in placed() {
            if open.contains(&shard) && !placement.holders.contains(&me) {
                if !self.is_given_up(shard).await {
                    // Whoever could say so does not answer; there is time.
                    return Ok(());
                }
                self.give_back(shard).await?;
            }
        }
        Ok(())
    }

    /// The catalog's leader says, now, that this node shall not have the shard. A copy of the
    /// catalog that is out of date must never cost a replica.
    async fn is_given_up(&self, shard: ShardId) -> bool {
        let ask = Ask::Holders { shard };
        match self.asking.leader(ShardId::CATALOG, ask, Duration::from_secs(2)).await {
            Ok(Told::Holders(holders)) => !holders.is_empty() && !holders.contains(&self.peers.me.node),
            _ => false,
        }
    }

    /// What is on the disk of a shard, without what was half deleted.
    async fn prepared(&self, shard: ShardId) -> Result<Arc<GroupShared>, PartError> {
        if retire::is_half_wiped(&*self.log, shard)? {
            self.wipe(shard).await?;
        }
        Ok(self.shared(shard)?)
    }

    async fn open_with(&self, shared: Arc<GroupShared>) -> Result<Group, PartError> {
        let shard = shared.shard;
        let app = Box::new(ShardApply::new(&shared));
        let group = self.open(shared, app).await?;
        let (stop, stopped) = watch::channel(false);
        let env = Arc::new(ShardEnv {
            stop: stopped,
            ..(*self.env).clone()
        });
        let part = self.shard_part(group.clone(), env);
        let fatal = self.env.fatal.clone();
        let house = House::start(vec![part], self.env.clock.clone(), move |escalated| {
            fatal(format!("{} failed for good: {}", escalated.part, escalated.reason));
        });
        let open = OpenShard {
            group: group.clone(),
            stop,
            house: house.await?,
        };
        self.open.lock().await.insert(shard, open);
        Ok(group)
    }

    /// Stops a replica and deletes what it has on disk.
    async fn give_back(&self, shard: ShardId) -> Result<(), PartError> {
        let Some(open) = self.open.lock().await.remove(&shard) else {
            return Ok(());
        };
        self.peers.router.remove(shard);
        self.peers.remove(shard);
        open.stop.send_replace(true);
        open.house.stop(CLOSE_GRACE).await;
        open.group.shutdown().await;
        open.group.shared.close();
        self.wipe(shard).await?;
        tracing::info!(%shard, "replica given back");
        metrics::gauge!("holdfast_raft_leader", "shard" => shard.to_string()).set(0.0);
        Ok(())
    }

    async fn wipe(&self, shard: ShardId) -> std::io::Result<()> {
        let (state, background) = (self.state.clone(), self.background.clone());
        let flush = move || async move { background.call(move || state.flush()).await? };
        retire::give_back(shard, self.log.clone(), &*self.state, flush).await
    }

    /// The shards stop with the node, not for good.
    pub async fn stop_all(&self, grace: Duration) {
        let open = std::mem::take(&mut *self.open.lock().await);
        for shard in open.values() {
            shard.stop.send_replace(true);
        }
        for (_, shard) in open {
            shard.house.stop(grace).await;
        }
    }

    fn shard_part(&self, group: Group, env: Arc<ShardEnv>) -> Part {
        let shard = group.shard;
        let (handle, rx) = mailbox(group.clone(), self.env.config.shard_queue_max);
        self.peers.router.add(handle);
        let rx = Arc::new(Mutex::new(rx));
        let arbiter = self.arbiter(group.shard).clone();
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
        Part {
            name: name_of(shard),
            restart: SHARD_RESTARTS,
            start: Box::new(start),
        }
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

    /// Tells the catalog that this node has started; again until it has heard.
    async fn register(&self) {
        let config = &self.env.config;
        let me = &config.me;
        let record = NodeRecord {
            uuid: self.node_uuid,
            boot: self.peers.me.boot,
            zone: me.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mqtt: me.mqtt.to_string(),
            http: me.http.to_string(),
            peer: me.peer.to_string(),
            draining: false,
            stage: Stage::Member,
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
                Ok(Told::Refused(_)) => {
                    return tracing::error!("the catalog refuses this node: it was removed, or its id is another's");
                }
                Ok(_) => return,
                Err(CallError::Refused(refusal)) => return tracing::error!(%refusal, "catalog refused this node"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// For logs and metrics. Kept for ever, once per shard.
fn name_of(shard: ShardId) -> &'static str {
    static NAMES: OnceLock<std::sync::Mutex<BTreeMap<ShardId, &'static str>>> = OnceLock::new();
    let mut names = NAMES
        .get_or_init(Default::default)
        .lock()
        .expect("no holder of this lock panics");
    names
        .entry(shard)
        .or_insert_with(|| Box::leak(format!("shard {shard}").into_boxed_str()))
}
