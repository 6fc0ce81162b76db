//! Messages from the cloud to a device: a bounded queue, its dead letters, and what became of each.
//!
//! The head of the queue is here; content and feedback lie in rows of their own, because a head is
//! read with every device and content only when it is sent.

use serde::{Deserialize, Serialize};

use super::window::Ring;
use super::{check_properties, Policy, Refusal};
use crate::id::DeviceId;
use crate::time::Timestamp;

/// Messages sent to one connection and not settled, as far as they are sent without being asked for.
pub const PUSHED_MAX: usize = 16;
/// How long a connected device may leave messages unsettled before its gateway is reminded of
/// them; doubled each time, because a reminder may get lost and a device may never answer.
pub(super) const NUDGE_AFTER_MS: u64 = 10_000;
/// Doublings of that.
pub(super) const NUDGE_DOUBLINGS_MAX: u8 = 6;
/// Packet ids of messages have the upper half to themselves: they outlive a connection.
pub const PACKET_IDS: std::ops::RangeInclusive<u16> = 0x8000..=u16::MAX;
/// Names that stand for something else where a message id would stand.
const RESERVED_IDS: [&str; 4] = ["dead", "feedback", "events", "devicebound"];

/// What an operator sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// 1 to 128 of the characters of device ids; the last part of the topic.
    pub id: String,
    pub content_type: Option<String>,
    /// In order; names may repeat.
    pub properties: Vec<(String, String)>,
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

impl Message {
    /// Bytes of its payload and of all that describes it.
    pub fn bytes(&self) -> usize {
        let properties = self.properties.iter().map(|(name, value)| name.len() + value.len());
        let content_type = self.content_type.as_ref().map_or(0, String::len);
        self.body.len() + self.id.len() + content_type + properties.sum::<usize>()
    }

    /// Tells a repetition from another message under the same id.
    pub fn digest(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&self.body);
        field(self.content_type.as_deref().unwrap_or("").as_bytes());
        for (name, value) in &self.properties {
            field(name.as_bytes());
            field(value.as_bytes());
        }
        hasher.digest()
    }
}

/// The checks of a message that need no device.
///
/// # Errors
/// `MessageInvalid`, with the rule that is broken, or `MessageTooLarge`.
pub fn check_message(message: &Message, ttl_secs: Option<u32>, policy: &Policy) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::MessageInvalid { reason });
    if DeviceId::parse(&message.id).is_err() {
        return refuse("a message id has 1 to 128 characters, those of device ids".to_owned());
    }
    if RESERVED_IDS.contains(&message.id.as_str()) {
        return refuse(format!(
            "{:?} cannot be a message id, it names something else",
            message.id
        ));
    }
    let (bytes, max) = (message.body.len() as u64, policy.message_bytes_max as u64);
    if bytes > max {
        return Err(Refusal::MessageTooLarge { bytes, max });
    }
    if let Err(reason) = check_properties(&message.properties, message.content_type.as_deref()) {
        return refuse(reason);
    }
    check_ttl(ttl_secs, policy)
}

pub(super) fn check_ttl(ttl_secs: Option<u32>, policy: &Policy) -> Result<(), Refusal> {
    let max = policy.message_ttl_secs_max;
    match ttl_secs {
        Some(secs) if secs == 0 || secs > max => Err(Refusal::MessageInvalid {
            reason: format!("a time to live of {secs} s is not in 1..={max}"),
        }),
        _ => Ok(()),
    }
}

/// How the life of a message in the queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The device acknowledged it.
    Completed,
    /// Its time to live ran out.
    Expired,
    /// The device answered with a reason code of failure.
    Rejected,
    /// It was delivered as often as is allowed and never acknowledged.
    MaxDeliveries,
    /// An operator took it out of the queue.
    Purged,
}

impl Outcome {
    pub const ALL: [Outcome; 5] = [
        Outcome::Completed,
        Outcome::Expired,
        Outcome::Rejected,
        Outcome::MaxDeliveries,
        Outcome::Purged,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Expired => "expired",
            Outcome::Rejected => "rejected",
            Outcome::MaxDeliveries => "max-deliveries",
            Outcome::Purged => "purged",
        }
    }

    /// Whether the message is kept as a dead letter.
    pub fn is_dead(self) -> bool {
        self != Outcome::Completed
    }
}

/// The head of a device's queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// In the order of their numbers, which is that of delivery.
    pub queue: Vec<Queued>,
    /// Oldest first.
    pub dead: Vec<DeadLetter>,
    /// Seq of the newest feedback; 0 before the first.
    pub last_feedback: u64,
    /// Feedback up to this seq is gone.
    pub trimmed_feedback: u64,
    /// The packet id given out last.
    pub last_packet_id: u16,
    /// Reminders since something was queued or settled.
    pub nudges: u8,
    /// When the gateway is to be reminded; `None` while there is nothing to remind of.
    pub nudge_at: Option<Timestamp>,
    ids: MessageIds,
}

/// One message that waits, or is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// The device's version that queued it: grows, and is never used again.
    pub number: u64,
    /// The number under which its content was stored; another one for a replayed dead letter.
    pub row: u64,
    pub id: Box<str>,
    pub bytes: u32,
    pub enqueued_at: Timestamp,
    pub expires_at: Timestamp,
    /// How often it was handed to a connection.
    pub deliveries: u16,
    /// The session generation it was handed to last; 0 before the first.
    pub generation: u64,
    /// Its packet id in that session.
    pub packet_id: u16,
    /// An earlier connection of the same session had it already.
    pub resent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub number: u64,
    pub row: u64,
    pub id: Box<str>,
    pub bytes: u32,
    pub enqueued_at: Timestamp,
    pub died_at: Timestamp,
    pub deliveries: u16,
    pub reason: Outcome,
}

/// What a gateway says of a message it had handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    pub number: u64,
    /// `false`: PUBACK with a reason code of failure.
    pub accepted: bool,
}

static NO_MESSAGES: Messages = Messages {
    queue: Vec::new(),
    dead: Vec::new(),
    last_feedback: 0,
    trimmed_feedback: 0,
    last_packet_id: 0,
    nudges: 0,
    nudge_at: None,
    ids: MessageIds(Ring::EMPTY),
};

impl Messages {
    /// Of a device that never had one.
    pub(super) fn none() -> &'static Messages {
        &NO_MESSAGES
    }

    pub fn queued(&self, number: u64) -> Option<&Queued> {
        self.position(number).map(|at| &self.queue[at])
    }

    pub fn dead_letter(&self, number: u64) -> Option<&DeadLetter> {
        self.dead.iter().find(|letter| letter.number == number)
    }

    pub(super) fn position(&self, number: u64) -> Option<usize> {
        self.queue.binary_search_by_key(&number, |queued| queued.number).ok()
    }

    /// The digest of a message with this id, as long as it is remembered.
    pub(super) fn known(&self, id: &str) -> Option<u64> {
        self.ids.digest(id)
    }

    pub(super) fn remember(&mut self, id: &str, digest: u64, count_max: u16) {
        self.ids.remember(id, digest, count_max);
    }

    /// Whether the id names a message that is still here.
    pub fn holds(&self, id: &str) -> bool {
        self.queue.iter().any(|queued| &*queued.id == id) || self.dead.iter().any(|letter| &*letter.id == id)
    }

    pub fn feedback_count(&self) -> u64 {
        self.last_feedback.saturating_sub(self.trimmed_feedback)
    }

    /// When time will ask something of the queue.
    pub fn due(&self) -> Option<Timestamp> {
        let expiry = self.queue.iter().map(|queued| queued.expires_at).min();
        [expiry, self.nudge_at].into_iter().flatten().min()
    }
}

/// hash of the id u128 | digest u64
const ID_LEN: usize = 24;

/// The ids queued lately, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct MessageIds(Ring<ID_LEN>);

impl MessageIds {
    fn digest(&self, id: &str) -> Option<u64> {
        let hash = super::window::hash_of(id);
        let entry = self.0.entries().rev().find(|entry| entry[..16] == hash)?;
        Some(u64::from_le_bytes(
            entry[16..].try_into().expect("an entry has 24 bytes"),
        ))
    }

    fn remember(&mut self, id: &str, digest: u64, count_max: u16) {
        let mut entry = [0; ID_LEN];
        entry[..16].copy_from_slice(&super::window::hash_of(id));
        entry[16..].copy_from_slice(&digest.to_le_bytes());
        self.0.push(&entry, count_max);
    }
}
