//! Messages of a device's queue on their way through one connection: asked for, sent in order, and
//! settled by what the client answers. The device is the connection's own, or a child of it.
//!
//! The queue is the device's, and replicated; here is only what this connection holds of it. All
//! of it may get lost at any time: what is not settled is handed to the next connection.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::device::{Command, Message, Qos, Settlement, TakenMessage};
use actors::id::{DeviceId, DeviceKey};
use actors::ports::{CallError, CallResult, MessagePushed};
use actors::wire::topic;
use bytestring::ByteString;
use cluster::api::{MessagesTaken, TakeMessages};
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::PublishProperties;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::downlink::{granted, Grant};
use super::mailbox::{Lane, Mailbox, Taken, OWN};
use super::metrics;
use super::reasons::{self, End};
use super::session::SessionGuard;
use super::shared::Shared;

/// The number under which the answer to a settlement comes; see `connection`.
pub(super) const SETTLEMENT: u64 = u64::MAX - 1;
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
    /// A question for so many is on its way.
    taking: Option<usize>,
    /// Bytes set aside for its answer.
    reserved: usize,
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
        let take = self.take_at.filter(|_| self.waiting && self.taking.is_none());
        let settle = self
            .settle_at
            .filter(|_| self.settling == 0 && !self.settled.is_empty());
        [take, settle].into_iter().flatten().min()
    }

    /// Takes a message that was sent along with the news of it, if it is the next one.
    fn pushed(&mut self, pushed: MessagePushed, session: &mut SessionGuard, room: usize, now: Instant) {
        let next = pushed.taken.number > self.last && pushed.previous <= self.last;
        if next && self.taking.is_none() && self.held.len() < room {
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

    /// Whether there is something to ask for now.
    pub(super) fn asks(&self, now: Instant) -> bool {
        let early = self.take_at.is_some_and(|at| now < at);
        self.waiting && !self.blocked && self.taking.is_none() && !early && !self.is_ready()
    }

    /// Asks for so many, of up to so many bytes each. `None`: the node has no room for them now.
    pub(super) fn question(
        &mut self,
        session: &mut SessionGuard,
        (room, bytes_max): (usize, usize),
        now: Instant,
    ) -> Option<TakeMessages> {
        // What is handed over comes at once, so that there has to be room for it before.
        let mut counts = [room, 1].into_iter();
        let reserved = counts.find_map(|count| Some((count, session.hold_up_to(count * bytes_max)?)));
        let Some((count, reserved)) = reserved else {
            self.take_at = Some(now + RETRY);
            return None;
        };
        (self.waiting, self.taking, self.take_at) = (false, Some(count), None);
        self.reserved = reserved;
        let held = self.held.iter().map(|held| held.number);
        Some(TakeMessages {
            generation: session.generation,
            held: held.chain(self.settled.iter().map(|s| s.number)).collect(),
            count_max: u16::try_from(count).unwrap_or(u16::MAX),
        })
    }

    /// How many are to be sent soon.
    pub(super) fn expected(&self) -> usize {
        self.ready.len() + self.taking.unwrap_or(0)
    }

    /// Neither something to ask for nor to send nor to settle, until something changes.
    pub(super) fn is_quiet(&self) -> bool {
        (!self.waiting || self.blocked) && self.taking.is_none() && self.ready.is_empty() && self.settled.is_empty()
    }

    /// The next one to send; what it cost the node is given back.
    pub(super) fn next_ready(&mut self, session: &mut SessionGuard) -> Option<(TakenMessage, Message)> {
        let (taken, message) = self.ready.pop_front()?;
        session.let_go(cost(&message));
        Some((taken, message))
    }

    pub(super) fn taken(
        &mut self,
        result: Result<MessagesTaken, CallError>,
        session: &mut SessionGuard,
        now: Instant,
    ) -> Result<(), End> {
        self.taking = None;
        session.let_go(std::mem::take(&mut self.reserved));
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

    /// It was not sent, and stays in the queue for a later question or connection.
    pub(super) fn put_back(&mut self, number: u64) {
        self.held.retain(|held| held.number != number);
    }

    /// It was sent under this packet id.
    pub(super) fn sent_as(&mut self, number: u64, packet_id: NonZeroU16) {
        if let Some(held) = self.held.iter_mut().find(|held| held.number == number) {
            held.packet_id = packet_id.get();
        }
    }

    /// It was sent and nobody will acknowledge it.
    pub(super) fn sent_for_good(&mut self, number: u64, accepted: bool) {
        self.put_back(number);
        self.settle(number, accepted);
    }

    fn settle(&mut self, number: u64, accepted: bool) {
        self.settled.push(Settlement { number, accepted });
    }

    /// What is to be committed now.
    pub(super) fn settlement(&mut self, generation: u64, now: Instant) -> Option<Command> {
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
    pub(super) fn settlement_answered(&mut self, result: &CallResult, now: Instant) {
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
    message.bytes() + OVERHEAD_BYTES
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn message_pushed(&mut self, pushed: MessagePushed) {
        if self.ending.is_none() {
            let room = self.down.window();
            self.messages.pushed(pushed, &mut self.session, room, self.now);
        }
    }

    pub(super) fn messages_taken(&mut self, taken: Taken) -> Result<(), End> {
        if taken.lane == OWN {
            return self.messages.taken(taken.result, &mut self.session, self.now);
        }
        if let Some(children) = &mut self.children {
            children.messages_taken(taken, self.now);
        }
        Ok(())
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
        if self.ending.is_some() {
            return;
        }
        let mut room = self.down.room();
        if room > 0 && !self.subscriptions.is_empty() && self.messages.asks(self.now) {
            let wanted = (room, bytes_max(&self.shared));
            if let Some(take) = self.messages.question(&mut self.session, wanted, self.now) {
                ask(&self.shared, &self.session.mailbox, OWN, &self.key, take);
            }
        }
        if let Some(children) = &mut self.children {
            room = room.saturating_sub(self.messages.expected());
            children.submit_messages(room, self.now);
        }
    }

    /// Sends what the client's window and the write buffer have room for.
    pub(super) fn send_messages(&mut self) {
        let bound = self.shared.limits.write_buffer_bytes_max;
        while self.messages.is_ready() && self.down.room() > 0 && self.socket.output.len() < bound {
            let Some((taken, message)) = self.messages.next_ready(&mut self.session) else {
                return;
            };
            self.send_message(&taken, message);
        }
    }

    /// As above, for the children. Packet ids are the connection's: those that go with the messages
    /// are each child's own, and would meet.
    pub(super) fn send_messages_of_children(&mut self) {
        let bound = self.shared.limits.write_buffer_bytes_max;
        while self.down.room() > 0 && self.socket.output.len() < bound {
            let next = self.children.as_mut().and_then(|children| children.next_message());
            let Some((child, taken, message)) = next else {
                return;
            };
            self.send_message_of_child(&child, &taken, message);
        }
    }

    fn send_message_of_child(&mut self, child: &DeviceId, taken: &TakenMessage, message: Message) {
        let topic = topic::message(child, &message.id);
        let grant = granted(self.subscriptions_to(&topic), &topic);
        let Some(children) = &mut self.children else {
            return;
        };
        let Some(grant) = grant else {
            return children.message_put_back(child, taken.number);
        };
        let packet_id = (grant.qos == Qos::AtLeastOnce).then(|| self.down.free_id());
        let publish = publish_of((taken, message), (topic, grant), packet_id, self.protocol.is_v5());
        let sent = self.protocol.publish_packet(&mut self.socket.output, publish);
        match packet_id {
            Some(packet_id) if sent => {
                self.down.hold(packet_id);
                children.message_sent(child, taken.number, packet_id);
            }
            _ => children.message_sent_for_good(child, taken.number, sent),
        }
        metrics::message_sent(sent, taken.enqueued_at, taken.resent);
    }

    fn send_message(&mut self, taken: &TakenMessage, message: Message) {
        let topic = topic::message(&self.key.device, &message.id);
        let grant = granted(&self.subscriptions, &topic);
        let at_least_once = grant.as_ref().is_some_and(|grant| grant.qos == Qos::AtLeastOnce);
        let packet_id = NonZeroU16::new(taken.packet_id).filter(|_| at_least_once);
        let free = packet_id.is_none_or(|id| !self.down.holds(id));
        let Some(grant) = grant.filter(|_| free) else {
            return self.messages.put_back(taken.number);
        };
        let mut publish = publish_of((taken, message), (topic, grant), packet_id, self.protocol.is_v5());
        publish.dup = taken.resent && packet_id.is_some();
        let sent = self.protocol.publish_packet(&mut self.socket.output, publish);
        match packet_id {
            Some(packet_id) if sent => self.down.hold(packet_id),
            // Without a PUBACK to wait for it is settled as it is sent; and one that is too large
            // for the client counts as sent in MQTT, but was not accepted.
            _ => self.messages.sent_for_good(taken.number, sent),
        }
        metrics::message_sent(sent, taken.enqueued_at, taken.resent);
    }
}

/// What one message may cost the node.
pub(super) fn bytes_max(shared: &Shared) -> usize {
    shared.policy.get().message_bytes_max + OVERHEAD_BYTES
}

/// Sends a question on its way; the answer comes as a note.
pub(super) fn ask(shared: &Shared, mailbox: &Arc<Mailbox>, lane: Lane, device: &DeviceKey, take: TakeMessages) {
    let (mailbox, generation) = (mailbox.clone(), take.generation);
    let reply = Box::new(move |result| {
        mailbox.messages_taken(Taken {
            lane,
            generation,
            result,
        });
    });
    shared.devices.take_messages(device.clone(), take, reply);
}

fn publish_of(
    (taken, message): (&TakenMessage, Message),
    (topic, grant): (String, Grant),
    packet_id: Option<NonZeroU16>,
    is_v5: bool,
) -> Box<Publish> {
    let told = is_v5.then(|| Box::new(properties(taken, &message)));
    Box::new(Publish {
        dup: false,
        retain: false,
        qos: packet_id.map_or(QoS::AtMostOnce, |_| QoS::AtLeastOnce),
        topic: topic.into(),
        packet_id,
        properties: told.and_then(|told| grant.properties(Some(told))).map(|told| *told),
        payload: message.body.into(),
    })
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
