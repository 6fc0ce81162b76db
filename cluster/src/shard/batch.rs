//! The payload of a shard's log entry: the events of many commands, each item encoded once.

use actors::device::Event;
use actors::id::DeviceKey;
use actors::time::Timestamp;
use actors::wire::codec::{self, CodecError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::raft::machine::PAYLOAD_APP;

/// What one command did to one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub key: DeviceKey,
    /// The device's version before; an item that does not fit changes nothing.
    pub prev_version: u64,
    pub at: Timestamp,
    pub events: Vec<Event>,
}

#[derive(Serialize)]
struct ItemRef<'a> {
    key: &'a DeviceKey,
    prev_version: u64,
    at: Timestamp,
    events: &'a [Event],
}

/// Collects items into one payload.
pub struct Builder {
    bytes: Vec<u8>,
    items: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            bytes: vec![PAYLOAD_APP],
            items: 0,
        }
    }
}

impl Builder {
    /// Empty, with room for a payload of so many bytes: growing costs copies.
    pub fn with_room(bytes: usize) -> Self {
        let mut builder = Self::default();
        builder.bytes.reserve(bytes);
        builder
    }

    /// Adds an item; returns its position in the batch.
    pub fn push(&mut self, key: &DeviceKey, prev_version: u64, at: Timestamp, events: &[Event]) -> u32 {
        codec::encode_into(
            &mut self.bytes,
            &ItemRef {
                key,
                prev_version,
                at,
                events,
            },
        );
        let position = self.items;
        self.items += 1;
        position
    }

    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(self).bytes)
    }
}

/// The items of a payload (its first byte already taken off), in order.
pub fn items(payload: &[u8]) -> impl Iterator<Item = Result<Item, CodecError>> + '_ {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let decoded = codec::decode_prefix::<Item>(rest);
        match decoded {
            Ok((item, used)) => {
                rest = &rest[used..];
                Some(Ok(item))
            }
            Err(error) => {
                rest = &[];
                Some(Err(error))
            }
        }
    })
}
