//! Telemetry in the state store: consecutive messages of a device share a row, a *pack*, keyed by
//! the seq of its last message. Where packs begin and end differs between replicas, what they say
//! does not.

use std::io;

use actors::device::Telemetry;
use actors::id::{DeviceKey, ShardId};
use actors::time::Timestamp;
use actors::wire::codec;
use actors::wire::receipt::Receipt;
use serde::{Deserialize, Serialize};

use super::rows;
use crate::api::TelemetryRow;
use crate::raft::machine::{Position, Rows};
use crate::storage::keys::{self, KeyRange, Space};
use crate::storage::StateView;

/// A pack of this many bytes takes no more messages.
const PACK_BYTES_MAX: usize = 32 * 1024;

#[derive(Serialize)]
struct MessageRef<'a> {
    at: Timestamp,
    position: Position,
    will: bool,
    telemetry: &'a Telemetry,
}

#[derive(Deserialize)]
struct Message {
    at: Timestamp,
    position: Position,
    will: bool,
    telemetry: Telemetry,
}

/// The newest messages of a device, not yet in the store: consecutive, oldest first.
#[derive(Default)]
pub struct OpenPack {
    last_seq: u64,
    count: u64,
    bytes: Vec<u8>,
}

impl OpenPack {
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the message with the next seq; a full pack becomes a row.
    pub fn push(
        &mut self,
        key: &DeviceKey,
        (seq, at, position, will): (u64, Timestamp, Position, bool),
        telemetry: &Telemetry,
        rows: &mut Rows<'_>,
    ) {
        #[cfg(feature = "planted")]
        if seq <= self.last_seq {
            self.close(key, rows);
        }
        let message = MessageRef {
            at,
            position,
            will,
            telemetry,
        };
        codec::encode_into(&mut self.bytes, &message);
        self.last_seq = seq;
        self.count += 1;
        if self.bytes.len() >= PACK_BYTES_MAX {
            self.close(key, rows);
        }
    }

    /// What is in it becomes a row.
    pub fn close(&mut self, key: &DeviceKey, rows: &mut Rows<'_>) {
        if self.count == 0 {
            return;
        }
        let mut value = Vec::with_capacity(8 + self.bytes.len());
        value.extend_from_slice(&(self.last_seq - self.count + 1).to_be_bytes());
        value.append(&mut self.bytes);
        rows.put(rows.space.telemetry(key, self.last_seq), value);
        *self = Self::default();
    }

    /// Messages below `before_seq` will not be wanted any more.
    pub fn forget_below(&mut self, before_seq: u64) {
        if self.last_seq < before_seq {
            *self = Self::default();
        }
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("telemetry cannot be read: {what}"))
}

/// The encoded messages of a pack with their seqs, until `each` returns `false`.
fn unpack<'a>(
    row_key: &[u8],
    value: &'a [u8],
    each: &mut dyn FnMut(u64, Message, &'a [u8]) -> bool,
) -> io::Result<bool> {
    let last = keys::parse_telemetry_seq(row_key).ok_or_else(|| damaged("its key"))?;
    let (first, mut rest) = value
        .split_first_chunk()
        .ok_or_else(|| damaged("a pack is too short"))?;
    let mut seq = u64::from_be_bytes(*first);
    while !rest.is_empty() {
        let (message, used) = codec::decode_prefix::<Message>(rest).map_err(damaged)?;
        let (encoded, after) = rest.split_at(used);
        if !each(seq, message, encoded) {
            return Ok(false);
        }
        (seq, rest) = (seq + 1, after);
    }
    if seq != last + 1 {
        return Err(damaged(format!("a pack ends before seq {seq} instead of after {last}")));
    }
    Ok(true)
}

/// A device's messages in the store from `seq` on, in order, until `each` returns `false`. The
/// caller sees to it that `seq` is not below the first one kept.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn messages(
    view: &dyn StateView,
    space: Space,
    key: &DeviceKey,
    seq: u64,
    each: &mut dyn FnMut(TelemetryRow) -> bool,
) -> io::Result<()> {
    let KeyRange { from, to } = space.telemetry_from(key, seq);
    let mut result = Ok(true);
    view.scan(&from, &to, &mut |row_key, value| {
        result = unpack(row_key, value, &mut |at_seq, message, _| {
            at_seq < seq || each(row(space.shard, at_seq, message))
        });
        matches!(result, Ok(true))
    })?;
    result.map(|_| ())
}

fn row(shard: ShardId, seq: u64, message: Message) -> TelemetryRow {
    let receipt = Receipt {
        shard,
        term: message.position.term,
        index: message.position.index,
        seq,
    };
    TelemetryRow {
        seq,
        enqueued_at: message.at,
        receipt,
        will: message.will,
        telemetry: message.telemetry,
    }
}

/// [`crate::raft::machine::Telling`] of a shard: message by message, as if each had a row.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn tell(view: &dyn StateView, space: Space, tell: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
    let KeyRange { from, to } = space.all();
    let mut kept_from: Option<(DeviceKey, u64)> = None;
    let mut result = Ok(true);
    view.scan(&from, &to, &mut |row_key, value| {
        let Some(key) = keys::parse_telemetry_device(row_key) else {
            tell(row_key, value);
            return true;
        };
        let first = match &kept_from {
            Some((known, first)) if *known == key => *first,
            _ => match rows::load(view, space, &key) {
                Ok(state) => state.telemetry.first_seq,
                Err(error) => {
                    result = Err(error);
                    return false;
                }
            },
        };
        result = unpack(row_key, value, &mut |seq, _, encoded| {
            if seq >= first {
                tell(&space.telemetry(&key, seq), encoded);
            }
            true
        });
        kept_from = Some((key, first));
        result.is_ok()
    })?;
    result.map(|_| ())
}
