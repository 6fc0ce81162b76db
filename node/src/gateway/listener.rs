//! The gateway as a whole: accepts connections, hands them to the arbiters, ends them gently.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actors::id::{DeviceKey, NodeId, ShardId};
use actors::shell::LivePolicy;
use cluster::api::{ArbiterHandle, DownlinkSink};
use tokio::net::{TcpListener, TcpStream};

use super::auth::Authenticator;
use super::connection::Connection;
use super::gate::Gates;
use super::limits::Limits;
use super::mailbox::Stop;
use super::port::Devices;
use super::registry::Registry;
use super::shared::Shared;
use super::socket::Socket;
use super::stream::Stream;
use super::{handshake, metrics, upgrade};

/// How often the metrics of what waits are set.
const LOAD_POLL: Duration = Duration::from_millis(500);
/// How often a draining node is asked whether its connections may go.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// Pause after an accept that failed (out of descriptors, mostly).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often a crowd at the door is looked at.
const CROWD_POLL: Duration = Duration::from_millis(5);
/// Accepts are spread over each second in windows of this length.
const ACCEPT_WINDOW: Duration = Duration::from_millis(20);
/// What the kernel may hold of one connection, in each direction; Linux doubles it for its own use.
const SOCKET_BUFFER_BYTES: usize = 64 * 1024;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

pub struct GatewayConfig {
    /// Where MQTT over TCP is spoken; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where MQTT over WebSocket is spoken, if anywhere.
    pub listen_ws: Option<SocketAddr>,
    /// Whose pages may open a WebSocket, beside those of this machine; `*` is everybody's.
    pub ws_origins: Vec<String>,
    pub limits: Limits,
    pub policy: LivePolicy,
    pub authenticator: Arc<dyn Authenticator>,
    /// The one the cluster delivers downlinks into.
    pub registry: Arc<Registry>,
    /// What is let through to each shard, by this gateway and by HTTP together.
    pub gates: Arc<Gates>,
}

/// The running gateway. Dropping it stops nothing; call [`Self::shutdown`].
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    ws_address: Option<SocketAddr>,
}

/// What is spoken below MQTT.
#[derive(Clone, Copy)]
enum Below {
    Tcp,
    WebSocket,
}

impl Gateway {
    /// Listens, and serves connections on the arbiters in turn.
    ///
    /// # Errors
    /// The address cannot be listened on, or there is no arbiter.
    pub fn start(config: GatewayConfig, devices: Arc<dyn Devices>, arbiters: Vec<ArbiterHandle>) -> io::Result<Self> {
        let Some(first) = arbiters.first().cloned() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no arbiter to serve connections on",
            ));
        };
        let listener = listen(config.listen)?;
        let address = listener.local_addr()?;
        let ws_listener = config.listen_ws.map(listen).transpose()?;
        let ws_address = ws_listener
            .as_ref()
            .map(std::net::TcpListener::local_addr)
            .transpose()?;
        let shared = Arc::new(Shared::new(
            config.limits,
            config.policy,
            devices,
            config.authenticator,
            config.registry,
            config.ws_origins,
            config.gates,
        ));
        let pace = Arc::new(Mutex::new(Pace::new(shared.limits.accepts_per_sec_max)));
        let ws = ws_listener.map(|listener| (listener, Below::WebSocket));
        for (listener, below) in std::iter::once((listener, Below::Tcp)).chain(ws) {
            let acceptor = Acceptor {
                shared: shared.clone(),
                arbiters: arbiters.clone(),
                next: 0,
                below,
                pace: pace.clone(),
            };
            first.spawn(acceptor.run(listener));
        }
        first.spawn(watch_leaders(shared.clone()));
        first.spawn(watch_drain(shared.clone()));
        first.spawn(watch_load(shared.clone()));
        tracing::info!(%address, websocket = ?ws_address, "MQTT listening");
        Ok(Self {
            shared,
            address,
            ws_address,
        })
    }

    /// Where MQTT over WebSocket is spoken.
    #[must_use]
    pub fn ws_address(&self) -> Option<SocketAddr> {
        self.ws_address
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn sink(&self) -> Arc<dyn DownlinkSink> {
        self.shared.registry.clone()
    }

    /// Open connections, those before CONNACK included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.used()
    }

    /// Ends of sessions that are not committed yet.
    #[must_use]
    pub fn closes_pending(&self) -> usize {
        self.shared.closes.used()
    }

    /// From now on: so many connections, and so many bytes in flight over all of them. What is
    /// over a lowered bound stays until it is done.
    pub fn set_bounds(&self, connections_max: usize, in_flight_bytes_max: usize) {
        self.shared.connections.set_max(connections_max);
        self.shared.in_flight_bytes.set_max(in_flight_bytes_max);
    }

    /// Every session announces itself again, spread over [`Limits::announce_spread`]: for when
    /// leaders may have taken this node for lost, though none has changed.
    pub fn announce_all(&self) {
        self.shared.registry.leader_changed(|_| true);
    }

    /// Every connection answers what it received, says "use another server", and closes; at
    /// `deadline` the rest is cut. Says whether all went in time. New connections are refused
    /// only while the node is marked as draining.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.end_all(Stop::Draining, deadline).await
    }

    /// As [`Self::drain`], for the end of the process; accepts nothing any more, and waits for
    /// the ends of sessions to be committed.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.shared.stop_accepting();
        let until = Instant::now() + deadline;
        let gone = self.end_all(Stop::ShuttingDown, deadline).await;
        let left = until.saturating_duration_since(Instant::now());
        gone & self.wait_until(left, || self.closes_pending() == 0).await
    }

    async fn end_all(&self, stop: Stop, deadline: Duration) -> bool {
        let ordered = self.wait_until(deadline, || {
            // Again each time: a connection may have been between CONNECT and its registration.
            self.shared.registry.stop(stop);
            self.shared.registry.is_empty() && (stop == Stop::Draining || self.connections() == 0)
        });
        let gone = ordered.await;
        if !gone {
            self.shared.registry.stop(Stop::Now);
        }
        gone
    }

    async fn wait_until(&self, deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + deadline;
        loop {
            if done() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit both. What a client has sent beyond its window would wait here,
    // and the kernel lets it be tens of megabytes each.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

struct Acceptor {
    shared: Arc<Shared>,
    arbiters: Vec<ArbiterHandle>,
    next: usize,
    below: Below,
    /// Of all listeners together.
    pace: Arc<Mutex<Pace>>,
}

impl Acceptor {
    async fn run(mut self, listener: std::net::TcpListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "MQTT listener failed; this node takes no devices");
                return;
            }
        };
        loop {
            while self.is_crowded() {
                tokio::time::sleep(CROWD_POLL).await;
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&self.shared) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.hand_over(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    metrics::rejected("accept_failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
            let pause = self
                .pace
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .accepted(Instant::now());
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Whoever waits in the kernel's backlog costs nothing; who was accepted costs a handshake.
    fn is_crowded(&self) -> bool {
        let max = self.shared.limits.handshakes_max;
        self.shared.stopping().is_none() && self.shared.handshakes.used() > max / 2
    }

    fn hand_over(&mut self, stream: TcpStream, peer: SocketAddr) {
        if !self.shared.connections.take(1) {
            return self.turn_away(stream);
        }
        let place = Place::new(self.shared.clone());
        let stream = match prepare(stream) {
            Ok(stream) => stream,
            // The peer has gone already.
            Err(_) => return metrics::rejected("closed_before_connect"),
        };
        self.next = (self.next + 1) % self.arbiters.len();
        let below = self.below;
        let sent = self.arbiters[self.next].spawn_fn(move || {
            actix_rt::spawn(serve(place, stream, peer, below));
        });
        if !sent {
            metrics::rejected("arbiter_stopped");
        }
    }
}

impl Acceptor {
    /// Says in the client's own protocol that there is no room, as far as that costs little.
    fn turn_away(&self, stream: TcpStream) {
        metrics::rejected("too_many_connections");
        let (shared, below) = (self.shared.clone(), self.below);
        actix_rt::spawn(async move {
            // Without a place there, it is just closed; so is a WebSocket, which has no CONNECT yet.
            let (Some(_place), Below::Tcp) = (shared.turning_away.hold(), below) else {
                return;
            };
            let mut socket = Socket::new(Stream::Tcp(stream));
            handshake::turn_away(&shared, &mut socket).await;
            socket.close_gently(shared.limits.linger).await;
        });
    }
}

fn prepare(stream: TcpStream) -> io::Result<std::net::TcpStream> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    // Finds dead peers that never promised to speak (keep-alive 0).
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(120))
        .with_interval(Duration::from_secs(20))
        .with_retries(4);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&probes)?;
    Ok(stream)
}

/// A connection's place among [`Limits::connections_max`].
struct Place {
    shared: Arc<Shared>,
}

impl Place {
    fn new(shared: Arc<Shared>) -> Self {
        metrics::connection_opened();
        Self { shared }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.give_back(1);
        metrics::connection_closed();
    }
}

async fn serve(place: Place, stream: std::net::TcpStream, peer: SocketAddr, below: Below) {
    let Ok(stream) = TcpStream::from_std(stream) else {
        return metrics::rejected("closed_before_connect");
    };
    let shared = place.shared.clone();
    let stream = match below {
        Below::Tcp => Stream::Tcp(stream),
        Below::WebSocket => match Box::pin(upgrade::accept(&shared, stream)).await {
            Some(stream) => Stream::WebSocket(Box::new(stream)),
            None => return,
        },
    };
    let mut socket = Socket::new(stream);
    // Boxed apart: most of a connection's life needs only the second.
    let admitted = Box::pin(handshake::admit(&shared, &mut socket, peer)).await;
    match admitted {
        Some(admitted) => Box::new(Connection::new(shared, socket, admitted)).run().await,
        None => socket.close_gently(shared.limits.linger).await,
    }
    drop(place);
}

async fn stopped(shared: &Shared) {
    while shared.stopping() != Some(Stop::ShuttingDown) {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Tells the sessions of a shard that its leader changed: they announce themselves to it, and
/// send again what waits.
async fn watch_leaders(shared: Arc<Shared>) {
    let mut changes = shared.devices.leadership_changes();
    let mut known: HashMap<ShardId, NodeId> = HashMap::new();
    loop {
        let devices = &*shared.devices;
        let mut seen = HashMap::new();
        shared.registry.leader_changed(|key: &DeviceKey| {
            let shard = devices.shard_of(key);
            let Some(leader) = devices.leader(shard) else {
                return false;
            };
            seen.insert(shard, leader);
            known.get(&shard) != Some(&leader)
        });
        known.extend(seen);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the metrics what waits.
async fn watch_load(shared: Arc<Shared>) {
    while shared.stopping() != Some(Stop::ShuttingDown) {
        metrics::load(shared.gates.waiting(), shared.buffered.load(Ordering::Relaxed));
        tokio::time::sleep(LOAD_POLL).await;
    }
}

/// A drained node leads nothing any more; its connections go elsewhere.
async fn watch_drain(shared: Arc<Shared>) {
    while shared.stopping() != Some(Stop::ShuttingDown) {
        if shared.devices.drained() {
            shared.registry.stop(Stop::Draining);
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Spreads accepts over each second.
struct Pace {
    per_window: u32,
    since: Option<Instant>,
    accepted: u32,
}

impl Pace {
    fn new(per_sec: u32) -> Self {
        Self {
            per_window: (per_sec / 50).max(1),
            since: None,
            accepted: 0,
        }
    }

    /// How long to accept nothing.
    fn accepted(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= ACCEPT_WINDOW {
            self.since = Some(now);
            self.accepted = 0;
        }
        self.accepted += 1;
        (self.accepted >= self.per_window).then(|| (since + ACCEPT_WINDOW).saturating_duration_since(now))
    }
}
