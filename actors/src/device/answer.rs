//! What a caller learns. Read from the state after the command's events were applied.

use serde::{Deserialize, Serialize};

use super::{Command, DeviceState, Event, Section, Status, Subscription};
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
    },
    /// Subscribe, unsubscribe, close, announce, expiry: done (or done before).
    Done,
    /// `seq` is 0 when a repeated telemetry fell out of the window, so its place is not known.
    Telemetry {
        seq: u64,
        repeated: bool,
    },
    TwinUpdated {
        twin_version: u64,
        versions: [u64; 3],
    },
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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub connected: bool,
    pub gateway: Gateway,
    pub generation: u64,
    pub since: Timestamp,
    pub protocol: u8,
    pub keep_alive_secs: u16,
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

pub fn answer(
    _id: &DeviceId,
    _before: &DeviceState,
    _after: &DeviceState,
    _command: &Command,
    _events: &[Event],
) -> Answer {
    todo!()
}
