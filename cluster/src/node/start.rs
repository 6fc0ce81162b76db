//! Opens the directory and puts a node together.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use actors::id::{Gateway, NodeId};
use actors::shell::house::{House, HouseHandle, Part, Restart};
use actors::time::Clock;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::sync::watch;

use super::disk::{self, Opening, Stores};
use super::flusher::Flusher;
use super::herald::Herald;
use super::keeper::Keeper;
use super::mover::Mover;
use super::peers::{PeerHandler, Peers};
use super::pulse::Pulse;
use super::replicas::{run_on, Replicas};
use super::scrub::Scrub;
use crate::admin::Admin;
use crate::api::{DownlinkSink, StartError};
use crate::asking::Asking;
use crate::background::Background;
use crate::catalog::{on_disk, Catalog, Stage};
use crate::config::ClusterConfig;
use crate::disk::DiskGuard;
use crate::faults::{DrillClock, Faults};
use crate::router::Router;
use crate::service::{Service, SENDING_MAX};
use crate::shard::runtime::ShardEnv;
use crate::storage::book::Book;
use crate::storage::fault::DiskFaults;
use crate::storage::identity::DirLock;
use crate::storage::{LogStore, StateStore};
use crate::transport::{Nonces, TcpConnector, Transport, TransportConfig};

/// A running node's parts, as `Cluster` needs them.
pub struct Running {
    pub config: ClusterConfig,
    pub me: Gateway,
    pub router: Arc<Router>,
    pub service: Arc<Service>,
    pub asking: Arc<Asking>,
    pub peers: Arc<Peers>,
    pub methods: crate::methods::Budget,
    pub keeper: Arc<Keeper>,
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub transport: Transport,
    pub faults: Arc<Faults>,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub background: Arc<Background>,
    pub replicas: Arc<Replicas>,
    pub house: tokio::sync::Mutex<Option<HouseHandle>>,
    pub arbiters: Mutex<Vec<actix_rt::Arbiter>>,
    pub arbiter_handles: Vec<actix_rt::ArbiterHandle>,
    pub stop: watch::Sender<bool>,
    pub fatal: watch::Receiver<Option<String>>,
    pub again: watch::Receiver<Option<String>>,
    pub lock: Mutex<Option<DirLock>>,
}

/// # Errors
/// See [`StartError`]; nothing is left running but threads that end with the handles.
pub async fn start(
    config: ClusterConfig,
    machine_clock: Arc<dyn Clock>,
    downlinks: Arc<dyn DownlinkSink>,
) -> Result<Running, StartError> {
    let faults = Faults::new(config.node_id, config.allow_drills, machine_clock.clone());
    let clock = clock_of(&faults, machine_clock);
    let mut rng = StdRng::from_seed(config.seed);
    let (fatal_tx, fatal_rx) = watch::channel(None);
    let fatal: Arc<dyn Fn(String) + Send + Sync> = Arc::new(move |reason: String| {
        tracing::error!(%reason, "this node must stop");
        fatal_tx.send_if_modified(|first| {
            let new = first.is_none();
            if new {
                *first = Some(reason);
            }
            new
        });
    });
    let opened = disk::open(Opening {
        config: &config,
        clock: clock.clone(),
        rng: &mut rng,
        fatal: fatal.clone(),
        faults: disk_faults(&faults),
    })?;
    let (disk, quarantined) = (opened.stores, opened.quarantine.is_some());
    metrics::gauge!("holdfast_node_quarantined").set(f64::from(u8::from(quarantined)));
    let background = Background::start("holdfast-background")
        .map(Arc::new)
        .map_err(|source| StartError::Disk {
            what: "starting a thread".into(),
            source,
        })?;
    let hashing = Background::start("holdfast-hashing")
        .map(Arc::new)
        .map_err(|source| StartError::Disk {
            what: "starting a thread".into(),
            source,
        })?;
    let me = Gateway {
        node: config.node_id,
        boot: rng.random_range(1..=u64::MAX),
    };
    let router = Arc::new(Router::new(config.node_id, config.shards));
    let service = Arc::new(Service {
        router: router.clone(),
        catalog: OnceLock::new(),
        admin: OnceLock::new(),
        rebuilds: Arc::default(),
        quarantine: opened.quarantine,
        aftermath: disk.aftermath.clone(),
        scrubbing: Arc::default(),
        sending: Arc::new(tokio::sync::Semaphore::new(SENDING_MAX)),
    });
    let asking = Arc::new(Asking {
        router: router.clone(),
        service: service.clone(),
    });
    let peers = Arc::new(Peers::new(
        me,
        clock.clone(),
        router.clone(),
        service.clone(),
        downlinks,
    ));
    let arbiters: Vec<actix_rt::Arbiter> = (0..config.workers.max(1)).map(|_| actix_rt::Arbiter::new()).collect();
    let arbiter_handles: Vec<actix_rt::ArbiterHandle> = arbiters.iter().map(actix_rt::Arbiter::handle).collect();
    let rng = Mutex::new(rng);
    let nonces: Nonces = Arc::new(move || {
        let mut nonce = [0; 16];
        rng.lock()
            .expect("no holder of this lock panics")
            .fill_bytes(&mut nonce);
        nonce
    });
    let way = (&disk, quarantined, nonces.clone());
    let transport = start_transport(&config, (&clock, &faults), way, &peers, &arbiter_handles[0]).await?;
    if faults.allowed() {
        arbiter_handles[0].spawn(faults.clone().watch_time());
    }
    router.connect(transport.clone());

    let (stop, stopped) = watch::channel(false);
    let env = shard_env(&config, &clock, &peers, &transport, (&disk.guard, &fatal), stopped);
    let replicas = Arc::new(Replicas {
        env,
        peers: peers.clone(),
        transport: transport.clone(),
        log: disk.log.clone(),
        state: disk.state.clone(),
        background: background.clone(),
        hashing,
        arbiters: arbiter_handles.clone(),
        asking: asking.clone(),
        node_uuid: disk.node_uuid,
        fresh: disk.fresh,
        alarm: disk.alarm.clone(),
        ledger: disk.ledger.clone(),
        catalog: tokio::sync::Mutex::default(),
        open: tokio::sync::Mutex::default(),
        lacking: Mutex::default(),
    });
    let catalog = replicas
        .read_catalog()
        .map_err(|error| match disk.alarm.again.borrow().clone() {
            // Written down; the next start knows what to do.
            Some(reason) => StartError::BeginAnew(reason),
            None => error,
        })?;
    if catalog.borrow().stage(config.node_id) == Some(Stage::Removed) {
        let reason = format!(
            "node {} was removed from this cluster, and an id is never used twice; start a new node on an empty \
             directory",
            config.node_id
        );
        return Err(StartError::Identity(reason));
    }
    let admin = Admin {
        catalog: catalog.clone(),
        peers: peers.clone(),
        clock: clock.clone(),
        nonces,
    };
    let _ = service.admin.set(admin);
    let mover = Arc::new(Mover::new(catalog.clone(), peers.clone(), asking.clone()));
    let herald = Arc::new(Herald {
        router: router.clone(),
        transport: transport.clone(),
    });
    let keeper = Arc::new(Keeper {
        peers: peers.clone(),
        catalog: catalog.clone(),
        draining: AtomicBool::new(false),
        drained: AtomicBool::new(false),
        leaving: AtomicBool::new(false),
        catalog_hand_over: Mutex::default(),
    });
    let flusher = Arc::new(Flusher {
        peers: peers.clone(),
        log: disk.log.clone(),
        transport: transport.clone(),
        disk: disk.guard.clone(),
        interval: config.flush_interval,
        dir: config.data_dir.clone(),
        seen: Arc::default(),
        state: disk.state.clone(),
        background: background.clone(),
    });
    let scrub = Arc::new(Scrub {
        scrubbing: service.scrubbing.clone(),
        peers: peers.clone(),
        log: disk.log.clone(),
        state: disk.state.clone(),
        background: replicas.hashing.clone(),
        interval: config.scrub_interval,
    });
    let mut parts = house_parts(&replicas, &keeper, &flusher, &catalog, &router);
    parts.push(scrub_part(scrub));
    parts.extend(moving_parts(&mover, &herald));
    let ends = fatal.clone();
    let house_clock = clock.clone();
    let house = run_on(&arbiter_handles[0], async move {
        House::start(parts, house_clock, move |escalated| {
            ends(format!("{} failed for good: {}", escalated.part, escalated.reason));
        })
        .await
        .map_err(|e| e.to_string())
    });
    let house = house
        .await
        .map_err(|e| StartError::Other(e.to_string()))?
        .map_err(StartError::Other)?;
    let pulse = Arc::<Pulse>::default();
    for arbiter in &arbiter_handles {
        arbiter.spawn(pulse.clone().beat(peers.clone(), clock.clone()));
    }
    Ok(Running {
        config,
        me,
        router,
        service,
        asking,
        peers,
        methods: crate::methods::Budget::default(),
        keeper,
        catalog,
        transport,
        faults,
        log: disk.log,
        state: disk.state,
        background,
        replicas,
        house: tokio::sync::Mutex::new(Some(house)),
        arbiters: Mutex::new(arbiters),
        arbiter_handles,
        stop,
        fatal: fatal_rx,
        again: disk.alarm.again.subscribe(),
        lock: Mutex::new(Some(opened.lock)),
    })
}

/// What everything but the leases themselves goes by.
fn clock_of(faults: &Arc<Faults>, machine: Arc<dyn Clock>) -> Arc<dyn Clock> {
    match faults.allowed() {
        true => Arc::new(DrillClock::new(machine, faults.clone())),
        false => machine,
    }
}

fn disk_faults(faults: &Arc<Faults>) -> Option<Arc<dyn DiskFaults>> {
    faults.allowed().then(|| faults.clone() as Arc<dyn DiskFaults>)
}

async fn start_transport(
    config: &ClusterConfig,
    (clock, faults): (&Arc<dyn Clock>, &Arc<Faults>),
    (disk, quarantined, nonces): (&Stores, bool, Nonces),
    peers: &Arc<Peers>,
    arbiter: &actix_rt::ArbiterHandle,
) -> Result<Transport, StartError> {
    let listen = config.me.peer;
    let settings = TransportConfig {
        cluster_id: config.cluster_id.clone(),
        node_id: config.node_id,
        boot: peers.me.boot,
        node_uuid: disk.node_uuid,
        starts: disk.starts,
        quarantined,
        secret: config.secret.clone(),
        listen,
        peers: known_peers(config, &*disk.state)?,
        queue_bytes_max: TransportConfig::QUEUE_BYTES_MAX,
        frame_bytes_max: TransportConfig::FRAME_BYTES_MAX,
        connect_timeout: TransportConfig::CONNECT_TIMEOUT,
        clock: clock.clone(),
        faults: faults.clone(),
        nonces,
    };
    let handler = Arc::new(PeerHandler(peers.clone()));
    let ledger = disk.ledger.clone();
    let peers = peers.clone();
    let started = run_on(arbiter, async move {
        peers.runs_here();
        Transport::start(settings, Arc::new(TcpConnector::default()), handler, ledger)
    });
    let started = started.await.map_err(|e| StartError::Other(e.to_string()))?;
    started.map_err(|source| StartError::Listen { addr: listen, source })
}

/// Whom to dial before the catalog is known: those it named last, else the founders. What this
/// node's own configuration says of an address is newer than what was written down.
fn known_peers(config: &ClusterConfig, state: &dyn StateStore) -> Result<Vec<(NodeId, SocketAddr)>, StartError> {
    let dir = &config.data_dir;
    let founders = config.members.iter().map(|member| (member.id, member.peer));
    let book = match Book::read(dir) {
        Ok(book) => book,
        // It is a copy of what the catalog says, and written again once that is heard.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            tracing::warn!(%error, "the addresses of the other nodes are damaged, taking those of the catalog");
            let known = on_disk(state).map(|catalog| catalog.addresses()).unwrap_or_default();
            Book {
                peers: known,
                ..Book::default()
            }
        }
        Err(source) => {
            return Err(StartError::Disk {
                what: format!("reading the nodes' addresses in {}", dir.display()),
                source,
            })
        }
    };
    if book.peers.is_empty() {
        return Ok(founders.collect());
    }
    let mut known = book.peers;
    for (id, at) in founders {
        known.entry(id).and_modify(|known| *known = at);
    }
    Ok(known.into_iter().collect())
}

fn shard_env(
    config: &ClusterConfig,
    clock: &Arc<dyn Clock>,
    peers: &Arc<Peers>,
    transport: &Transport,
    (disk, fatal): (&Arc<DiskGuard>, &Arc<dyn Fn(String) + Send + Sync>),
    stop: watch::Receiver<bool>,
) -> Arc<ShardEnv> {
    let (notes, life, roles) = (peers.clone(), peers.clone(), peers.router.clone());
    let transport = transport.clone();
    Arc::new(ShardEnv {
        config: config.clone(),
        clock: clock.clone(),
        downlink: Arc::new(move |note| notes.deliver(note, &transport)),
        gateway_life: Arc::new(move |gateway| life.gateway_life(gateway)),
        role_changed: Arc::new(move |shard, role| {
            metrics::gauge!("holdfast_raft_leader", "shard" => shard.to_string())
                .set(f64::from(u8::from(role.leading)));
            metrics::gauge!("holdfast_raft_term", "shard" => shard.to_string()).set(role.term as f64);
            if role.leading {
                metrics::counter!("holdfast_raft_elections_total", "shard" => shard.to_string()).increment(1);
            }
            roles.role_changed(shard, role);
        }),
        pace: peers.pace.clone(),
        disk: disk.clone(),
        memory_pressure: Arc::default(),
        memory_full: Arc::default(),
        fatal: fatal.clone(),
        stop,
    })
}

fn scrub_part(scrub: Arc<Scrub>) -> Part {
    Part {
        name: "scrub",
        restart: Restart::Always {
            max: 5,
            within_ms: 60_000,
        },
        start: Box::new(move |stop| {
            let scrub = scrub.clone();
            Box::pin(async move { scrub.run(stop).await })
        }),
    }
}

fn house_parts(
    replicas: &Arc<Replicas>,
    keeper: &Arc<Keeper>,
    flusher: &Arc<Flusher>,
    watched: &watch::Receiver<Arc<Catalog>>,
    router: &Arc<Router>,
) -> Vec<Part> {
    let (replicas, keeper, flusher, router) = (replicas.clone(), keeper.clone(), flusher.clone(), router.clone());
    let (watched, epochs) = (watched.clone(), watched.clone());
    let guard = replicas.clone();
    let restart = Restart::Always {
        max: 5,
        within_ms: 60_000,
    };
    let bring_up = move |mut stop: actors::shell::house::StopSignal| -> futures::future::BoxFuture<'static, _> {
        let (replicas, watched) = (replicas.clone(), watched.clone());
        Box::pin(crate::raft::group::seeded(replicas.peers.me.boot, async move {
            tokio::select! {
                () = stop.stopped() => Ok(()),
                done = replicas.run(watched) => done,
            }
        }))
    };
    let keep = move |stop| -> futures::future::BoxFuture<'static, _> {
        let keeper = keeper.clone();
        Box::pin(async move { keeper.run(stop).await })
    };
    let flush = move |stop| -> futures::future::BoxFuture<'static, _> {
        let flusher = flusher.clone();
        Box::pin(async move { flusher.run(stop).await })
    };
    let standing = move |stop| -> futures::future::BoxFuture<'static, _> {
        let guard = guard.clone();
        Box::pin(async move { guard.watch_standing(stop).await })
    };
    let epoch = move |mut stop: actors::shell::house::StopSignal| -> futures::future::BoxFuture<'static, _> {
        let (mut epochs, router) = (epochs.clone(), router.clone());
        Box::pin(async move {
            loop {
                router.set_epoch(epochs.borrow_and_update().epoch);
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    changed = epochs.changed() => changed?,
                }
            }
        })
    };
    vec![
        // Its failure means damaged bytes or a broken invariant: the node must not serve.
        Part {
            name: "replicas",
            restart: Restart::Escalate,
            start: Box::new(bring_up),
        },
        Part {
            name: "keeper",
            restart,
            start: Box::new(keep),
        },
        // A failed flush leaves unknown what is durable.
        Part {
            name: "flusher",
            restart: Restart::Escalate,
            start: Box::new(flush),
        },
        Part {
            name: "standing",
            restart,
            start: Box::new(standing),
        },
        Part {
            name: "epoch",
            restart,
            start: Box::new(epoch),
        },
    ]
}

/// What keeps replicas where the catalog wants them, and peers informed.
fn moving_parts(mover: &Arc<Mover>, herald: &Arc<Herald>) -> Vec<Part> {
    let (mover, herald) = (mover.clone(), herald.clone());
    let restart = Restart::Always {
        max: 5,
        within_ms: 60_000,
    };
    let run_mover = move |stop| -> futures::future::BoxFuture<'static, _> {
        let mover = mover.clone();
        Box::pin(async move { mover.run(stop).await })
    };
    let run_herald = move |stop| -> futures::future::BoxFuture<'static, _> {
        let herald = herald.clone();
        Box::pin(async move { herald.run(stop).await })
    };
    vec![
        Part {
            name: "mover",
            restart,
            start: Box::new(run_mover),
        },
        Part {
            name: "herald",
            restart,
            start: Box::new(run_herald),
        },
    ]
}
