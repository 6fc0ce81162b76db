//! Serves what peers send, and remembers what is known of their processes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use actors::id::{Gateway, NodeId, ShardId};
use actors::ports::{CallError, CallResult, Downlink, ReplyTo};
use actors::time::Clock;
use actors::wire::codec;
use bytes::Bytes;

use super::failover;
use super::rebuild::Rebuilds;
use crate::api::{DownlinkSink, MethodCall, MethodError, MethodReply};
use crate::raft::group::{seeded, Group};
use crate::raft::rpc;
use crate::router::protocol::{
    Ask, AskResult, ForwardedCall, Lead, KIND_ASK, KIND_CALL, KIND_DOWNLINK, KIND_LEADS, KIND_METHOD,
};
use crate::router::Router;
use crate::service::Service;
use crate::shard::pace::Pace;
use crate::shard::presence::GatewayLife;
use crate::transport::{Answer, Class, Handler, PeerEvent, Transport};

/// A peer's process, as last heard of.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub boot: u64,
    pub since_ms: u64,
}

pub struct Peers {
    pub me: Gateway,
    pub clock: Arc<dyn Clock>,
    pub router: Arc<Router>,
    pub service: Arc<Service>,
    pub downlinks: Arc<dyn DownlinkSink>,
    /// Replicas without state, whose groups are not open.
    pub rebuilds: Arc<Rebuilds>,
    /// When the shards led here propose.
    pub pace: Arc<Pace>,
    groups: RwLock<BTreeMap<ShardId, Group>>,
    links: Mutex<BTreeMap<NodeId, Link>>,
    seeds: AtomicU64,
    #[cfg(feature = "planted")]
    planted: super::planted::DropOnReconnect,
    /// Where the transport's tasks run; served requests run there too.
    runtime: OnceLock<tokio::runtime::Handle>,
}

impl Peers {
    pub fn new(
        me: Gateway,
        clock: Arc<dyn Clock>,
        router: Arc<Router>,
        service: Arc<Service>,
        downlinks: Arc<dyn DownlinkSink>,
    ) -> Self {
        Self {
            me,
            clock,
            router,
            rebuilds: service.rebuilds.clone(),
            service,
            downlinks,
            pace: Arc::default(),
            groups: RwLock::default(),
            links: Mutex::default(),
            seeds: AtomicU64::new(me.boot),
            #[cfg(feature = "planted")]
            planted: Default::default(),
            runtime: OnceLock::new(),
        }
    }

    /// To be called where the transport will run.
    pub fn runs_here(&self) {
        let _ = self.runtime.set(tokio::runtime::Handle::current());
    }

    pub fn add(&self, group: Group) {
        self.groups
            .write()
            .expect("no holder of this lock panics")
            .insert(group.shard, group);
    }

    /// Messages of peers find no replica of this shard any more.
    pub fn remove(&self, shard: ShardId) {
        self.groups
            .write()
            .expect("no holder of this lock panics")
            .remove(&shard);
    }

    /// No longer a peer: what was known of its process is over.
    pub fn forget(&self, peer: NodeId) {
        self.links.lock().expect("no holder of this lock panics").remove(&peer);
        metrics::gauge!("holdfast_peer_connected", "peer" => peer.to_string()).set(0.0);
    }

    pub fn groups(&self) -> Vec<Group> {
        self.groups
            .read()
            .expect("no holder of this lock panics")
            .values()
            .cloned()
            .collect()
    }

    pub fn link(&self, peer: NodeId) -> Option<Link> {
        self.links
            .lock()
            .expect("no holder of this lock panics")
            .get(&peer)
            .copied()
    }

    pub fn is_connected(&self, peer: NodeId) -> bool {
        peer == self.me.node || self.link(peer).is_some()
    }

    /// What is known of the process behind a connection.
    pub fn gateway_life(&self, gateway: Gateway) -> GatewayLife {
        let known = if gateway.node == self.me.node {
            Some(self.me.boot)
        } else {
            self.link(gateway.node).map(|l| l.boot)
        };
        match known {
            Some(boot) if boot == gateway.boot => GatewayLife::Alive,
            Some(_) => GatewayLife::Gone,
            None => GatewayLife::Silent,
        }
    }

    pub fn deliver(&self, note: Downlink, transport: &Transport) {
        if note.gateway == self.me {
            self.downlinks.deliver(note);
        } else if note.gateway.node != self.me.node {
            let body = Bytes::from(codec::encode(&note));
            if let Err(error) = transport.notify(note.gateway.node, Class::Device, KIND_DOWNLINK, body) {
                tracing::debug!(device = %note.key, %error, "downlink not sent");
            }
        }
    }

    fn spawn(&self, task: impl std::future::Future<Output = ()> + Send + 'static) {
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed);
        match self.runtime.get() {
            Some(runtime) => drop(runtime.spawn(seeded(seed, task))),
            None => tracing::error!("a peer was served before the transport ran"),
        }
    }

    fn raft(&self, from: NodeId, kind: u8, body: Bytes, answer: Answer) {
        let Some((shard, body)) = rpc::open_envelope(body) else {
            return;
        };
        let group = self
            .groups
            .read()
            .expect("no holder of this lock panics")
            .get(&shard)
            .cloned();
        // Dropping the answer says "none": this replica is not there (yet).
        let Some(group) = group else {
            if let Some(serving) = self.rebuilds.serve(shard, from, kind, body) {
                self.spawn(async move { answer.send(serving.await) });
            }
            return;
        };
        self.spawn(async move {
            if let Some(bytes) = group.serve(from, kind, body).await {
                answer.send(bytes);
            }
        });
    }

    fn call(&self, from: NodeId, body: &[u8], answer: Answer) {
        #[cfg_attr(not(feature = "planted"), allow(unused_mut))]
        let Ok(mut call) = codec::decode::<ForwardedCall>(body) else {
            return;
        };
        #[cfg(feature = "planted")]
        let dropped = self.planted.strikes(from, &mut call);
        let shard = self.router.shard_of(&call.key);
        if let Some(trace) = &call.trace {
            tracing::debug!(%trace, from, device = %call.key, %shard, "forwarded command");
        }
        if call.epoch > self.router.epoch() && self.router.handle(shard).is_none() {
            // Our map is the stale one; the sender will come again.
            return answer_call(answer, Err(CallError::NotLeader { shard, leader: None }));
        }
        #[cfg(feature = "planted")]
        if dropped {
            let reply = ReplyTo::new(move |result| answer_call(answer, super::planted::acknowledged(result)));
            return self.router.submit_here(shard, call.key, call.command, reply);
        }
        let reply = ReplyTo::new(move |result| answer_call(answer, result));
        self.router.submit_here(shard, call.key, call.command, reply);
    }

    fn method(&self, from: NodeId, body: &[u8], answer: Answer) {
        let Ok(call) = codec::decode::<MethodCall>(body) else {
            return;
        };
        if let Some(trace) = &call.trace {
            tracing::debug!(%trace, from, device = %call.key, method = %call.name, "method call");
        }
        let reply = MethodReply::new(move |result| answer.send(Bytes::from(codec::encode(&result))));
        if call.gateway == self.me {
            self.downlinks.invoke(call, reply);
        } else {
            // Another run of this node held the connection.
            reply.send(Err(MethodError::NotHere));
        }
    }

    fn ask(&self, body: &[u8], answer: Answer) {
        let Ok(ask) = codec::decode::<Ask>(body) else { return };
        let service = self.service.clone();
        self.spawn(async move {
            let result: AskResult = service.answer(ask).await;
            answer.send(Bytes::from(codec::encode(&result)));
        });
    }
}

fn answer_call(answer: Answer, result: CallResult) {
    answer.send(Bytes::from(codec::encode(&result)));
}

/// The transport's handler; owns nothing else, so that tests can hand in their own.
pub struct PeerHandler(pub Arc<Peers>);

impl Handler for PeerHandler {
    fn request(&self, from: NodeId, class: Class, kind: u8, body: Bytes, answer: Answer) {
        match (class, kind) {
            (Class::Device, KIND_CALL) => self.0.call(from, &body, answer),
            (Class::Device, KIND_ASK) => self.0.ask(&body, answer),
            (Class::Device, KIND_METHOD) => self.0.method(from, &body, answer),
            (Class::Append | Class::Control | Class::Snapshot, kind) => {
                if class == Class::Append {
                    self.0.pace.nudge();
                }
                self.0.raft(from, kind, body, answer)
            }
            _ => tracing::debug!(from, kind, "request of an unknown kind"),
        }
    }

    fn notice(&self, from: NodeId, class: Class, kind: u8, body: Bytes) {
        match (class, kind) {
            (Class::Device, KIND_DOWNLINK) => {
                if let Ok(note) = codec::decode::<Downlink>(&body) {
                    if note.gateway == self.0.me {
                        self.0.downlinks.deliver(note);
                    }
                }
            }
            (Class::Device, KIND_LEADS) => {
                if let Ok(leads) = codec::decode::<Vec<Lead>>(&body) {
                    self.0.router.told(from, &leads);
                }
            }
            _ => tracing::debug!(from, kind, "notice of an unknown kind"),
        }
    }

    fn peer(&self, peer: NodeId, event: PeerEvent) {
        tracing::info!(peer, ?event, "peer");
        let connected = matches!(event, PeerEvent::Connected { .. });
        metrics::gauge!("holdfast_peer_connected", "peer" => peer.to_string()).set(f64::from(u8::from(connected)));
        let mut links = self.0.links.lock().expect("no holder of this lock panics");
        match event {
            PeerEvent::Connected { boot } => {
                #[cfg(feature = "planted")]
                self.0.planted.connected(peer);
                links.insert(
                    peer,
                    Link {
                        boot,
                        since_ms: self.0.clock.monotonic_ms(),
                    },
                );
            }
            PeerEvent::Lost => {
                links.remove(&peer);
            }
            PeerEvent::ProcessGone => {
                links.remove(&peer);
                drop(links);
                self.0.router.gone(peer);
                let peers = self.0.clone();
                self.0.spawn(async move { failover::take_over(&peers, peer).await });
            }
        }
    }
}
