//! What this node answers to [`Ask`]s, its own and its peers'.

use std::sync::Arc;
use std::time::Duration;

use actors::device::{Command, Event};
use actors::id::{DeviceKey, ShardId};
use actors::ports::{CallError, ReplyTo};
use actors::wire::receipt::Receipt;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::api::{ReceiptState, ReplicaDigest, ShardStatus, TelemetryQuery};
use crate::catalog::CatalogCommand;
use crate::raft::group::{Group, ProposeError, Proposed};
use crate::raft::machine::{Digest, PAYLOAD_APP};
use crate::router::protocol::{Ask, AskResult, NodeReport, Told};
use crate::router::Router;
use crate::shard::runtime::{ShardHandle, ShardMsg};
use crate::shard::{batch, reads};

/// How long a replica waits for a digest's index to be applied, and for the hashing.
const DIGEST_WAIT: Duration = Duration::from_secs(60);

/// Answers as this node.
pub struct Service {
    pub router: Arc<Router>,
    pub catalog: std::sync::OnceLock<Group>,
}

impl Service {
    /// # Errors
    /// `NotLeader` when this node is not the one to ask; nothing was done then.
    pub async fn answer(&self, ask: Ask) -> AskResult {
        match ask {
            Ask::Telemetry { key, query } => self.telemetry(key, query).await,
            Ask::List { shard, query } => {
                let handle = self.led(shard)?;
                barrier(&handle).await?;
                read(move || reads::devices(&handle.group.shared, &query)).map(Told::Devices)
            }
            Ask::Receipt(receipt) => {
                let handle = self.led(receipt.shard)?;
                barrier(&handle).await?;
                let state = reads::receipt_state(&handle.group.shared, &receipt);
                let wrong = state == ReceiptState::Committed && names_another_seq(&handle.group, &receipt);
                Ok(Told::Receipt(if wrong { ReceiptState::Absent } else { state }))
            }
            Ask::MarkDigest { shard } => {
                let group = self.group(shard)?;
                proposed(shard, group.digest_marker().await)
            }
            Ask::DigestAt { shard, index } => Ok(Told::Digest(self.digest_at(shard, index).await)),
            Ask::Report => Ok(Told::Report(self.report())),
            Ask::Catalog(command) => self.change_catalog(&command).await,
        }
    }

    fn led(&self, shard: ShardId) -> Result<ShardHandle, CallError> {
        self.router
            .handle(shard)
            .ok_or(CallError::NotLeader { shard, leader: None })
    }

    fn group(&self, shard: ShardId) -> Result<Group, CallError> {
        if shard == ShardId::CATALOG {
            return self
                .catalog
                .get()
                .cloned()
                .ok_or(CallError::NotLeader { shard, leader: None });
        }
        self.led(shard).map(|handle| handle.group)
    }

    async fn telemetry(&self, key: DeviceKey, query: TelemetryQuery) -> AskResult {
        let handle = self.led(self.router.shard_of(&key))?;
        let shared = handle.group.shared.clone();
        let (tx, rx) = oneshot::channel();
        // The look at the device orders the read behind everything acknowledged, and proves that
        // the device exists; the rows are read once it is answered.
        let asked = key.clone();
        let reply = ReplyTo::new(move |result| {
            let page = result.and_then(|_| read(|| reads::telemetry(&shared, &asked, &query)));
            let _ = tx.send(page.map(Told::Telemetry));
        });
        handle.send(ShardMsg::Call {
            key,
            command: Command::ReadDevice,
            reply,
            queued: None,
        });
        rx.await.unwrap_or(Err(CallError::Unknown))
    }

    async fn digest_at(&self, shard: ShardId, index: u64) -> ReplicaDigest {
        let node = self.router.node;
        let failed = |text: &str| ReplicaDigest {
            node,
            applied: None,
            digest: None,
            error: Some(text.to_owned()),
        };
        let Ok(group) = self.group(shard) else {
            return failed("no replica of this shard here");
        };
        let wait = async {
            loop {
                let applied = group.applied_index();
                match group.shared.digest_at(index) {
                    Some(Digest::Done(digest)) => {
                        return ReplicaDigest {
                            node,
                            applied: Some(index),
                            digest: Some(digest),
                            error: None,
                        }
                    }
                    Some(Digest::Failed(reason)) => return failed(&reason),
                    None if applied >= index => return failed("no digest is remembered for this index"),
                    Some(Digest::Pending) | None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        match tokio::time::timeout(DIGEST_WAIT, wait).await {
            Ok(digest) => digest,
            Err(_) => failed("the replica did not reach the index in time"),
        }
    }

    fn report(&self) -> NodeReport {
        NodeReport {
            node: self.router.node,
            shards: self
                .router
                .handles()
                .iter()
                .map(|handle| status_of(&handle.group))
                .collect(),
            catalog: self.catalog.get().map(status_of),
        }
    }

    async fn change_catalog(&self, command: &CatalogCommand) -> AskResult {
        let group = self.group(ShardId::CATALOG)?;
        let mut payload = vec![PAYLOAD_APP];
        actors::wire::codec::encode_into(&mut payload, command);
        let (tx, rx) = oneshot::channel();
        let done = move |result| {
            let _ = tx.send(result);
        };
        group.propose(Bytes::from(payload), done).await;
        proposed(ShardId::CATALOG, rx.await.unwrap_or(Err(ProposeError::Unknown))).map(|_| Told::Done)
    }
}

/// Whether the entry is still in the log and holds no telemetry of the receipt's seq. Once it is
/// purged only term and index can be checked.
fn names_another_seq(group: &Group, receipt: &Receipt) -> bool {
    let Some(payload) = group.payload_at(receipt.index) else {
        return false;
    };
    if receipt.seq == 0 || payload.first() != Some(&PAYLOAD_APP) {
        return false;
    }
    let mut events = batch::items(&payload[1..]).flatten().flat_map(|item| item.events);
    !events.any(|event| matches!(event, Event::TelemetryRecorded(recorded) if recorded.seq == receipt.seq))
}

fn proposed(shard: ShardId, result: Proposed) -> AskResult {
    match result {
        Ok(committed) => Ok(Told::Index(committed.at.index)),
        Err(ProposeError::Rejected { leader }) => Err(CallError::NotLeader { shard, leader }),
        Err(ProposeError::Unknown) => Err(CallError::Unknown),
    }
}

async fn barrier(handle: &ShardHandle) -> Result<(), CallError> {
    let (tx, rx) = oneshot::channel();
    handle.send(ShardMsg::Barrier(Box::new(move |result| {
        let _ = tx.send(result);
    })));
    rx.await.unwrap_or(Err(CallError::Unknown))
}

fn read<T>(rows: impl FnOnce() -> std::io::Result<T>) -> Result<T, CallError> {
    rows().map_err(|error| {
        // Damaged bytes are never served; the replica's group stops when it meets them itself.
        tracing::error!(%error, "rows cannot be read");
        CallError::Unknown
    })
}

/// One replica as it sees itself.
pub fn status_of(group: &Group) -> ShardStatus {
    let role = group.role();
    ShardStatus {
        id: group.shard,
        leader: role.leader,
        term: role.term,
        voters: group.voters(),
        learners: group.learners(),
        applied: group.applied_index(),
        committed: group.committed_index(),
        lag: if role.leading {
            group.lag().into_iter().collect()
        } else {
            Vec::new()
        },
        fault: group.failure(),
    }
}
