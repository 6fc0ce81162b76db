//! A device as it is kept: small, so that a million may be registered and thousands awake.

use serde::{Deserialize, Serialize};

use super::messages::Messages;
use super::window::Windows;
use super::{Refusal, Section, Subscription, Will};
use crate::id::{DeviceId, Gateway};
use crate::time::Timestamp;

/// Everything a device is, except its telemetry and the content of its messages. `Default` is a device nobody has heard of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Number of events ever applied; never reset, not even by deletion.
    pub version: u64,
    /// An event did not apply; the device refuses everything until it is repaired.
    pub quarantined: bool,
    pub registration: Option<Registration>,
    /// The last session generation given out; never reset.
    pub last_generation: u64,
    pub session: Option<Box<Session>>,
    pub telemetry: TelemetryHead,
    pub windows: Windows,
    pub twin: Twin,
    /// Once the device was sent a message.
    pub messages: Option<Box<Messages>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub status: Status,
    /// The device version that last changed the registration.
    pub etag: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub automatic: bool,
    /// The gateway device that may act for it.
    pub gateway: Option<DeviceId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Enabled,
    Disabled,
}

/// Refusals remembered per session, for commands sent again after a failover.
pub const REFUSALS_KEPT: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub generation: u64,
    pub gateway: Gateway,
    pub connected: bool,
    /// Not connected because its gateway fell silent, not because the connection ended: it may
    /// turn out to be alive.
    pub lost: bool,
    /// When `connected` last changed.
    pub since: Timestamp,
    pub expiry_secs: u32,
    pub keep_alive_secs: u16,
    pub protocol: u8,
    /// The last ordinal whose command was applied.
    pub last_ordinal: u64,
    /// Commands that were refused in their turn, by ordinal, newest last; at most
    /// [`REFUSALS_KEPT`]. A gateway must not have more commands than that in flight.
    pub refused: Vec<(u64, Refusal)>,
    pub subscriptions: Vec<Subscription>,
    /// Kept while it may still have to be published.
    pub will: Option<Box<Will>>,
    /// When the will is due, once the connection has ended.
    pub will_due: Option<Timestamp>,
    /// When the session ends, once the connection has ended. `None` while connected.
    pub expires_at: Option<Timestamp>,
    /// The gateway device over whose connection it runs; `None`: over its own.
    pub via: Option<DeviceId>,
    /// The generation of the session's first connection: what was sent since then was sent to the
    /// same MQTT session.
    pub first_generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryHead {
    /// Seq of the newest row ever; 0 before the first.
    pub last_seq: u64,
    /// Seq of the oldest row kept; `last_seq + 1` when none is.
    pub first_seq: u64,
    /// When the oldest row kept was enqueued.
    pub oldest_at: Option<Timestamp>,
    pub last_at: Option<Timestamp>,
}

impl Default for TelemetryHead {
    fn default() -> Self {
        Self {
            last_seq: 0,
            first_seq: 1,
            oldest_at: None,
            last_at: None,
        }
    }
}

impl TelemetryHead {
    /// Whether any row is kept.
    pub fn has_rows(&self) -> bool {
        self.first_seq <= self.last_seq
    }
}

/// Most devices never write some sections; those cost a pointer each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// Number of section changes.
    pub version: u64,
    /// In the order of [`Section::ALL`]; `None` for a section never written.
    sections: [Option<Box<SectionState>>; 3],
}

static NEVER_WRITTEN: SectionState = SectionState {
    version: 0,
    updated_at: None,
    json: None,
};

impl Twin {
    pub fn section(&self, section: Section) -> &SectionState {
        self.sections[section as usize].as_deref().unwrap_or(&NEVER_WRITTEN)
    }

    pub fn section_mut(&mut self, section: Section) -> &mut SectionState {
        self.sections[section as usize].get_or_insert_default()
    }

    /// Takes the documents out, in the order of [`Section::ALL`], leaving versions and times.
    pub fn take_documents(&mut self) -> [Option<Box<str>>; 3] {
        self.sections.each_mut().map(|section| section.as_mut()?.json.take())
    }

    /// Undoes [`Self::take_documents`].
    pub fn put_documents(&mut self, documents: [Option<Box<str>>; 3]) {
        for (section, json) in self.sections.iter_mut().zip(documents) {
            if let Some(section) = section {
                section.json = json;
            }
        }
    }

    /// In the order of [`Section::ALL`].
    pub fn section_versions(&self) -> [u64; 3] {
        Section::ALL.map(|section| self.section(section).version)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionState {
    pub version: u64,
    pub updated_at: Option<Timestamp>,
    /// Canonical JSON; `None` stands for `{}`.
    pub json: Option<Box<str>>,
}

/// What the due index must hold for a device: the leader looks there, not at passive devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub session_expiry: Option<Timestamp>,
    pub will: Option<Timestamp>,
    /// When the oldest telemetry row was enqueued; due once older than the leader's retention.
    pub telemetry_oldest: Option<Timestamp>,
    /// A message expires, or its gateway is to be reminded of it.
    pub messages: Option<Timestamp>,
}

impl DeviceState {
    pub fn due(&self) -> Due {
        let session = self.session.as_deref();
        Due {
            session_expiry: session.and_then(|s| s.expires_at),
            will: session.and_then(|s| s.will_due),
            telemetry_oldest: self.telemetry.oldest_at,
            messages: self.messages.as_deref().and_then(Messages::due),
        }
    }

    /// The session, unless it has ended by `now` and only its expiry is not yet recorded.
    pub fn session_at(&self, now: Timestamp) -> Option<&Session> {
        let session = self.session.as_deref()?;
        match session.expires_at {
            Some(end) if !session.connected && end <= now => None,
            _ => Some(session),
        }
    }

    pub fn messages(&self) -> &Messages {
        self.messages.as_deref().unwrap_or(Messages::none())
    }

    /// The gateway that holds this device's live connection.
    pub fn connected_via(&self) -> Option<Gateway> {
        self.session.as_deref().filter(|s| s.connected).map(|s| s.gateway)
    }
}
