//! CONNECT: from the first byte of a connection to a committed session and its CONNACK.
//!
//! Who it is, whether it may, and a session generation that is committed before the CONNACK.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use actors::device::{check_telemetry, Answer, Command, OpenSession, Subscription, Will};
use actors::id::{DeviceId, DeviceKey};
use actors::ports::CallError;
use actors::wire::topic;
use bytes::BytesMut;
use rmqtt_codec::types::QoS;
use rmqtt_codec::{v3, v5};
use tokio::io::{AsyncRead, AsyncWrite};

use super::auth::{Credentials, Verdict};
use super::connect::{read_connect, Refused, Request, WillRequest};
use super::mailbox::{Mailbox, OWN};
use super::port::ask;
use super::proto::Protocol;
use super::reasons::{self, NoEntry};
use super::shared::Shared;
use super::socket::Socket;
use super::{closer, metrics};

/// A client with a committed session.
pub struct Admitted {
    pub key: DeviceKey,
    pub generation: u64,
    pub protocol: Protocol,
    pub mailbox: Arc<Mailbox>,
    pub subscriptions: Vec<Subscription>,
    /// Seconds; 0: none.
    pub keep_alive_secs: u16,
    /// As granted.
    pub expiry_secs: u32,
    /// QoS 1 downlinks the client takes unacknowledged.
    pub client_receive_maximum: u16,
    /// User properties may come with a PUBACK.
    pub wants_receipts: bool,
    /// The session began with this connection.
    pub is_fresh: bool,
    /// No CONNACK fits the packets the client takes.
    pub is_unheard: bool,
    /// In the device's queue.
    pub messages: u32,
}

/// `None`: the connection is to be closed; an answer, if there is one, is in the output.
pub async fn admit<S>(shared: &Arc<Shared>, socket: &mut Socket<S>, peer: SocketAddr) -> Option<Admitted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut protocol, request) = match read_connect(shared, socket).await {
        Ok(read) => read,
        Err(refused) => {
            refuse(refused, &mut socket.output);
            return None;
        }
    };
    match open(shared, &protocol, &request, peer).await {
        Ok(opened) => {
            metrics::connect(protocol.name(), "accepted");
            Some(accept(shared, protocol, &request, opened, &mut socket.output))
        }
        Err(no) => {
            metrics::connect(protocol.name(), no.label());
            tracing::debug!(client = %request.client_id, reason = no.label(), "CONNECT refused");
            say_no(&mut protocol, no, &mut socket.output);
            None
        }
    }
}

/// Tells a client for which there is no room to come back, in words of its own version.
pub async fn turn_away<S>(shared: &Shared, socket: &mut Socket<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match read_connect(shared, socket).await {
        Ok((mut protocol, _)) => {
            metrics::connect(protocol.name(), NoEntry::Busy.label());
            say_no(&mut protocol, NoEntry::Busy, &mut socket.output);
        }
        Err(refused) => refuse(refused, &mut socket.output),
    }
}

fn refuse(refused: Refused, out: &mut BytesMut) {
    match refused {
        Refused::Silently(why) => metrics::rejected(why),
        Refused::Told(level, no) => {
            metrics::rejected(no.label());
            let mut protocol = if level >= 5 {
                Protocol::V5(v5::Codec::default())
            } else {
                Protocol::V3(v3::Codec::default())
            };
            say_no(&mut protocol, no, out);
        }
    }
}

fn say_no(protocol: &mut Protocol, no: NoEntry, out: &mut BytesMut) {
    let code3 = no.code3();
    if !protocol.is_v5() && code3.is_none() {
        return;
    }
    let v3 = v3::ConnectAck {
        return_code: code3.unwrap_or(v3::ConnectAckReason::ServiceUnavailable),
        session_present: false,
    };
    protocol.connack(out, v3, || v5::ConnectAck {
        reason_code: no.code5(),
        ..v5::ConnectAck::default()
    });
}

struct Opened {
    key: DeviceKey,
    mailbox: Arc<Mailbox>,
    generation: u64,
    session_present: bool,
    expiry_secs: u32,
    keep_alive_secs: u16,
    subscriptions: Vec<Subscription>,
    messages: u32,
}

async fn open(
    shared: &Arc<Shared>,
    protocol: &Protocol,
    request: &Request,
    peer: SocketAddr,
) -> Result<Opened, NoEntry> {
    if request.auth_method {
        return Err(NoEntry::BadAuthMethod);
    }
    if request.user_properties > shared.limits.user_properties_max {
        return Err(NoEntry::TooManyProperties);
    }
    if shared.stopping().is_some() {
        return Err(NoEntry::Draining);
    }
    let device = DeviceId::parse(&request.client_id).map_err(|_| NoEntry::BadClientId)?;
    let tenant = match shared.authenticator.admit(&Credentials {
        peer,
        device: &device,
        username: request.username.as_deref(),
        password: request.password.as_deref(),
    }) {
        Verdict::Admitted(tenant) => tenant,
        Verdict::Refused => return Err(NoEntry::NotAuthorised),
        Verdict::Unavailable => return Err(NoEntry::Unavailable),
    };
    let will = request.will.as_ref().map(|will| will_of(&device, will)).transpose()?;
    let keep_alive_secs = granted_keep_alive(shared, protocol, request.keep_alive_secs);
    let command = OpenSession {
        gateway: shared.devices.gateway(),
        clean_start: request.clean_start,
        expiry_secs: request.expiry_secs,
        keep_alive_secs,
        protocol: if protocol.is_v5() { 5 } else { 4 },
        will,
        via: None,
    };
    let key = DeviceKey::new(tenant, device);
    let Some(_place) = shared.handshakes.hold() else {
        return Err(NoEntry::Busy);
    };
    commit(shared, key, command).await
}

/// In MQTT 5 the server may shorten it; in 3.1.1 the client's word stands, and 0 means never (TCP
/// keep-alive still finds the dead).
fn granted_keep_alive(shared: &Shared, protocol: &Protocol, asked: u16) -> u16 {
    let max = shared.limits.keep_alive_secs_max;
    match asked {
        _ if !protocol.is_v5() => asked,
        0 => max,
        _ => asked.min(max),
    }
}

fn will_of(device: &DeviceId, will: &WillRequest) -> Result<Will, NoEntry> {
    if will.qos == QoS::ExactlyOnce {
        return Err(NoEntry::WillQos);
    }
    let target = topic::parse_publish(device, &will.topic).map_err(|_| NoEntry::WillTopic)?;
    let telemetry = super::publish::telemetry(target, will.content_type.as_ref(), &will.properties, &will.payload);
    let telemetry = telemetry.ok_or(NoEntry::WillTopic)?;
    check_telemetry(&telemetry).map_err(|_| NoEntry::WillInvalid)?;
    Ok(Will {
        delay_secs: will.delay_secs,
        telemetry,
    })
}

/// Registered before it is opened, so that no takeover note for the new generation is missed.
async fn commit(shared: &Arc<Shared>, key: DeviceKey, open: OpenSession) -> Result<Opened, NoEntry> {
    let mailbox = Arc::new(Mailbox::default());
    let entry = Registered::new(shared, &key, &mailbox);
    let keep_alive_secs = open.keep_alive_secs;
    let command = Command::OpenSession(Box::new(open));
    let answer = open_until(shared, &key, command).await?;
    let Answer::SessionOpened {
        generation,
        session_present,
        expiry_secs,
        subscriptions,
        messages,
    } = answer
    else {
        return Err(NoEntry::Unavailable);
    };
    shared.registry.opened(&key, &mailbox, generation);
    entry.keep();
    Ok(Opened {
        key,
        mailbox,
        generation,
        session_present,
        expiry_secs,
        keep_alive_secs,
        subscriptions,
        messages,
    })
}

/// Takes the registry's entry back unless the session was opened.
struct Registered<'a> {
    shared: &'a Shared,
    key: &'a DeviceKey,
    mailbox: &'a Arc<Mailbox>,
    kept: bool,
}

impl<'a> Registered<'a> {
    fn new(shared: &'a Shared, key: &'a DeviceKey, mailbox: &'a Arc<Mailbox>) -> Self {
        shared.registry.opening(key, mailbox, OWN);
        Self {
            shared,
            key,
            mailbox,
            kept: false,
        }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.registry.remove(self.key, self.mailbox);
        }
    }
}

async fn open_until(shared: &Arc<Shared>, key: &DeviceKey, command: Command) -> Result<Answer, NoEntry> {
    let limits = &shared.limits;
    let deadline = Instant::now() + limits.open_timeout;
    let mut pause = limits.retry_min;
    let mut in_doubt = false;
    let gate = shared.gates.of(shared.devices.shard_of(key));
    let no = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Held for one attempt, so that a shard without a leader keeps nobody waiting at the door.
        let Ok(permit) = tokio::time::timeout(left, gate.opening.acquire()).await else {
            break NoEntry::Busy;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = ask(&*shared.devices, key, command.clone());
        let error = match tokio::time::timeout(left, asked).await {
            Ok(Ok(reply)) => match reply.answer {
                Answer::Refused(refusal) => CallError::Refused(refusal),
                answer => return Ok(answer),
            },
            Ok(Err(error)) => error,
            Err(_) => CallError::Unknown,
        };
        in_doubt |= error == CallError::Unknown;
        if let Some(no) = reasons::no_entry(&error) {
            break no;
        }
        if Instant::now() + pause >= deadline {
            break NoEntry::Unavailable;
        }
        drop(permit);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(limits.retry_max);
    };
    if in_doubt {
        closer::settle(shared, key.clone());
    }
    Err(no)
}

fn accept(shared: &Shared, mut protocol: Protocol, request: &Request, opened: Opened, out: &mut BytesMut) -> Admitted {
    let limits = &shared.limits;
    let before = out.len();
    let v3 = v3::ConnectAck {
        return_code: v3::ConnectAckReason::ConnectionAccepted,
        session_present: opened.session_present,
    };
    protocol.connack(out, v3, || v5::ConnectAck {
        session_present: opened.session_present,
        reason_code: v5::ConnectAckReason::Success,
        session_expiry_interval_secs: (opened.expiry_secs != request.expiry_secs).then_some(opened.expiry_secs),
        receive_max: NonZeroU16::new(limits.receive_maximum).unwrap_or(NonZeroU16::MIN),
        max_qos: QoS::AtLeastOnce,
        // The whole packet, with the longest fixed header.
        max_packet_size: Some(limits.packet_bytes_max.saturating_add(5)),
        topic_alias_max: limits.topic_alias_max,
        retain_available: false,
        wildcard_subscription_available: true,
        subscription_identifiers_available: true,
        shared_subscription_available: false,
        response_info: request
            .wants_response_info
            .then(|| topic::tree(&opened.key.device).into()),
        server_keepalive_sec: (opened.keep_alive_secs != request.keep_alive_secs).then_some(opened.keep_alive_secs),
        ..v5::ConnectAck::default()
    });
    Admitted {
        key: opened.key,
        generation: opened.generation,
        protocol,
        mailbox: opened.mailbox,
        subscriptions: opened.subscriptions,
        keep_alive_secs: opened.keep_alive_secs,
        expiry_secs: opened.expiry_secs,
        client_receive_maximum: request.client_receive_maximum,
        wants_receipts: request.wants_problem_info,
        is_fresh: !opened.session_present,
        is_unheard: out.len() == before,
        messages: opened.messages,
    }
}
