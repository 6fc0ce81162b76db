//! Messages of the device's queue on their way through one connection: asked for, sent in order,
//! and settled by what the client answers.
//!
//! The queue is the device's, and replicated; here is only what this connection holds of it. All
//! of it may get lost at any time: what is not settled is handed to the next connection.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use actors::device::{Command, Message, Qos, Settlement, TakenMessage};
use actors::ports::{CallError, CallResult, MessagePushed};
use actors::wire::topic;
use bytestring::ByteString;
use cluster::api::{MessagesTaken, TakeMessages};
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::PublishProperties;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::downlink::granted;
use super::metrics;
use super::reasons::{self, End};
use super::session::SessionGuard;

/// The number under which the answer to a settlement comes; see `connection`.
pub(super) const SETTLEMENT: u64 = u64::MAX;
/// Pause before a question or a settlement that failed is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Pause when the node has no room for the content.
const NO_ROOM_RETRY: Duration = Duration::from_secs(1);
/// What a message costs the node beside its content.
const OVERHEAD_BYTES: usize = 512;

/// What a connection holds of its device's queue.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Handed to this connection, and not answered by the client.
    held: Vec<Held>,
    /// Of those, what is not sent yet, in order.
    ready: VecDeque<(TakenMessage, Message)>,
    /// The highest number this connection was handed.
    last: u64,
    /// The queue may hold more.
    waiting: bool,
    /// The last question brought nothing; it is asked again when something has changed.
    blocked: bool,
    /// A question is on its way.
    taking: bool,
    take_at: Option<Instant>,
    /// Answered by the client, and not yet committed. At most the client's window.
    settled: Vec<Settlement>,
    /// So many of them, from the front, are on their way.
    settling: usize,
    settle_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    number: u64,
    packet_id: u16,
}

impl Messages {
    /// `queued`: how many the device's queue held when the session was opened.
    pub(super) fn new(queued: u32) -> Self {
        Self {
            waiting: queued > 0,
            ..Self::default()
        }
    }

    /// There may be something to ask for.
    pub(super) fn noticed(&mut self) {
        self.waiting = true;
        self.blocked = false;
    }

    /// The device's queue holds so many; some of them are here.
    pub(super) fn counted(&mut self, queued: u32) {
        if queued as usize > self.held.len() + self.settled.len() {
            self.noticed();
        }
    }

    /// What did not interest the client before may do so now.
    pub(super) fn subscribed(&mut self) {
        self.blocked = false;
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When to try again.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let take = self.take_at.filter(|_| self.waiting && !self.taking);
        let settle = self
            .settle_at
            .filter(|_| self.settling == 0 && !self.settled.is_empty());
        [take, settle].into_iter().flatten().min()
    }

    /// Takes a message that was sent along with the news of it, if it is the next one.
    fn pushed(&mut self, pushed: MessagePushed, session: &mut SessionGuard, room: usize, now: Instant) {
        let next = pushed.taken.number > self.last && pushed.previous <= self.last;
        if next && !self.taking && self.held.len() < room {
            self.hold(pushed.taken, pushed.message, session, now);
        } else {
            self.noticed();
        }
    }

    fn hold(&mut self, taken: TakenMessage, message: Message, session: &mut SessionGuard, now: Instant) {
        if self.knows(taken.number) {
            return;
        }
        if !session.hold(cost(&message)) {
            self.noticed();
            self.take_at = Some(now + NO_ROOM_RETRY);
            return;
        }
        self.last = self.last.max(taken.number);
        self.held.push(Held {
            number: taken.number,
            packet_id: taken.packet_id,
        });
        self.ready.push_back((taken, message));
    }

    fn knows(&self, number: u64) -> bool {
        self.held.iter().any(|held| held.number == number) || self.settled.iter().any(|s| s.number == number)
    }

    /// What to ask for now, with room for so many.
    fn question(&mut self, generation: u64, room: usize, now: Instant) -> Option<TakeMessages> {
        let early = self.take_at.is_some_and(|at| now < at);
        if !self.waiting || self.blocked || self.taking || early || room == 0 || self.is_ready() {
            return None;
        }
        (self.waiting, self.taking, self.take_at) = (false, true, None);
        let held = self.held.iter().map(|held| held.number);
        Some(TakeMessages {
            generation,
            held: held.chain(self.settled.iter().map(|s| s.number)).collect(),
            count_max: u16::try_from(room).unwrap_or(u16::MAX),
        })
    }

    fn taken(
        &mut self,
        result: Result<MessagesTaken, CallError>,
        session: &mut SessionGuard,
        now: Instant,
    ) -> Result<(), End> {
        self.taking = false;
        match result {
            Ok(taken) => {
                self.waiting |= taken.more;
                self.blocked = taken.messages.is_empty();
                for (taken, message) in taken.messages {
                    self.hold(taken, message, session, now);
                }
                Ok(())
            }
            Err(CallError::Refused(refusal)) => reasons::ends_session(&refusal).map_or(Ok(()), Err),
            Err(_) => {
                self.noticed();
                self.take_at = Some(now + RETRY);
                Ok(())
            }
        }
    }

    /// The client's answer to a packet; says whether it was one of ours.
    pub(super) fn acknowledged(&mut self, packet_id: NonZeroU16, accepted: bool) -> bool {
        let position = self.held.iter().position(|held| held.packet_id == packet_id.get());
        let Some(position) = position else {
            return false;
        };
        let number = self.held.remove(position).number;
        self.settle(number, accepted);
        true
    }

    fn settle(&mut self, number: u64, accepted: bool) {
        self.settled.push(Settlement { number, accepted });
    }

    /// What is to be committed now.
    fn settlement(&mut self, generation: u64, now: Instant) -> Option<Command> {
        let early = self.settle_at.is_some_and(|at| now < at);
        if self.settling > 0 || self.settled.is_empty() || early {
            return None;
        }
        self.settling = self.settled.len();
        self.settle_at = None;
        Some(self.command(generation))
    }

    fn command(&self, generation: u64) -> Command {
        Command::SettleMessages {
            generation,
            settled: self.settled.clone(),
        }
    }

    /// Settling again is harmless, so that any failure is tried again.
    fn settlement_answered(&mut self, result: &CallResult, now: Instant) {
        let count = std::mem::take(&mut self.settling);
        match result {
            Ok(_) | Err(CallError::Refused(_)) => drop(self.settled.drain(..count)),
            Err(_) => self.settle_at = Some(now + RETRY),
        }
    }

    /// What was answered and may not be committed yet, for the time after the connection.
    pub(super) fn unsettled(self, generation: u64) -> Option<Command> {
        (!self.settled.is_empty()).then(|| self.command(generation))
    }
}

fn cost(message: &Message) -> usize {
    message.body.len() + OVERHEAD_BYTES
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn message_pushed(&mut self, pushed: MessagePushed) {
        if self.ending.is_none() {
            let room = self.down.window();
            self.messages.pushed(pushed, &mut self.session, room, self.now);
        }
    }

    pub(super) fn messages_taken(&mut self, result: Result<MessagesTaken, CallError>) -> Result<(), End> {
        self.messages.taken(result, &mut self.session, self.now)
    }

    pub(super) fn messages_settled(&mut self, result: &CallResult) {
        self.messages.settlement_answered(result, self.now);
    }

    /// Asks and settles, where that is due.
    pub(super) fn submit_messages(&mut self) {
        let generation = self.session.generation;
        if let Some(command) = self.messages.settlement(generation, self.now) {
            self.submit(SETTLEMENT, 0, command);
        }
        if self.ending.is_some() || self.subscriptions.is_empty() {
            return;
        }
        let room = self.down.room();
        if let Some(take) = self.messages.question(generation, room, self.now) {
            let mailbox = self.session.mailbox.clone();
            let reply = Box::new(move |result| mailbox.messages_taken(result));
            self.shared.devices.take_messages(self.key.clone(), take, reply);
        }
    }

    /// Sends what the client's window and the write buffer have room for.
    pub(super) fn send_messages(&mut self) {
        let bound = self.shared.limits.write_buffer_bytes_max;
        while self.messages.is_ready() && self.down.room() > 0 && self.socket.output.len() < bound {
            let Some((taken, message)) = self.messages.ready.pop_front() else {
                return;
            };
            self.session.let_go(cost(&message));
            self.send_message(&taken, message);
        }
    }

    fn send_message(&mut self, taken: &TakenMessage, message: Message) {
        let topic = topic::message(&self.key.device, &message.id);
        let grant = granted(&self.subscriptions, &topic);
        let at_least_once = grant.as_ref().is_some_and(|grant| grant.qos == Qos::AtLeastOnce);
        let packet_id = NonZeroU16::new(taken.packet_id).filter(|_| at_least_once);
        let free = packet_id.is_none_or(|id| !self.down.holds(id));
        let Some(grant) = grant.filter(|_| free) else {
            // It stays in the queue, for the next question or connection.
            self.messages.held.retain(|held| held.number != taken.number);
            return;
        };
        let properties = self.protocol.is_v5().then(|| Box::new(properties(taken, &message)));
        let publish = Publish {
            dup: taken.resent && packet_id.is_some(),
            retain: false,
            qos: packet_id.map_or(QoS::AtMostOnce, |_| QoS::AtLeastOnce),
            topic: topic.into(),
            packet_id,
            properties: properties
                .and_then(|told| grant.properties(Some(told)))
                .map(|told| *told),
            payload: message.body.into(),
        };
        let sent = self.protocol.publish_packet(&mut self.socket.output, Box::new(publish));
        match packet_id {
            Some(packet_id) if sent => self.down.hold(packet_id),
            // Without a PUBACK to wait for it is settled as it is sent; and one that is too large
            // for the client counts as sent in MQTT, but was not accepted.
            _ => {
                self.messages.held.retain(|held| held.number != taken.number);
                self.messages.settle(taken.number, sent);
            }
        }
        metrics::message_sent(sent, taken.enqueued_at, taken.resent);
    }
}

/// The rest of its life is told too, so that a client with a queue of its own can let it expire.
fn properties(taken: &TakenMessage, message: &Message) -> PublishProperties {
    let left_ms = taken.expires_at.0.saturating_sub(metrics::wall_clock_ms());
    let left_secs = u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX);
    let text = |text: &String| ByteString::from(text.as_str());
    PublishProperties {
        message_expiry_interval: Some(std::num::NonZeroU32::new(left_secs).unwrap_or(std::num::NonZeroU32::MIN)),
        content_type: message.content_type.as_ref().map(text),
        user_properties: message
            .properties
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
        ..PublishProperties::default()
    }
}
