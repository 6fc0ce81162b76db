//! What a caller learns. Read from the state after the command's events were applied.

use serde::{Deserialize, Serialize};

use super::messages::{DeadLetter, Queued};
use super::{Command, DeviceState, Event, Fence, Origin, Refusal, Section, Status, Subscription, Telemetry};
use crate::id::{DeviceId, Gateway};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Device(Box<DeviceView>),
    Twin(Box<TwinView>),
    Deleted,
    SessionOpened {
        generation: u64,
        session_present: bool,
        expiry_secs: u32,
        subscriptions: Vec<Subscription>,
        /// Messages in the queue.
        messages: u32,
    },
    /// Subscribe, unsubscribe, close, settle, expiry: done (or done before).
    Done,
    /// `seq` is 0 when a repeated telemetry fell out of the window, so its place is not known.
    Telemetry {
        seq: u64,
        repeated: bool,
    },
    TwinUpdated {
        twin_version: u64,
        /// In the order of [`Section::ALL`].
        versions: [u64; 3],
    },
    /// A session's command was refused, and that is committed: its ordinal is consumed.
    Refused(Refusal),
    /// Of each message its seq, 0 if that is not known, and whether it was stored before.
    Batch(Vec<(u64, bool)>),

    /// The session announced is the live one, and so many messages wait for it.
    SessionLive {
        messages: u32,
    },
    /// A message is in the queue, now or before.
    MessageQueued {
        /// `None`: it was queued before, and has ended since.
        queued: Option<Box<Queued>>,
        repeated: bool,
    },
    Messages(Box<MessagesView>),
    MessagesTaken {
        taken: Vec<TakenMessage>,
        /// There is more than fits.
        more: bool,
        /// Messages that became dead letters instead.
        ended: u32,
    },
    /// So many messages left the queue, or so many dead letters were forgotten.
    MessagesEnded {
        count: u32,
    },
}

/// The head of a device's queue, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagesView {
    pub queue: Vec<Queued>,
    pub dead: Vec<DeadLetter>,
    /// Generation of the live connection; what was sent to it is on its way.
    pub live: Option<u64>,
}

/// What a connection is handed; the content lies in row `row`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenMessage {
    pub number: u64,
    pub row: u64,
    pub packet_id: u16,
    /// The DUP flag.
    pub resent: bool,
    pub enqueued_at: Timestamp,
    pub expires_at: Timestamp,
}

impl From<&Queued> for TakenMessage {
    fn from(queued: &Queued) -> Self {
        Self {
            number: queued.number,
            row: queued.row,
            packet_id: queued.packet_id,
            resent: queued.resent,
            enqueued_at: queued.enqueued_at,
            expires_at: queued.expires_at,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    pub id: DeviceId,
    pub status: Status,
    pub etag: u64,
    pub version: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub automatic: bool,
    pub connection: Option<Connection>,
    pub last_seq: u64,
    pub first_seq: u64,
    pub last_telemetry_at: Option<Timestamp>,
    pub twin_version: u64,
    /// The gateway device that may act for it.
    pub gateway: Option<DeviceId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub connected: bool,
    pub gateway: Gateway,
    pub generation: u64,
    pub since: Timestamp,
    pub protocol: u8,
    pub keep_alive_secs: u16,
    /// The gateway device over whose connection it runs.
    pub via: Option<DeviceId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinView {
    pub id: DeviceId,
    /// The device's version.
    pub version: u64,
    pub twin_version: u64,
    /// In the order of [`Section::ALL`].
    pub sections: [SectionView; 3],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionView {
    pub section: Section,
    pub version: u64,
    pub updated_at: Option<Timestamp>,
    /// Canonical JSON object.
    pub json: String,
}

/// What the caller of `command` learns, given that `events` led from `before` to `after`.
pub fn answer(id: &DeviceId, before: &DeviceState, after: &DeviceState, command: &Command, events: &[Event]) -> Answer {
    if let Some(refusal) = refusal_of(before, command, events) {
        return Answer::Refused(refusal);
    }
    match command {
        Command::PutDevice { .. } | Command::PatchDevice { .. } | Command::ReadDevice => {
            device_view(id, after).map_or(Answer::Deleted, |view| Answer::Device(Box::new(view)))
        }
        Command::DeleteDevice { .. } => Answer::Deleted,
        Command::OpenSession(_) => session_opened(after, events),
        Command::RecordTelemetry { origin, telemetry } => telemetry_recorded(before, origin, telemetry, events),
        Command::RecordBatch { telemetry } => Answer::Batch(batch_recorded(before, after, telemetry, events)),
        Command::ReadTwin => Answer::Twin(Box::new(twin_view(id, after))),
        Command::UpdateTwin { .. } => Answer::TwinUpdated {
            twin_version: after.twin.version,
            versions: after.twin.section_versions(),
        },
        Command::AnnounceSession { .. } => Answer::SessionLive {
            messages: queue_len(after),
        },
        Command::EnqueueMessage { message, .. } => message_queued(after, &message.id, events),
        Command::ReplayMessage { id, .. } => message_queued(after, id, events),
        Command::ReadMessages => Answer::Messages(Box::new(MessagesView {
            queue: after.messages().queue.clone(),
            dead: after.messages().dead.clone(),
            live: after.session.as_deref().filter(|s| s.connected).map(|s| s.generation),
        })),
        Command::TakeMessages {
            generation,
            held,
            count_max,
        } => messages_taken(after, *generation, (held, usize::from(*count_max)), events),
        Command::PurgeMessages { .. } | Command::DropDeadLetters { .. } | Command::TendMessages => {
            Answer::MessagesEnded {
                count: left(command, events),
            }
        }
        Command::CloseSession { .. }
        | Command::SettleMessages { .. }
        | Command::Subscribe { .. }
        | Command::Unsubscribe { .. }
        | Command::ExpireSession
        | Command::PublishWill
        | Command::TrimTelemetry { .. } => Answer::Done,
    }
}

/// The registration as the operator API shows it; `None` for a device that is not registered.
pub fn device_view(id: &DeviceId, state: &DeviceState) -> Option<DeviceView> {
    let registration = state.registration.as_ref()?;
    Some(DeviceView {
        id: id.clone(),
        status: registration.status,
        etag: registration.etag,
        version: state.version,
        created_at: registration.created_at,
        updated_at: registration.updated_at,
        automatic: registration.automatic,
        connection: state.session.as_deref().map(|session| Connection {
            connected: session.connected,
            gateway: session.gateway,
            generation: session.generation,
            since: session.since,
            protocol: session.protocol,
            keep_alive_secs: session.keep_alive_secs,
            via: session.via.clone(),
        }),
        last_seq: state.telemetry.last_seq,
        first_seq: state.telemetry.first_seq,
        last_telemetry_at: state.telemetry.last_at,
        twin_version: state.twin.version,
        gateway: registration.gateway.clone(),
    })
}

fn twin_view(id: &DeviceId, state: &DeviceState) -> TwinView {
    TwinView {
        id: id.clone(),
        version: state.version,
        twin_version: state.twin.version,
        sections: Section::ALL.map(|section| {
            let kept = state.twin.section(section);
            SectionView {
                section,
                version: kept.version,
                updated_at: kept.updated_at,
                json: kept.json.as_deref().unwrap_or("{}").to_owned(),
            }
        }),
    }
}

/// The refusal of this command, be it new or one whose answer got lost on the way.
fn refusal_of(before: &DeviceState, command: &Command, events: &[Event]) -> Option<Refusal> {
    let fence = fence_of(command)?;
    let new = events.iter().find_map(|event| match event {
        Event::SessionCommandRefused { refusal, .. } => Some(refusal.as_ref().clone()),
        _ => None,
    });
    if new.is_some() || !events.is_empty() {
        return new;
    }
    let refused = &before.session.as_deref()?.refused;
    let old = refused.iter().find(|(ordinal, _)| *ordinal == fence.ordinal);
    old.map(|(_, refusal)| refusal.clone())
}

fn fence_of(command: &Command) -> Option<&Fence> {
    match command {
        Command::Subscribe { fence, .. } | Command::Unsubscribe { fence, .. } => Some(fence),
        Command::RecordTelemetry { origin, .. } | Command::UpdateTwin { origin, .. } => match origin {
            Origin::Session { fence, .. } => Some(fence),
            Origin::Operator => None,
        },
        _ => None,
    }
}

fn session_opened(after: &DeviceState, events: &[Event]) -> Answer {
    let clean = events
        .iter()
        .any(|event| matches!(event, Event::SessionOpened(opened) if opened.clean));
    let session = after.session.as_deref();
    Answer::SessionOpened {
        generation: session.map_or(0, |s| s.generation),
        session_present: !clean,
        expiry_secs: session.map_or(0, |s| s.expiry_secs),
        subscriptions: session.map(|s| s.subscriptions.clone()).unwrap_or_default(),
        messages: queue_len(after),
    }
}

fn telemetry_recorded(before: &DeviceState, origin: &Origin, telemetry: &Telemetry, events: &[Event]) -> Answer {
    let stored = events.iter().find_map(|event| match event {
        Event::TelemetryRecorded(recorded) if !recorded.will => Some(recorded.seq),
        _ => None,
    });
    let first = || match (&telemetry.message_id, origin) {
        (Some(id), _) => before.windows.message(id),
        (None, Origin::Session { delivery: Some(d), .. }) => {
            before.windows.packet(d.packet_id, d.digest, before.telemetry.last_seq)
        }
        _ => None,
    };
    Answer::Telemetry {
        seq: stored.or_else(first).unwrap_or(0),
        repeated: stored.is_none(),
    }
}

/// Events are in the order of their messages, so that the next one is either this message's or
/// that of a later one.
fn batch_recorded(
    before: &DeviceState,
    after: &DeviceState,
    batch: &[Telemetry],
    events: &[Event],
) -> Vec<(u64, bool)> {
    let mut recorded = events
        .iter()
        .filter_map(|event| match event {
            Event::TelemetryRecorded(recorded) if !recorded.will => Some(recorded),
            _ => None,
        })
        .peekable();
    let one = |telemetry: &Telemetry| {
        if let Some(new) = recorded.next_if(|recorded| recorded.telemetry == *telemetry) {
            return (new.seq, false);
        }
        let id = telemetry.message_id.as_deref();
        let seq = id.and_then(|id| before.windows.message(id).or_else(|| after.windows.message(id)));
        (seq.unwrap_or(0), true)
    };
    batch.iter().map(one).collect()
}

fn queue_len(state: &DeviceState) -> u32 {
    u32::try_from(state.messages().queue.len()).unwrap_or(u32::MAX)
}

fn message_queued(after: &DeviceState, id: &str, events: &[Event]) -> Answer {
    let queued = after.messages().queue.iter().find(|queued| *queued.id == *id);
    let new = |event: &Event| matches!(event, Event::MessageQueued(_) | Event::DeadLetterReplayed { .. });
    Answer::MessageQueued {
        queued: queued.cloned().map(Box::new),
        repeated: !events.iter().any(new),
    }
}

/// Whatever was handed to the connection, now or before, that it does not hold.
fn messages_taken(
    after: &DeviceState,
    generation: u64,
    (held, count_max): (&[u64], usize),
    events: &[Event],
) -> Answer {
    let queue = after.messages().queue.iter();
    let own = |queued: &&Queued| queued.generation == generation && !held.contains(&queued.number);
    let taken: Vec<TakenMessage> = queue.filter(own).take(count_max).map(TakenMessage::from).collect();
    let ended = events
        .iter()
        .filter(|event| matches!(event, Event::MessageEnded { .. }));
    Answer::MessagesTaken {
        more: after.messages().queue.len() > held.len() + taken.len(),
        taken,
        ended: u32::try_from(ended.count()).unwrap_or(u32::MAX),
    }
}

fn left(command: &Command, events: &[Event]) -> u32 {
    let dropping = matches!(command, Command::DropDeadLetters { .. });
    let counts = |event: &&Event| match event {
        Event::MessageEnded { .. } => true,
        Event::DeadLetterDropped { .. } => dropping,
        _ => false,
    };
    u32::try_from(events.iter().filter(counts).count()).unwrap_or(u32::MAX)
}
