//! How a device lies in the state store: a core row, a row per twin section, a row per telemetry
//! message, and the two indexes that find devices by time and by gateway.

use std::io;

use actors::device::{DeviceState, Due, Section, Telemetry};
use actors::id::{DeviceKey, Gateway, ShardId};
use actors::time::Timestamp;
use actors::wire::codec;
use actors::wire::receipt::Receipt;
use serde::{Deserialize, Serialize};

use crate::api::TelemetryRow;
use crate::raft::machine::{Position, Rows};
use crate::storage::keys::{DueKind, DueRow, Space};
use crate::storage::{StateStore, StateView};

/// The state as a row: without the twin's documents, which have rows of their own.
pub fn encode_core(state: &mut DeviceState) -> Vec<u8> {
    let documents = state.twin.take_documents();
    let bytes = codec::encode(state);
    state.twin.put_documents(documents);
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
    Ok(state)
}

#[derive(Serialize)]
struct TelemetryValueRef<'a> {
    at: Timestamp,
    position: Position,
    will: bool,
    telemetry: &'a Telemetry,
}

#[derive(Deserialize)]
struct TelemetryValue {
    at: Timestamp,
    position: Position,
    will: bool,
    telemetry: Telemetry,
}

pub fn encode_telemetry(at: Timestamp, position: Position, will: bool, telemetry: &Telemetry) -> Vec<u8> {
    codec::encode(&TelemetryValueRef { at, position, will, telemetry })
}

/// # Errors
/// The bytes are damaged.
pub fn decode_telemetry(shard: ShardId, seq: u64, bytes: &[u8]) -> io::Result<TelemetryRow> {
    let value: TelemetryValue = codec::decode(bytes).map_err(invalid)?;
    let receipt = Receipt { shard, term: value.position.term, index: value.position.index, seq };
    Ok(TelemetryRow { seq, enqueued_at: value.at, receipt, will: value.will, telemetry: value.telemetry })
}

/// What the indexes hold of a device; taken before and after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    due: Due,
    gateway: Option<(Gateway, u64)>,
}

impl Indexed {
    pub fn of(state: &DeviceState) -> Self {
        let gateway = state.connected_via().zip(state.session.as_deref().map(|s| s.generation));
        Self { due: state.due(), gateway }
    }

    fn dues(&self) -> [(DueKind, Option<Timestamp>); 3] {
        [
            (DueKind::SessionExpiry, self.due.session_expiry),
            (DueKind::Will, self.due.will),
            (DueKind::Telemetry, self.due.telemetry_oldest),
        ]
    }

    /// Turns the index rows of `self` into those of `after`.
    pub fn update(&self, after: &Self, key: &DeviceKey, rows: &mut Rows<'_>) {
        if self == after {
            return;
        }
        let space = rows.space;
        let due = |what, at| DueRow { what, at, device: key.clone() };
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
