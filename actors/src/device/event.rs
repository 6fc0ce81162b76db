//! What happened to a device. Order of variants and fields is the stored format: append only.

use serde::{Deserialize, Serialize};

use super::messages::{Message, Outcome};
use super::{CloseCause, Refusal, Section, Status, Subscription, Telemetry, Will};
use crate::id::{DeviceId, Gateway};
use crate::time::Timestamp;

/// A decided fact. Each one raises the device's version by exactly 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Also brings back a deleted device: telemetry starts again at seq 1, version and session
    /// generation go on growing.
    DeviceRegistered {
        status: Status,
        automatic: bool,
    },
    StatusChanged {
        status: Status,
    },
    DeviceDeleted,

    SessionOpened(Box<SessionOpened>),
    SessionClosed {
        generation: u64,
        cause: CloseCause,
    },
    /// A session marked offline by mistake is alive after all.
    SessionResumed {
        generation: u64,
        gateway: Gateway,
    },
    SessionExpired {
        generation: u64,
    },
    Subscribed {
        ordinal: u64,
        subscriptions: Vec<Subscription>,
    },
    Unsubscribed {
        ordinal: u64,
        filters: Vec<String>,
    },

    TelemetryRecorded(Box<TelemetryRecorded>),
    /// Rows below `before_seq` are gone; `oldest_at` is when the first that stays was enqueued.
    TelemetryTrimmed {
        before_seq: u64,
        oldest_at: Option<Timestamp>,
    },

    TwinSectionChanged(Box<TwinSectionChanged>),

    /// A session's command changed nothing (a duplicate, a write of nothing) but had its turn.
    OrdinalAdvanced {
        ordinal: u64,
    },
    /// A session's command was refused for what the device's state is. It had its turn, so that
    /// those behind it need not be renumbered; the refusal is kept, so that a repetition learns
    /// the same.
    SessionCommandRefused {
        ordinal: u64,
        refusal: Box<Refusal>,
    },
    /// A will that was due had been stored before, under the same message id.
    WillDropped {
        generation: u64,
    },
    /// From now on this gateway device, and no other, may act for the device.
    GatewayAssigned {
        gateway: Option<DeviceId>,
    },

    MessageQueued(Box<MessageQueued>),
    /// A message was handed to a connection.
    MessageSent {
        number: u64,
        generation: u64,
        packet_id: u16,
        /// An earlier connection of the same session had it already.
        resent: bool,
    },
    MessageEnded {
        number: u64,
        outcome: Outcome,
        feedback_seq: u64,
        /// As a dead letter.
        kept: bool,
    },
    DeadLetterDropped {
        number: u64,
    },
    DeadLetterReplayed {
        number: u64,
        new_number: u64,
        expires_at: Timestamp,
    },
    /// Feedback below `before_seq` is gone.
    FeedbackTrimmed {
        before_seq: u64,
    },
    /// The gateway was reminded, and will be again at `next`.
    MessagesNudged {
        next: Option<Timestamp>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueued {
    /// The device's version after this event.
    pub number: u64,
    pub expires_at: Timestamp,
    /// How many ids are remembered: from the leader's policy, so that all replicas forget alike.
    pub ids_max: u16,
    pub digest: u64,
    pub message: Message,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpened {
    pub generation: u64,
    pub gateway: Gateway,
    /// Subscriptions of the former session are dropped.
    pub clean: bool,
    pub expiry_secs: u32,
    pub keep_alive_secs: u16,
    pub protocol: u8,
    pub will: Option<Will>,
    /// The gateway device that opened it for this one.
    pub via: Option<DeviceId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryRecorded {
    pub seq: u64,
    /// 0 when it did not come over a session.
    pub ordinal: u64,
    /// The will of the session that ended, rather than something it published.
    pub will: bool,
    /// (packet id, digest) of a QoS 1 publish without a message id.
    pub packet: Option<(u16, u64)>,
    /// How many ids and packets the windows keep: from the leader's policy, so that all replicas
    /// forget alike.
    pub message_ids_max: u16,
    pub packet_ids_max: u16,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinSectionChanged {
    pub section: Section,
    /// 0 when it did not come over a session, or when an earlier event of the same command has it.
    pub ordinal: u64,
    /// The section's version after this change.
    pub section_version: u64,
    /// The whole section after this change, canonical JSON (keys sorted).
    pub json: String,
}
