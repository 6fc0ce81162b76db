//! Replicas of one group in one thread: stores in memory, transports on loopback sockets, and a
//! net that can be cut around a node.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::NodeId;
use bytes::Bytes;

use super::tape::{Tape, TapedLog, TapedState};
use super::{rows_of, SHARD};
use crate::background::Background;
use crate::config::{ClusterConfig, Secret};
use crate::raft::group::{seeded, Group, Parts, Proposed};
use crate::raft::machine::GroupShared;
use crate::raft::rpc;
use crate::shard::apply::ShardApply;
use crate::transport::tests::harness::{bound, config, eventually, Ledger};
use crate::transport::{Answer, Class, Handler, PeerEvent, TcpConnector, Transport};

/// Who is cut off: hears nobody and is heard by nobody.
#[derive(Default)]
pub struct Net(Mutex<BTreeSet<NodeId>>);

impl Net {
    pub fn cut(&self, node: NodeId) {
        self.0.lock().unwrap().insert(node);
    }

    pub fn heal(&self) {
        self.0.lock().unwrap().clear();
    }

    pub fn carries(&self, a: NodeId, b: NodeId) -> bool {
        let cut = self.0.lock().unwrap();
        !cut.contains(&a) && !cut.contains(&b)
    }
}

struct Door {
    me: NodeId,
    net: Arc<Net>,
    group: Mutex<Option<Group>>,
    seeds: AtomicU64,
    snapshots: Arc<AtomicU64>,
}

impl Handler for Door {
    fn request(&self, from: NodeId, _class: Class, kind: u8, body: Bytes, answer: Answer) {
        let (me, net) = (self.me, self.net.clone());
        let group = self.group.lock().unwrap().clone();
        let (Some(group), Some((_, body))) = (group, rpc::open_envelope(body)) else {
            return;
        };
        if !net.carries(from, me) {
            return;
        }
        if kind == rpc::KIND_SNAPSHOT_END {
            self.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(seeded(seed, async move {
            if let Some(bytes) = group.serve(from, kind, body).await {
                if net.carries(from, me) {
                    answer.send(bytes);
                }
            }
        }));
    }
    fn notice(&self, _from: NodeId, _class: Class, _kind: u8, _body: Bytes) {}
    fn peer(&self, _peer: NodeId, _event: PeerEvent) {}
}

pub fn cluster_config(node_id: NodeId) -> ClusterConfig {
    ClusterConfig {
        flush_interval: std::time::Duration::from_secs(30),
        scrub_interval: Duration::from_secs(86_400),
        seed: [0; 32],
        cluster_id: "test".into(),
        secret: Secret(b"between us".to_vec()),
        node_id,
        me: crate::config::Member {
            id: node_id,
            peer: ([127, 0, 0, 1], 1).into(),
            mqtt: ([127, 0, 0, 1], 2).into(),
            http: ([127, 0, 0, 1], 3).into(),
            zone: "zone-1".into(),
        },
        members: Vec::new(),
        fresh_uuid: None,
        data_dir: "unused".into(),
        shards: 1,
        replication: 3,
        workers: 1,
        heartbeat: Duration::from_millis(40),
        election_min: Duration::from_millis(200),
        election_max: Duration::from_millis(400),
        gateway_grace: Duration::from_secs(1),
        telemetry_age_max: Duration::from_secs(3600),
        policy: Default::default(),
        shard_queue_max: 1024,
        passivate_after: Duration::from_secs(60),
        active_devices_max: 1024,
        block_cache_bytes: 0,
        unsafe_skip_log_fsync: false,
        unsafe_skip_vote_fsync: false,
        allow_drills: false,
    }
}

pub struct Replica {
    pub id: NodeId,
    pub log: Arc<TapedLog>,
    pub state: Arc<TapedState>,
    pub group: Group,
    /// Snapshots that arrived in whole.
    pub snapshots: Arc<AtomicU64>,
    transport: Transport,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.transport.shutdown();
    }
}

impl Replica {
    pub fn rows(&self) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
        self.group.shared.settle().unwrap();
        rows_of(&*self.state, self.group.shared.space().generation)
    }

    /// As the node's flusher does: note, flush, then let the log go.
    pub async fn flush(&self) {
        let shared = &self.group.shared;
        let note = shared.note().unwrap();
        self.state_flush();
        if shared.set_durable(note) {
            self.group.snapshot_metadata().await;
        }
    }

    fn state_flush(&self) {
        crate::storage::StateStore::flush(&*self.state).unwrap();
    }
}

pub struct Replicas {
    pub net: Arc<Net>,
    pub all: Vec<Replica>,
}

impl Replicas {
    /// One or more voters, connected and with a leader.
    pub async fn start(count: u64) -> Self {
        Self::start_voting(count, count).await
    }

    /// The first `voting` of `count` replicas are voters; the others are empty and nobody's.
    pub async fn start_voting(count: u64, voting: u64) -> Self {
        let net = Arc::<Net>::default();
        let background = Arc::new(Background::start("test background").unwrap());
        let sockets: Vec<_> = (1..=count).map(|id| (id, bound())).collect();
        let peers: Vec<_> = sockets.iter().map(|(id, (_, at))| (*id, *at)).collect();
        let mut all = Vec::new();
        for (id, (listener, at)) in sockets {
            let snapshots = Arc::<AtomicU64>::default();
            let door = Arc::new(Door {
                me: id,
                net: net.clone(),
                group: Mutex::new(None),
                seeds: AtomicU64::new(id << 32),
                snapshots: snapshots.clone(),
            });
            let connector = Arc::new(TcpConnector::with_listener(listener));
            let transport = Transport::start(
                config(id, id * 10, at, &peers),
                connector,
                door.clone(),
                Arc::new(Ledger::default()),
            )
            .unwrap();
            let tape = Arc::<Tape>::default();
            let log = Arc::new(TapedLog::new(tape.clone()));
            let state = Arc::new(TapedState {
                tape: tape.clone(),
                ..TapedState::default()
            });
            let shared =
                Arc::new(GroupShared::open(SHARD, state.clone(), background.clone(), background.clone()).unwrap());
            let parts = Parts {
                shard: SHARD,
                log: log.clone(),
                shared: shared.clone(),
                transport: transport.clone(),
                app: Box::new(ShardApply::new(&shared)),
            };
            let group = seeded(id, Group::open(&cluster_config(id), parts)).await.unwrap();
            *door.group.lock().unwrap() = Some(group.clone());
            all.push(Replica {
                id,
                log,
                state,
                group,
                snapshots,
                transport,
            });
        }
        for replica in &all {
            for (peer, _) in peers.iter().filter(|(peer, _)| *peer != replica.id) {
                eventually("peers are connected", || replica.transport.boot_of(*peer).is_some()).await;
            }
        }
        let replicas = Self { net, all };
        let voters = replicas.all.iter().map(|r| r.id).filter(|id| *id <= voting).collect();
        replicas.all[0].group.initialize(&voters).await;
        replicas.leader().await;
        replicas
    }

    /// Opens a replica of that node anew, on what its stores hold. Peers do not reach it.
    pub async fn reopen(&self, replica: &Replica) -> Group {
        let background = Arc::new(Background::start("test background").unwrap());
        let shared = Arc::new(GroupShared::open(SHARD, replica.state.clone(), background.clone(), background).unwrap());
        let parts = Parts {
            shard: SHARD,
            log: replica.log.clone(),
            shared: shared.clone(),
            transport: replica.transport.clone(),
            app: Box::new(ShardApply::new(&shared)),
        };
        seeded(replica.id, Group::open(&cluster_config(replica.id), parts))
            .await
            .unwrap()
    }

    /// The one that leads among those that are not cut off, once it has committed a barrier.
    pub async fn leader(&self) -> &Replica {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            for replica in &self.all {
                let here = self.net.carries(replica.id, replica.id);
                if here && replica.group.role().leading && replica.group.barrier().await.is_ok() {
                    return replica;
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn followers<'a>(&'a self, leader: &'a Replica) -> impl Iterator<Item = &'a Replica> {
        self.all.iter().filter(|replica| replica.id != leader.id)
    }

    /// Waits until every replica that is not cut off has applied `index`.
    pub async fn applied(&self, index: u64) {
        let here = |replica: &&Replica| self.net.carries(replica.id, replica.id);
        eventually("every replica applies", || {
            self.all.iter().filter(here).all(|r| r.group.applied_index() >= index)
        })
        .await;
    }
}

/// Proposes and returns where the outcome will arrive.
pub async fn propose(group: &Group, payload: Bytes) -> tokio::sync::oneshot::Receiver<Proposed> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    group
        .propose(payload, move |result| {
            let _ = tx.send(result);
        })
        .await;
    rx
}
