//! A snapshot on its way: read from a pinned view, streamed in bounded chunks, each awaited
//! (back-pressure), written by the receiver under a new generation.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::wire::codec;
use bytes::Bytes;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use serde::{Deserialize, Serialize};

use super::machine::{GroupMeta, GroupShared};
use super::rpc;
use super::types::{Raft, SnapshotMeta, TypeConfig, Vote};
use crate::storage::keys::{self, KeyRange, Space};
use crate::storage::{StateBatch, StateOp, StateView};
use crate::transport::{Class, SendError, Transport};

/// Bytes of rows in one chunk.
const CHUNK_BYTES: usize = 256 * 1024;
/// How long a receiver may take to store one chunk.
const CHUNK_DEADLINE: Duration = Duration::from_secs(10);
/// How long a receiver may take to flip and flush.
const INSTALL_DEADLINE: Duration = Duration::from_secs(120);

/// What openraft carries between our own functions.
pub enum SnapshotData {
    /// To be sent: a view of one moment.
    View {
        view: Box<dyn StateView>,
        generation: u32,
        terms: Vec<(u64, u64)>,
    },
    /// Received in whole, under a generation that does not count yet.
    Received { generation: u32, terms: Vec<(u64, u64)> },
    /// Only the metadata matters (nothing was copied).
    Described,
}

#[derive(Serialize, Deserialize)]
struct Begin {
    session: u64,
    vote: Vote,
    meta: SnapshotMeta,
    terms: Vec<(u64, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Chunk {
    session: u64,
    number: u64,
    rows: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
}

#[derive(Serialize, Deserialize)]
struct End {
    session: u64,
    chunks: u64,
    digest: u64,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Ok,
    Refused(String),
    Installed(Vote),
}

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("reading the snapshot: {0}")]
    Read(#[from] io::Error),
    #[error("the receiver refused: {0}")]
    Refused(String),
}

/// Streams one snapshot to one follower.
pub struct Sender<'a> {
    pub transport: &'a Transport,
    pub shared: &'a GroupShared,
    pub target: NodeId,
}

impl Sender<'_> {
    /// # Errors
    /// The follower is away or refused; openraft tries again later, from the start.
    pub async fn send(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
    ) -> Result<Vote, TransferError> {
        let SnapshotData::View {
            view,
            generation,
            terms,
        } = snapshot.snapshot
        else {
            return Err(TransferError::Refused("this snapshot has no rows to send".into()));
        };
        // A receiver compares it, and the sender's id, for equality.
        let session = self.shared.next_session();
        let begin = Begin {
            session,
            vote,
            meta: snapshot.meta,
            terms,
        };
        self.ask(rpc::KIND_SNAPSHOT_BEGIN, &begin, CHUNK_DEADLINE).await?;
        let (chunks, digest) = self.send_rows(session, view, generation).await?;
        match self
            .ask(
                rpc::KIND_SNAPSHOT_END,
                &End {
                    session,
                    chunks,
                    digest,
                },
                INSTALL_DEADLINE,
            )
            .await?
        {
            Answer::Installed(vote) => Ok(vote),
            _ => Err(TransferError::Refused("the receiver did not install".into())),
        }
    }

    async fn send_rows(
        &self,
        session: u64,
        mut view: Box<dyn StateView>,
        generation: u32,
    ) -> Result<(u64, u64), TransferError> {
        let KeyRange { mut from, to } = Space {
            shard: self.shared.shard,
            generation,
        }
        .all();
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut number = 0;
        loop {
            let end = to.clone();
            let (returned, read) = self
                .shared
                .background
                .call(move || {
                    let read = read_chunk(&*view, &from, &end);
                    (view, read)
                })
                .await?;
            let (rows, next) = read?;
            view = returned;
            let chunk = Chunk { session, number, rows };
            let body = codec::encode(&chunk);
            hasher.update(&body);
            self.ask_bytes(rpc::KIND_SNAPSHOT_CHUNK, &body, CHUNK_DEADLINE).await?;
            number += 1;
            match next {
                Some(key) => from = key,
                None => return Ok((number, hasher.digest())),
            }
        }
    }

    async fn ask<T: Serialize>(&self, kind: u8, value: &T, deadline: Duration) -> Result<Answer, TransferError> {
        self.ask_bytes(kind, &codec::encode(value), deadline).await
    }

    async fn ask_bytes(&self, kind: u8, body: &[u8], deadline: Duration) -> Result<Answer, TransferError> {
        let body = rpc::envelope(self.shared.shard, body);
        let bytes = self
            .transport
            .request(self.target, Class::Snapshot, kind, body, deadline)
            .await?;
        match codec::decode(&bytes) {
            Ok(Answer::Refused(reason)) => Err(TransferError::Refused(reason)),
            Ok(answer) => Ok(answer),
            Err(e) => Err(TransferError::Refused(e.to_string())),
        }
    }
}

type ChunkRows = Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>;

/// Rows from `from` on, with keys relative to the generation, and the key to go on from.
fn read_chunk(view: &dyn StateView, from: &[u8], to: &[u8]) -> io::Result<(ChunkRows, Option<Vec<u8>>)> {
    let mut rows = ChunkRows::new();
    let mut bytes = 0;
    let mut next = None;
    view.scan(from, to, &mut |key, value| {
        if bytes >= CHUNK_BYTES {
            next = Some(key.to_vec());
            return false;
        }
        bytes += key.len() + value.len();
        let key = serde_bytes::ByteBuf::from(&key[keys::GENERATION_PREFIX_LEN..]);
        rows.push((key, serde_bytes::ByteBuf::from(value)));
        true
    })?;
    #[cfg(feature = "planted")]
    if next.is_none() && actors::planted::is(actors::planted::Planted::ShortSnapshot) {
        rows.truncate(rows.len() / 2);
    }
    Ok((rows, next))
}

/// Takes in at most one snapshot at a time for its group.
pub struct Receiver {
    shared: Arc<GroupShared>,
    incoming: Mutex<Option<Incoming>>,
    /// The last generation given to a snapshot. Never given twice: an earlier one may still be on
    /// its way to being installed.
    last_generation: AtomicU32,
    /// Bytes of rows received since it was made.
    bytes: AtomicU64,
}

/// Where a snapshot that has arrived in whole goes.
pub enum Into<'a> {
    /// A running group, which decides whether it wants it.
    Raft(&'a Raft),
    /// The state store, of a replica whose group does not run yet.
    Store,
}

struct Incoming {
    from: NodeId,
    begin: Begin,
    generation: u32,
    next: u64,
    hasher: xxhash_rust::xxh3::Xxh3,
}

impl Receiver {
    pub fn new(shared: Arc<GroupShared>) -> Self {
        Self {
            shared,
            incoming: Mutex::new(None),
            last_generation: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Serves one snapshot message; returns the answer's bytes.
    pub async fn serve(&self, into: Into<'_>, from: NodeId, kind: u8, body: Bytes) -> Bytes {
        let result = match kind {
            rpc::KIND_SNAPSHOT_BEGIN => self.begin(from, &body),
            rpc::KIND_SNAPSHOT_CHUNK => self.chunk(from, &body),
            _ => self.end(into, from, &body).await,
        };
        let answer = result.unwrap_or_else(Answer::Refused);
        Bytes::from(codec::encode(&answer))
    }

    pub fn bytes_received(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A new snapshot replaces one that was not finished.
    fn begin(&self, from: NodeId, body: &[u8]) -> Result<Answer, String> {
        let begin: Begin = codec::decode(body).map_err(|e| e.to_string())?;
        let current = self.shared.with_meta(|meta| meta.generation);
        let generation = self
            .last_generation
            .load(Ordering::Relaxed)
            .max(current)
            .saturating_add(1);
        self.last_generation.store(generation, Ordering::Relaxed);
        let unfinished = self.lock().take().map(|incoming| incoming.generation);
        if let Some(given_up) = unfinished {
            let KeyRange { from, to } = Space {
                shard: self.shared.shard,
                generation: given_up,
            }
            .all();
            self.write(vec![StateOp::DeleteRange { from, to }])?;
        }
        let KeyRange { from: start, to } = Space {
            shard: self.shared.shard,
            generation,
        }
        .all();
        self.write(vec![StateOp::DeleteRange { from: start, to }])?;
        let incoming = Incoming {
            from,
            begin,
            generation,
            next: 0,
            hasher: xxhash_rust::xxh3::Xxh3::new(),
        };
        *self.lock() = Some(incoming);
        Ok(Answer::Ok)
    }

    fn chunk(&self, from: NodeId, body: &[u8]) -> Result<Answer, String> {
        let chunk: Chunk = codec::decode(body).map_err(|e| e.to_string())?;
        let generation = {
            let mut slot = self.lock();
            let incoming = slot
                .as_mut()
                .filter(|i| i.from == from && i.begin.session == chunk.session);
            let incoming = incoming.ok_or("another snapshot has taken its place")?;
            if incoming.next != chunk.number {
                return Err(format!("chunk {} came instead of {}", chunk.number, incoming.next));
            }
            incoming.next += 1;
            incoming.hasher.update(body);
            incoming.generation
        };
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        let prefix = Space {
            shard: self.shared.shard,
            generation,
        }
        .all()
        .from;
        let ops = chunk.rows.into_iter().map(|(key, value)| {
            let mut full = prefix.clone();
            full.extend_from_slice(&key);
            StateOp::Put {
                key: full,
                value: value.into_vec(),
            }
        });
        self.write(ops.collect())?;
        Ok(Answer::Ok)
    }

    async fn end(&self, into: Into<'_>, from: NodeId, body: &[u8]) -> Result<Answer, String> {
        let end: End = codec::decode(body).map_err(|e| e.to_string())?;
        let incoming = {
            let mut slot = self.lock();
            slot.take().filter(|i| i.from == from && i.begin.session == end.session)
        };
        let incoming = incoming.ok_or("another snapshot has taken its place")?;
        if incoming.next != end.chunks || incoming.hasher.digest() != end.digest {
            return Err("the snapshot arrived incomplete".into());
        }
        let raft = match into {
            Into::Raft(raft) => raft,
            Into::Store => {
                let vote = incoming.begin.vote;
                self.adopt(incoming).await.map_err(|e| e.to_string())?;
                return Ok(Answer::Installed(vote));
            }
        };
        let data = SnapshotData::Received {
            generation: incoming.generation,
            terms: incoming.begin.terms,
        };
        let snapshot = SnapshotOf::<TypeConfig, SnapshotData> {
            meta: incoming.begin.meta,
            snapshot: data,
        };
        let response: SnapshotResponse<TypeConfig> = raft
            .install_full_snapshot(incoming.begin.vote, snapshot)
            .await
            .map_err(|e| e.to_string())?;
        Ok(Answer::Installed(response.vote))
    }

    async fn adopt(&self, incoming: Incoming) -> io::Result<()> {
        let meta = GroupMeta {
            generation: incoming.generation,
            applied: incoming.begin.meta.last_log_id,
            membership: incoming.begin.meta.last_membership,
            terms: incoming.begin.terms,
        };
        self.shared.adopt(meta).await
    }

    fn write(&self, ops: Vec<StateOp>) -> Result<(), String> {
        self.shared.write(StateBatch { ops }).map_err(|e| e.to_string())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Incoming>> {
        self.incoming.lock().expect("no holder of this lock panics")
    }
}

/// For logs and errors.
pub fn describe(shard: ShardId, target: NodeId) -> String {
    format!("snapshot of shard {shard} to node {target}")
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
