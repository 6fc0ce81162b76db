//! Takes connections, lets members in, and hands what they send to the handler.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actors::id::NodeId;
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::config::{HANDSHAKES_MAX, HANDSHAKE_TIMEOUT};
use super::connector::{ByteStream, Listener};
use super::counters::count;
use super::dialer::{silence, ConnectionError};
use super::frame::{Checker, Direction, FrameReader};
use super::handshake::{self, Established, HandshakeError};
use super::incoming::Incoming;
use super::message::{Malformed, Messages, Role};
use super::outbox::write_all;
use super::peer::Peer;
use super::{Class, Shared};
use crate::faults::{Tear, Way, Wire};

/// After a failed `accept` (out of descriptors, mostly): trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn start(shared: Arc<Shared>, listener: Box<dyn Listener>) {
    let shutdown = shared.shutdown.clone();
    let acceptor = Acceptor {
        shared,
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        present: Arc::default(),
    };
    tokio::spawn(async move { shutdown.run_until_cancelled(acceptor.run(listener)).await });
}

#[derive(Clone)]
struct Acceptor {
    shared: Arc<Shared>,
    handshakes: Arc<Semaphore>,
    present: Arc<Present>,
}

/// The one connection of each peer and class that is served.
#[derive(Default)]
struct Present {
    connections: Mutex<BTreeMap<(NodeId, Class), (u64, CancellationToken)>>,
    last: AtomicU64,
}

impl Present {
    /// Closes the older connection, if there is one. Returns this one's number.
    fn replace(&self, peer: NodeId, class: Class, closer: CancellationToken) -> u64 {
        let number = self.last.fetch_add(1, Relaxed);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, older)) = connections.insert((peer, class), (number, closer)) {
            older.cancel();
        }
        number
    }

    fn remove(&self, peer: NodeId, class: Class, number: u64) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections
            .get(&(peer, class))
            .is_some_and(|(present, _)| *present == number)
        {
            connections.remove(&(peer, class));
        }
    }
}

/// Ends what a connection holds, however the connection ends.
struct Served {
    present: Arc<Present>,
    key: (NodeId, Class, u64),
    incoming: Arc<Incoming>,
    shared: Arc<Shared>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let (peer, class, number) = self.key;
        self.present.remove(peer, class, number);
        self.incoming.close();
        count(&self.shared.counters.disconnections);
    }
}

impl Acceptor {
    async fn run(self, mut listener: Box<dyn Listener>) {
        loop {
            match listener.accept().await {
                Ok(stream) => self.admit(stream),
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    async fn accept_failed(&self, error: &io::Error) {
        if let Some(held_back) = self.shared.quiet.speak("accept") {
            warn!(%error, held_back, "cannot accept connections of peers");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn admit(&self, stream: Box<dyn ByteStream>) {
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            return count(&self.shared.counters.handshakes_crowded_out);
        };
        let (acceptor, shutdown) = (self.clone(), self.shared.shutdown.clone());
        tokio::spawn(async move { shutdown.run_until_cancelled(acceptor.serve(stream, permit)).await });
    }

    async fn serve(self, mut stream: Box<dyn ByteStream>, permit: OwnedSemaphorePermit) {
        let shared = &self.shared;
        let member = |node| shared.is_peer(node);
        let shaking = handshake::accept(&mut stream, &shared.config, member, &*shared.ledger);
        let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await;
        drop(permit);
        let established = match outcome.unwrap_or(Err(HandshakeError::TimedOut)) {
            Ok(established) => established,
            Err(error) => return shared.handshake_failed(&error, None),
        };
        let Some(peer) = shared.peer(established.peer) else {
            return;
        };
        count(&shared.counters.connections);
        peer.heard(shared.config.clock.monotonic_ms());
        // It dialed us, so it can be dialed; and if it is another run, what leads to the old one is dead.
        peer.is_alive(established.boot);
        let closer = peer.closed.child_token();
        let number = self
            .present
            .replace(established.peer, established.class, closer.clone());
        let incoming = Arc::new(Incoming::new(&shared.config, shared.counters.clone()));
        let _served = Served {
            present: self.present.clone(),
            key: (established.peer, established.class, number),
            incoming: incoming.clone(),
            shared: self.shared.clone(),
        };
        connection(shared, &peer, stream, &established, &incoming, closer).await;
    }
}

async fn connection(
    shared: &Shared,
    peer: &Peer,
    stream: Box<dyn ByteStream>,
    established: &Established,
    incoming: &Arc<Incoming>,
    closer: CancellationToken,
) {
    let (read_half, write_half) = tokio::io::split(stream);
    let (wire, mut write_half) = (shared.config.faults.wire(peer.id), write_half);
    let checker = Checker::new(established.key, Direction::FromDialer);
    let mut reader = FrameReader::new(read_half, checker, shared.config.frame_bytes_max);
    let clock = &*shared.config.clock;
    let heard_ms = AtomicU64::new(clock.monotonic_ms());
    let reading = read(
        shared,
        peer,
        established.class,
        incoming,
        (&mut reader, &wire),
        &heard_ms,
    );
    let checker = Checker::new(established.key, Direction::FromAcceptor);
    let writing = write_all(&mut write_half, checker, &**incoming, &shared.counters, &wire);
    let watching = async {
        if established.class != Class::Control {
            std::future::pending::<()>().await;
        }
        silence(clock, &heard_ms, || ()).await;
    };
    let torn = tokio::select! {
        biased;
        () = closer.cancelled() => {
            debug!(peer = peer.id, class = ?established.class, "replaced by a newer connection");
            None
        }
        ended = reading => {
            if let Err(error) = ended {
                shared.reading_failed(&error, peer.id);
            }
            None
        }
        error = writing => {
            debug!(peer = peer.id, %error, "connection lost");
            None
        }
        () = watching => {
            count(&shared.counters.silences);
            None
        }
        tear = wire.tears() => Some(tear),
    };
    if torn == Some(Tear::HalfOpen) {
        shared.keep_half_open(wire, (reader, write_half));
    }
}

async fn read(
    shared: &Shared,
    peer: &Peer,
    class: Class,
    incoming: &Arc<Incoming>,
    (reader, wire): (&mut FrameReader<impl AsyncRead + Unpin>, &Wire),
    heard_ms: &AtomicU64,
) -> Result<(), ConnectionError> {
    while let Some(payload) = reader.next().await? {
        if wire.drops(Way::In) {
            continue;
        }
        shared.frame_received(peer, payload.len(), heard_ms);
        for message in Messages(payload) {
            let (header, body) = message?;
            count(&shared.counters.messages_received);
            match header.role {
                Role::Request => {
                    incoming.has_room().await;
                    let answer = incoming.take_in(header, body.len());
                    shared.handler.request(peer.id, class, header.kind, body, answer);
                }
                Role::Notice => shared.handler.notice(peer.id, class, header.kind, body),
                Role::Ping => incoming.pong(),
                Role::Answer | Role::NoAnswer | Role::Pong => return Err(Malformed.into()),
            }
        }
    }
    Ok(())
}
