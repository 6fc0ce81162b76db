//! PUBLISH packets to one device: packet ids, the client's window, a bounded queue.
//!
//! Volatile: what does not fit is dropped and counted, for the device reads its twin again.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};

use actors::device::{Qos, Subscription, PACKET_IDS};
use actors::wire::topic;
use bytes::BytesMut;
use rmqtt_codec::v5::PublishProperties;

use super::limits::Limits;
use super::metrics;
use super::proto::{Outgoing, Protocol};

#[derive(Debug)]
pub struct Down {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    unacknowledged: Vec<NonZeroU16>,
    last_id: u16,
    window: usize,
}

impl Down {
    /// `receive_maximum`: what the client allows.
    pub fn new(limits: &Limits, receive_maximum: u16) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            unacknowledged: Vec::new(),
            last_id: 0,
            window: limits.down_in_flight_max.min(usize::from(receive_maximum)),
        }
    }

    pub fn push(&mut self, limits: &Limits, outgoing: Outgoing) {
        let bytes = outgoing.payload.len();
        let full = self.queue.len() >= limits.down_queue_max || self.queued_bytes + bytes > limits.down_queue_bytes_max;
        // The first always fits, or a large one could never be sent.
        if full && !self.queue.is_empty() {
            metrics::downlink_dropped("queue_full");
            return;
        }
        self.queued_bytes += bytes;
        self.queue.push_back(outgoing);
    }

    /// Moves into `out` what the window and `out_bytes_max` allow, in order.
    pub fn send(&mut self, protocol: &mut Protocol, out: &mut BytesMut, out_bytes_max: usize) {
        while out.len() < out_bytes_max {
            let Some(next) = self.queue.front() else {
                return;
            };
            if next.at_least_once && self.unacknowledged.len() >= self.window {
                return;
            }
            let Some(next) = self.queue.pop_front() else {
                return;
            };
            self.queued_bytes -= next.payload.len();
            let packet_id = next.at_least_once.then(|| self.free_id());
            if !protocol.publish(out, next, packet_id) {
                metrics::downlink_dropped("packet_too_large");
                continue;
            }
            metrics::downlink(if packet_id.is_some() { "qos1" } else { "qos0" });
            self.unacknowledged.extend(packet_id);
        }
    }

    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Something could be sent, were there room in the write buffer.
    pub fn is_waiting(&self) -> bool {
        self.queue
            .front()
            .is_some_and(|next| !next.at_least_once || self.unacknowledged.len() < self.window)
    }

    /// A PUBACK of the client; one for nothing we sent is ignored.
    pub fn acknowledged(&mut self, packet_id: NonZeroU16) {
        self.unacknowledged.retain(|id| *id != packet_id);
    }

    /// QoS 1 publishes the client takes unacknowledged.
    pub fn window(&self) -> usize {
        self.window
    }

    /// How many more it takes now.
    pub fn room(&self) -> usize {
        self.window.saturating_sub(self.unacknowledged.len())
    }

    pub fn holds(&self, packet_id: NonZeroU16) -> bool {
        self.unacknowledged.contains(&packet_id)
    }

    /// Counts a publish that was sent past the queue.
    pub fn hold(&mut self, packet_id: NonZeroU16) {
        self.unacknowledged.push(packet_id);
    }

    /// A packet id that is in nobody's use.
    pub fn free_id(&mut self) -> NonZeroU16 {
        loop {
            // The upper half belongs to messages.
            self.last_id = self.last_id % (*PACKET_IDS.start() - 1) + 1;
            // The window is far smaller than the number of ids, so that one is free.
            if let Some(id) = NonZeroU16::new(self.last_id).filter(|id| !self.unacknowledged.contains(id)) {
                return id;
            }
        }
    }
}

/// How a client gets a publish: at the highest QoS of the subscriptions that match, with the
/// identifiers of all of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    pub qos: Qos,
    identifiers: Vec<NonZeroU32>,
}

impl Grant {
    /// `properties` with the identifiers.
    pub fn properties(self, properties: Option<Box<PublishProperties>>) -> Option<Box<PublishProperties>> {
        if self.identifiers.is_empty() {
            return properties;
        }
        let mut properties = properties.unwrap_or_default();
        properties.subscription_ids = self.identifiers;
        Some(properties)
    }
}

/// What a client that holds these subscriptions gets of a publish to `topic`; `None`: it did not
/// ask for it.
pub fn granted(subscriptions: &[Subscription], topic: &str) -> Option<Grant> {
    let mut matching = subscriptions
        .iter()
        .filter(|s| topic::filter_matches(&s.filter, topic))
        .peekable();
    matching.peek()?;
    let mut grant = Grant {
        qos: Qos::AtMostOnce,
        identifiers: Vec::new(),
    };
    for subscription in matching {
        grant.qos = grant.qos.max(subscription.qos);
        grant.identifiers.extend(NonZeroU32::new(subscription.identifier));
    }
    Some(grant)
}
