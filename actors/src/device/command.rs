//! What can be asked of a device.

use serde::{Deserialize, Serialize};

use super::messages::{Message, Settlement};
use super::Status;
use crate::id::{DeviceId, Gateway};
use crate::time::Timestamp;

/// Everything a device's actor can be asked. Commands cross nodes when they are forwarded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// HTTP PUT: creates the device, or replaces its registration.
    PutDevice {
        status: Status,
        condition: Precondition,
        /// The gateway device that may act for it.
        gateway: Option<DeviceId>,
    },
    /// HTTP PATCH: changes what is named. `None` leaves a field alone.
    PatchDevice {
        status: Option<Status>,
        condition: Precondition,
        /// `Some(None)` takes the gateway away.
        gateway: Option<Option<DeviceId>>,
    },
    DeleteDevice {
        condition: Precondition,
    },
    ReadDevice,

    OpenSession(Box<OpenSession>),
    CloseSession {
        generation: u64,
        cause: CloseCause,
    },
    /// A gateway says it still holds this session (to a new leader, or after a silence).
    AnnounceSession {
        generation: u64,
        gateway: Gateway,
    },
    Subscribe {
        fence: Fence,
        subscriptions: Vec<Subscription>,
    },
    Unsubscribe {
        fence: Fence,
        filters: Vec<String>,
    },

    RecordTelemetry {
        origin: Origin,
        telemetry: Telemetry,
    },

    ReadTwin,
    /// All writes or none.
    UpdateTwin {
        origin: Origin,
        writes: Vec<SectionWrite>,
        condition: Option<TwinMatch>,
    },

    /// From the due index: the session's expiry has passed. Decided again against `now`.
    ExpireSession,
    /// From the due index: the will's delay has passed.
    PublishWill,
    /// From the due index: rows below `before_seq` are older than the retention; the oldest that
    /// stays was enqueued at `oldest_at` (`None` when none stays).
    TrimTelemetry {
        before_seq: u64,
        oldest_at: Option<Timestamp>,
    },

    /// Messages of one request, stored in their order in one commit; those whose id is known are
    /// passed over.
    RecordBatch {
        telemetry: Vec<Telemetry>,
    },
    /// Queues a message for the device. An id that is known is acknowledged again.
    EnqueueMessage {
        message: Box<Message>,
        /// `None`: the policy's default.
        ttl_secs: Option<u32>,
    },
    ReadMessages,
    /// A gateway asks for what its connection may be sent now.
    TakeMessages {
        generation: u64,
        /// Numbers it has already, and that are not settled.
        held: Vec<u64>,
        count_max: u16,
    },
    /// A gateway tells what the device answered. Idempotent.
    SettleMessages {
        generation: u64,
        settled: Vec<Settlement>,
    },
    /// Takes one message out of the queue, or all.
    PurgeMessages {
        id: Option<String>,
    },
    /// Queues a dead letter again, as if it were new.
    ReplayMessage {
        id: String,
        ttl_secs: Option<u32>,
    },
    /// Forgets one dead letter, or all.
    DropDeadLetters {
        id: Option<String>,
    },
    /// From the due index: a message has expired, or its gateway is to be reminded.
    TendMessages,
}

/// Settings that `decide` needs and that are the same for every device of the node. They never
/// reach `apply`: what they cause travels in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether an unregistered device is registered by its first `OpenSession`.
    pub auto_register: bool,
    /// Telemetry rows kept per device. Default 10,000,000; 1..=2^40.
    pub telemetry_count_max: u64,
    /// Bytes of a tags section. Default 8 KiB.
    pub tags_bytes_max: usize,
    /// Bytes of desired and of reported, each. Default 32 KiB.
    pub section_bytes_max: usize,
    /// Levels of nesting in a twin section. Default 10.
    pub twin_depth_max: usize,
    /// Remembered message ids per device. Default 64.
    pub message_ids_max: usize,
    /// Remembered (packet id, digest) pairs per device. Default 32, at least the receive maximum.
    pub packet_ids_max: usize,
    /// Subscriptions per session. Default 32.
    pub subscriptions_max: usize,
    /// Longest session expiry a client gets, in seconds. Default 7 days.
    pub session_expiry_secs_max: u32,
    /// Messages waiting for one device. Default 50; 1..=1000.
    pub message_queue_max: usize,
    /// Bytes of a message's payload. Default 64 KiB.
    pub message_bytes_max: usize,
    /// Time to live of a message that names none. Default 1 hour.
    pub message_ttl_secs: u32,
    /// Longest time to live. Default 2 days.
    pub message_ttl_secs_max: u32,
    /// Deliveries after which a message that was never acknowledged is a dead letter. Default 10.
    pub message_deliveries_max: u16,
    /// Dead letters kept per device; the oldest give way. Default 50; 0..=1000.
    pub dead_letters_max: usize,
    /// Feedback records kept per device; the oldest give way. Default 200.
    pub feedback_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            auto_register: false,
            telemetry_count_max: 10_000_000,
            tags_bytes_max: 8 * 1024,
            section_bytes_max: 32 * 1024,
            twin_depth_max: 10,
            message_ids_max: 64,
            packet_ids_max: 32,
            subscriptions_max: 32,
            session_expiry_secs_max: 7 * 24 * 3600,
            message_queue_max: 50,
            message_bytes_max: 64 * 1024,
            message_ttl_secs: 3600,
            message_ttl_secs_max: 2 * 24 * 3600,
            message_deliveries_max: 10,
            dead_letters_max: 50,
            feedback_max: 200,
        }
    }
}

/// What must be true of the registration before it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precondition {
    #[default]
    None,
    /// `If-Match: "n"`: the registration's etag.
    Etag(u64),
    /// `If-Match: *`
    Exists,
    /// `If-None-Match: *`
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TwinMatch {
    /// The twin's version (any section counts).
    Twin(u64),
    /// One section's version.
    Section(Section, u64),
}

/// Which live session speaks, and the how-manieth of its commands this is (from 1, no gaps).
///
/// The device accepts the next ordinal, answers an older one again without storing anything,
/// and refuses a later one ([`super::Refusal::OrdinalGap`]); the gateway then resends from the gap.
/// A command that is refused for another reason has had its turn: that is
/// [`super::Answer::Refused`], and the next ordinal may follow. Only `StaleSession`, `OrdinalGap`,
/// `NotRegistered`, `Disabled` and `Quarantined` come as errors; they consume nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub generation: u64,
    pub ordinal: u64,
}

/// Who sends a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A device over its session. `delivery` is there for QoS 1.
    Session { fence: Fence, delivery: Option<Delivery> },
    /// The operator API.
    Operator,
}

/// How a QoS 1 publish came in. For publishes without a message id, a DUP packet is matched
/// against the window of (packet id, payload digest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub packet_id: u16,
    pub dup: bool,
    /// xxh3 of topic, properties that matter and payload; computed once, by the gateway.
    pub digest: u64,
}

/// One telemetry message as the device sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Empty for the device's default stream.
    pub stream: String,
    pub content_type: Option<String>,
    /// User properties, in order; names may repeat.
    pub properties: Vec<(String, String)>,
    /// The device's own time, when it gave one.
    pub device_time: Option<Timestamp>,
    /// At most 128 bytes. Stored once within the window of [`Policy::message_ids_max`].
    pub message_id: Option<String>,
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

impl Telemetry {
    /// Bytes of its payload and of all that describes it.
    pub fn bytes(&self) -> usize {
        let properties = self.properties.iter().map(|(name, value)| name.len() + value.len());
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.body.len()
            + self.stream.len()
            + text(&self.content_type)
            + text(&self.message_id)
            + properties.sum::<usize>()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Section {
    Tags,
    Desired,
    Reported,
}

impl Section {
    pub const ALL: [Section; 3] = [Section::Tags, Section::Desired, Section::Reported];

    pub fn name(self) -> &'static str {
        match self {
            Section::Tags => "tags",
            Section::Desired => "desired",
            Section::Reported => "reported",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionWrite {
    pub section: Section,
    pub mode: WriteMode,
    /// A JSON object as text; checked by `decide` (size, depth, that it is an object).
    pub json: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteMode {
    /// JSON merge patch (RFC 7396): `null` deletes.
    Merge,
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub filter: String,
    pub qos: Qos,
    /// What MQTT 5 clients find on messages that this filter let through; 0: nothing.
    pub identifier: u32,
}

/// CONNECT, as far as the device's state is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    pub gateway: Gateway,
    /// MQTT 5 clean start, or 3.1.1 clean session.
    pub clean_start: bool,
    /// Seconds the session outlives its connection; 0 ends with it. `decide` caps it by policy.
    pub expiry_secs: u32,
    pub keep_alive_secs: u16,
    /// 4 (3.1.1) or 5.
    pub protocol: u8,
    pub will: Option<Will>,
    /// The gateway device that opens it for this one, over its own connection.
    pub via: Option<DeviceId>,
}

/// Recorded as telemetry of the device when the connection ends without a DISCONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    pub delay_secs: u32,
    pub telemetry: Telemetry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CloseCause {
    /// DISCONNECT with reason 0: the will is dropped. `expiry_secs` as MQTT 5 may change it.
    Graceful { expiry_secs: Option<u32> },
    /// Everything else that ends a connection: the will counts.
    Abrupt,
    /// The gateway's process is gone, or was silent for the grace period.
    GatewayLost,
}
