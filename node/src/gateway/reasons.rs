//! The one table from refusals, errors and offences to MQTT reason codes.
//!
//! MQTT 5 gets the code; 3.1.1 has none for most cases, so that the connection is closed. What is
//! unavailable never becomes 2, 4 or 5 in a CONNACK: real SDKs take those as final.

use actors::device::{CloseCause, Refusal};
use actors::ports::CallError;
use rmqtt_codec::error::DecodeError;
use rmqtt_codec::v3::ConnectAckReason as Connack3;
use rmqtt_codec::v5::{
    ConnectAckReason as Connack5, DisconnectReasonCode as Bye, PublishAckReason, SubscribeAckReason,
};

/// What a client did against the protocol or the bounds. Each ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    Malformed,
    Protocol,
    SecondConnect,
    /// A packet that only servers send, or one of the QoS 2 exchange.
    UnexpectedPacket,
    PacketTooLarge,
    /// A wildcard, nothing, or U+0000 in the topic of a publish.
    TopicName,
    TopicAlias,
    Qos2,
    /// A packet id was used again before its PUBACK.
    PacketIdInUse,
    TooManyProperties,
}

impl Violation {
    pub fn code(self) -> Bye {
        match self {
            Violation::Malformed => Bye::MalformedPacket,
            Violation::Protocol | Violation::SecondConnect | Violation::UnexpectedPacket | Violation::PacketIdInUse => {
                Bye::ProtocolError
            }
            Violation::PacketTooLarge => Bye::PacketTooLarge,
            Violation::TopicName => Bye::TopicNameInvalid,
            Violation::TopicAlias => Bye::TopicAliasInvalid,
            Violation::Qos2 => Bye::QosNotSupported,
            // No code says "too many properties"; 0x83 is the honest one, and the reason is counted.
            Violation::TooManyProperties => Bye::ImplementationSpecificError,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Violation::Malformed => "malformed",
            Violation::Protocol => "protocol",
            Violation::SecondConnect => "second_connect",
            Violation::UnexpectedPacket => "unexpected_packet",
            Violation::PacketTooLarge => "packet_too_large",
            Violation::TopicName => "topic_name",
            Violation::TopicAlias => "topic_alias",
            Violation::Qos2 => "qos2",
            Violation::PacketIdInUse => "packet_id_in_use",
            Violation::TooManyProperties => "too_many_properties",
        }
    }
}

impl From<DecodeError> for Violation {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::MaxSizeExceeded { .. } => Violation::PacketTooLarge,
            DecodeError::InvalidTopicName => Violation::TopicName,
            DecodeError::InvalidTopicFilter => Violation::Protocol,
            _ => Violation::Malformed,
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// DISCONNECT with reason 0, and the session expiry it may change.
    Goodbye {
        expiry_secs: Option<u32>,
    },
    /// DISCONNECT with another reason (0x04: publish the will).
    GoodbyeWithWill,
    /// The socket was closed or failed.
    Lost,
    Violation(Violation),
    /// A publish was refused, and 3.1.1 has no other way to say so.
    PublishRefused(&'static str),
    KeepAlive,
    SlowReader,
    /// The node buffers as much as it may, and this connection more than its share.
    BuffersFull,
    TakenOver,
    NotAuthorised,
    Draining,
    ShuttingDown,
    /// Nothing came of a command within its deadline; it may have been committed.
    Unanswered {
        overloaded: bool,
    },
    /// The device refuses in a way that leaves this session without a next ordinal.
    Broken(&'static str),
}

impl End {
    /// What an MQTT 5 client is told; `None` when it spoke last or cannot hear.
    pub fn code(&self) -> Option<Bye> {
        Some(match self {
            End::Goodbye { .. } | End::GoodbyeWithWill | End::Lost => return None,
            End::Violation(violation) => violation.code(),
            End::PublishRefused(_) | End::Broken(_) => Bye::ImplementationSpecificError,
            End::KeepAlive => Bye::KeepAliveTimeout,
            End::SlowReader | End::BuffersFull => Bye::QuotaExceeded,
            End::TakenOver => Bye::SessionTakenOver,
            End::NotAuthorised => Bye::NotAuthorized,
            End::Draining => Bye::UseAnotherServer,
            End::ShuttingDown => Bye::ServerShuttingDown,
            End::Unanswered { overloaded: true } => Bye::QuotaExceeded,
            End::Unanswered { overloaded: false } => Bye::ServerBusy,
        })
    }

    pub fn label(&self) -> &'static str {
        match self {
            End::Goodbye { .. } => "goodbye",
            End::GoodbyeWithWill => "goodbye_with_will",
            End::Lost => "lost",
            End::Violation(violation) => violation.label(),
            End::PublishRefused(_) => "publish_refused",
            End::KeepAlive => "keep_alive",
            End::SlowReader => "slow_reader",
            End::BuffersFull => "buffers_full",
            End::TakenOver => "taken_over",
            End::NotAuthorised => "not_authorised",
            End::Draining => "draining",
            End::ShuttingDown => "shutting_down",
            End::Unanswered { .. } => "unanswered",
            End::Broken(_) => "broken",
        }
    }

    /// How the session ends; `None` when it is no longer this connection's.
    pub fn close_cause(&self) -> Option<CloseCause> {
        match self {
            End::TakenOver => None,
            End::Goodbye { expiry_secs } => Some(CloseCause::Graceful {
                expiry_secs: *expiry_secs,
            }),
            _ => Some(CloseCause::Abrupt),
        }
    }
}

/// A refusal that ends the session, whatever was asked.
pub fn ends_session(refusal: &Refusal) -> Option<End> {
    match refusal {
        Refusal::StaleSession { .. } => Some(End::TakenOver),
        Refusal::NotRegistered | Refusal::Disabled => Some(End::NotAuthorised),
        _ => None,
    }
}

/// Why a publish was not carried out.
pub fn puback(refusal: &Refusal) -> PublishAckReason {
    match refusal {
        Refusal::NotRegistered | Refusal::Disabled | Refusal::SectionForbidden { .. } | Refusal::NotGateway { .. } => {
            PublishAckReason::NotAuthorized
        }
        Refusal::SectionTooLarge { .. } | Refusal::TooManySubscriptions { .. } | Refusal::MessageQueueFull { .. } => {
            PublishAckReason::QuotaExceeded
        }
        Refusal::SectionTooDeep { .. } | Refusal::SectionInvalid { .. } | Refusal::TelemetryInvalid { .. } => {
            PublishAckReason::PayloadFormatInvalid
        }
        Refusal::AlreadyRegistered
        | Refusal::StaleVersion { .. }
        | Refusal::StaleSession { .. }
        | Refusal::OrdinalGap { .. }
        | Refusal::FilterInvalid { .. }
        | Refusal::GatewayInvalid { .. }
        | Refusal::MessageInvalid { .. }
        | Refusal::MessageTooLarge { .. }
        | Refusal::MessageIdTaken
        | Refusal::MessageNotFound
        | Refusal::Quarantined => PublishAckReason::ImplementationSpecificError,
    }
}

pub fn suback(refusal: &Refusal) -> SubscribeAckReason {
    match refusal {
        Refusal::TooManySubscriptions { .. } => SubscribeAckReason::QuotaExceeded,
        Refusal::NotRegistered | Refusal::Disabled | Refusal::NotGateway { .. } => SubscribeAckReason::NotAuthorized,
        Refusal::FilterInvalid { .. } => SubscribeAckReason::TopicFilterInvalid,
        _ => SubscribeAckReason::UnspecifiedError,
    }
}

/// The `status` of a twin response, after HTTP.
pub fn twin_status(refusal: &Refusal) -> u16 {
    match refusal {
        Refusal::NotRegistered | Refusal::MessageNotFound => 404,
        Refusal::Disabled | Refusal::SectionForbidden { .. } | Refusal::NotGateway { .. } => 403,
        Refusal::StaleVersion { .. } => 412,
        Refusal::SectionTooLarge { .. } | Refusal::TooManySubscriptions { .. } | Refusal::MessageTooLarge { .. } => 413,
        Refusal::SectionTooDeep { .. }
        | Refusal::SectionInvalid { .. }
        | Refusal::TelemetryInvalid { .. }
        | Refusal::FilterInvalid { .. }
        | Refusal::MessageInvalid { .. }
        | Refusal::GatewayInvalid { .. } => 400,
        Refusal::AlreadyRegistered
        | Refusal::StaleSession { .. }
        | Refusal::OrdinalGap { .. }
        | Refusal::MessageIdTaken => 409,
        Refusal::MessageQueueFull { .. } => 429,
        Refusal::Quarantined => 500,
    }
}

/// A CONNECT that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntry {
    UnsupportedProtocol,
    BadClientId,
    NotAuthorised,
    /// No leader, too much load, an unknown outcome: come back.
    Unavailable,
    Draining,
    /// As many connections as there may be, or too many at once: come back.
    Busy,
    PacketTooLarge,
    Malformed,
    BadAuthMethod,
    /// The will's topic is not telemetry of this device.
    WillTopic,
    /// Its properties or size break the rules of telemetry.
    WillInvalid,
    WillQos,
    TooManyProperties,
    /// A device whose state is damaged.
    Quarantined,
}

impl NoEntry {
    /// `None`: 3.1.1 has no code for it, the connection is closed.
    pub fn code3(self) -> Option<Connack3> {
        Some(match self {
            NoEntry::UnsupportedProtocol => Connack3::UnacceptableProtocolVersion,
            NoEntry::BadClientId => Connack3::IdentifierRejected,
            NoEntry::NotAuthorised | NoEntry::WillTopic => Connack3::NotAuthorized,
            NoEntry::Unavailable | NoEntry::Draining | NoEntry::Busy | NoEntry::Quarantined => {
                Connack3::ServiceUnavailable
            }
            _ => return None,
        })
    }

    pub fn code5(self) -> Connack5 {
        match self {
            NoEntry::UnsupportedProtocol => Connack5::UnsupportedProtocolVersion,
            NoEntry::BadClientId => Connack5::ClientIdentifierNotValid,
            NoEntry::NotAuthorised => Connack5::NotAuthorized,
            NoEntry::Unavailable | NoEntry::Quarantined => Connack5::ServerUnavailable,
            NoEntry::Draining => Connack5::UseAnotherServer,
            NoEntry::Busy => Connack5::QuotaExceeded,
            NoEntry::PacketTooLarge => Connack5::PacketTooLarge,
            NoEntry::Malformed => Connack5::MalformedPacket,
            NoEntry::BadAuthMethod => Connack5::BadAuthenticationMethod,
            NoEntry::WillTopic => Connack5::TopicNameInvalid,
            NoEntry::WillInvalid => Connack5::PayloadFormatInvalid,
            NoEntry::WillQos => Connack5::QosNotSupported,
            NoEntry::TooManyProperties => Connack5::ImplementationSpecificError,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            NoEntry::UnsupportedProtocol => "unsupported_protocol",
            NoEntry::BadClientId => "bad_client_id",
            NoEntry::NotAuthorised => "not_authorised",
            NoEntry::Unavailable => "unavailable",
            NoEntry::Draining => "draining",
            NoEntry::Busy => "busy",
            NoEntry::PacketTooLarge => "packet_too_large",
            NoEntry::Malformed => "malformed",
            NoEntry::BadAuthMethod => "bad_auth_method",
            NoEntry::WillTopic => "will_topic",
            NoEntry::WillInvalid => "will_invalid",
            NoEntry::WillQos => "will_qos",
            NoEntry::TooManyProperties => "too_many_properties",
            NoEntry::Quarantined => "quarantined",
        }
    }
}

/// What a failed `OpenSession` means: `None`, try again.
pub fn no_entry(error: &CallError) -> Option<NoEntry> {
    match error {
        CallError::Refused(Refusal::NotRegistered | Refusal::Disabled) => Some(NoEntry::NotAuthorised),
        CallError::Refused(Refusal::Quarantined) => Some(NoEntry::Quarantined),
        CallError::Refused(_) => Some(NoEntry::Unavailable),
        // Opening again is safe even if the first attempt committed: it only costs a generation.
        CallError::NotLeader { .. } | CallError::Overloaded { .. } | CallError::Unknown => None,
    }
}

/// Why a command has to be sent again.
pub fn retry_label(error: &CallError) -> &'static str {
    match error {
        CallError::Refused(_) => "ordinal_gap",
        CallError::NotLeader { .. } => "not_leader",
        CallError::Overloaded { .. } => "overloaded",
        CallError::Unknown => "unknown",
    }
}
