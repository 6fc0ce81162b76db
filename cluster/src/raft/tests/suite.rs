//! openraft's own suite for storages, over ours.
//!
//! Two differences are by design, and bridged here: our snapshots describe what a flush made
//! durable, so each is preceded by a flush; and rows travel between machines through the
//! transport's sender and receiver, so installing copies them as those do.

use std::io;
use std::sync::Arc;

use futures::Stream;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, StorageError};

use crate::background::Background;
use crate::raft::log::GroupLog;
use crate::raft::machine::{GroupMachine, GroupShared, MetaOnly};
use crate::raft::snapshot::SnapshotData;
use crate::raft::types::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::shard::apply::ShardApply;
use crate::storage::keys::{self, Space};
use crate::storage::memory::{MemoryLog, MemoryState};
use crate::storage::{StateBatch, StateOp};
use crate::testing::{run, SHARD};

struct Machine {
    inner: GroupMachine,
    shared: Arc<GroupShared>,
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = MetaOnly;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.inner.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        self.inner.apply(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<MetaOnly> {
        let note = self.shared.note().unwrap();
        self.shared.store.flush().unwrap();
        self.shared.set_durable(note);
        self.inner.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> MetaOnly {
        self.inner.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let SnapshotData::View {
            view,
            generation,
            terms,
        } = data
        else {
            return self.inner.install_snapshot(meta, data).await;
        };
        let to = Space {
            shard: SHARD,
            generation: generation + 1,
        };
        let from = Space {
            shard: SHARD,
            generation,
        }
        .all();
        let mut batch = StateBatch::default();
        view.scan(&from.from, &from.to, &mut |key, value| {
            let key = keys::moved(key, to).unwrap();
            batch.ops.push(StateOp::Put {
                key,
                value: value.to_vec(),
            });
            true
        })?;
        self.shared.store.write(batch)?;
        let data = SnapshotData::Received {
            generation: to.generation,
            terms,
        };
        self.inner.install_snapshot(meta, data).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        self.inner.get_current_snapshot().await
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, GroupLog, Machine> for Builder {
    async fn build(&self) -> Result<((), GroupLog, Machine), StorageError<TypeConfig>> {
        let log = GroupLog::open(SHARD, Arc::new(MemoryLog::new())).unwrap();
        let background = Arc::new(Background::start("test background").unwrap());
        let shared =
            Arc::new(GroupShared::open(SHARD, Arc::new(MemoryState::new()), background.clone(), background).unwrap());
        let inner = GroupMachine::new(shared.clone(), Box::new(ShardApply::new(&shared)));
        Ok(((), log, Machine { inner, shared }))
    }
}

#[test]
fn openrafts_storage_suite_passes() {
    run(async {
        Suite::test_all(Builder).await.unwrap();
    });
}
