//! Nodes with a handler that writes down what it sees.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::NodeId;
use actors::time::{Clock, Timestamp};
use bytes::Bytes;

use crate::config::Secret;
use crate::faults::Faults;
use crate::transport::*;

pub const ECHO: u8 = 0;
/// The answer is kept until the test releases it.
pub const HOLD: u8 = 1;
pub const DROP: u8 = 2;
pub const PANIC: u8 = 3;

pub const LONG: Duration = Duration::from_secs(10);

struct RuntimeClock(tokio::time::Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.monotonic_ms())
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}

#[derive(Default)]
pub struct Recorder {
    pub notices: Mutex<Vec<(NodeId, Class, u8, Bytes)>>,
    pub events: Mutex<Vec<(NodeId, PeerEvent)>>,
    pub held: Mutex<Vec<(Bytes, Answer)>>,
    pub requests: AtomicU64,
}

impl Recorder {
    pub fn events_of(&self, peer: NodeId) -> Vec<PeerEvent> {
        self.events
            .lock()
            .unwrap()
            .iter()
            .filter(|(of, _)| *of == peer)
            .map(|(_, event)| *event)
            .collect()
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Handler for Recorder {
    fn request(&self, _from: NodeId, _class: Class, kind: u8, body: Bytes, answer: Answer) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match kind {
            HOLD => self.held.lock().unwrap().push((body, answer)),
            DROP => drop(answer),
            PANIC => panic!("a handler that fails"),
            _ => answer.send(body),
        }
    }

    fn notice(&self, from: NodeId, class: Class, kind: u8, body: Bytes) {
        self.notices.lock().unwrap().push((from, class, kind, body));
    }

    fn peer(&self, peer: NodeId, event: PeerEvent) {
        self.events.lock().unwrap().push((peer, event));
    }
}

/// Knows each node under one uuid.
#[derive(Default)]
pub struct Ledger(Mutex<BTreeMap<NodeId, u128>>);

impl PeerLedger for Ledger {
    fn admit(&self, node: NodeId, run: Run) -> Admission {
        if *self.0.lock().unwrap().entry(node).or_insert(run.uuid) == run.uuid {
            Admission::Admitted
        } else {
            Admission::OtherDirectory
        }
    }
}

pub struct Node {
    pub id: NodeId,
    pub at: SocketAddr,
    pub transport: Transport,
    pub seen: Arc<Recorder>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.transport.shutdown();
    }
}

impl Node {
    pub async fn connected_to(&self, peer: NodeId) {
        eventually("every class is connected", || {
            let ready = |class| self.transport.notify(peer, class, 255, Bytes::new()).is_ok();
            self.transport.boot_of(peer).is_some() && Class::ALL.into_iter().all(ready)
        })
        .await;
    }

    pub async fn echo(&self, to: NodeId, body: &'static str) -> Result<Bytes, SendError> {
        self.transport
            .request(to, Class::Append, ECHO, Bytes::from_static(body.as_bytes()), LONG)
            .await
    }
}

pub fn nonces(seed: u64) -> Nonces {
    let next = AtomicU64::new(0);
    Arc::new(move || {
        let n = next.fetch_add(1, Ordering::Relaxed);
        xxhash_rust::xxh3::xxh3_128_with_seed(&n.to_le_bytes(), seed).to_le_bytes()
    })
}

pub fn config(node_id: NodeId, boot: u64, listen: SocketAddr, peers: &[(NodeId, SocketAddr)]) -> TransportConfig {
    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(tokio::time::Instant::now()));
    TransportConfig {
        cluster_id: "test".to_owned(),
        node_id,
        boot,
        node_uuid: u128::from(node_id) << 64,
        starts: 1,
        quarantined: false,
        secret: Secret(b"between us".to_vec()),
        listen,
        peers: peers.to_vec(),
        queue_bytes_max: TransportConfig::QUEUE_BYTES_MAX,
        frame_bytes_max: TransportConfig::FRAME_BYTES_MAX,
        connect_timeout: TransportConfig::CONNECT_TIMEOUT,
        faults: Faults::new(node_id, true, clock.clone()),
        clock,
        nonces: nonces(node_id << 32 | boot),
    }
}

pub fn bound() -> (StdListener, SocketAddr) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

pub fn start_on(listener: StdListener, config: TransportConfig) -> Node {
    start_with(
        Arc::new(TcpConnector::with_listener(listener)),
        config,
        Arc::new(Ledger::default()),
    )
}

pub fn start(config: TransportConfig) -> Node {
    start_with(Arc::new(TcpConnector::default()), config, Arc::new(Ledger::default()))
}

pub fn start_with(connector: Arc<dyn Connector>, config: TransportConfig, ledger: Arc<dyn PeerLedger>) -> Node {
    let seen = Arc::<Recorder>::default();
    let (id, at) = (config.node_id, config.listen);
    let transport = Transport::start(config, connector, seen.clone(), ledger).unwrap();
    Node {
        id,
        at,
        transport,
        seen,
    }
}

/// Nodes 1 and 2, connected to each other.
pub async fn pair() -> (Node, Node) {
    pair_with(|_| ()).await
}

pub async fn pair_with(adapt: impl Fn(&mut TransportConfig)) -> (Node, Node) {
    let ((one, at_one), (two, at_two)) = (bound(), bound());
    let peers = [(1, at_one), (2, at_two)];
    let mut configs = [config(1, 11, at_one, &peers), config(2, 21, at_two, &peers)];
    configs.iter_mut().for_each(adapt);
    let [first, second] = configs;
    let (one, two) = (start_on(one, first), start_on(two, second));
    one.connected_to(2).await;
    two.connected_to(1).await;
    (one, two)
}

/// Waits for a condition; fails loudly when it does not come true.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
