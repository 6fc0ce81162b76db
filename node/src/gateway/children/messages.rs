//! Messages to children: asked for lane by lane, sent over the one connection, settled in the lane
//! of the child that a PUBACK speaks for.
//!
//! The client's window is shared: a lane asks for no more than what the window has room for beside
//! what other lanes have asked for, and the lane behind the one that asked last asks first.

use std::num::NonZeroU16;
use std::time::Instant;

use actors::device::{Message, TakenMessage};
use actors::id::DeviceId;

use super::{Children, Session};
use crate::gateway::mailbox::{Lane, Taken};
use crate::gateway::messages::{ask, bytes_max, SETTLEMENT};
use crate::gateway::reasons::End;

/// Messages one child is handed at a time, so that one with many leaves room for the others.
const AT_ONCE_MAX: usize = 4;

impl Children {
    /// There may be something to ask for.
    pub fn messages_noticed(&mut self, device: &DeviceId) {
        self.with_messages(device, |messages| messages.noticed());
    }

    /// What did not interest the client before may do so now.
    pub fn messages_subscribed(&mut self, device: &DeviceId) {
        self.with_messages(device, |messages| messages.subscribed());
    }

    /// It was not sent: the client does not want it.
    pub fn message_put_back(&mut self, device: &DeviceId, number: u64) {
        self.with_messages(device, |messages| messages.put_back(number));
    }

    /// It was sent, and nobody will acknowledge it.
    pub fn message_sent_for_good(&mut self, device: &DeviceId, number: u64, accepted: bool) {
        self.with_messages(device, |messages| messages.sent_for_good(number, accepted));
    }

    /// It was sent under this packet id of the connection.
    pub fn message_sent(&mut self, device: &DeviceId, number: u64, packet_id: NonZeroU16) {
        if let Some(lane) = self.lanes.get(device).copied() {
            self.sent.insert(packet_id, lane);
        }
        self.with_messages(device, |messages| messages.sent_as(number, packet_id));
    }

    fn with_messages(&mut self, device: &DeviceId, change: impl FnOnce(&mut super::Messages)) {
        let Some(lane) = self.lanes.get(device).copied() else {
            return;
        };
        if let Some(child) = self.children.get_mut(&lane) {
            change(&mut child.messages);
            self.messaging.insert(lane);
        }
    }

    /// The client's answer to a packet that is not about the connection's own device.
    pub fn acknowledged(&mut self, packet_id: NonZeroU16, accepted: bool) {
        let lane = self.sent.remove(&packet_id);
        let child = lane.and_then(|lane| Some((lane, self.children.get_mut(&lane)?)));
        if let Some((lane, child)) = child {
            child.messages.acknowledged(packet_id, accepted);
            self.messaging.insert(lane);
        }
    }

    /// The answer to a lane's question; one of a session that is no more is ignored, for what it
    /// brought is handed over again.
    pub fn messages_taken(&mut self, taken: Taken, now: Instant) {
        let Some(child) = self.children.get_mut(&taken.lane) else {
            return;
        };
        let Session::Open(guard) = &mut child.session else {
            return;
        };
        if guard.generation != taken.generation {
            return;
        }
        self.messaging.insert(taken.lane);
        if let Err(end) = child.messages.taken(taken.result, guard, now) {
            let device = child.key.device.clone();
            self.lost(&device, end == End::TakenOver, now);
        }
    }

    /// Settles and asks, lane by lane; `room` is what the client's window takes beside what the
    /// connection's own device has asked for.
    pub fn submit_messages(&mut self, room: usize, now: Instant) {
        if self.messaging.is_empty() {
            return;
        }
        let expected = self.messaging.iter().filter_map(|lane| self.children.get(lane));
        let expected: usize = expected.map(|child| child.messages.expected()).sum();
        let mut room = room.saturating_sub(expected);
        let (before, behind): (Vec<Lane>, Vec<Lane>) = self.messaging.iter().partition(|lane| **lane <= self.turn);
        for lane in behind.into_iter().chain(before) {
            let asked = self.submit_messages_of(lane, room.min(AT_ONCE_MAX), now);
            room -= asked;
            if asked > 0 {
                self.turn = lane;
            }
        }
    }

    /// Gives how many were asked for.
    fn submit_messages_of(&mut self, lane: Lane, room: usize, now: Instant) -> usize {
        let Some(child) = self.children.get_mut(&lane) else {
            self.messaging.remove(&lane);
            return 0;
        };
        let Session::Open(guard) = &mut child.session else {
            // It is looked at again once there is a session.
            self.messaging.remove(&lane);
            return 0;
        };
        let settlement = child.messages.settlement(guard.generation, now);
        let mut asked = 0;
        if room > 0 && !child.subscriptions.is_empty() && child.messages.asks(now) {
            let wanted = (room, bytes_max(&child.shared));
            if let Some(take) = child.messages.question(guard, wanted, now) {
                asked = usize::from(take.count_max);
                ask(&child.shared, &child.mailbox, lane, &child.key, take);
            }
        }
        if let Some(settlement) = settlement {
            child.submit(lane, SETTLEMENT, 0, settlement);
        }
        if child.messages.is_quiet() {
            self.messaging.remove(&lane);
        }
        asked
    }

    /// Something could be sent, were there room in the write buffer.
    pub fn has_ready(&self) -> bool {
        let mut messaging = self.messaging.iter().filter_map(|lane| self.children.get(lane));
        messaging.any(|child| child.messages.is_ready())
    }

    /// The next message to send, and to which child.
    pub fn next_message(&mut self) -> Option<(DeviceId, TakenMessage, Message)> {
        for lane in &self.messaging {
            let Some(child) = self.children.get_mut(lane) else {
                continue;
            };
            let Session::Open(guard) = &mut child.session else {
                continue;
            };
            if let Some((taken, message)) = child.messages.next_ready(guard) {
                return Some((child.key.device.clone(), taken, message));
            }
        }
        None
    }
}
