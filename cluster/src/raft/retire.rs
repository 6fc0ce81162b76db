//! Gives a replica's disk space back, and remembers what the replica had promised.
//!
//! A voter that is wiped and later asked again could help a former, partitioned voter to a
//! majority that lacks committed entries. So the vote stays, and beside it where the log had
//! ended: should this node hold the group again, it grants no vote to a candidate with less, and
//! does not stand for election itself before it has as much: its log may begin with a membership
//! in which it needed nobody else.

use std::io;
use std::sync::Arc;

use actors::id::ShardId;
use actors::wire::codec;
use bytes::Bytes;
use openraft::storage::RaftLogStorage;
use serde::{Deserialize, Serialize};

use super::log::{read_record, GroupLog};
use super::machine::GroupMeta;
use super::types::LogId;
use crate::storage::{keys, LogOp, LogRecord, LogStore, StateBatch, StateOp, StateStore};

/// What is kept of a replica that was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// The last entry it is known to have had.
    pub floor: Option<LogId>,
    /// Deleting was begun and may not be finished.
    wiping: bool,
}

/// # Errors
/// The disk failed or holds damaged bytes.
pub fn retired(log: &dyn LogStore, shard: ShardId) -> io::Result<Option<Retired>> {
    read_record(log, shard, LogRecord::Retired)
}

/// Whether this node holds rows or entries of a group, or began to delete them.
///
/// # Errors
/// As [`retired`].
pub fn holds_any(log: &dyn LogStore, state: &dyn StateStore, shard: ShardId) -> io::Result<bool> {
    Ok(is_half_wiped(log, shard)?
        || log.last_index(shard)?.is_some()
        || log.record(shard, LogRecord::Purged)?.is_some()
        || state.get(&keys::meta(shard))?.is_some())
}

/// Whether [`give_back`] was interrupted and must run again before the replica may be opened.
///
/// # Errors
/// As [`retired`].
pub fn is_half_wiped(log: &dyn LogStore, shard: ShardId) -> io::Result<bool> {
    Ok(retired(log, shard)?.is_some_and(|retired| retired.wiping))
}

/// Deletes the rows and entries of a group that does not run here. Interrupted at any point, it
/// can be run again. `flush` makes the state durable.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub async fn give_back<F>(
    shard: ShardId,
    log: Arc<dyn LogStore>,
    state: &dyn StateStore,
    flush: impl FnOnce() -> F,
) -> io::Result<()>
where
    F: std::future::Future<Output = io::Result<()>>,
{
    let former = retired(&*log, shard)?.unwrap_or_default();
    let last = GroupLog::open(shard, log.clone())?.get_log_state().await?.last_log_id;
    let applied = match state.get(&keys::meta(shard))? {
        Some(bytes) => codec::decode::<GroupMeta>(&bytes).ok().and_then(|meta| meta.applied),
        None => None,
    };
    let floor = former.floor.max(last).max(applied);
    let record = |wiping| Bytes::from(codec::encode(&Retired { floor, wiping }));
    let begun = LogOp::Put {
        shard,
        record: LogRecord::Retired,
        value: record(true),
    };
    durable(&*log, begun).await?;
    let rows = keys::all_generations(shard);
    state.write(StateBatch {
        ops: vec![
            StateOp::Delete { key: keys::meta(shard) },
            StateOp::DeleteRange {
                from: rows.from,
                to: rows.to,
            },
        ],
    })?;
    flush().await?;
    let done = LogOp::Forget {
        shard,
        record: record(false),
    };
    durable(&*log, done).await
}

async fn durable(log: &dyn LogStore, op: LogOp) -> io::Result<()> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    log.submit(
        op,
        Box::new(move |result| {
            let _ = tx.send(result);
        }),
    );
    rx.await.map_err(|_| io::Error::other("the log writer has stopped"))?
}
