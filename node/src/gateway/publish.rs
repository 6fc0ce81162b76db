//! PUBLISH from a device: what it is, whether it is admitted, and how it is answered.
//!
//! Everything that can be refused without the device's state is refused before an ordinal is
//! given; what has an ordinal is carried out, or the connection ends without a PUBACK.

use actors::device::{check_telemetry, Command, Delivery, Origin, Refusal, Telemetry};
use actors::ports::{CallResult, Reply};
use actors::time::Timestamp;
use actors::wire::receipt::Receipt;
use actors::wire::topic::{PublishTopic, TopicError};
use bytestring::ByteString;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::{PublishAckReason, UserProperties};
use tokio::io::{AsyncRead, AsyncWrite};

use super::acting::For;
use super::connection::Connection;
use super::inflight::{After, Outcome};
use super::metrics;
use super::reasons::{self, End, Violation};
use super::session::Room;
use super::twin::TOO_MANY;

/// User property of a PUBACK: the receipt as text.
const RECEIPT: ByteString = ByteString::from_static("holdfast-receipt");
/// User properties that name the message: ours, and Azure's.
const MESSAGE_ID: [&str; 2] = ["message-id", "$.mid"];
/// User property with the device's own time: RFC 3339, or milliseconds since 1970.
const DEVICE_TIME: &str = "hf-device-time";
/// What a message costs the node beside its payload.
const OVERHEAD_BYTES: usize = 512;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn on_publish(&mut self, publish: Box<Publish>) -> Result<(), End> {
        if self.check_publish(&publish)? == Repeated::Yes {
            return Ok(());
        }
        let (device, target) = match self.addressed(&publish.topic) {
            Ok((device, _)) if !self.has_room_for(&device, 0) => {
                return self.refuse(&publish, PublishAckReason::QuotaExceeded, "too_many_children");
            }
            Ok(addressed) => addressed,
            Err(TopicError::Foreign) => return self.refuse(&publish, PublishAckReason::NotAuthorized, FOREIGN),
            Err(_) => return self.refuse(&publish, PublishAckReason::TopicNameInvalid, "unknown_topic"),
        };
        match target {
            PublishTopic::TwinGet { rid } => self.on_twin_get(publish, device, rid),
            PublishTopic::TwinReported { rid } => self.on_twin_reported(publish, device, rid),
            PublishTopic::MethodResponse { rid } => {
                let device = device.unwrap_or_else(|| self.key.device.clone());
                self.on_method_response(&publish, &device, &rid);
                Ok(())
            }
            target => self.on_telemetry(publish, device, target),
        }
    }

    /// # Errors
    /// What no well-behaved client sends; it ends the connection.
    fn check_publish(&self, publish: &Publish) -> Result<Repeated, End> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(self.offence(Violation::Qos2));
        }
        if publish.topic.is_empty() || publish.topic.contains(['+', '#', '\0']) {
            return Err(self.offence(Violation::TopicName));
        }
        let properties = publish.properties.as_ref().map_or(0, |p| p.user_properties.len());
        if properties > self.shared.limits.user_properties_max {
            return Err(self.offence(Violation::TooManyProperties));
        }
        let Some(packet_id) = publish.packet_id else {
            // DUP says nothing without a packet id [MQTT-3.3.1-2].
            return if publish.dup {
                Err(self.offence(Violation::Malformed))
            } else {
                Ok(Repeated::No)
            };
        };
        match self.inflight.publish_with(packet_id) {
            // It will be answered once; that answers both.
            Some(held) if publish.dup && held == digest(publish) => return Ok(Repeated::Yes),
            Some(_) => return Err(self.offence(Violation::PacketIdInUse)),
            None => {}
        }
        Ok(Repeated::No)
    }

    fn on_telemetry(&mut self, publish: Box<Publish>, device: For, target: PublishTopic) -> Result<(), End> {
        let properties = publish.properties.as_ref();
        let (content_type, user) = match properties {
            Some(p) => (p.content_type.as_ref(), p.user_properties.as_slice()),
            None => (None, &[] as &[_]),
        };
        let Some(telemetry) = telemetry(target, content_type, user, &publish.payload) else {
            return self.refuse(&publish, PublishAckReason::TopicNameInvalid, "unknown_topic");
        };
        if let Err(refusal) = check_telemetry(&telemetry) {
            return self.refuse(&publish, reasons::puback(&refusal), "telemetry_invalid");
        }
        if let Some(why) = self.shared.devices.refuses_telemetry() {
            return self.put_off(publish, why);
        }
        let Admission::Granted { publish, bytes } = self.admit(publish)? else {
            return Ok(());
        };
        let digest = digest(&publish);
        let delivery = publish.packet_id.map(|packet_id| Delivery {
            packet_id: packet_id.get(),
            dup: publish.dup,
            digest,
        });
        let after = publish
            .packet_id
            .map_or(After::Nothing, |packet_id| After::PubAck { packet_id });
        self.carry_out(device, after, digest, bytes, |fence| Command::RecordTelemetry {
            origin: Origin::Session { fence, delivery },
            telemetry,
        });
        Ok(())
    }

    /// Whether there is room for it. A QoS 0 publish is dropped otherwise. One of QoS 1 waits for
    /// its turn, and its socket with it; in MQTT 5 it is refused when that takes too long, or when
    /// the node holds as many bytes as it may.
    pub(super) fn admit(&mut self, publish: Box<Publish>) -> Result<Admission, End> {
        let bytes = publish.payload.len() + OVERHEAD_BYTES;
        let at_most_once = publish.packet_id.is_none();
        let crowded = at_most_once && self.inflight.len() >= self.shared.limits.qos0_in_flight_max;
        let room = match crowded {
            true => Room::None,
            false => self.session.take(bytes),
        };
        if room == Room::Taken {
            self.held_since = None;
            metrics::publish(!at_most_once, publish.payload.len());
            return Ok(Admission::Granted { publish, bytes });
        }
        let waits = match room {
            Room::Queue => !self.shedding,
            _ => !self.protocol.is_v5(),
        };
        if at_most_once || !waits {
            self.held_since = None;
            self.refuse(&publish, PublishAckReason::QuotaExceeded, "overload")?;
        } else {
            if room == Room::Queue {
                self.session.queue();
            }
            self.held = Some(publish);
            self.held_since.get_or_insert(self.now);
        }
        Ok(Admission::Settled)
    }

    /// The node takes no telemetry for now. In MQTT 5 the client is told; in 3.1.1, which has no
    /// word for it, it waits: to close would only make it come back, at the price of a session.
    fn put_off(&mut self, publish: Box<Publish>, why: &'static str) -> Result<(), End> {
        if publish.packet_id.is_none() || self.protocol.is_v5() {
            return self.refuse(&publish, PublishAckReason::QuotaExceeded, why);
        }
        self.held = Some(publish);
        Ok(())
    }

    /// Refuses a publish that has no ordinal, in its turn.
    pub(super) fn refuse(&mut self, publish: &Publish, reason: PublishAckReason, why: &'static str) -> Result<(), End> {
        match publish.packet_id {
            Some(packet_id) if self.protocol.is_v5() => {
                self.inflight
                    .push_local(After::PubAck { packet_id }, Outcome::Local(reason), self.now);
                metrics::puback(why);
                Ok(())
            }
            Some(_) => {
                metrics::puback(why);
                Err(End::PublishRefused(why))
            }
            // Overload drops a QoS 0 publish in both versions; anything else is the client's fault.
            None => {
                metrics::publish_dropped(why);
                let fault = reason != PublishAckReason::QuotaExceeded;
                if fault && !self.protocol.is_v5() {
                    return Err(End::PublishRefused(why));
                }
                Ok(())
            }
        }
    }

    /// Tells the client what came of the entry whose turn it is.
    pub(super) fn answer(&mut self, after: After, outcome: Outcome) -> Result<(), End> {
        match after {
            After::Nothing => self.answer_nothing(&outcome),
            After::Gather(gather) => {
                self.answer_gathered(*gather);
                Ok(())
            }
            After::Part(part) => {
                self.part_settled(*part, &outcome);
                Ok(())
            }
            After::Mark(marks) => {
                self.marked(marks, &outcome);
                Ok(())
            }
            After::Unmark(mark) => {
                self.subscriptions.retain(|kept| kept.filter != mark);
                Ok(())
            }
            // Only in lanes.
            After::Elsewhere { .. } => Ok(()),
            After::PubAck { packet_id } => self.acknowledge(packet_id, &outcome),
            After::SubAck {
                packet_id,
                status,
                granted,
            } => {
                self.answer_subscribe(packet_id, status, granted, &outcome);
                Ok(())
            }
            After::UnsubAck { packet_id, filters } => {
                self.answer_unsubscribe(packet_id, &filters);
                Ok(())
            }
            After::TwinRead {
                to,
                promised,
                packet_id,
            } => {
                self.session.keep_promise(promised);
                self.answer_twin_get(to, packet_id, outcome)
            }
            After::TwinReported { to, packet_id } => self.answer_twin_reported(to, packet_id, outcome),
        }
    }

    /// To act for a device that is not one's child is the client's fault, as another topic is.
    fn answer_nothing(&self, outcome: &Outcome) -> Result<(), End> {
        let Some(refusal) = refusal_of(outcome) else {
            return Ok(());
        };
        let label = refusal_label(refusal);
        metrics::publish_dropped(label);
        if label == FOREIGN && !self.protocol.is_v5() {
            return Err(End::PublishRefused(label));
        }
        Ok(())
    }

    pub(super) fn acknowledge(&mut self, packet_id: std::num::NonZeroU16, outcome: &Outcome) -> Result<(), End> {
        let (reason, label) = match outcome {
            Outcome::Local(reason) => (*reason, None),
            Outcome::LocalTwin(TOO_MANY, _) => (PublishAckReason::QuotaExceeded, None),
            Outcome::LocalTwin(..) => (PublishAckReason::PayloadFormatInvalid, None),
            Outcome::Device(_) => match refusal_of(outcome) {
                Some(refusal) => (reasons::puback(refusal), Some(refusal_label(refusal))),
                None => (PublishAckReason::Success, Some(metrics::SUCCESS)),
            },
        };
        if let Some(label) = label {
            metrics::puback(label);
            metrics::ingested(outcome_label(outcome));
        }
        if reason != PublishAckReason::Success && !self.protocol.is_v5() {
            return Err(End::PublishRefused("refused"));
        }
        let receipt = receipt_of(outcome).filter(|_| self.wants_receipts);
        let properties = receipt.map(receipt_property).unwrap_or_default();
        if !self.is_mute() {
            self.protocol
                .puback(&mut self.socket.output, packet_id, reason, properties);
        }
        Ok(())
    }
}

/// As `holdfast_ingest_messages_total` names it.
fn outcome_label(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Device(Ok(Reply {
            answer: actors::device::Answer::Telemetry { repeated, .. },
            ..
        })) => Some(if *repeated { "repeated" } else { metrics::ACKNOWLEDGED }),
        outcome if refusal_of(outcome).is_some() => Some("refused"),
        _ => None,
    }
}

/// How a topic of a device is counted that one may not act for.
const FOREIGN: &str = "foreign_topic";

fn refusal_label(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NotGateway { .. } | Refusal::NotRegistered => FOREIGN,
        _ => "refused",
    }
}

#[derive(PartialEq, Eq)]
enum Repeated {
    Yes,
    No,
}

pub(super) enum Admission {
    Granted {
        publish: Box<Publish>,
        bytes: usize,
    },
    /// Refused, dropped or held.
    Settled,
}

/// Telemetry as a device sent it; `None` when the topic is not telemetry.
pub(super) fn telemetry(
    target: PublishTopic,
    content_type: Option<&ByteString>,
    user: &[(ByteString, ByteString)],
    payload: &[u8],
) -> Option<Telemetry> {
    let mut telemetry = Telemetry {
        content_type: content_type.map(ToString::to_string),
        properties: user
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        device_time: find(user, DEVICE_TIME).and_then(device_time),
        message_id: MESSAGE_ID.iter().find_map(|name| find(user, name)).map(str::to_owned),
        body: payload.to_vec(),
        ..Telemetry::default()
    };
    match target {
        PublishTopic::Telemetry { stream } => telemetry.stream = stream,
        PublishTopic::AzureTelemetry { properties: bag } => {
            telemetry.message_id = telemetry.message_id.or(bag.message_id);
            telemetry.content_type = telemetry.content_type.or(bag.content_type);
            telemetry.device_time = telemetry
                .device_time
                .or(bag.created_at.as_deref().and_then(device_time));
            telemetry.properties.extend(bag.properties);
            telemetry
                .properties
                .extend(bag.content_encoding.map(|encoding| ("$.ce".to_owned(), encoding)));
        }
        PublishTopic::TwinGet { .. } | PublishTopic::TwinReported { .. } | PublishTopic::MethodResponse { .. } => {
            return None
        }
    }
    telemetry.message_id = telemetry.message_id.filter(|id| !id.is_empty());
    Some(telemetry)
}

fn find<'u>(user: &'u [(ByteString, ByteString)], wanted: &str) -> Option<&'u str> {
    user.iter()
        .find(|(name, _)| *name == *wanted)
        .map(|(_, value)| &**value)
}

/// Milliseconds since 1970, or RFC 3339; anything else stays a mere property.
fn device_time(text: &str) -> Option<Timestamp> {
    if let Ok(millis) = text.parse::<u64>() {
        return Some(Timestamp(millis));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(Timestamp)
}

/// Tells a repetition from another message: over topic, properties and payload.
pub(super) fn digest(publish: &Publish) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(publish.topic.as_bytes());
    field(&publish.payload);
    if let Some(properties) = &publish.properties {
        field(properties.content_type.as_deref().unwrap_or("").as_bytes());
        for (name, value) in &properties.user_properties {
            field(name.as_bytes());
            field(value.as_bytes());
        }
    }
    hasher.digest()
}

/// The refusal in an answer, whether it consumed an ordinal or not.
pub(super) fn refusal_of(outcome: &Outcome) -> Option<&actors::device::Refusal> {
    match outcome {
        Outcome::Device(Ok(Reply {
            answer: actors::device::Answer::Refused(refusal),
            ..
        }))
        | Outcome::Device(Err(actors::ports::CallError::Refused(refusal))) => Some(refusal),
        _ => None,
    }
}

fn receipt_of(outcome: &Outcome) -> Option<Receipt> {
    match outcome {
        Outcome::Device(CallResult::Ok(Reply { receipt, .. })) => *receipt,
        _ => None,
    }
}

fn receipt_property(receipt: Receipt) -> UserProperties {
    vec![(RECEIPT, ByteString::from(receipt.to_string()))]
}
