//! The first packet, read with suspicion: little is buffered, and there is a deadline.
//!
//! What it asks for is told in one shape for both versions; whether it is granted is decided in
//! `handshake`.

use std::future::poll_fn;
use std::num::NonZeroU16;

use bytes::BytesMut;
use bytestring::ByteString;
use rmqtt_codec::types::QoS;
use rmqtt_codec::{v3, v5};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::Decoder;

use super::proto::Protocol;
use super::reasons::NoEntry;
use super::shared::Shared;
use super::socket::{Front, Socket};

/// What a CONNECT asks for, in either version.
pub(super) struct Request {
    pub(super) client_id: ByteString,
    pub(super) clean_start: bool,
    pub(super) expiry_secs: u32,
    pub(super) keep_alive_secs: u16,
    pub(super) username: Option<ByteString>,
    pub(super) password: Option<bytes::Bytes>,
    pub(super) will: Option<WillRequest>,
    pub(super) client_receive_maximum: u16,
    pub(super) user_properties: usize,
    pub(super) auth_method: bool,
    pub(super) wants_response_info: bool,
    /// User properties may come with what is no PUBLISH (MQTT 5).
    pub(super) wants_problem_info: bool,
}

pub(super) struct WillRequest {
    pub(super) qos: QoS,
    pub(super) topic: ByteString,
    pub(super) payload: bytes::Bytes,
    pub(super) delay_secs: u32,
    pub(super) content_type: Option<ByteString>,
    pub(super) properties: v5::UserProperties,
}

/// Why there is no CONNECT to decide on.
pub(super) enum Refused {
    /// Not even MQTT: closed without a word.
    Silently(&'static str),
    /// A CONNECT, of this protocol level.
    Told(u8, NoEntry),
}

/// # Errors
/// The connection is to be closed, with or without a word.
pub(super) async fn read_connect<S>(shared: &Shared, socket: &mut Socket<S>) -> Result<(Protocol, Request), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &shared.limits;
    let whole = async {
        loop {
            if let Some(decided) = look(&socket.input, limits.connect_bytes_max) {
                return decided;
            }
            if poll_fn(|cx| socket.poll_fill(cx)).await == 0 {
                return Err(Refused::Silently("closed_before_connect"));
            }
        }
    };
    let level = tokio::time::timeout(limits.connect_timeout, whole)
        .await
        .unwrap_or(Err(Refused::Silently("connect_timeout")))?;
    decode(level, shared, &mut socket.input)
}

/// Judges what is there of the first packet: `None` while more is needed, else its protocol level
/// once all of it is here.
fn look(input: &[u8], bytes_max: u32) -> Option<Result<u8, Refused>> {
    const CONNECT: u8 = 0x10;
    if input.first().is_some_and(|first| *first != CONNECT) {
        return Some(Err(Refused::Silently("first_packet_not_connect")));
    }
    let (header, remaining, whole) = match super::socket::front(input) {
        Front::Partial => return None,
        Front::Malformed => return Some(Err(Refused::Silently("malformed"))),
        Front::Packet {
            header,
            remaining,
            whole,
            ..
        } => (header, remaining, whole),
    };
    let body = &input[header..];
    let level = protocol_level(body);
    if remaining > bytes_max {
        // At once, with what is known of the version by now.
        return Some(Err(match level {
            Some(Ok(level)) => Refused::Told(level, NoEntry::PacketTooLarge),
            _ => Refused::Silently("packet_too_large"),
        }));
    }
    match level {
        Some(Ok(level @ (4 | 5))) => whole.then_some(Ok(level)),
        Some(Ok(level)) => Some(Err(Refused::Told(level, NoEntry::UnsupportedProtocol))),
        Some(Err(())) => Some(Err(Refused::Silently("not_mqtt"))),
        None if whole => Some(Err(Refused::Silently("malformed"))),
        None => None,
    }
}

/// `None` while it is not there yet, `Err` when this is no MQTT.
fn protocol_level(body: &[u8]) -> Option<Result<u8, ()>> {
    let [high, low, rest @ ..] = body else {
        return None;
    };
    let name: &[u8] = match u16::from_be_bytes([*high, *low]) {
        4 => b"MQTT",
        6 => b"MQIsdp",
        _ => return Some(Err(())),
    };
    let there = rest.len().min(name.len());
    if rest[..there] != name[..there] {
        return Some(Err(()));
    }
    rest.get(name.len()).copied().map(Ok)
}

fn decode(level: u8, shared: &Shared, input: &mut BytesMut) -> Result<(Protocol, Request), Refused> {
    let limits = &shared.limits;
    let malformed = |_| Refused::Told(level, NoEntry::Malformed);
    if level == 5 {
        let mut codec = v5::Codec::new(limits.packet_bytes_max, 0);
        let Some((v5::Packet::Connect(connect), _)) = codec.decode(input).map_err(malformed)? else {
            return Err(Refused::Told(level, NoEntry::Malformed));
        };
        if let Some(max) = connect.max_packet_size {
            codec.set_max_outbound_size(max.get());
        }
        return Ok((Protocol::V5(codec), request5(*connect)));
    }
    // Fixed header, "MQTT", level, flags: a password needs a user name in 3.1.1, which the codec
    // does not check.
    let flags = match super::socket::front(input) {
        Front::Packet { header, .. } => input.get(header + 7).copied().unwrap_or(0),
        _ => 0,
    };
    let mut codec = v3::Codec::new(limits.packet_bytes_max);
    let decoded = codec.decode(input).map_err(|error| match error {
        rmqtt_codec::error::DecodeError::InvalidClientId => Refused::Told(level, NoEntry::BadClientId),
        _ => Refused::Told(level, NoEntry::Malformed),
    })?;
    match decoded {
        Some((v3::Packet::Connect(connect), _)) if flags & 0xc0 != 0x40 => {
            Ok((Protocol::V3(codec), request3(*connect)))
        }
        _ => Err(Refused::Told(level, NoEntry::Malformed)),
    }
}

fn request3(connect: v3::Connect) -> Request {
    Request {
        client_id: connect.client_id,
        clean_start: connect.clean_session,
        // A 3.1.1 session without clean start lasts as long as the policy allows.
        expiry_secs: if connect.clean_session { 0 } else { u32::MAX },
        keep_alive_secs: connect.keep_alive,
        username: connect.username,
        password: connect.password,
        will: connect.last_will.map(|will| WillRequest {
            // Wills become telemetry, whatever their QoS; 3.1.1 cannot be told.
            qos: will.qos.less_value(QoS::AtLeastOnce),
            topic: will.topic,
            payload: will.message,
            delay_secs: 0,
            content_type: None,
            properties: Vec::new(),
        }),
        client_receive_maximum: u16::MAX,
        user_properties: 0,
        auth_method: false,
        wants_response_info: false,
        wants_problem_info: true,
    }
}

fn request5(connect: v5::Connect) -> Request {
    Request {
        client_id: connect.client_id,
        clean_start: connect.clean_start,
        expiry_secs: connect.session_expiry_interval_secs,
        keep_alive_secs: connect.keep_alive,
        username: connect.username,
        password: connect.password,
        user_properties: connect.user_properties.len()
            + connect.last_will.as_ref().map_or(0, |will| will.user_properties.len()),
        will: connect.last_will.map(|will| WillRequest {
            qos: will.qos,
            topic: will.topic,
            payload: will.message,
            delay_secs: will.will_delay_interval_sec.unwrap_or(0),
            content_type: will.content_type,
            properties: will.user_properties,
        }),
        client_receive_maximum: connect.receive_max.map_or(u16::MAX, NonZeroU16::get),
        wants_response_info: connect.request_response_info,
        wants_problem_info: connect.request_problem_info,
        auth_method: connect.auth_method.is_some() || connect.auth_data.is_some(),
    }
}
