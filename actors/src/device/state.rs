//! A device as it is kept: small, so that a million may be registered and thousands awake.

use serde::{Deserialize, Serialize};

use super::window::Windows;
use super::{Section, Subscription, Will};
use crate::id::Gateway;
use crate::time::Timestamp;

/// Everything a device is, except its telemetry rows. `Default` is a device nobody has heard of.
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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub status: Status,
    /// The device version that last changed the registration.
    pub etag: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub automatic: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Enabled,
    Disabled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub generation: u64,
    pub gateway: Gateway,
    pub connected: bool,
    /// When `connected` last changed.
    pub since: Timestamp,
    pub expiry_secs: u32,
    pub keep_alive_secs: u16,
    pub protocol: u8,
    /// The last ordinal whose command was applied.
    pub last_ordinal: u64,
    pub subscriptions: Vec<Subscription>,
    /// Kept while it may still have to be published.
    pub will: Option<Will>,
    /// When the will is due, once the connection has ended.
    pub will_due: Option<Timestamp>,
    /// When the session ends, once the connection has ended. `None` while connected.
    pub expires_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryHead {
    /// Seq of the newest row ever; 0 before the first.
    pub last_seq: u64,
    /// Seq of the oldest row kept; `last_seq + 1` when none is.
    pub first_seq: u64,
    /// When the oldest row kept was enqueued.
    pub oldest_at: Option<Timestamp>,
    pub last_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// Number of section changes.
    pub version: u64,
    /// In the order of [`Section::ALL`].
    pub sections: [SectionState; 3],
}

impl Twin {
    pub fn section(&self, section: Section) -> &SectionState {
        &self.sections[section as usize]
    }
    pub fn section_mut(&mut self, section: Section) -> &mut SectionState {
        &mut self.sections[section as usize]
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
}

impl DeviceState {
    pub fn due(&self) -> Due {
        let session = self.session.as_deref();
        Due {
            session_expiry: session.and_then(|s| s.expires_at),
            will: session.and_then(|s| s.will_due),
            telemetry_oldest: self.telemetry.oldest_at,
        }
    }

    /// The gateway that holds this device's live connection.
    pub fn connected_via(&self) -> Option<Gateway> {
        self.session.as_deref().filter(|s| s.connected).map(|s| s.gateway)
    }
}
