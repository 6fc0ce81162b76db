//! The client's side of MQTT 3.1.1 and 5 as one set of words: what to write, what was read.
//!
//! Knows packets, not devices: which publish is outstanding is `session`'s business.

use std::num::NonZeroU16;

use actors::wire::receipt::Receipt;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use rmqtt_codec::types::{Protocol, Publish, MQTT_LEVEL_311};
use rmqtt_codec::v5::QoS;
use rmqtt_codec::{v3, v5};
use tokio_util::codec::{Decoder, Encoder};

/// Largest packet a device reads; a bigger one ends the connection. Unit: bytes.
const PACKET_BYTES_MAX: u32 = 1 << 20;
/// PUBACK user property that carries the receipt.
pub const RECEIPT_PROPERTY: &str = "holdfast-receipt";
/// PUBLISH user property that carries the message id.
pub const MESSAGE_ID_PROPERTY: &str = "message-id";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("the server sent a packet that cannot be read: {0}")]
    Unreadable(String),
    #[error("a packet cannot be written: {0}")]
    Unwritable(String),
}

/// What a PUBACK says of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable; with the receipt when the server gave one that reads as one.
    Stored(Option<Receipt>),
    /// MQTT 5 reason code from 0x80.
    Refused(u8),
}

/// What the server sent, in the words of both versions.
#[derive(Debug)]
pub enum Incoming {
    Connected {
        session_present: bool,
        receive_maximum: u16,
    },
    ConnectRefused {
        code: u8,
        is_final: bool,
    },
    Acknowledged {
        packet_id: NonZeroU16,
        outcome: Outcome,
    },
    Subscribed {
        refused: bool,
    },
    Message {
        topic: ByteString,
        payload: Bytes,
        packet_id: Option<NonZeroU16>,
    },
    Disconnected {
        code: u8,
    },
    Other,
}

/// One device's encoder and decoder; keeps a partly read packet between reads.
pub enum Codec {
    V311(v3::Codec),
    V5(v5::Codec),
}

pub struct Opening<'a> {
    pub client_id: &'a str,
    pub clean_start: bool,
    pub keep_alive_secs: u16,
    pub session_expiry_secs: u32,
    pub username: Option<&'a str>,
    pub password: Option<&'a str>,
}

pub struct Outgoing {
    pub topic: ByteString,
    pub packet_id: NonZeroU16,
    pub dup: bool,
    pub payload: Bytes,
    /// Sent as a user property in MQTT 5, left out in 3.1.1.
    pub message_id: Option<String>,
}

impl Codec {
    pub fn new(version: Version) -> Self {
        match version {
            Version::V311 => Self::V311(v3::Codec::new(PACKET_BYTES_MAX)),
            Version::V5 => Self::V5(v5::Codec::new(PACKET_BYTES_MAX, 0)),
        }
    }

    /// # Errors
    /// As for every writer here: the packet breaks a limit of the protocol; nothing usable was written.
    pub fn connect(&mut self, opening: &Opening<'_>, out: &mut BytesMut) -> Result<(), ProtocolError> {
        let three = || v3::Connect {
            protocol: Protocol(MQTT_LEVEL_311),
            clean_session: opening.clean_start,
            keep_alive: opening.keep_alive_secs,
            client_id: opening.client_id.into(),
            username: opening.username.map(ByteString::from),
            password: opening.password.map(|text| Bytes::copy_from_slice(text.as_bytes())),
            ..Default::default()
        };
        let five = || v5::Connect {
            clean_start: opening.clean_start,
            keep_alive: opening.keep_alive_secs,
            session_expiry_interval_secs: opening.session_expiry_secs,
            client_id: opening.client_id.into(),
            username: opening.username.map(ByteString::from),
            password: opening.password.map(|text| Bytes::copy_from_slice(text.as_bytes())),
            ..Default::default()
        };
        self.write(|| three().into(), || five().into(), out)
    }

    /// # Errors
    /// As [`Codec::connect`].
    pub fn publish(&mut self, message: Outgoing, out: &mut BytesMut) -> Result<(), ProtocolError> {
        let five = matches!(self, Self::V5(_));
        let properties = message.message_id.filter(|_| five).map(|id| v5::PublishProperties {
            user_properties: vec![(ByteString::from_static(MESSAGE_ID_PROPERTY), id.into())],
            ..Default::default()
        });
        let packet = Box::new(Publish {
            dup: message.dup,
            retain: false,
            qos: QoS::AtLeastOnce,
            topic: message.topic,
            packet_id: Some(message.packet_id),
            payload: message.payload,
            properties: if five {
                Some(properties.unwrap_or_default())
            } else {
                None
            },
        });
        match self {
            Self::V311(codec) => codec.encode(v3::Packet::Publish(packet), out),
            Self::V5(codec) => codec.encode(v5::Packet::Publish(packet), out),
        }
        .map_err(unwritable)
    }

    /// Subscribes to one filter with QoS 1.
    ///
    /// # Errors
    /// As [`Codec::connect`].
    pub fn subscribe(&mut self, packet_id: NonZeroU16, filter: &str, out: &mut BytesMut) -> Result<(), ProtocolError> {
        let three = || v3::Packet::Subscribe {
            packet_id,
            topic_filters: vec![(filter.into(), QoS::AtLeastOnce)],
        };
        let options = v5::SubscriptionOptions {
            qos: QoS::AtLeastOnce,
            ..Default::default()
        };
        let five = || {
            v5::Packet::Subscribe(v5::Subscribe {
                packet_id,
                id: None,
                user_properties: Vec::new(),
                topic_filters: vec![(filter.into(), options)],
            })
        };
        self.write(three, five, out)
    }

    /// # Errors
    /// As [`Codec::connect`].
    pub fn acknowledge(&mut self, packet_id: NonZeroU16, out: &mut BytesMut) -> Result<(), ProtocolError> {
        let five = || {
            v5::Packet::PublishAck(v5::PublishAck {
                packet_id,
                ..Default::default()
            })
        };
        self.write(|| v3::Packet::PublishAck { packet_id }, five, out)
    }

    /// # Errors
    /// As [`Codec::connect`].
    pub fn ping(&mut self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        self.write(|| v3::Packet::PingRequest, || v5::Packet::PingRequest, out)
    }

    /// # Errors
    /// As [`Codec::connect`].
    pub fn disconnect(&mut self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        let five = || {
            v5::Packet::Disconnect(v5::Disconnect {
                reason_code: v5::DisconnectReasonCode::NormalDisconnection,
                session_expiry_interval_secs: None,
                server_reference: None,
                reason_string: None,
                user_properties: Vec::new(),
            })
        };
        self.write(|| v3::Packet::Disconnect, five, out)
    }

    /// Takes the next whole packet out of `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are not MQTT of this version; the connection is of no further use.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Incoming>, ProtocolError> {
        let unreadable = |e: rmqtt_codec::error::DecodeError| ProtocolError::Unreadable(format!("{e:?}"));
        Ok(match self {
            Self::V311(codec) => codec
                .decode(input)
                .map_err(unreadable)?
                .map(|(packet, _)| from_v311(packet)),
            Self::V5(codec) => codec
                .decode(input)
                .map_err(unreadable)?
                .map(|(packet, _)| from_v5(packet)),
        })
    }

    fn write(
        &mut self,
        three: impl FnOnce() -> v3::Packet,
        five: impl FnOnce() -> v5::Packet,
        out: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        match self {
            Self::V311(codec) => codec.encode(three(), out),
            Self::V5(codec) => codec.encode(five(), out),
        }
        .map_err(unwritable)
    }
}

fn unwritable(error: rmqtt_codec::error::EncodeError) -> ProtocolError {
    ProtocolError::Unwritable(format!("{error:?}"))
}

fn from_v311(packet: v3::Packet) -> Incoming {
    match packet {
        v3::Packet::ConnectAck(ack) => match u8::from(ack.return_code) {
            0 => Incoming::Connected {
                session_present: ack.session_present,
                receive_maximum: u16::MAX,
            },
            code => Incoming::ConnectRefused {
                code,
                is_final: code != 3,
            },
        },
        v3::Packet::PublishAck { packet_id } => Incoming::Acknowledged {
            packet_id,
            outcome: Outcome::Stored(None),
        },
        v3::Packet::SubscribeAck { status, .. } => Incoming::Subscribed {
            refused: status.contains(&v3::SubscribeReturnCode::Failure),
        },
        v3::Packet::Publish(publish) => message(*publish),
        _ => Incoming::Other,
    }
}

fn from_v5(packet: v5::Packet) -> Incoming {
    match packet {
        v5::Packet::ConnectAck(ack) => match u8::from(ack.reason_code) {
            0 => Incoming::Connected {
                session_present: ack.session_present,
                receive_maximum: ack.receive_max.get(),
            },
            // Unavailable, busy, use another server, rate: come again. The rest is for ever.
            code => Incoming::ConnectRefused {
                code,
                is_final: !matches!(code, 0x88 | 0x89 | 0x97 | 0x9c | 0x9f),
            },
        },
        v5::Packet::PublishAck(ack) => {
            let code = u8::from(ack.reason_code);
            let outcome = if code < 0x80 {
                Outcome::Stored(receipt(&ack.properties))
            } else {
                Outcome::Refused(code)
            };
            Incoming::Acknowledged {
                packet_id: ack.packet_id,
                outcome,
            }
        }
        v5::Packet::SubscribeAck(ack) => Incoming::Subscribed {
            refused: ack.status.iter().any(|status| u8::from(*status) >= 0x80),
        },
        v5::Packet::Publish(publish) => message(*publish),
        v5::Packet::Disconnect(bye) => Incoming::Disconnected {
            code: u8::from(bye.reason_code),
        },
        _ => Incoming::Other,
    }
}

fn message(publish: Publish) -> Incoming {
    Incoming::Message {
        topic: publish.topic,
        payload: publish.payload,
        packet_id: publish.packet_id,
    }
}

fn receipt(properties: &v5::UserProperties) -> Option<Receipt> {
    let (_, text) = properties.iter().find(|(name, _)| name == RECEIPT_PROPERTY)?;
    text.parse().ok()
}
