//! One connection after CONNACK: a single loop over socket, mailbox and clock.
//!
//! Each turn takes all answers that came, tells the client what is due, in order, decodes all
//! packets that are here, submits their commands, and writes everything in one go. What a packet
//! means is decided in `publish`, `subscribe` and `twin`; what may be sent again in `inflight`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::device::{Answer, Command, Subscription};
use actors::id::DeviceKey;
use actors::ports::{CallError, CallResult, Downlink, DownlinkBody, ReplyTo};
use actors::wire::topic;
use rand::Rng;
use rmqtt_codec::types::Publish;
use rmqtt_codec::v5::PublishProperties;
use tokio::io::{AsyncRead, AsyncWrite};

use super::alias::Aliases;
use super::children::Children;
use super::closer;
use super::downlink::{granted, Down};
use super::handshake::Admitted;
use super::inflight::{InFlight, Pause};
use super::mailbox::{Answered, Stop, OWN};
use super::messages::{self, Messages};
use super::methods::Methods;
use super::metrics;
use super::proto::{Incoming, Outgoing, Protocol};
use super::reasons::{self, End, Violation};
use super::session::SessionGuard;
use super::shared::Shared;
use super::socket::{Front, Socket};
use super::waiting::Alarm;

/// The number under which the answer to an announcement comes; commands count from 1.
const ANNOUNCEMENT: u64 = 0;
/// Pause before an announcement is tried again.
pub(super) const ANNOUNCE_RETRY: Duration = Duration::from_millis(500);

pub struct Connection<S> {
    pub(super) shared: Arc<Shared>,
    pub(super) key: DeviceKey,
    pub(super) session: SessionGuard,
    pub(super) protocol: Protocol,
    pub(super) socket: Socket<S>,
    pub(super) inflight: InFlight,
    pub(super) down: Down,
    pub(super) methods: Methods,
    pub(super) messages: Messages,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) aliases: Aliases,
    /// A publish that waits for its turn, or for room in the node's budget.
    pub(super) held: Option<Box<Publish>>,
    pub(super) held_since: Option<Instant>,
    /// What is at hand has waited too long: in this turn it is refused.
    pub(super) shedding: bool,
    /// An answer came since the socket was last looked at.
    pub(super) answered: bool,
    pub(super) now: Instant,
    /// Silence after which the client is taken for gone.
    pub(super) silence_max: Option<Duration>,
    pub(super) heard_at: Instant,
    pub(super) expiry_secs: u32,
    pub(super) keep_alive_secs: u16,
    /// A PUBACK may carry its receipt.
    pub(super) wants_receipts: bool,
    /// The session began with this connection.
    pub(super) is_fresh: bool,
    /// Those it acts for, once it does.
    pub(super) children: Option<Box<Children>>,
    /// Set once nothing more is read from the socket: how this ends when all is answered.
    pub(super) ending: Option<End>,
    /// The client said goodbye: nothing is said any more.
    pub(super) mute: bool,
    /// Since when the client has not read what it must.
    pub(super) slow_since: Option<Instant>,
    pub(super) announce_at: Option<Instant>,
    pub(super) alarm: Alarm,
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
            methods: Methods::default(),
            messages: Messages::new(admitted.messages),
            inflight: InFlight::new(admitted.generation, pause),
            session: SessionGuard::new(&shared, &admitted.key, admitted.generation, admitted.mailbox),
            key: admitted.key,
            protocol: admitted.protocol,
            subscriptions: admitted.subscriptions,
            aliases: Aliases::default(),
            silence_max: (keep_alive > 0).then(|| Duration::from_millis(keep_alive * 1500)),
            expiry_secs: admitted.expiry_secs,
            keep_alive_secs: admitted.keep_alive_secs,
            wants_receipts: admitted.wants_receipts,
            is_fresh: admitted.is_fresh,
            children: None,
            shared,
            socket,
            held: None,
            held_since: None,
            shedding: false,
            answered: false,
            now,
            heard_at: now,
            ending: admitted.is_unheard.then_some(End::Lost),
            mute: false,
            slow_since: None,
            announce_at: None,
            alarm: Alarm::default(),
        }
    }

    /// Serves the client until the end, and says goodbye. The session's end is committed in the
    /// background.
    ///
    /// In a box, and its end in another: a future keeps room for everything it will ever hold, and
    /// most connections are idle.
    pub async fn run(mut self: Box<Self>) {
        self.wake_children();
        let end = self.serve().await;
        Box::pin(self.finish(end)).await;
    }

    async fn serve(&mut self) -> End {
        loop {
            self.now = Instant::now();
            if let Err(end) = self.turn() {
                return end;
            }
            self.wait().await;
        }
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
        self.session.settle(self.now);
        self.submit_due();
        self.send_downlinks();
        self.send_calls();
        self.submit_messages();
        self.check_deadlines()?;
        self.socket.relax();
        let buffered = self.socket.buffered() + self.down.queued_bytes();
        if !self.session.buffer(buffered) {
            return Err(End::BuffersFull);
        }
        match &self.ending {
            Some(end) if self.inflight.is_empty() && self.held.is_none() => Err(end.clone()),
            _ => Ok(()),
        }
    }

    fn take_notes(&mut self) -> Result<(), End> {
        let notes = self.session.mailbox.take();
        self.session.granted(notes.granted);
        self.answered |= !notes.answers.is_empty();
        for answered in notes.answers {
            if answered.lane != OWN {
                self.lane_answered(answered)?;
            } else if answered.number == ANNOUNCEMENT {
                self.announced(answered.result)?;
            } else if answered.number == messages::SETTLEMENT {
                self.messages_settled(&answered.result);
            } else {
                let Answered {
                    number,
                    attempt,
                    result,
                    ..
                } = answered;
                self.inflight.answered(number, attempt, result, self.now)?;
            }
        }
        for lane in notes.leader_changed {
            if lane != OWN {
                self.lane_leader_changed(lane);
                continue;
            }
            self.inflight.leader_changed(self.now);
            let spread = self
                .shared
                .limits
                .announce_spread
                .mul_f64(rand::rng().random_range(0.0..1.0));
            self.announce_at.get_or_insert(self.now + spread);
        }
        for taken in notes.taken {
            self.messages_taken(taken)?;
        }
        for downlink in notes.downlinks {
            self.take_downlink(downlink)?;
        }
        for (call, reply) in notes.calls {
            self.take_call(call, reply);
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
        let device = &downlink.key.device;
        if self.generation_of(device) != Some(downlink.generation) {
            return Ok(());
        }
        match downlink.body {
            DownlinkBody::TakenOver => self.session_lost(device, End::TakenOver),
            DownlinkBody::NotAuthorised => self.session_lost(device, End::NotAuthorised),
            DownlinkBody::DesiredChanged { json, .. } => {
                let topic = topic::twin_desired(device);
                self.publish_down(topic, json.into_bytes());
                Ok(())
            }
            DownlinkBody::Message(pushed) if *device == self.key.device => {
                self.message_pushed(*pushed);
                Ok(())
            }
            DownlinkBody::Message(_) | DownlinkBody::MessagesWaiting => {
                if *device == self.key.device {
                    self.messages.noticed();
                } else if let Some(children) = &mut self.children {
                    children.messages_noticed(device);
                }
                Ok(())
            }
        }
    }

    /// Publishes to the device at the QoS it subscribed with, if it did.
    pub(super) fn publish_down(&mut self, topic: String, payload: Vec<u8>) {
        self.publish_down_with(topic, payload, None);
    }

    /// As above, with properties for MQTT 5.
    pub(super) fn publish_down_with(
        &mut self,
        topic: String,
        payload: Vec<u8>,
        properties: Option<Box<PublishProperties>>,
    ) {
        match granted(self.subscriptions_to(&topic), &topic) {
            None => metrics::downlink_dropped("not_subscribed"),
            Some(grant) => {
                let outgoing = Outgoing {
                    topic,
                    payload,
                    at_least_once: grant.qos == actors::device::Qos::AtLeastOnce,
                    properties: grant.properties(properties),
                };
                self.down.push(&self.shared.limits, outgoing);
            }
        }
    }

    fn answer_finished(&mut self) -> Result<(), End> {
        while let Some(finished) = self.inflight.pop_finished() {
            let latency = self.now.duration_since(finished.since);
            self.session.give_back(finished.bytes, latency);
            metrics::answered(latency);
            self.answer(finished.after, finished.outcome)?;
        }
        Ok(())
    }

    fn read_packets(&mut self) -> Result<(), End> {
        self.shedding = self.waited_too_long();
        if self.shedding || !self.session.is_queued() {
            if let Some(publish) = self.held.take() {
                self.on_publish(publish)?;
            }
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
            Incoming::Publish(mut publish) => {
                let resolved = self.aliases.resolve(&mut publish, self.shared.limits.topic_alias_max);
                resolved.map_err(|violation| self.offence(violation))?;
                self.on_publish(publish)
            }
            Incoming::PubAck { packet_id, accepted } => {
                self.down.acknowledged(packet_id);
                if !self.messages.acknowledged(packet_id, accepted) {
                    if let Some(children) = &mut self.children {
                        children.acknowledged(packet_id, accepted);
                    }
                }
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
    pub(super) fn takes_packets(&self) -> bool {
        let limits = &self.shared.limits;
        // MQTT 5 clients that exceed the window are told; 3.1.1 ones know none and have to wait.
        let window = usize::from(limits.receive_maximum);
        let fits_window = self.inflight.unacknowledged() < window;
        fits_window
            && !self.mute
            && self.held.is_none()
            && self.inflight.len() < limits.in_flight_max
            && self.socket.output.len() <= limits.write_buffer_bytes_max
    }

    fn submit_due(&mut self) {
        let mut submitted = false;
        while let Some(due) = self.inflight.due(self.now) {
            self.submit(due.number, due.attempt, due.command);
            submitted = true;
        }
        if let Some(children) = &mut self.children {
            children.submit_due(self.now);
        }
        if submitted {
            metrics::admitted(self.now.elapsed());
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

    pub(super) fn submit(&self, number: u64, attempt: u32, command: Command) {
        let mailbox = self.session.mailbox.clone();
        let reply = ReplyTo::new(move |result| {
            mailbox.answer(Answered {
                lane: OWN,
                number,
                attempt,
                result,
            });
        });
        self.shared.devices.submit(self.key.clone(), command, reply);
    }

    fn announced(&mut self, result: CallResult) -> Result<(), End> {
        match result {
            Ok(reply) => {
                if let Answer::SessionLive { messages } = reply.answer {
                    self.messages.counted(messages);
                }
                Ok(())
            }
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
            self.send_messages();
            self.send_messages_of_children();
        }
    }

    async fn finish(mut self: Box<Self>, end: End) {
        metrics::ended(end.label());
        tracing::debug!(device = %self.key, generation = self.session.generation, reason = end.label(), "connection ended");
        if self.mute {
            self.socket.output.clear();
        } else if let Some(code) = end.code() {
            self.protocol.disconnect(&mut self.socket.output, code);
        }
        let linger = self.shared.limits.linger;
        let Self {
            shared,
            key,
            socket,
            session,
            messages,
            ..
        } = *self;
        if let Some(command) = messages.unsettled(session.generation) {
            closer::carry_out(&shared, key, command);
        }
        session.end(end.close_cause());
        socket.close_gently(linger).await;
    }
}
