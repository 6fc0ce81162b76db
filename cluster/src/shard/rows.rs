//! How a device lies in the state store: a core row, a row per twin section, packs of telemetry
//! ([`super::packs`]), messages to it ([`super::messages`]), and the two indexes that find devices
//! by time and by gateway.

use std::io;

use actors::device::{DeviceState, Due, Section};
use actors::id::{DeviceKey, Gateway};
use actors::time::Timestamp;
use actors::wire::codec;

use super::messages;
use crate::raft::machine::Rows;
use crate::storage::keys::{DueKind, DueRow, Space};
use crate::storage::{StateStore, StateView};

/// The state as a row: without the twin's documents and the message queue, which have rows of
/// their own.
pub fn encode_core(state: &mut DeviceState) -> Vec<u8> {
    let documents = state.twin.take_documents();
    let queue = state.messages.as_deref_mut().map(std::mem::take);
    let bytes = codec::encode(state);
    state.twin.put_documents(documents);
    if let (Some(kept), Some(queue)) = (state.messages.as_deref_mut(), queue) {
        *kept = queue;
    }
    bytes
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Reads rows from the store or from a view of it.
pub trait Get {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
}

impl Get for dyn StateStore {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        StateStore::get(self, key)
    }
}

impl Get for dyn StateView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        StateView::get(self, key)
    }
}

/// The state of a device; the default one for a device that has no row.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn load(from: &(impl Get + ?Sized), space: Space, key: &DeviceKey) -> io::Result<DeviceState> {
    let Some(bytes) = from.get(&space.device(key))? else {
        return Ok(DeviceState::default());
    };
    let mut state: DeviceState = codec::decode(&bytes).map_err(invalid)?;
    for section in Section::ALL {
        if state.twin.section(section).version == 0 {
            continue;
        }
        if let Some(bytes) = from.get(&space.twin(key, section as u8))? {
            let json = String::from_utf8(bytes).map_err(invalid)?;
            state.twin.section_mut(section).json = Some(json.into_boxed_str());
        }
    }
    if let Some(queue) = state.messages.as_deref_mut() {
        *queue = messages::load_head(from, space, key)?;
    }
    Ok(state)
}

/// What the indexes hold of a device; taken before and after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    due: Due,
    gateway: Option<(Gateway, u64)>,
}

impl Indexed {
    /// A quarantined device is in no index: nobody may ask it to do anything, again and again.
    pub fn of(state: &DeviceState) -> Self {
        if state.quarantined {
            return Self {
                due: Due::default(),
                gateway: None,
            };
        }
        let gateway = state
            .connected_via()
            .zip(state.session.as_deref().map(|s| s.generation));
        Self {
            due: state.due(),
            gateway,
        }
    }

    fn dues(&self) -> [(DueKind, Option<Timestamp>); 4] {
        [
            (DueKind::SessionExpiry, self.due.session_expiry),
            (DueKind::Will, self.due.will),
            (DueKind::Telemetry, self.due.telemetry_oldest),
            (DueKind::Messages, self.due.messages),
        ]
    }

    /// Turns the index rows of `self` into those of `after`.
    pub fn update(&self, after: &Self, key: &DeviceKey, rows: &mut Rows<'_>) {
        if self == after {
            return;
        }
        let space = rows.space;
        let due = |what, at| DueRow {
            what,
            at,
            device: key.clone(),
        };
        for ((kind, old), (_, new)) in self.dues().into_iter().zip(after.dues()) {
            if old == new {
                continue;
            }
            if let Some(at) = old {
                rows.delete(space.due(&due(kind, at)));
            }
            if let Some(at) = new {
                rows.put(space.due(&due(kind, at)), Vec::new());
            }
        }
        if self.gateway != after.gateway {
            if let Some((gateway, _)) = self.gateway {
                rows.delete(space.gateway(gateway, key));
            }
            if let Some((gateway, session)) = after.gateway {
                rows.put(space.gateway(gateway, key), session.to_be_bytes().to_vec());
            }
        }
    }
}
