//! Keeps one (peer, class) connected: dials, runs the connection, dials again.
//!
//! On the Control class it also finds out what the end of a connection means for the peer's
//! process, and tells the handler.

use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use actors::time::Clock;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::belief::Belief;
use super::config::{BACKOFF_FIRST, BACKOFF_MAX, HANDSHAKE_TIMEOUT, KEEP_ALIVE_TICK, PING_AFTER_MS, SILENCE_MS_MAX};
use super::connector::ByteStream;
use super::counters::{add, count};
use super::frame::{Checker, Direction, FrameReader, ReadError};
use super::handshake::{self, Established, HandshakeError};
use super::link::Link;
use super::message::{Malformed, Messages, Role};
use super::outbox::write_all;
use super::peer::Peer;
use super::{Class, PeerEvent, Shared};
use crate::faults::{Entry, Tear, Way, Wire};

/// How long an attempt may take that decides whether a peer is lost or gone.
const URGENT_TIMEOUT: Duration = Duration::from_millis(250);
/// Pause between two such attempts, times the attempts made.
const URGENT_PAUSE: Duration = Duration::from_millis(5);
/// A connection that ended sooner counts as a failed attempt.
const SHORT_LIFE_MS: u64 = 1_000;

pub(super) fn start(shared: Arc<Shared>, peer: Arc<Peer>, class: Class) {
    let (closed, runtime) = (peer.closed.clone(), shared.runtime.clone());
    let dialer = Dialer {
        shared,
        peer,
        class,
        belief: Belief::default(),
        failures: 0,
    };
    runtime.spawn(async move { closed.run_until_cancelled(dialer.run()).await });
}

struct Dialer {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    class: Class,
    /// Kept on the Control class only.
    belief: Belief,
    /// Attempts since a connection last held.
    failures: u32,
}

/// Why there is no connection.
enum Failed {
    /// Nobody listens.
    Refused,
    /// No stream, or nothing comes over it, or it is not the peer we want.
    Unreachable,
    /// A stream was opened and broke off.
    Unclear,
}

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Silent,
    Broken,
}

impl Dialer {
    async fn run(mut self) {
        loop {
            match self.connect().await {
                Ok((stream, established)) => self.serve(stream, established).await,
                Err(failed) => self.learn(&failed),
            }
            self.pause().await;
        }
    }

    async fn connect(&self) -> Result<(Box<dyn ByteStream>, Established), Failed> {
        let shared = &self.shared;
        let timeout = shared.config.connect_timeout;
        let timeout = if self.belief.is_urgent() {
            timeout.min(URGENT_TIMEOUT)
        } else {
            timeout
        };
        match shared.config.faults.wire(self.peer.id).entry() {
            Entry::Open => {}
            Entry::Refused => return Err(Failed::Refused),
            Entry::Vanishes => {
                tokio::time::sleep(timeout).await;
                return Err(Failed::Unreachable);
            }
        }
        let dialing = tokio::time::timeout(timeout, shared.connector.dial(self.peer.id, self.peer.address));
        let mut stream = match dialing.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(peer = self.peer.id, class = ?self.class, %error, "peer not reached");
                return Err(match error.kind() {
                    io::ErrorKind::ConnectionRefused => Failed::Refused,
                    io::ErrorKind::ConnectionReset => Failed::Unclear,
                    _ => Failed::Unreachable,
                });
            }
            Err(_) => return Err(Failed::Unreachable),
        };
        let shaking = handshake::dial(&mut stream, &shared.config, self.peer.id, self.class, &*shared.ledger);
        let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await;
        match outcome.unwrap_or(Err(HandshakeError::TimedOut)) {
            Ok(established) => Ok((stream, established)),
            Err(error) => {
                shared.handshake_failed(&error, Some(self.peer.id));
                Err(if matches!(error, HandshakeError::Io(_)) {
                    Failed::Unclear
                } else {
                    Failed::Unreachable
                })
            }
        }
    }

    /// Runs a connection to its end.
    async fn serve(&mut self, stream: Box<dyn ByteStream>, established: Established) {
        let shared = self.shared.clone();
        let started_ms = shared.config.clock.monotonic_ms();
        let closer = self.peer.closed.child_token();
        let opened = self.peer.link(self.class).open(closer.clone(), established.boot);
        count(&shared.counters.connections);
        self.peer.heard(started_ms);
        debug!(peer = self.peer.id, class = ?self.class, boot = established.boot, "connected");
        self.connected(established.boot);
        let (control, peer) = (self.class == Class::Control, self.peer.clone());
        let running = {
            let shared = shared.clone();
            async move {
                // Dropped last, however this ends: its requests are then over.
                let _opened = opened;
                connection(&shared, &peer, stream, established, closer).await
            }
        };
        // A task of its own: a panic in a handler must not end the dialing.
        let ended = tokio::spawn(running).await.unwrap_or(Ended::Broken);
        count(&shared.counters.disconnections);
        debug!(peer = self.peer.id, class = ?self.class, "disconnected");
        if control {
            self.disconnected(ended);
        }
        let lived_ms = shared.config.clock.monotonic_ms().saturating_sub(started_ms);
        self.failures = if lived_ms < SHORT_LIFE_MS {
            self.failures.saturating_add(1)
        } else {
            0
        };
    }

    fn connected(&mut self, boot: u64) {
        if self.class == Class::Control {
            self.peer.set_boot(Some(boot));
            for event in self.belief.connected(boot) {
                self.tell(event);
            }
            self.peer.is_alive(boot);
        }
    }

    fn disconnected(&mut self, ended: Ended) {
        self.peer.set_boot(None);
        self.belief.broke();
        if ended == Ended::Silent {
            count(&self.shared.counters.silences);
            self.peer.is_dead();
            if let Some(event) = self.belief.unreachable() {
                self.tell(event);
            }
        }
    }

    fn learn(&mut self, failed: &Failed) {
        self.failures = self.failures.saturating_add(1);
        if self.class != Class::Control {
            return;
        }
        let event = match failed {
            Failed::Refused => self.belief.refused(),
            Failed::Unreachable => self.belief.unreachable(),
            Failed::Unclear => self.belief.unclear(),
        };
        if let Some(event) = event {
            if event == PeerEvent::ProcessGone {
                self.peer.is_dead();
            }
            self.tell(event);
        }
    }

    fn tell(&self, event: PeerEvent) {
        info!(peer = self.peer.id, ?event, "peer");
        let told = catch_unwind(AssertUnwindSafe(|| self.shared.handler.peer(self.peer.id, event)));
        if told.is_err() {
            tracing::error!(peer = self.peer.id, ?event, "handler panicked over a peer event");
        }
    }

    /// Waits before the next attempt, or until something shows that it is worth trying now.
    async fn pause(&self) {
        let pause = match self.belief {
            Belief::Broken { unclear, .. } => URGENT_PAUSE * unclear,
            _ => backoff(self.failures, (self.shared.config.nonces)()),
        };
        tokio::select! {
            () = self.peer.link(self.class).retry.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Doubles from the first to the longest, less up to half of it.
fn backoff(failures: u32, random: [u8; 16]) -> Duration {
    let full = BACKOFF_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(BACKOFF_MAX);
    full - full.mul_f64(f64::from(random[0]) / 512.0)
}

async fn connection(
    shared: &Shared,
    peer: &Peer,
    stream: Box<dyn ByteStream>,
    established: Established,
    closer: CancellationToken,
) -> Ended {
    let link = peer.link(established.class);
    let (read_half, mut write_half) = tokio::io::split(stream);
    let wire = shared.config.faults.wire(peer.id);
    let checker = Checker::new(established.key, Direction::FromAcceptor);
    let mut reader = FrameReader::new(read_half, checker, shared.config.frame_bytes_max);
    let clock = &*shared.config.clock;
    let heard_ms = AtomicU64::new(clock.monotonic_ms());
    let reading = read(shared, peer, link, (&mut reader, &wire), &heard_ms);
    let checker = Checker::new(established.key, Direction::FromDialer);
    let writing = write_all(&mut write_half, checker, &**link, &shared.counters, &wire);
    let watching = async {
        if established.class != Class::Control {
            std::future::pending::<()>().await;
        }
        silence(clock, &heard_ms, || {
            if link.unsent_ms() >= PING_AFTER_MS {
                // A full queue is being written: the peer hears from us anyway.
                let _ = link.notify(0, Role::Ping, &[]);
            }
        })
        .await;
    };
    let torn = tokio::select! {
        biased;
        () = closer.cancelled() => return Ended::Broken,
        ended = reading => {
            if let Err(error) = ended {
                shared.reading_failed(&error, peer.id);
            }
            return Ended::Broken;
        }
        _error = writing => return Ended::Broken,
        () = link.sweep() => return Ended::Broken,
        () = watching => return Ended::Silent,
        tear = wire.tears() => tear,
    };
    match torn {
        Tear::Cut => Ended::Broken,
        Tear::HalfOpen => {
            shared.keep_half_open(wire, (reader, write_half));
            Ended::Silent
        }
    }
}

async fn read(
    shared: &Shared,
    peer: &Peer,
    link: &Link,
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
                Role::Answer => link.answered(header.correlation, Some(body)),
                Role::NoAnswer => link.answered(header.correlation, None),
                Role::Pong => {}
                Role::Request | Role::Notice | Role::Ping => return Err(Malformed.into()),
            }
        }
    }
    Ok(())
}

/// Returns when nothing was heard for too long; calls `tick` every now and then until it does.
pub(super) async fn silence(clock: &dyn Clock, heard_ms: &AtomicU64, tick: impl Fn() + Send) {
    let mut suspected = false;
    loop {
        tokio::time::sleep(KEEP_ALIVE_TICK).await;
        tick();
        let silent = clock.monotonic_ms().saturating_sub(heard_ms.load(Relaxed)) > SILENCE_MS_MAX;
        // Twice: when this process stood still, what has arrived meanwhile is read first.
        if silent && suspected {
            return;
        }
        suspected = silent;
    }
}

/// Why reading a connection ended, other than by its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] ReadError),
    #[error("frame holds what this side is never sent")]
    Malformed,
}

impl From<Malformed> for ConnectionError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Shared {
    /// Keeps the two halves of a connection open, unread and unwritten, until no fault wants it.
    pub(super) fn keep_half_open(&self, wire: Wire, halves: impl Send + 'static) {
        let closed = self.shutdown.clone();
        self.runtime.spawn(async move {
            closed.run_until_cancelled(wire.mends()).await;
            drop(halves);
        });
    }

    pub(super) fn frame_received(&self, peer: &Peer, payload_len: usize, heard_ms: &AtomicU64) {
        let now_ms = self.config.clock.monotonic_ms();
        heard_ms.store(now_ms, Relaxed);
        peer.heard(now_ms);
        count(&self.counters.frames_received);
        add(
            &self.counters.bytes_received,
            payload_len + super::frame::FRAME_HEADER_LEN,
        );
    }

    /// Counts why a connection failed, and says so.
    pub(super) fn reading_failed(&self, error: &ConnectionError, peer: u64) {
        let (counter, topic) = match error {
            // Ends of processes look like this; the peer events tell of them.
            ConnectionError::Frame(ReadError::Io(error)) => return debug!(peer, %error, "connection lost"),
            ConnectionError::Frame(ReadError::Checksum) => (&self.counters.frames_bad_checksum, "frame checksum"),
            ConnectionError::Frame(ReadError::Oversized(_)) => (&self.counters.frames_oversized, "frame oversized"),
            ConnectionError::Frame(ReadError::Truncated) => (&self.counters.frames_truncated, "frame truncated"),
            ConnectionError::Frame(ReadError::Empty) | ConnectionError::Malformed => {
                (&self.counters.frames_malformed, "frame malformed")
            }
        };
        count(counter);
        if let Some(held_back) = self.quiet.speak(topic) {
            warn!(peer, %error, held_back, "connection to peer closed");
        }
    }

    /// Counts why there is no connection, and says so. `peer`: the one dialed; `None`: a caller.
    pub(super) fn handshake_failed(&self, error: &HandshakeError, peer: Option<u64>) {
        let topic = match error {
            HandshakeError::Refused(reason) => {
                count(&self.counters.refused[reason.index()]);
                reason.name()
            }
            HandshakeError::RefusedByPeer(reason) => {
                count(&self.counters.refused_by_peer[reason.index()]);
                "refused by peer"
            }
            HandshakeError::Disowned(reason) => {
                count(&self.counters.refused_by_peer[reason.index()]);
                count(&self.counters.disowned[reason.index()]);
                "refused by peer"
            }
            HandshakeError::TimedOut => {
                count(&self.counters.handshakes_timed_out);
                "timed out"
            }
            HandshakeError::Io(error) => {
                count(&self.counters.handshakes_broken);
                return debug!(peer, %error, "handshake broke off");
            }
        };
        if let Some(held_back) = self.quiet.speak(topic) {
            warn!(peer, %error, held_back, "no connection to peer");
        }
    }
}
