//! A group's replicated state: what openraft applies, kept in the node's state store.
//!
//! Effects of applied entries are held back in memory and *settled* now and then (docs/adr/0028):
//! one atomic write that carries the applied index with it. Whoever reads rows settles first. What
//! an application payload means is the business of [`Apply`]; barriers and digest markers are ours.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use actors::device::DeviceState;
use actors::id::{DeviceKey, ShardId};
use actors::wire::codec;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::OptionalSend;
use serde::{Deserialize, Serialize};

use super::snapshot::SnapshotData;
use super::types::{term_of, Applied, EntryPayload, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::background::Background;
use crate::storage::keys::{self, KeyRange, Space};
use crate::storage::{StateBatch, StateOp, StateStore, StateView};

/// Entries applied before others get their turn.
const CHUNK_ENTRIES_MAX: usize = 256;
/// Bytes of payload applied before others get their turn; at least one entry.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// Bytes held back per group before they are settled.
const HELD_BYTES_MAX: usize = 1024 * 1024;
/// Digests remembered per group.
const DIGESTS_MAX: usize = 8;
/// Entries with misfits remembered per group; each is a rarity.
const MISFITS_MAX: usize = 1024;
/// Changes of term remembered per group; receipts from before the oldest are `unknown`.
const TERMS_MAX: usize = 4096;

/// First byte of every payload.
pub const PAYLOAD_APP: u8 = 0;
pub const PAYLOAD_BARRIER: u8 = 1;
pub const PAYLOAD_DIGEST: u8 = 2;

/// What a group's payloads do. Total and deterministic: an error means that the disk failed.
pub trait Apply: Send + Sync + 'static {
    /// Adds the effect of `payload` (without its first byte) to `rows`, or holds it back until
    /// [`Self::drain`].
    fn apply(&mut self, at: Position, payload: &Bytes, rows: &mut Rows<'_>) -> io::Result<Applied>;

    /// A chunk of entries has been applied.
    fn chunk_applied(&mut self) {}

    /// About how many bytes are held back.
    fn held_bytes(&self) -> usize {
        0
    }

    /// Adds everything held back to `rows`, which are written next.
    fn drain(&mut self, _rows: &mut Rows<'_>) {}

    /// Called now and then: what was not used since the last time need not be kept in memory.
    fn rest(&mut self) {}

    /// The applied state of a device, if it is at hand. What is held back is.
    fn device(&self, _key: &DeviceKey) -> Option<DeviceState> {
        None
    }

    /// How the rows of a generation are told to a digest.
    fn telling(&self) -> Telling {
        row_by_row
    }

    /// The state was replaced by a snapshot; forget what was cached or held back of `generation`'s
    /// predecessor.
    ///
    /// # Errors
    /// The new state cannot be read.
    fn replaced(&mut self, generation: u32) -> io::Result<()>;
}

/// Tells what the rows of a generation say, in an order and a form that do not depend on how one
/// replica happened to lay them out. Keys are whole.
pub type Telling = fn(&dyn StateView, Space, &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()>;

/// Every row as it lies.
fn row_by_row(view: &dyn StateView, space: Space, tell: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
    let KeyRange { from, to } = space.all();
    view.scan(&from, &to, &mut |key, value| {
        tell(key, value);
        true
    })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub term: u64,
    pub index: u64,
}

/// Collects the row changes of one group's current generation.
pub struct Rows<'a> {
    /// Where the keys of its rows begin.
    pub space: Space,
    held: &'a mut HeldOps,
}

/// Row changes that are not in the store yet, in order.
#[derive(Default)]
struct HeldOps {
    batch: StateBatch,
    bytes: usize,
}

impl HeldOps {
    fn push(&mut self, op: StateOp, bytes: usize) {
        self.batch.ops.push(op);
        self.bytes += bytes;
    }
}

impl Rows<'_> {
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let bytes = key.len() + value.len();
        self.held.push(StateOp::Put { key, value }, bytes);
    }
    pub fn delete(&mut self, key: Vec<u8>) {
        let bytes = key.len();
        self.held.push(StateOp::Delete { key }, bytes);
    }
    pub fn delete_range(&mut self, KeyRange { from, to }: KeyRange) {
        let bytes = from.len() + to.len();
        self.held.push(StateOp::DeleteRange { from, to }, bytes);
    }
}

/// The record that says which generation of a group's rows counts, and up to where it is applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupMeta {
    pub generation: u32,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// (term, its first applied index), oldest first.
    pub terms: Vec<(u64, u64)>,
}

impl GroupMeta {
    /// Whether `newer` differs in its applied index at most.
    fn only_advanced(&self, newer: &Self) -> bool {
        self.generation == newer.generation
            && self.terms.len() == newer.terms.len()
            && self.terms.last() == newer.terms.last()
            && self.membership.log_id() == newer.membership.log_id()
    }

    fn advance(&mut self, id: LogId) {
        let term = term_of(&id);
        if self.terms.last().is_none_or(|(last, _)| *last < term) {
            self.terms.push((term, id.index));
            if self.terms.len() > TERMS_MAX {
                self.terms.remove(0);
            }
        }
        self.applied = Some(id);
    }

    pub fn applied_index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index)
    }

    /// The term of the applied entry at `index`, as far back as terms are remembered.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index > self.applied_index() {
            return None;
        }
        self.terms
            .iter()
            .rev()
            .find(|(_, first)| *first <= index)
            .map(|(term, _)| *term)
    }
}

/// What the rest of the node may know of a replica; updated after each chunk of entries.
pub struct GroupShared {
    pub shard: ShardId,
    pub store: Arc<dyn StateStore>,
    pub background: Arc<Background>,
    /// Hashes shards; apart, so that it delays no flush.
    pub hashing: Arc<Background>,
    meta: Mutex<GroupMeta>,
    /// The running state machine; gone once the group has stopped.
    core: Mutex<Weak<Mutex<Core>>>,
    durable: Mutex<Option<(LogId, StoredMembership)>>,
    digests: Arc<Mutex<BTreeMap<u64, Digest>>>,
    sessions: AtomicU64,
    misfits: Mutex<Misfits>,
    /// The replica is being given back: nothing more is written.
    closed: RwLock<bool>,
}

/// Which items of which entries changed nothing, by index: for those who read the log afterwards.
#[derive(Default)]
struct Misfits(BTreeMap<u64, Vec<u32>>);

impl Misfits {
    fn note(&mut self, index: u64, applied: &Applied) {
        let items = applied.misfits.iter().chain(&applied.torn).copied();
        self.0.insert(index, items.collect());
        while self.0.len() > MISFITS_MAX {
            self.0.pop_first();
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    Pending,
    Done(String),
    Failed(String),
}

impl GroupShared {
    /// Reads the group's record and removes what a crash left of other generations.
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn open(
        shard: ShardId,
        store: Arc<dyn StateStore>,
        background: Arc<Background>,
        hashing: Arc<Background>,
    ) -> io::Result<Self> {
        let meta: GroupMeta = match store.get(&keys::meta(shard))? {
            Some(bytes) => codec::decode(&bytes).map_err(invalid)?,
            None => GroupMeta::default(),
        };
        let durable = meta.applied.map(|id| (id, meta.membership.clone()));
        let shared = Self {
            shard,
            store,
            background,
            hashing,
            meta: Mutex::new(meta),
            core: Mutex::default(),
            durable: Mutex::new(durable),
            digests: Arc::default(),
            sessions: AtomicU64::new(0),
            misfits: Mutex::default(),
            closed: RwLock::new(false),
        };
        shared.remove_stale_generations()?;
        Ok(shared)
    }

    fn remove_stale_generations(&self) -> io::Result<()> {
        let generation = self.meta().generation;
        let mut batch = StateBatch::default();
        let all = keys::all_generations(self.shard);
        let counts = Space {
            shard: self.shard,
            generation,
        }
        .all();
        let view = self.store.view();
        for (from, to) in [(all.from, counts.from), (counts.to, all.to)] {
            let mut found = false;
            view.scan(&from, &to, &mut |_, _| {
                found = true;
                false
            })?;
            if found {
                batch.ops.push(StateOp::DeleteRange { from, to });
            }
        }
        if batch.ops.is_empty() {
            return Ok(());
        }
        self.store.write(batch)
    }

    pub fn meta(&self) -> GroupMeta {
        self.meta.lock().expect("no holder of this lock panics").clone()
    }

    /// Positions of the items of an applied entry that changed nothing.
    pub fn misfits_at(&self, index: u64) -> Vec<u32> {
        let misfits = self.misfits.lock().expect("no holder of this lock panics");
        misfits.0.get(&index).cloned().unwrap_or_default()
    }

    fn note_misfits(&self, index: u64, applied: &Applied) {
        if !(applied.misfits.is_empty() && applied.torn.is_empty()) {
            let mut misfits = self.misfits.lock().expect("no holder of this lock panics");
            misfits.note(index, applied);
        }
    }

    /// Tells the snapshots that this replica sends apart.
    pub fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Where the keys of the rows that count begin.
    pub fn space(&self) -> Space {
        Space {
            shard: self.shard,
            generation: self.with_meta(|meta| meta.generation),
        }
    }

    /// Writes rows of this group, and only as long as it is not closed.
    ///
    /// # Errors
    /// The disk failed, or the replica was given back.
    pub fn write(&self, batch: StateBatch) -> io::Result<()> {
        // Held while writing: once `close` has returned, nothing is on its way any more.
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(io::Error::other("this replica was given back"));
        }
        self.store.write(batch)
    }

    /// From now on nothing is written, whatever is still running.
    pub fn close(&self) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// A view of everything applied, and where the rows that count begin in it.
    ///
    /// # Errors
    /// The disk is full or failed.
    pub fn pinned(&self) -> io::Result<(Space, Box<dyn StateView>)> {
        loop {
            let before = self.space();
            self.settle()?;
            let view = self.store.view();
            // A snapshot may have been installed in between.
            if self.space() == before {
                return Ok((before, view));
            }
        }
    }

    fn core(&self) -> Option<Arc<Mutex<Core>>> {
        self.core.lock().expect("no holder of this lock panics").upgrade()
    }

    /// Writes what is held back, so that the store says everything that is applied.
    ///
    /// # Errors
    /// The disk is full or failed; nothing was written.
    pub fn settle(&self) -> io::Result<()> {
        match self.core() {
            Some(core) => lock(&core).settle(self),
            None => Ok(()),
        }
    }

    /// The applied state of a device, if it need not be read from the store.
    pub fn device(&self, key: &DeviceKey) -> Option<DeviceState> {
        lock(&*self.core()?).app.device(key)
    }

    /// See [`Apply::rest`].
    pub fn rest(&self) {
        if let Some(core) = self.core() {
            lock(&core).app.rest();
        }
    }

    /// About how many bytes are held back.
    pub fn held_bytes(&self) -> usize {
        self.core().map_or(0, |core| lock(&core).held_bytes())
    }

    pub fn with_meta<T>(&self, read: impl FnOnce(&GroupMeta) -> T) -> T {
        read(&self.meta.lock().expect("no holder of this lock panics"))
    }

    /// A snapshot of this moment, without asking the state machine: the group's record is read from
    /// the same view as its rows.
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn snapshot(&self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        self.settle()?;
        let view = self.store.view();
        let Some(bytes) = view.get(&keys::meta(self.shard))? else {
            return Ok(None);
        };
        let meta: GroupMeta = codec::decode(&bytes).map_err(invalid)?;
        if meta.applied.is_none() {
            return Ok(None);
        }
        let snapshot = SnapshotData::View {
            view,
            generation: meta.generation,
            terms: meta.terms,
        };
        let meta = SnapshotMeta {
            last_log_id: meta.applied,
            last_membership: meta.membership,
        };
        Ok(Some(SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot }))
    }

    /// Makes rows received under a new generation the ones that count, durably. For a replica
    /// whose Raft does not run yet; a running one installs.
    ///
    /// # Errors
    /// The disk failed; after a crash there is the old state or the new one.
    pub async fn adopt(&self, meta: GroupMeta) -> io::Result<()> {
        let old = self.space();
        if meta.generation <= old.generation {
            return Err(io::Error::other(
                "a snapshot was received under a generation that is in use",
            ));
        }
        self.store.write(StateBatch {
            ops: vec![StateOp::Put {
                key: keys::meta(self.shard),
                value: codec::encode(&meta),
            }],
        })?;
        let store = self.store.clone();
        self.background.call(move || store.flush()).await??;
        self.publish(&meta);
        self.set_durable(self.note()?);
        let KeyRange { from, to } = old.all();
        self.store.write(StateBatch {
            ops: vec![StateOp::DeleteRange { from, to }],
        })
    }

    fn publish(&self, meta: &GroupMeta) {
        let mut known = self.meta.lock().expect("no holder of this lock panics");
        if known.only_advanced(meta) {
            known.applied = meta.applied;
        } else {
            known.clone_from(meta);
        }
    }

    /// Settles, and says what a flush that starts now will make durable.
    ///
    /// # Errors
    /// The disk is full or failed.
    pub fn note(&self) -> io::Result<Option<(LogId, StoredMembership)>> {
        let noted = |meta: &GroupMeta| meta.applied.map(|id| (id, meta.membership.clone()));
        let Some(core) = self.core() else {
            return Ok(self.with_meta(noted));
        };
        let mut core = lock(&core);
        core.settle(self)?;
        Ok(noted(&core.meta))
    }

    /// A flush that started after `note` was taken has ended. Returns whether anything is new.
    pub fn set_durable(&self, note: Option<(LogId, StoredMembership)>) -> bool {
        let mut durable = self.durable.lock().expect("no holder of this lock panics");
        let newer = note.as_ref().map(|n| n.0) > durable.as_ref().map(|d| d.0);
        if newer {
            *durable = note;
        }
        newer
    }

    fn durable(&self) -> Option<(LogId, StoredMembership)> {
        self.durable.lock().expect("no holder of this lock panics").clone()
    }

    pub fn digest_at(&self, index: u64) -> Option<Digest> {
        self.digests
            .lock()
            .expect("no holder of this lock panics")
            .get(&index)
            .cloned()
    }

    /// Hashes every row in the store, in the background, and remembers it under `index`.
    fn start_digest(&self, index: u64, generation: u32, telling: Telling) {
        let digests = self.digests.clone();
        {
            let mut known = digests.lock().expect("no holder of this lock panics");
            known.insert(index, Digest::Pending);
            while known.len() > DIGESTS_MAX {
                known.pop_first();
            }
        }
        let view = self.store.view();
        let space = Space {
            shard: self.shard,
            generation,
        };
        let failed = self.digests.clone();
        let taken = self.hashing.run(move || {
            let result = hash_rows(&*view, space, telling);
            let digest = result.map_or_else(|e| Digest::Failed(e.to_string()), Digest::Done);
            if let Some(slot) = digests.lock().expect("no holder of this lock panics").get_mut(&index) {
                *slot = digest;
            }
        });
        if !taken {
            let busy = Digest::Failed("too many digests are being computed; ask again later".into());
            failed
                .lock()
                .expect("no holder of this lock panics")
                .insert(index, busy);
        }
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// xxh3-128 over every row's key (without shard and generation) and value, in key order.
fn hash_rows(view: &dyn StateView, space: Space, telling: Telling) -> io::Result<String> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let prefix = keys::GENERATION_PREFIX_LEN;
    telling(view, space, &mut |key, value| {
        let key = &key[prefix..];
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key);
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value);
    })?;
    Ok(format!("{:032x}", hasher.digest128()))
}

fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().expect("no holder of this lock panics")
}

/// What has been applied, whether it is in the store yet or not.
struct Core {
    meta: GroupMeta,
    /// The applied index that the store holds.
    settled: Option<LogId>,
    held: HeldOps,
    app: Box<dyn Apply>,
}

impl Core {
    fn space(&self, shard: ShardId) -> Space {
        Space {
            shard,
            generation: self.meta.generation,
        }
    }

    fn held_bytes(&self) -> usize {
        self.held.bytes + self.app.held_bytes()
    }

    /// One entry; says whether it asks for a digest.
    fn apply(&mut self, shard: ShardId, id: LogId, payload: &EntryPayload) -> io::Result<(Applied, bool)> {
        let mut applied = Applied::default();
        let mut digest = false;
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(m) => self.meta.membership = StoredMembership::new(Some(id), m.clone()),
            EntryPayload::Normal(payload) => match payload.0.first() {
                Some(&PAYLOAD_APP) => {
                    let mut rows = Rows {
                        space: self.space(shard),
                        held: &mut self.held,
                    };
                    let at = Position {
                        term: term_of(&id),
                        index: id.index,
                    };
                    applied = self.app.apply(at, &payload.0.slice(1..), &mut rows)?;
                }
                Some(&PAYLOAD_DIGEST) => digest = true,
                _ => {}
            },
        }
        self.meta.advance(id);
        Ok((applied, digest))
    }

    /// Everything held back and the applied index, in one write.
    fn settle(&mut self, shared: &GroupShared) -> io::Result<()> {
        if self.settled == self.meta.applied {
            return Ok(());
        }
        let mut rows = Rows {
            space: self.space(shared.shard),
            held: &mut self.held,
        };
        self.app.drain(&mut rows);
        rows.put(keys::meta(shared.shard), codec::encode(&self.meta));
        let HeldOps { batch, .. } = std::mem::take(&mut self.held);
        shared.write(batch)?;
        self.settled = self.meta.applied;
        Ok(())
    }
}

/// The state machine of every group.
pub struct GroupMachine {
    shared: Arc<GroupShared>,
    core: Arc<Mutex<Core>>,
    apply_seconds: metrics::Histogram,
}

impl GroupMachine {
    pub fn new(shared: Arc<GroupShared>, app: Box<dyn Apply>) -> Self {
        let meta = shared.meta();
        let apply_seconds = metrics::histogram!("holdfast_stage_seconds", "stage" => "apply");
        let core = Arc::new(Mutex::new(Core {
            settled: meta.applied,
            meta,
            held: HeldOps::default(),
            app,
        }));
        *shared.core.lock().expect("no holder of this lock panics") = Arc::downgrade(&core);
        Self {
            shared,
            core,
            apply_seconds,
        }
    }

    /// Applies `entries`, then answers.
    fn apply_chunk(&mut self, entries: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let started = tokio::time::Instant::now();
        let mut answers = Vec::with_capacity(entries.len());
        {
            let mut core = lock(&self.core);
            for (entry, responder) in entries {
                let (applied, digest) = core.apply(self.shared.shard, entry.log_id, &entry.payload)?;
                self.shared.note_misfits(entry.log_id.index, &applied);
                if let Some(responder) = responder {
                    answers.push((responder, applied));
                }
                if digest {
                    // The marker's digest is of exactly the state at its index.
                    core.settle(&self.shared)?;
                    let (generation, telling) = (core.meta.generation, core.app.telling());
                    self.shared.start_digest(entry.log_id.index, generation, telling);
                }
            }
            core.app.chunk_applied();
            if core.held_bytes() >= HELD_BYTES_MAX {
                core.settle(&self.shared)?;
            }
            #[cfg(feature = "planted")]
            if actors::planted::is(actors::planted::Planted::AppliedIndexOutsideBatch) {
                let (key, value) = (keys::meta(self.shared.shard), codec::encode(&core.meta));
                let ops = vec![StateOp::Put { key, value }];
                self.shared.write(StateBatch { ops })?;
            }
            self.shared.publish(&core.meta);
        }
        self.apply_seconds.record(started.elapsed().as_secs_f64());
        for (responder, applied) in answers {
            responder.send(applied);
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for GroupMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = MetaOnly;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let core = lock(&self.core);
        Ok((core.meta.applied, core.meta.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut ready = entries.ready_chunks(CHUNK_ENTRIES_MAX);
        while let Some(entries) = ready.next().await {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            for entry in entries {
                let entry = entry?;
                bytes += payload_len(&entry.0.payload);
                chunk.push(entry);
                if bytes >= CHUNK_BYTES_MAX {
                    self.apply_chunk(std::mem::take(&mut chunk))?;
                    bytes = 0;
                    // Others share the arbiter: heartbeats above all.
                    tokio::task::yield_now().await;
                }
            }
            self.apply_chunk(chunk)?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<MetaOnly> {
        Some(MetaOnly(self.shared.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> MetaOnly {
        MetaOnly(self.shared.clone())
    }

    /// Flips to the generation the rows were received under, makes that durable, and only then
    /// lets go of the old one. A crash in between leaves either the old state or the new.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let SnapshotData::Received { generation, terms } = data else {
            return Err(io::Error::other("only a received snapshot can be installed"));
        };
        let old = self.replace(meta, generation, terms)?;
        let store = self.shared.store.clone();
        self.shared.background.call(move || store.flush()).await??;
        self.shared.set_durable(self.shared.note()?);
        let KeyRange { from, to } = Space {
            shard: self.shared.shard,
            generation: old,
        }
        .all();
        self.shared.write(StateBatch {
            ops: vec![StateOp::DeleteRange { from, to }],
        })
    }

    /// A consistent view with *its* index, which may be past the last snapshot that was "built".
    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        let mut core = lock(&self.core);
        if core.meta.applied.is_none() {
            return Ok(None);
        }
        core.settle(&self.shared)?;
        let meta = SnapshotMeta {
            last_log_id: core.meta.applied,
            last_membership: core.meta.membership.clone(),
        };
        let snapshot = SnapshotData::View {
            view: self.shared.store.view(),
            generation: core.meta.generation,
            terms: core.meta.terms.clone(),
        };
        Ok(Some(SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot }))
    }
}

impl GroupMachine {
    /// Lets the rows of `generation` count; returns the generation that counted before.
    fn replace(&self, meta: &SnapshotMeta, generation: u32, terms: Vec<(u64, u64)>) -> io::Result<u32> {
        let mut core = lock(&self.core);
        let old = core.meta.generation;
        if generation <= old {
            return Err(io::Error::other(
                "a snapshot was received under a generation that is in use",
            ));
        }
        core.meta = GroupMeta {
            generation,
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            terms,
        };
        // What was held back of the old generation is of no more use.
        core.held = HeldOps::default();
        self.shared.write(StateBatch {
            ops: vec![StateOp::Put {
                key: keys::meta(self.shared.shard),
                value: codec::encode(&core.meta),
            }],
        })?;
        core.settled = core.meta.applied;
        self.shared.publish(&core.meta);
        core.app.replaced(generation)?;
        Ok(old)
    }
}

fn payload_len(payload: &EntryPayload) -> usize {
    match payload {
        EntryPayload::Normal(payload) => payload.0.len(),
        _ => 0,
    }
}

/// Building a snapshot copies nothing: it states the index up to which the state is on disk, so
/// that openraft may purge the log below.
pub struct MetaOnly(Arc<GroupShared>);

impl RaftSnapshotBuilder<TypeConfig> for MetaOnly {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        let (last_log_id, last_membership) = match self.0.durable() {
            Some((id, membership)) => (Some(id), membership),
            None => (None, StoredMembership::default()),
        };
        let meta = SnapshotMeta {
            last_log_id,
            last_membership,
        };
        Ok(SnapshotOf::<TypeConfig, SnapshotData> {
            meta,
            snapshot: SnapshotData::Described,
        })
    }
}
