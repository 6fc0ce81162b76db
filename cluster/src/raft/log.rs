//! openraft's log storage over the node's one [`LogStore`].
//!
//! Keeps the newest entries of the group in memory, so that replication and apply read the disk
//! only for a follower that is far behind.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};

use actors::id::ShardId;
use actors::wire::codec;
use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::types::{Entry, EntryPayload, LogId, Membership, Payload, TypeConfig, Vote};
use crate::storage::reached::{AllReached, Reached};
use crate::storage::{LogOp, LogRecord, LogStore};

/// Entries kept in memory per group, by count and by bytes; older ones are read from disk.
const TAIL_ENTRIES_MAX: usize = 4096;
const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Turns of the loop from the first queued append to waking the writer: as many as it takes from a
/// peer's append being received to this node's own round, which it sets off, being queued.
const WAKE_TURNS: usize = 6;
/// Bytes one read hands to replication or apply.
const READ_BYTES_MAX: usize = 2 * 1024 * 1024;

/// One group's log. Clones share the same tail and vote.
#[derive(Clone)]
pub struct GroupLog {
    shard: ShardId,
    store: Arc<dyn LogStore>,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    tail: Tail,
}

impl GroupLog {
    /// # Errors
    /// The disk failed, or holds bytes that are not a log of ours.
    pub fn open(shard: ShardId, store: Arc<dyn LogStore>) -> io::Result<Self> {
        let vote = read_record(&*store, shard, LogRecord::Vote)?;
        let purged = read_record(&*store, shard, LogRecord::Purged)?;
        let committed = read_record::<Option<LogId>>(&*store, shard, LogRecord::Committed)?.flatten();
        let shared = Shared {
            vote,
            purged,
            committed,
            tail: Tail::default(),
        };
        Ok(Self {
            shard,
            store,
            shared: Arc::new(Mutex::new(shared)),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder of this lock panics")
    }

    /// Queues `op` and waits until it is on disk.
    async fn durable(&self, op: LogOp) -> io::Result<()> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.store.submit(
            op,
            Box::new(move |result| {
                // The receiver is gone only when the group is being stopped.
                let _ = tx.send(result);
            }),
        );
        rx.await.map_err(|_| io::Error::other("the log writer has stopped"))?
    }

    /// Written with whatever is written next.
    fn queue(&self, op: LogOp) {
        self.store.queue(op, Box::new(|_| {}));
    }

    /// Has the log written once those who are ready now have queued theirs, so that they share a
    /// sync: appends of many groups arrive, or are proposed, together.
    fn wake_soon(&self) {
        thread_local! {
            static SOON: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
        }
        if SOON.replace(true) {
            return;
        }
        let store = self.store.clone();
        tokio::spawn(async move {
            for _ in 0..WAKE_TURNS {
                tokio::task::yield_now().await;
            }
            SOON.set(false);
            store.wake();
        });
    }

    /// The payload of a normal entry that is there.
    pub fn payload_at(&self, index: u64) -> Option<Bytes> {
        match self.read(index, index.checked_add(1)?, usize::MAX).ok()?.pop()?.payload {
            EntryPayload::Normal(payload) => Some(payload.0),
            _ => None,
        }
    }

    /// Entries of `from..to` that are still there, without holes: at least one if any, then up to
    /// about `bytes_max` bytes.
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn entries(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        self.read(from, to, bytes_max)
    }

    /// The last entry there is, or else the last that was purged.
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn last_id(&self) -> io::Result<Option<LogId>> {
        match self.store.last_index(self.shard)? {
            Some(index) => {
                let last = self.read(index, index.saturating_add(1), usize::MAX)?.pop();
                Ok(last.map(|entry| entry.log_id()))
            }
            None => Ok(self.lock().purged),
        }
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        if let Some(found) = self.lock().tail.range(from, to, bytes_max) {
            return Ok(found);
        }
        let raw = self.store.entries(self.shard, from..to, bytes_max)?;
        raw.into_iter().map(|(_, bytes)| decode_entry(&bytes)).collect()
    }
}

/// How far a group's log has come, before anything of it is opened.
///
/// # Errors
/// The disk failed, or holds bytes that are not a log of ours.
pub fn reached(store: &dyn LogStore, shard: ShardId) -> io::Result<Reached> {
    let vote: Option<Vote> = read_record(store, shard, LogRecord::Vote)?;
    let committed: Option<LogId> = read_record::<Option<LogId>>(store, shard, LogRecord::Committed)?.flatten();
    let last = match store.last_index(shard)? {
        Some(index) => entry_at(store, shard, index)?.map(|entry| entry.log_id),
        None => None,
    };
    // What was given back on purpose is not lost.
    let given_back = super::retire::retired(store, shard)?.and_then(|retired| retired.floor);
    let furthest = [last, purged(store, shard)?, given_back].into_iter().flatten();
    let furthest = furthest.max_by_key(|id| id.index);
    Ok(Reached {
        term: vote.map_or(0, |vote| vote.leader_id.term),
        last_term: furthest.map_or(0, |id| super::types::term_of(&id)),
        last: furthest.map_or(0, |id| id.index),
        // A hint may be ahead of what is here, after a loss.
        committed: committed.map_or(0, |id| id.index),
    })
}

/// How far the logs of `shards` have come.
///
/// # Errors
/// As [`reached`].
pub fn all_reached(store: &dyn LogStore, shards: &[ShardId]) -> io::Result<AllReached> {
    let each = shards.iter().map(|shard| Ok((*shard, reached(store, *shard)?)));
    each.collect()
}

/// What is missing where a group's log begins, if anything: it goes on where it was purged to, or
/// begins with the first entry of all.
///
/// # Errors
/// As [`reached`].
pub fn lost_beginning(store: &dyn LogStore, shard: ShardId) -> io::Result<Option<String>> {
    let found = store.entries(shard, 0..u64::MAX, 1)?;
    let Some((first, _)) = found.first() else {
        return Ok(None);
    };
    let begins = purged(store, shard)?.map_or(0, |id| id.index.saturating_add(1));
    Ok((*first != begins).then(|| {
        format!("the log of shard {shard} begins with entry {first} instead of {begins}: a part of it was lost")
    }))
}

fn entry_at(store: &dyn LogStore, shard: ShardId, index: u64) -> io::Result<Option<Entry>> {
    let found = store.entries(shard, index..index.saturating_add(1), 1)?;
    found.first().map(|(_, bytes)| decode_entry(bytes)).transpose()
}

/// The last entry that is in no log any more, only in the state.
///
/// # Errors
/// As [`reached`].
pub fn purged(store: &dyn LogStore, shard: ShardId) -> io::Result<Option<LogId>> {
    read_record(store, shard, LogRecord::Purged)
}

/// Whether the log holds, or held, the entry at `index` under `term`. `None`: it is purged, and
/// nobody here knows its term.
///
/// # Errors
/// As [`reached`].
pub fn holds(store: &dyn LogStore, shard: ShardId, term: u64, index: u64) -> io::Result<Option<bool>> {
    if purged(store, shard)?.is_some_and(|id| id.index >= index) {
        return Ok(None);
    }
    let found = entry_at(store, shard, index)?;
    Ok(Some(
        found.is_some_and(|entry| super::types::term_of(&entry.log_id) == term),
    ))
}

/// Removes what contradicts `applied`, which a majority has committed: entries that only a deposed
/// leader ever wanted. Durable when it returns.
///
/// # Errors
/// The disk failed.
pub async fn make_way(store: &dyn LogStore, shard: ShardId, applied: LogId) -> io::Result<()> {
    let term = super::types::term_of(&applied);
    let ahead = store.last_index(shard)?.is_some_and(|last| last >= applied.index);
    if !ahead || holds(store, shard, term, applied.index)? != Some(false) {
        return Ok(());
    }
    let (tx, rx) = tokio::sync::oneshot::channel();
    let op = LogOp::Truncate {
        shard,
        last_kept: applied.index.checked_sub(1),
    };
    store.submit(op, Box::new(move |result| drop(tx.send(result))));
    rx.await.map_err(|_| io::Error::other("the log writer has stopped"))?
}

pub(super) fn read_record<T: serde::de::DeserializeOwned>(
    store: &dyn LogStore,
    shard: ShardId,
    record: LogRecord,
) -> io::Result<Option<T>> {
    store
        .record(shard, record)?
        .map(|bytes| codec::decode(&bytes).map_err(invalid))
        .transpose()
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        // One after the other: both look under the same lock.
        let last_log_id = self.last_id()?;
        let last_purged_log_id = self.lock().purged;
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let value = Bytes::from(codec::encode(vote));
        #[cfg(feature = "planted")]
        if actors::planted::is(actors::planted::Planted::VoteNotSynced) {
            // On the disk with the leader's word only, and nobody waits for that.
            if vote.committed {
                let record = LogRecord::Vote;
                let shard = self.shard;
                self.queue(LogOp::Put { shard, record, value });
            }
            self.lock().vote = Some(*vote);
            return Ok(());
        }
        self.durable(LogOp::Put {
            shard: self.shard,
            record: LogRecord::Vote,
            value,
        })
        .await?;
        self.lock().vote = Some(*vote);
        Ok(())
    }

    /// Rides along with the next write; losing it costs a little replay, never data.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.lock().committed = committed;
        let value = Bytes::from(codec::encode(&committed));
        self.queue(LogOp::Put {
            shard: self.shard,
            record: LogRecord::Committed,
            value,
        });
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut first_index = None;
        let mut encoded = Vec::new();
        {
            let mut shared = self.lock();
            for mut entry in entries {
                first_index.get_or_insert(entry.log_id.index);
                let bytes = encode_entry(&entry);
                // What the tail keeps is this copy: the original may be a piece of a whole frame,
                // or lie in a buffer that was made for a larger batch.
                if let EntryPayload::Normal(payload) = &mut entry.payload {
                    payload.0 = bytes.slice(ENTRY_HEADER_LEN..);
                }
                shared.tail.push(entry, bytes.len());
                encoded.push(bytes);
            }
        }
        let Some(first_index) = first_index else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let op = LogOp::Append {
            shard: self.shard,
            first_index,
            entries: encoded,
        };
        self.store
            .queue(op, Box::new(move |result| callback.io_completed(result)));
        self.wake_soon();
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let last_kept = last.map(|id| id.index);
        self.lock().tail.truncate_after(last_kept);
        self.durable(LogOp::Truncate {
            shard: self.shard,
            last_kept,
        })
        .await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        #[cfg(feature = "planted")]
        let log_id = match actors::planted::is(actors::planted::Planted::PurgeTooFar) {
            true => self.last_id()?.unwrap_or(log_id),
            false => log_id,
        };
        {
            let mut shared = self.lock();
            shared.tail.purge(log_id.index);
            shared.purged = Some(log_id);
        }
        let record = Bytes::from(codec::encode(&log_id));
        // Not awaited: purging is only about space, and order with later writes is kept.
        self.queue(LogOp::Purge {
            shard: self.shard,
            up_to: log_id.index,
            record,
        });
        Ok(())
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// The newest entries, consecutive.
#[derive(Default)]
struct Tail {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, entry: Entry, len: usize) {
        if let Some((last, _)) = self.entries.back() {
            if last.log_id.index + 1 != entry.log_id.index {
                self.entries.clear();
                self.bytes = 0;
            }
        }
        self.bytes += len;
        self.entries.push_back((entry, len));
        while self.entries.len() > TAIL_ENTRIES_MAX || (self.bytes > TAIL_BYTES_MAX && self.entries.len() > 1) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, len)) = self.entries.pop_front() {
            self.bytes -= len;
        }
    }

    fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    fn truncate_after(&mut self, last_kept: Option<u64>) {
        while let Some((entry, len)) = self.entries.back() {
            if last_kept.is_some_and(|kept| entry.log_id.index <= kept) {
                break;
            }
            self.bytes -= len;
            self.entries.pop_back();
        }
    }

    fn purge(&mut self, up_to: u64) {
        while self.first_index().is_some_and(|first| first <= up_to) {
            self.pop_front();
        }
    }

    /// `None` when the start of the range is not held.
    fn range(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.first_index()?;
        if from < first {
            return None;
        }
        let mut bytes = 0;
        let mut found = Vec::new();
        let skip = usize::try_from(from - first).ok()?;
        for (entry, len) in self.entries.iter().skip(skip) {
            if entry.log_id.index >= to || (bytes > 0 && bytes + len > bytes_max) {
                break;
            }
            bytes += len;
            found.push(entry.clone());
        }
        Some(found)
    }
}

const KIND_BLANK: u8 = 0;
const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// `kind u8 | term u64 LE | index u64 LE | body`; the body of a normal entry is its payload as is.
/// The store adds version and checksum.
pub(super) fn encode_entry(entry: &Entry) -> Bytes {
    let (kind, body) = entry_body(entry);
    let mut out = Vec::with_capacity(ENTRY_HEADER_LEN + body.len());
    put_entry(&mut out, &entry.log_id, kind, &body);
    Bytes::from(out)
}

/// Bytes of an entry before its body.
pub(super) const ENTRY_HEADER_LEN: usize = 17;

/// Kind and body of an entry; a payload is not copied.
pub(super) fn entry_body(entry: &Entry) -> (u8, Bytes) {
    match &entry.payload {
        EntryPayload::Blank => (KIND_BLANK, Bytes::new()),
        EntryPayload::Normal(payload) => (KIND_NORMAL, payload.0.clone()),
        EntryPayload::Membership(m) => (KIND_MEMBERSHIP, Bytes::from(codec::encode(m))),
    }
}

pub(super) fn put_entry(out: &mut Vec<u8>, id: &LogId, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&id.committed_leader_id().term.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
    out.extend_from_slice(body);
}

pub(super) fn decode_entry(bytes: &Bytes) -> io::Result<Entry> {
    if bytes.len() < ENTRY_HEADER_LEN {
        return Err(invalid("log entry is too short"));
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"));
    let log_id = log_id(number(1), number(9));
    let body = bytes.slice(ENTRY_HEADER_LEN..);
    let payload = match bytes[0] {
        KIND_BLANK => EntryPayload::Blank,
        KIND_NORMAL => EntryPayload::Normal(Payload(body)),
        KIND_MEMBERSHIP => EntryPayload::Membership(codec::decode::<Membership>(&body).map_err(invalid)?),
        other => return Err(invalid(format!("log entry of unknown kind {other}"))),
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(term), index)
}
