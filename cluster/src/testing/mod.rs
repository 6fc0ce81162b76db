//! What the tests inside this crate share: devices that decide, stores that remember every write,
//! and replicas of one group on loopback sockets. Knows no process and no real disk.

pub mod fleet;
pub mod replicas;
pub mod tape;

use std::collections::BTreeMap;

use actors::device::DeviceState;
use actors::id::{DeviceKey, ShardId};

use crate::raft::group::seeded;
use crate::raft::machine::GroupShared;
use crate::raft::types::{Entry, EntryPayload, LogId, Payload};
use crate::shard::{packs, rows};
use crate::storage::keys::Space;
use crate::storage::StateStore;

pub const SHARD: ShardId = ShardId(0);

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(term), index)
}

pub fn normal(term: u64, index: u64, payload: bytes::Bytes) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Payload(payload)),
    }
}

/// What the rows of one generation say, by keys within it.
pub fn rows_of(store: &dyn StateStore, generation: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let space = Space {
        shard: SHARD,
        generation,
    };
    let mut rows = BTreeMap::new();
    packs::tell(&*store.view(), space, &mut |key, value| {
        let key = key[crate::storage::keys::GENERATION_PREFIX_LEN..].to_vec();
        rows.insert(key, value.to_vec());
    })
    .unwrap();
    rows
}

/// The state of a device as the store has it once everything applied is there.
pub fn stored(shared: &GroupShared, key: &DeviceKey) -> DeviceState {
    shared.settle().unwrap();
    rows::load(&*shared.store, shared.space(), key).unwrap()
}

/// Stands for a set of rows; equal for equal rows.
pub fn fingerprint(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for (key, value) in rows {
        for part in [key, value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.digest128()
}

/// Runs a test on one thread, with openraft's randomness from a fixed seed.
pub fn run<T>(test: impl std::future::Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(seeded(7, test)))
}
