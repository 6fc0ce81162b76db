//! Which notes to gateways an accepted command entails.
//!
//! They travel with the submission and are sent when it has committed; nothing is sent here.

use serde_json::Value;

use crate::device::{
    desired_patch_json, Command, DeviceState, Event, MessageQueued, Qos, Section, Status, TakenMessage,
    TwinSectionChanged, WriteMode,
};
use crate::id::{DeviceKey, Gateway};
use crate::ports::{Downlink, DownlinkBody, MessagePushed};
use crate::wire::topic;

type Object = serde_json::Map<String, Value>;

/// A device's live connection.
#[derive(Clone, Copy)]
pub(super) struct Link {
    gateway: Gateway,
    generation: u64,
}

impl Link {
    pub(super) fn of(state: &DeviceState) -> Option<Self> {
        let session = state.session.as_deref().filter(|s| s.connected)?;
        Some(Self {
            gateway: session.gateway,
            generation: session.generation,
        })
    }
}

/// `events` led from `before` to `after`.
pub(super) fn downlinks(
    key: &DeviceKey,
    before: &DeviceState,
    after: &DeviceState,
    command: &Command,
    events: &[Event],
) -> Vec<Downlink> {
    let note = |event: &Event| {
        #[cfg(feature = "planted")]
        if matches!(event, Event::SessionOpened(_)) && crate::planted::is(crate::planted::Planted::TwoSessions) {
            return None;
        }
        let (link, body) = match event {
            Event::SessionOpened(_) => (Link::of(before)?, DownlinkBody::TakenOver),
            Event::DeviceDeleted
            | Event::StatusChanged {
                status: Status::Disabled,
            } => (Link::of(before)?, DownlinkBody::NotAuthorised),
            Event::GatewayAssigned { .. } if Link::of(after).is_none() => {
                (Link::of(before)?, DownlinkBody::NotAuthorised)
            }
            Event::TwinSectionChanged(change) if change.section == Section::Desired => {
                let qos = desired_qos(key, after)?;
                let json = desired_patch(before, command, change)?;
                (Link::of(after)?, DownlinkBody::DesiredChanged { json, qos })
            }
            Event::MessageQueued(queued) => (Link::of(after)?, message(after, queued, events)),
            Event::DeadLetterReplayed { .. } | Event::MessagesNudged { next: Some(_) } => {
                (Link::of(after)?, DownlinkBody::MessagesWaiting)
            }
            _ => return None,
        };
        Some(Downlink {
            gateway: link.gateway,
            key: key.clone(),
            generation: link.generation,
            body,
        })
    };
    events.iter().filter_map(note).collect()
}

/// The message itself when it was handed to the connection as it was queued.
fn message(after: &DeviceState, event: &MessageQueued, events: &[Event]) -> DownlinkBody {
    let sent = |e: &Event| matches!(e, Event::MessageSent { number, .. } if *number == event.number);
    let queue = &after.messages().queue;
    let position = queue.iter().position(|queued| queued.number == event.number);
    let Some(position) = position.filter(|_| events.iter().any(sent)) else {
        return DownlinkBody::MessagesWaiting;
    };
    let before = position.checked_sub(1);
    DownlinkBody::Message(Box::new(MessagePushed {
        previous: before.map_or(0, |at| queue[at].number),
        taken: TakenMessage::from(&queue[position]),
        message: event.message.clone(),
    }))
}

/// The QoS at which the device wants to hear of changes to `desired`; the highest of all
/// subscriptions that match, as MQTT has it. `None` when it does not want to, or is not there.
fn desired_qos(key: &DeviceKey, state: &DeviceState) -> Option<Qos> {
    let session = state.session.as_deref().filter(|s| s.connected)?;
    let topic = topic::twin_desired(&key.device);
    let matching = session
        .subscriptions
        .iter()
        .filter(|s| topic::filter_matches(&s.filter, &topic));
    matching.map(|s| s.qos).max()
}

/// The merge patch that takes the device's copy of `desired` to the new one, with `"$version"`.
fn desired_patch(before: &DeviceState, command: &Command, change: &TwinSectionChanged) -> Option<String> {
    let Command::UpdateTwin { writes, .. } = command else {
        return None;
    };
    let write = writes.iter().find(|write| write.section == change.section)?;
    if write.mode == WriteMode::Merge {
        return Some(desired_patch_json(write, change.section_version));
    }
    // A replacement also deletes, and only the difference says what.
    let old = before.twin.section(change.section).json.as_deref().unwrap_or("{}");
    let old: Object = serde_json::from_str(old).ok()?;
    let new: Object = serde_json::from_str(&change.json).ok()?;
    let mut patch = difference(&old, &new);
    patch.insert("$version".to_owned(), change.section_version.into());
    Some(Value::Object(patch).to_string())
}

/// The merge patch (RFC 7396) from `old` to `new`.
fn difference(old: &Object, new: &Object) -> Object {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let mut patch: Object = gone.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in new {
        let change = match (old.get(key), value) {
            (Some(old), new) if old == new => continue,
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(difference(old, new)),
            (_, new) => new.clone(),
        };
        patch.insert(key.clone(), change);
    }
    patch
}
