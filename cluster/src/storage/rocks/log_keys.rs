//! Keys of the log store: `shard u16 BE | 'E' | index u64 BE` for entries,
//! `shard u16 BE | 'R' | kind u8` for records. Byte order is index order.

use actors::id::ShardId;

use crate::storage::LogRecord;

const ENTRY: u8 = b'E';
const RECORD: u8 = b'R';

pub const ENTRY_KEY_LEN: usize = 11;

pub fn entry(shard: ShardId, index: u64) -> [u8; ENTRY_KEY_LEN] {
    let mut key = [0; ENTRY_KEY_LEN];
    key[..2].copy_from_slice(&shard.0.to_be_bytes());
    key[2] = ENTRY;
    key[3..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Greater than every entry of the shard, less than its records.
pub fn entries_end(shard: ShardId) -> [u8; 3] {
    let [high, low] = shard.0.to_be_bytes();
    [high, low, ENTRY + 1]
}

pub fn record(shard: ShardId, record: LogRecord) -> [u8; 4] {
    let [high, low] = shard.0.to_be_bytes();
    let kind = match record {
        LogRecord::Vote => 1,
        LogRecord::Committed => 2,
        LogRecord::Purged => 3,
        LogRecord::Retired => 4,
    };
    [high, low, RECORD, kind]
}

/// Shard and index of an entry's key; `None` for a record.
pub fn parse_entry(key: &[u8]) -> Option<(ShardId, u64)> {
    if key.len() != ENTRY_KEY_LEN || key[2] != ENTRY {
        return None;
    }
    let shard = ShardId(u16::from_be_bytes([key[0], key[1]]));
    let index = u64::from_be_bytes(key[3..].try_into().ok()?);
    Some((shard, index))
}
