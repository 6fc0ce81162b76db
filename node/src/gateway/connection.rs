//! One connection after CONNACK: a single loop over socket, mailbox and clock.
//!
//! Each turn takes all answers that came, tells the client what is due, in order, decodes all
//! packets that are here, submits their commands, and writes everything in one go. What a packet
//! means is decided in `publish`, `subscribe` and `twin`; what may be sent again in `inflight`.

use std::future::{poll_fn, Future};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actors::device::{CloseCause, Command, Subscription};
use actors::id::DeviceKey;
use actors::ports::{CallError, CallResult, Downlink, DownlinkBody, ReplyTo};
use actors::wire::topic;
use rand::Rng;
use rmqtt_codec::types::Publish;
use tokio::io::{AsyncRead, AsyncWrite};

use super::downlink::{granted, Down};
use super::handshake::Admitted;
use super::inflight::{InFlight, Pause};
use super::mailbox::{Answered, Mailbox, Stop};
use super::proto::{Incoming, Outgoing, Protocol};
use super::reasons::{self, End, Violation};
use super::shared::Shared;
use super::socket::{Front, Socket};
use super::{closer, metrics};

/// The number under which the answer to an announcement comes; commands count from 1.
const ANNOUNCEMENT: u64 = 0;
/// Pause before an announcement is tried again.
const ANNOUNCE_RETRY: Duration = Duration::from_millis(500);
/// How often a 3.1.1 publish that found the node's budget used up is tried again.
const HELD_RETRY: Duration = Duration::from_millis(20);

pub struct Connection<S> {
    pub(super) shared: Arc<Shared>,
    pub(super) key: DeviceKey,
    pub(super) session: SessionGuard,
    pub(super) protocol: Protocol,
    pub(super) socket: Socket<S>,
    pub(super) inflight: InFlight,
    pub(super) down: Down,
    pub(super) subscriptions: Vec<Subscription>,
    /// A publish that waits for room in the node's budget (3.1.1 cannot be refused one).
    pub(super) held: Option<Box<Publish>>,
    pub(super) now: Instant,
    /// Silence after which the client is taken for gone.
    silence_max: Option<Duration>,
    heard_at: Instant,
    expiry_secs: u32,
    /// Set once nothing more is read from the socket: how this ends when all is answered.
    ending: Option<End>,
    /// The client said goodbye: nothing is said any more.
    mute: bool,
    /// Since when the client has not read what it must.
    slow_since: Option<Instant>,
    announce_at: Option<Instant>,
    sleep: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    /// When `sleep` fires; later than the next deadline never, earlier often.
    armed: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(shared: Arc<Shared>, socket: Socket<S>, admitted: Admitted) -> Self {
        let now = Instant::now();
        let pause = Pause {
            min: shared.limits.retry_min,
            max: shared.limits.retry_max,
        };
        let keep_alive = u64::from(admitted.keep_alive_secs);
        Self {
            down: Down::new(&shared.limits, admitted.client_receive_maximum),
            inflight: InFlight::new(admitted.generation, pause),
            session: SessionGuard {
                shared: shared.clone(),
                key: admitted.key.clone(),
                generation: admitted.generation,
                mailbox: admitted.mailbox,
                cause: Some(CloseCause::Abrupt),
                bytes: 0,
            },
            key: admitted.key,
            protocol: admitted.protocol,
            subscriptions: admitted.subscriptions,
            silence_max: (keep_alive > 0).then(|| Duration::from_millis(keep_alive * 1500)),
            expiry_secs: admitted.expiry_secs,
            shared,
            socket,
            held: None,
            now,
            heard_at: now,
            ending: None,
            mute: false,
            slow_since: None,
            announce_at: None,
            sleep: None,
            armed: None,
        }
    }

    /// Serves the client until the end, and says goodbye. The session's end is committed in the
    /// background.
    pub async fn run(mut self) {
        let end = loop {
            self.now = Instant::now();
            if let Err(end) = self.turn() {
                break end;
            }
            self.wait().await;
        };
        self.finish(end).await;
    }

    fn turn(&mut self) -> Result<(), End> {
        self.take_notes()?;
        self.answer_finished()?;
        self.read_packets()?;
        // What was decided here has its answer already, and may have kept packets from being read.
        while self.inflight.has_finished() {
            self.answer_finished()?;
            self.read_packets()?;
        }
        self.submit_due();
        self.send_downlinks();
        self.check_deadlines()?;
        self.socket.relax();
        match &self.ending {
            Some(end) if self.inflight.is_empty() && self.held.is_none() => Err(end.clone()),
            _ => Ok(()),
        }
    }

    fn take_notes(&mut self) -> Result<(), End> {
        let notes = self.session.mailbox.take();
        for answered in notes.answers {
            if answered.number == ANNOUNCEMENT {
                self.announced(answered.result)?;
            } else {
                let Answered {
                    number,
                    attempt,
                    result,
                } = answered;
                self.inflight.answered(number, attempt, result, self.now)?;
            }
        }
        if notes.leader_changed {
            self.inflight.leader_changed(self.now);
            let spread = self
                .shared
                .limits
                .announce_spread
                .mul_f64(rand::rng().random_range(0.0..1.0));
            self.announce_at.get_or_insert(self.now + spread);
        }
        for downlink in notes.downlinks {
            self.take_downlink(downlink)?;
        }
        match notes.stop {
            None => Ok(()),
            Some(Stop::Now) => Err(End::ShuttingDown),
            Some(Stop::Draining) => {
                self.ending.get_or_insert(End::Draining);
                Ok(())
            }
            Some(Stop::ShuttingDown) => {
                self.ending.get_or_insert(End::ShuttingDown);
                Ok(())
            }
        }
    }

    fn take_downlink(&mut self, downlink: Downlink) -> Result<(), End> {
        if downlink.generation != self.session.generation {
            return Ok(());
        }
        match downlink.body {
            DownlinkBody::TakenOver => Err(End::TakenOver),
            DownlinkBody::NotAuthorised => Err(End::NotAuthorised),
            DownlinkBody::DesiredChanged { json, .. } => {
                let topic = topic::twin_desired(&self.key.device);
                self.publish_down(topic, json.into_bytes());
                Ok(())
            }
        }
    }

    /// Publishes to the device at the QoS it subscribed with, if it did.
    pub(super) fn publish_down(&mut self, topic: String, payload: Vec<u8>) {
        match granted(&self.subscriptions, &topic) {
            None => metrics::downlink_dropped("not_subscribed"),
            Some(qos) => {
                let outgoing = Outgoing {
                    topic,
                    payload,
                    at_least_once: qos == actors::device::Qos::AtLeastOnce,
                };
                self.down.push(&self.shared.limits, outgoing);
            }
        }
    }

    fn answer_finished(&mut self) -> Result<(), End> {
        while let Some(finished) = self.inflight.pop_finished() {
            self.session.give_back(finished.bytes);
            metrics::answered(self.now.duration_since(finished.since));
            self.answer(finished.after, finished.outcome)?;
        }
        Ok(())
    }

    fn read_packets(&mut self) -> Result<(), End> {
        if let Some(publish) = self.held.take() {
            self.on_publish(publish)?;
        }
        while self.takes_packets() {
            match self.socket.front() {
                Front::Malformed => return Err(self.offence(Violation::Malformed)),
                Front::Packet { remaining, .. } if remaining > self.shared.limits.packet_bytes_max => {
                    return Err(self.offence(Violation::PacketTooLarge));
                }
                Front::Packet { whole: true, .. } => self.read_packet()?,
                Front::Packet { whole: false, .. } | Front::Partial => {
                    if self.socket.ended {
                        self.ending.get_or_insert(End::Lost);
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read_packet(&mut self) -> Result<(), End> {
        let decoded = self.protocol.decode(&mut self.socket.input);
        let incoming = decoded.map_err(|violation| self.offence(violation))?;
        match incoming {
            Incoming::Publish(publish) => self.on_publish(publish),
            Incoming::PubAck(packet_id) => {
                self.down.acknowledged(packet_id);
                Ok(())
            }
            Incoming::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Incoming::Unsubscribe { packet_id, filters } => {
                self.on_unsubscribe(packet_id, filters);
                Ok(())
            }
            Incoming::Ping => {
                self.protocol.pong(&mut self.socket.output);
                Ok(())
            }
            Incoming::Disconnect { with_will, expiry_secs } => self.on_disconnect(with_will, expiry_secs),
            Incoming::Connect => Err(self.offence(Violation::SecondConnect)),
            Incoming::Unexpected => Err(self.offence(Violation::UnexpectedPacket)),
        }
    }

    /// What was sent before the goodbye is still carried out.
    fn on_disconnect(&mut self, with_will: bool, expiry_secs: Option<u32>) -> Result<(), End> {
        if self.expiry_secs == 0 && expiry_secs.is_some_and(|secs| secs > 0) {
            return Err(self.offence(Violation::Protocol));
        }
        self.mute = true;
        self.ending = Some(if with_will {
            End::GoodbyeWithWill
        } else {
            End::Goodbye { expiry_secs }
        });
        Ok(())
    }

    pub(super) fn offence(&self, violation: Violation) -> End {
        metrics::violation(violation.label());
        tracing::debug!(device = %self.key, reason = violation.label(), "client broke the protocol");
        End::Violation(violation)
    }

    pub(super) fn is_mute(&self) -> bool {
        self.mute
    }

    /// Whether another packet may be looked at: there is room for what it causes.
    fn takes_packets(&self) -> bool {
        let limits = &self.shared.limits;
        !self.mute
            && self.held.is_none()
            && self.inflight.len() < limits.in_flight_max
            && self.socket.output.len() <= limits.write_buffer_bytes_max
    }

    /// Whether the socket is read.
    fn listens(&self) -> bool {
        self.ending.is_none() && !self.socket.ended && self.takes_packets()
    }

    fn submit_due(&mut self) {
        while let Some(due) = self.inflight.due(self.now) {
            self.submit(due.number, due.attempt, due.command);
        }
        if self.announce_at.is_some_and(|at| at <= self.now) {
            self.announce_at = None;
            let command = Command::AnnounceSession {
                generation: self.session.generation,
                gateway: self.shared.devices.gateway(),
            };
            self.submit(ANNOUNCEMENT, 0, command);
        }
    }

    fn submit(&self, number: u64, attempt: u32, command: Command) {
        let mailbox = self.session.mailbox.clone();
        let reply = ReplyTo::new(move |result| {
            mailbox.answer(Answered {
                number,
                attempt,
                result,
            });
        });
        self.shared.devices.submit(self.key.clone(), command, reply);
    }

    fn announced(&mut self, result: CallResult) -> Result<(), End> {
        match result {
            Ok(_) => Ok(()),
            Err(CallError::Refused(refusal)) => reasons::ends_session(&refusal).map_or(Ok(()), Err),
            Err(_) => {
                self.announce_at = Some(self.now + ANNOUNCE_RETRY);
                Ok(())
            }
        }
    }

    fn send_downlinks(&mut self) {
        if !self.mute {
            let bound = self.shared.limits.write_buffer_bytes_max;
            self.down.send(&mut self.protocol, &mut self.socket.output, bound);
        }
    }

    fn check_deadlines(&mut self) -> Result<(), End> {
        let limits = &self.shared.limits;
        let passed = |since: Option<Instant>, after: Duration| since.is_some_and(|since| self.now >= since + after);
        if passed(self.inflight.oldest(), limits.commit_timeout) {
            return Err(self.inflight.unanswered());
        }
        if passed(self.slow_since, limits.slow_reader_timeout) {
            return Err(End::SlowReader);
        }
        if !self.listens() {
            // Silence that we caused is not the client's.
            self.heard_at = self.now;
        }
        if self.silence_max.is_some_and(|max| passed(Some(self.heard_at), max)) {
            return Err(End::KeepAlive);
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let limits = &self.shared.limits;
        let silence = self
            .silence_max
            .filter(|_| self.listens())
            .map(|max| self.heard_at + max);
        [
            self.inflight.oldest().map(|since| since + limits.commit_timeout),
            self.inflight.resend_at(),
            self.slow_since.map(|since| since + limits.slow_reader_timeout),
            self.announce_at,
            self.held.as_ref().map(|_| self.now + HELD_RETRY),
            silence,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Until there is something to do. Writes meanwhile what the client takes.
    async fn wait(&mut self) {
        poll_fn(|cx| {
            let noted = self.session.mailbox.poll(cx.waker());
            let wrote = self.poll_write(cx);
            let read = self.poll_read(cx);
            let late = self.poll_clock(cx);
            if noted || wrote || read || late {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        if self.mute {
            self.socket.output.clear();
            return false;
        }
        if self.socket.output.is_empty() {
            return false;
        }
        let before = self.socket.output.len();
        let full = !self.takes_packets();
        let polled = self.socket.poll_flush(cx);
        let left = self.socket.output.len();
        match polled {
            Poll::Ready(Ok(())) => {
                self.slow_since = None;
                // Room again for packets or downlinks that waited for it.
                full || self.down.is_waiting()
            }
            Poll::Ready(Err(_)) => {
                // Nobody hears us; what was received is still carried out.
                self.socket.ended = true;
                self.mute = true;
                self.ending.get_or_insert(End::Lost);
                true
            }
            Poll::Pending => {
                let over = left > self.shared.limits.write_buffer_bytes_max;
                if left < before && !over {
                    self.slow_since = None;
                }
                self.slow_since.get_or_insert_with(Instant::now);
                false
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.listens() {
            return false;
        }
        match self.socket.poll_fill(cx) {
            Poll::Ready(bytes) => {
                if bytes > 0 {
                    self.heard_at = Instant::now();
                }
                true
            }
            Poll::Pending => false,
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.next_deadline() else {
            return false;
        };
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.armed = Some(deadline);
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(deadline.into()),
                None => self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline.into()))),
            }
        }
        let fired = self
            .sleep
            .as_mut()
            .is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
        if fired {
            self.armed = None;
        }
        fired
    }

    async fn finish(mut self, end: End) {
        metrics::ended(end.label());
        tracing::debug!(device = %self.key, generation = self.session.generation, reason = end.label(), "connection ended");
        if self.mute {
            self.socket.output.clear();
        } else if let Some(code) = end.code() {
            self.protocol.disconnect(&mut self.socket.output, code);
        }
        let linger = self.shared.limits.linger;
        let Self { socket, session, .. } = self;
        session.end(end.close_cause());
        socket.close_gently(linger).await;
    }
}

/// What a connection holds on behalf of its session, given back however it ends: even a panic
/// leaves no ghost.
pub(super) struct SessionGuard {
    shared: Arc<Shared>,
    key: DeviceKey,
    generation: u64,
    mailbox: Arc<Mailbox>,
    cause: Option<CloseCause>,
    /// Of the node's budget.
    bytes: usize,
}

impl SessionGuard {
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let taken = self.shared.in_flight_bytes.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.shared.in_flight_bytes.give_back(bytes);
    }

    fn end(mut self, cause: Option<CloseCause>) {
        self.cause = cause;
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.shared.in_flight_bytes.give_back(self.bytes);
        self.shared.registry.remove(&self.key, &self.mailbox);
        if let Some(cause) = self.cause.take() {
            closer::close(&self.shared, self.key.clone(), self.generation, cause);
        }
    }
}
