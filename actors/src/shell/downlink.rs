//! Which notes to gateways an accepted command entails.
//!
//! They travel with the submission and are sent when it has committed; nothing is sent here.

use crate::device::{Command, DeviceState, Event, Qos, Section, Status};
use crate::id::{DeviceKey, Gateway};
use crate::ports::{Downlink, DownlinkBody};

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

/// `link` is the connection before `events`, `after` the state they lead to.
pub(super) fn downlinks(
    key: &DeviceKey,
    link: Option<Link>,
    after: &DeviceState,
    command: &Command,
    events: &[Event],
) -> Vec<Downlink> {
    let mut notes = Vec::new();
    for event in events {
        let (to, body) = match event {
            Event::SessionOpened(_) => (link, DownlinkBody::TakenOver),
            Event::DeviceDeleted
            | Event::StatusChanged {
                status: Status::Disabled,
            } => (link, DownlinkBody::NotAuthorised),
            Event::TwinSectionChanged(change) if change.section == Section::Desired => {
                match desired_changed(key, after, command) {
                    Some(body) => (Link::of(after), body),
                    None => continue,
                }
            }
            _ => continue,
        };
        notes.extend(to.map(|link| Downlink {
            gateway: link.gateway,
            key: key.clone(),
            generation: link.generation,
            body,
        }));
    }
    notes
}

fn desired_changed(_key: &DeviceKey, _after: &DeviceState, _command: &Command) -> Option<DownlinkBody> {
    let _ = Qos::AtMostOnce;
    None
}
