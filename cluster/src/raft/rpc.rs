//! Raft messages as bytes. Appends reuse the entries' log encoding.

use actors::id::ShardId;
use actors::wire::codec;
use bytes::{Bytes, BytesMut};
use openraft::raft::AppendEntriesRequest;
use serde::{Deserialize, Serialize};

use super::log::{decode_entry, entry_body, put_entry, ENTRY_HEADER_LEN};
use super::types::{LogId, TypeConfig, Vote};

pub const KIND_APPEND: u8 = 1;
pub const KIND_VOTE: u8 = 2;
pub const KIND_PRE_VOTE: u8 = 3;
pub const KIND_TRANSFER: u8 = 4;
pub const KIND_SNAPSHOT_BEGIN: u8 = 5;
pub const KIND_SNAPSHOT_CHUNK: u8 = 6;
pub const KIND_SNAPSHOT_END: u8 = 7;

#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev_log_id: Option<LogId>,
    leader_commit: Option<LogId>,
    entries: u32,
}

/// `shard u16 LE | body`
pub fn envelope(shard: ShardId, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + body.len());
    out.extend_from_slice(&shard.0.to_le_bytes());
    out.extend_from_slice(body);
    out.freeze()
}

/// The shard a message is for, and its body.
pub fn open_envelope(mut bytes: Bytes) -> Option<(ShardId, Bytes)> {
    if bytes.len() < 2 {
        return None;
    }
    let body = bytes.split_off(2);
    Some((ShardId(u16::from_le_bytes([bytes[0], bytes[1]])), body))
}

pub fn encode_append(shard: ShardId, rpc: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let head = AppendHead {
        vote: rpc.vote,
        prev_log_id: rpc.prev_log_id,
        leader_commit: rpc.leader_commit,
        entries: u32::try_from(rpc.entries.len()).expect("openraft bounds the entries of one append"),
    };
    let head = codec::encode(&head);
    let bodies: Vec<_> = rpc.entries.iter().map(entry_body).collect();
    let entries: usize = bodies.iter().map(|(_, body)| 4 + ENTRY_HEADER_LEN + body.len()).sum();
    let mut out = Vec::with_capacity(2 + 4 + head.len() + entries);
    out.extend_from_slice(&shard.0.to_le_bytes());
    put_len(&mut out, head.len());
    out.extend_from_slice(&head);
    for (entry, (kind, body)) in rpc.entries.iter().zip(&bodies) {
        put_len(&mut out, ENTRY_HEADER_LEN + body.len());
        put_entry(&mut out, &entry.log_id, *kind, body);
    }
    Bytes::from(out)
}

/// `None` for bytes that are not a whole append.
pub fn decode_append(mut body: Bytes) -> Option<AppendEntriesRequest<TypeConfig>> {
    let head: AppendHead = codec::decode(&take_chunk(&mut body)?).ok()?;
    let mut entries = Vec::with_capacity(head.entries.min(4096) as usize);
    for _ in 0..head.entries {
        entries.push(decode_entry(&take_chunk(&mut body)?).ok()?);
    }
    body.is_empty().then_some(AppendEntriesRequest {
        vote: head.vote,
        prev_log_id: head.prev_log_id,
        leader_commit: head.leader_commit,
        entries,
    })
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("a chunk is far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
}

fn take_chunk(body: &mut Bytes) -> Option<Bytes> {
    if body.len() < 4 {
        return None;
    }
    let len = u32::from_le_bytes([body[0], body[1], body[2], body[3]]) as usize;
    if body.len() - 4 < len {
        return None;
    }
    let mut chunk = body.split_to(4 + len);
    Some(chunk.split_off(4))
}
