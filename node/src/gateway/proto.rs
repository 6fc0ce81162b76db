//! MQTT 3.1.1 and 5.0 behind one face: packets in as [`Incoming`], packets out by what they say.
//!
//! Whole packets only: the socket looks at the length first. Strings with U+0000 are refused here
//! because the codec lets them pass.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::BytesMut;
use bytestring::ByteString;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::{v3, v5};
use tokio_util::codec::{Decoder, Encoder};

use super::alias;
use super::reasons::Violation;
use super::socket::{front, Front};

/// A packet after CONNECT.
#[derive(Debug)]
pub enum Incoming {
    Publish(Box<Publish>),
    PubAck {
        packet_id: NonZeroU16,
        /// Always, in 3.1.1.
        accepted: bool,
    },
    Subscribe(Subscribe),
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: Vec<ByteString>,
    },
    Ping,
    Disconnect {
        with_will: bool,
        expiry_secs: Option<u32>,
    },
    Connect,
    /// Only servers send it, or it belongs to QoS 2 or to enhanced authentication.
    Unexpected,
}

#[derive(Debug)]
pub struct Subscribe {
    pub packet_id: NonZeroU16,
    pub filters: Vec<(ByteString, QoS)>,
    /// 0: none.
    pub identifier: u32,
    pub properties: usize,
}

/// Something to publish to the device.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub topic: String,
    pub payload: Vec<u8>,
    pub at_least_once: bool,
    /// What MQTT 5 clients get to know beside; `None`: nothing.
    pub properties: Option<Box<v5::PublishProperties>>,
}

#[derive(Debug)]
pub enum Protocol {
    V3(v3::Codec),
    V5(v5::Codec),
}

impl Protocol {
    pub fn is_v5(&self) -> bool {
        matches!(self, Protocol::V5(_))
    }

    pub fn name(&self) -> &'static str {
        if self.is_v5() {
            "5"
        } else {
            "3.1.1"
        }
    }

    /// Decodes the whole packet at the front of `input`.
    ///
    /// # Errors
    /// Says what the client did wrong; the connection cannot go on.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Incoming, Violation> {
        self.check_empty(input)?;
        if let (Protocol::V5(_), Front::Packet { header, .. }) = (&*self, front(input)) {
            if alias::is_zero(input, header) {
                return Err(Violation::TopicAlias);
            }
        }
        match self {
            Protocol::V3(codec) => {
                let (packet, _) = codec.decode(input)?.ok_or(Violation::Malformed)?;
                from_v3(packet)
            }
            Protocol::V5(codec) => {
                let (packet, _) = codec.decode(input)?.ok_or(Violation::Malformed)?;
                from_v5(packet)
            }
        }
    }

    /// The codec ignores bodies where there must be none.
    fn check_empty(&self, packet: &[u8]) -> Result<(), Violation> {
        match packet {
            [0xc0, length, ..] if *length > 0 => Err(Violation::Malformed),
            [0xe0, length, ..] if *length > 0 && !self.is_v5() => Err(Violation::Malformed),
            _ => Ok(()),
        }
    }

    pub fn connack(&mut self, out: &mut BytesMut, v3: v3::ConnectAck, v5: impl FnOnce() -> v5::ConnectAck) {
        match self {
            Protocol::V3(codec) => put(codec, v3::Packet::ConnectAck(v3), out),
            Protocol::V5(codec) => put(codec, v5::Packet::ConnectAck(Box::new(v5())), out),
        };
    }

    /// `reason` other than success exists in MQTT 5 only; 3.1.1 callers close instead.
    pub fn puback(
        &mut self,
        out: &mut BytesMut,
        packet_id: NonZeroU16,
        reason: v5::PublishAckReason,
        properties: v5::UserProperties,
    ) {
        match self {
            Protocol::V3(codec) => put(codec, v3::Packet::PublishAck { packet_id }, out),
            Protocol::V5(codec) => {
                let ack = v5::PublishAck {
                    packet_id,
                    reason_code: reason,
                    properties,
                    reason_string: None,
                };
                put(codec, v5::Packet::PublishAck(ack), out)
            }
        };
    }

    pub fn suback(&mut self, out: &mut BytesMut, packet_id: NonZeroU16, status: Vec<v5::SubscribeAckReason>) {
        match self {
            Protocol::V3(codec) => {
                let status = status.into_iter().map(suback3).collect();
                put(codec, v3::Packet::SubscribeAck { packet_id, status }, out)
            }
            Protocol::V5(codec) => {
                let ack = v5::SubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status,
                };
                put(codec, v5::Packet::SubscribeAck(ack), out)
            }
        };
    }

    pub fn unsuback(&mut self, out: &mut BytesMut, packet_id: NonZeroU16, status: Vec<v5::UnsubscribeAckReason>) {
        match self {
            Protocol::V3(codec) => put(codec, v3::Packet::UnsubscribeAck { packet_id }, out),
            Protocol::V5(codec) => {
                let ack = v5::UnsubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status,
                };
                put(codec, v5::Packet::UnsubscribeAck(ack), out)
            }
        };
    }

    /// Says whether it fits the client's maximum packet size; one that does not is not sent.
    pub fn publish(&mut self, out: &mut BytesMut, outgoing: Outgoing, packet_id: Option<NonZeroU16>) -> bool {
        let publish = Box::new(Publish {
            dup: false,
            retain: false,
            qos: if packet_id.is_some() {
                QoS::AtLeastOnce
            } else {
                QoS::AtMostOnce
            },
            topic: outgoing.topic.into(),
            packet_id,
            payload: outgoing.payload.into(),
            properties: self
                .is_v5()
                .then(|| outgoing.properties.map(|p| *p).unwrap_or_default()),
        });
        self.publish_packet(out, publish)
    }

    /// As [`Self::publish`], for a packet that is complete.
    pub fn publish_packet(&mut self, out: &mut BytesMut, publish: Box<Publish>) -> bool {
        match self {
            Protocol::V3(codec) => put(codec, v3::Packet::Publish(publish), out),
            Protocol::V5(codec) => put(codec, v5::Packet::Publish(publish), out),
        }
    }

    pub fn pong(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&[0xd0, 0]);
    }

    /// Nothing in 3.1.1, where servers have no DISCONNECT.
    pub fn disconnect(&mut self, out: &mut BytesMut, reason: v5::DisconnectReasonCode) {
        if let Protocol::V5(codec) = self {
            put(codec, v5::Packet::Disconnect(v5::Disconnect::new(reason)), out);
        }
    }
}

/// Encodes, or leaves `out` as it was.
fn put<P, C: Encoder<P>>(codec: &mut C, packet: P, out: &mut BytesMut) -> bool {
    let before = out.len();
    let fits = codec.encode(packet, out).is_ok();
    if !fits {
        out.truncate(before);
    }
    fits
}

fn suback3(reason: v5::SubscribeAckReason) -> v3::SubscribeReturnCode {
    match reason {
        v5::SubscribeAckReason::GrantedQos0 => v3::SubscribeReturnCode::Success(QoS::AtMostOnce),
        v5::SubscribeAckReason::GrantedQos1 => v3::SubscribeReturnCode::Success(QoS::AtLeastOnce),
        _ => v3::SubscribeReturnCode::Failure,
    }
}

fn from_v3(packet: v3::Packet) -> Result<Incoming, Violation> {
    Ok(match packet {
        v3::Packet::Publish(publish) => Incoming::Publish(publish),
        v3::Packet::PublishAck { packet_id } => Incoming::PubAck {
            packet_id,
            accepted: true,
        },
        v3::Packet::Subscribe {
            packet_id,
            topic_filters,
        } => Incoming::Subscribe(Subscribe {
            packet_id,
            filters: topic_filters,
            identifier: 0,
            properties: 0,
        }),
        v3::Packet::Unsubscribe {
            packet_id,
            topic_filters,
        } => Incoming::Unsubscribe {
            packet_id,
            filters: topic_filters,
        },
        v3::Packet::PingRequest => Incoming::Ping,
        v3::Packet::Disconnect => Incoming::Disconnect {
            with_will: false,
            expiry_secs: None,
        },
        v3::Packet::Connect(_) => Incoming::Connect,
        _ => Incoming::Unexpected,
    })
}

fn from_v5(packet: v5::Packet) -> Result<Incoming, Violation> {
    Ok(match packet {
        v5::Packet::Publish(publish) => {
            check_publish_properties(&publish)?;
            Incoming::Publish(publish)
        }
        v5::Packet::PublishAck(ack) => Incoming::PubAck {
            packet_id: ack.packet_id,
            accepted: (ack.reason_code as u8) < 0x80,
        },
        v5::Packet::Subscribe(subscribe) => Incoming::Subscribe(Subscribe {
            packet_id: subscribe.packet_id,
            filters: subscribe
                .topic_filters
                .into_iter()
                .map(|(filter, options)| (filter, options.qos))
                .collect(),
            identifier: subscribe.id.map_or(0, NonZeroU32::get),
            properties: subscribe.user_properties.len(),
        }),
        v5::Packet::Unsubscribe(unsubscribe) => Incoming::Unsubscribe {
            packet_id: unsubscribe.packet_id,
            filters: unsubscribe.topic_filters,
        },
        v5::Packet::PingRequest => Incoming::Ping,
        v5::Packet::Disconnect(disconnect) => Incoming::Disconnect {
            with_will: disconnect.reason_code != v5::DisconnectReasonCode::NormalDisconnection,
            expiry_secs: disconnect.session_expiry_interval_secs,
        },
        v5::Packet::Connect(_) => Incoming::Connect,
        _ => Incoming::Unexpected,
    })
}

fn check_publish_properties(publish: &Publish) -> Result<(), Violation> {
    let Some(properties) = &publish.properties else {
        return Ok(());
    };
    // Servers send subscription identifiers, clients must not.
    if !properties.subscription_ids.is_empty() {
        return Err(Violation::Protocol);
    }
    let mut texts = properties
        .user_properties
        .iter()
        .flat_map(|(name, value)| [name, value]);
    let nul = |text: &ByteString| text.contains('\0');
    if texts.any(nul) || properties.content_type.as_ref().is_some_and(nul) {
        return Err(Violation::Malformed);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
