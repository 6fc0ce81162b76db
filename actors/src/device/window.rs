//! Duplicate suppression: what the device sent lately, bounded.
//!
//! Two windows, oldest first: message ids (as 128-bit hashes, which cannot collide by accident) and
//! the packet ids of QoS 1 publishes without a message id. Both are flat bytes: they are written
//! with every telemetry, and a fleet's worth of them is in memory.

use serde::{Deserialize, Serialize};

/// hash u128 | seq u64
const MESSAGE_LEN: usize = 24;
/// packet id u16 | digest, its low 48 bits | seq, its low 32 bits
const PACKET_LEN: usize = 12;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    messages: Ring<MESSAGE_LEN>,
    packets: Ring<PACKET_LEN>,
}

impl Windows {
    /// The seq under which `message_id` was stored, while the window remembers.
    pub fn message(&self, message_id: &str) -> Option<u64> {
        let hash = hash_of(message_id);
        let entry = self.messages.entries().rev().find(|entry| entry[..16] == hash)?;
        Some(u64::from_le_bytes(
            entry[16..].try_into().expect("an entry has 24 bytes"),
        ))
    }

    /// The seq under which this packet was stored, while the window remembers. `last_seq` is the
    /// device's newest.
    pub fn packet(&self, packet_id: u16, digest: u64, last_seq: u64) -> Option<u64> {
        let key = packet_key(packet_id, digest);
        let entry = self.packets.entries().rev().find(|entry| entry[..8] == key)?;
        let low = u32::from_le_bytes(entry[8..].try_into().expect("an entry has 12 bytes"));
        // Entries are young: the seq is the last one at or before `last_seq` that ends like this.
        let back = (last_seq as u32).wrapping_sub(low);
        Some(last_seq.saturating_sub(u64::from(back)))
    }

    pub(super) fn remember_message(&mut self, message_id: &str, seq: u64, count_max: u16) {
        let mut entry = [0; MESSAGE_LEN];
        entry[..16].copy_from_slice(&hash_of(message_id));
        entry[16..].copy_from_slice(&seq.to_le_bytes());
        self.messages.push(&entry, count_max);
    }

    /// Whatever the packet id stood for before is forgotten: the client has used it again.
    pub(super) fn remember_packet(&mut self, packet_id: u16, digest: u64, seq: u64, count_max: u16) {
        self.packets.forget(&packet_id.to_le_bytes());
        let mut entry = [0; PACKET_LEN];
        entry[..8].copy_from_slice(&packet_key(packet_id, digest));
        entry[8..].copy_from_slice(&(seq as u32).to_le_bytes());
        self.packets.push(&entry, count_max);
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.messages.bytes.capacity() + self.packets.bytes.capacity()
    }
}

pub(super) fn hash_of(message_id: &str) -> [u8; 16] {
    xxhash_rust::xxh3::xxh3_128(message_id.as_bytes()).to_le_bytes()
}

fn packet_key(packet_id: u16, digest: u64) -> [u8; 8] {
    ((digest << 16) | u64::from(packet_id)).to_le_bytes()
}

/// Entries of `N` bytes, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ring<const N: usize> {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

impl<const N: usize> Ring<N> {
    pub(super) const EMPTY: Self = Self { bytes: Vec::new() };

    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.bytes.chunks_exact(N)
    }

    pub(super) fn push(&mut self, entry: &[u8; N], count_max: u16) {
        let room_for = usize::from(count_max).saturating_sub(1);
        let surplus = (self.bytes.len() / N).saturating_sub(room_for);
        self.bytes.drain(..surplus * N);
        if count_max > 0 {
            self.bytes.extend_from_slice(entry);
        }
    }

    fn forget(&mut self, prefix: &[u8]) {
        let position = self.entries().position(|entry| entry.starts_with(prefix));
        if let Some(at) = position {
            self.bytes.drain(at * N..(at + 1) * N);
        }
    }
}
