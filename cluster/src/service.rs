//! What this node answers to [`Ask`]s, its own and its peers'.

use std::sync::Arc;
use std::time::Duration;

use actors::device::{Answer, Command, Event};
use actors::id::{DeviceKey, NodeId, ShardId};
use actors::ports::{CallError, ReplyTo};
use actors::wire::receipt::Receipt;
use bytes::Bytes;
use tokio::sync::{oneshot, Semaphore};

use crate::admin::Admin;
use crate::api::{
    MessagePage, MessageQuery, MessagesTaken, ReceiptState, ReplicaDigest, ShardStatus, TakeMessages, TelemetryQuery,
};
use crate::catalog::CatalogCommand;
use crate::node::rebuild::Rebuilds;
use crate::node::scrub::Scrubbing;
use crate::raft::group::{Group, ProposeError, Proposed};
use crate::raft::machine::{Digest, GroupShared, PAYLOAD_APP};
use crate::raft::membership::{Membership, StepError};
use crate::router::protocol::{Acked, Ask, AskResult, Condition, NodeReport, Told};
use crate::router::Router;
use crate::shard::runtime::{ShardHandle, ShardMsg};
use crate::shard::{batch, messages, reads};

/// How long a replica waits for a digest's index to be applied, and for the hashing.
const DIGEST_WAIT: Duration = Duration::from_secs(60);

/// Answers as this node.
pub struct Service {
    pub router: Arc<Router>,
    pub catalog: std::sync::OnceLock<Group>,
    pub rebuilds: Arc<Rebuilds>,
    /// Why this node takes no part in anything, if it does not.
    pub quarantine: Option<String>,
    /// What there is to know of damage that is repaired.
    pub aftermath: Option<String>,
    pub scrubbing: Arc<Scrubbing>,
    /// States being sent to replicas that lost theirs.
    pub sending: Arc<Semaphore>,
    pub admin: std::sync::OnceLock<Admin>,
}

/// States this node sends at the same time.
pub const SENDING_MAX: usize = 4;

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
            Ask::SendState { shard, to, at_least } => self.send_state(shard, to, at_least),
            Ask::Scrub => Ok(Told::Scrub(self.scrubbing.begin())),
            Ask::Acked { node } => Ok(Told::Acked(self.acked(node))),
            Ask::Live(query) => {
                let group = self.group(query.shard)?;
                let page = crate::live::page(&group, &query).await?;
                Ok(Told::Live(Box::new(page)))
            }
            Ask::Messages { key, query } => self.messages(key, query).await,
            Ask::Feedback { key, after_seq, limit } => self.feedback(key, after_seq, limit).await,
            Ask::TakeMessages { key, take } => self.take_messages(key, take).await,
            Ask::Memberships => Ok(Told::Memberships(self.memberships())),
            Ask::Step { shard, from, step } => match self.group(shard)?.step(from, step).await {
                Ok(()) => Ok(Told::Done),
                Err(StepError::NotLeader { leader }) => Err(CallError::NotLeader { shard, leader }),
                Err(StepError::Refused(reason)) => Ok(Told::Refused(reason)),
            },
            Ask::Holders { shard } => {
                let admin = self.admin()?;
                admin.up_to_date().await?;
                let catalog = admin.now();
                let holders = catalog.placement(shard).map(|placement| placement.holders.clone());
                Ok(Told::Holders(holders.unwrap_or_default()))
            }
            Ask::Admin(ask) => self.admin()?.answer(ask).await.map(Told::Admin),
        }
    }

    fn admin(&self) -> Result<&Admin, CallError> {
        let unknown = CallError::NotLeader {
            shard: ShardId::CATALOG,
            leader: None,
        };
        self.admin.get().ok_or(unknown)
    }

    /// Of every group this node leads.
    fn memberships(&self) -> Vec<Membership> {
        let shards = self.router.handles().into_iter().map(|handle| handle.group);
        shards
            .chain(self.catalog.get().cloned())
            .filter_map(|group| group.membership())
            .collect()
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
        // The look at the device orders the read behind everything acknowledged, and proves that
        // the device exists; the rows are read once it is answered.
        self.then_read(key, Command::ReadDevice, move |shared, key, _| {
            reads::telemetry(shared, key, &query).map(Told::Telemetry)
        })
        .await
    }

    async fn messages(&self, key: DeviceKey, query: MessageQuery) -> AskResult {
        self.then_read(key, Command::ReadMessages, move |shared, key, answer| {
            let Answer::Messages(view) = answer else {
                return Ok(Told::Messages(MessagePage::default()));
            };
            messages::page(shared, key, *view, &query).map(Told::Messages)
        })
        .await
    }

    async fn feedback(&self, key: DeviceKey, after_seq: u64, limit: u32) -> AskResult {
        self.then_read(key, Command::ReadDevice, move |shared, key, _| {
            messages::feedback(shared, key, after_seq, limit).map(Told::Feedback)
        })
        .await
    }

    /// The content is read once it is committed that the connection has it.
    async fn take_messages(&self, key: DeviceKey, take: TakeMessages) -> AskResult {
        let command = Command::TakeMessages {
            generation: take.generation,
            held: take.held,
            count_max: take.count_max,
        };
        self.then_read(key, command, move |shared, key, answer| {
            let Answer::MessagesTaken { taken, more, ended } = answer else {
                return Ok(Told::MessagesTaken(MessagesTaken::default()));
            };
            let messages = messages::contents(shared, key, taken)?;
            Ok(Told::MessagesTaken(MessagesTaken { messages, more, ended }))
        })
        .await
    }

    /// Runs a command of a device, and reads rows of it once it is answered.
    async fn then_read(
        &self,
        key: DeviceKey,
        command: Command,
        rows: impl FnOnce(&GroupShared, &DeviceKey, Answer) -> std::io::Result<Told> + Send + 'static,
    ) -> AskResult {
        let handle = self.led(self.router.shard_of(&key))?;
        let shared = handle.group.shared.clone();
        let (tx, rx) = oneshot::channel();
        let asked = key.clone();
        let reply = ReplyTo::new(move |result| {
            let told = result.and_then(|reply| read(|| rows(&shared, &asked, reply.answer)));
            let _ = tx.send(told);
        });
        handle.send(ShardMsg::Call {
            key,
            command,
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
        let (catalog, rebuilding): (Vec<_>, Vec<_>) = self
            .rebuilds
            .status()
            .into_iter()
            .partition(|shard| shard.id == ShardId::CATALOG);
        let handles = self.router.handles();
        let running = handles.iter().map(|handle| status_of(&handle.group));
        NodeReport {
            node: self.router.node,
            shards: running.chain(rebuilding).collect(),
            catalog: self.catalog.get().map(status_of).or(catalog.into_iter().next()),
            condition: self.condition(),
            aftermath: self.aftermath.clone(),
            scrub: self.scrubbing.report(),
        }
    }

    fn condition(&self) -> Condition {
        match &self.quarantine {
            Some(reason) => Condition::Damaged(reason.clone()),
            None if !self.rebuilds.is_empty() => Condition::Rebuilding,
            None => Condition::Whole,
        }
    }

    /// Begins to send; whether it arrives is seen where it is received.
    fn send_state(&self, shard: ShardId, to: NodeId, at_least: u64) -> AskResult {
        let group = self.group(shard)?;
        if group.applied_index() < at_least {
            return Err(CallError::NotLeader { shard, leader: None });
        }
        let Ok(turn) = self.sending.clone().try_acquire_owned() else {
            let what = "states being sent".into();
            return Err(CallError::Overloaded { what });
        };
        tracing::info!(%shard, to, "sending state to a replica that lost its own");
        tokio::spawn(crate::raft::group::seeded(to, async move {
            let _turn = turn;
            match group.send_state(to).await {
                Ok(()) => tracing::info!(%shard, to, "state sent"),
                Err(error) => tracing::warn!(%shard, to, %error, "state not sent"),
            }
        }));
        Ok(Told::Done)
    }

    fn acked(&self, node: NodeId) -> Vec<Acked> {
        let handles = self.router.handles();
        let groups = handles.iter().map(|handle| &handle.group).chain(self.catalog.get());
        let acked = groups.filter_map(|group| {
            let (term, at) = group.acked_by(node)?;
            Some(Acked {
                shard: group.shard,
                term,
                at,
            })
        });
        acked.collect()
    }

    async fn change_catalog(&self, command: &CatalogCommand) -> AskResult {
        let group = self.group(ShardId::CATALOG)?;
        match write_catalog(&group, command).await {
            Ok(true) => Ok(Told::Done),
            Ok(false) => Ok(Told::Refused("the catalog refused the change".into())),
            Err(ProposeError::Rejected { leader }) => Err(CallError::NotLeader {
                shard: ShardId::CATALOG,
                leader,
            }),
            Err(ProposeError::NotNow) => Err(CallError::NotLeader {
                shard: ShardId::CATALOG,
                leader: None,
            }),
            Err(ProposeError::Unknown) => Err(CallError::Unknown),
        }
    }
}

/// Proposes a change of the catalog and waits until it is applied here; says whether it was
/// accepted.
///
/// # Errors
/// This node does not lead the catalog, or no longer.
pub async fn write_catalog(group: &Group, command: &CatalogCommand) -> Result<bool, ProposeError> {
    let mut payload = vec![PAYLOAD_APP];
    actors::wire::codec::encode_into(&mut payload, command);
    let (tx, rx) = oneshot::channel();
    let done = move |result| {
        let _ = tx.send(result);
    };
    group.propose(Bytes::from(payload), done).await;
    let committed = rx.await.unwrap_or(Err(ProposeError::Unknown))?;
    Ok(committed.misfits.is_empty())
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
        Err(ProposeError::NotNow) => Err(CallError::NotLeader { shard, leader: None }),
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
        target: Vec::new(),
    }
}
