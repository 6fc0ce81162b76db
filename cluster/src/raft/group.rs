//! One replica of one group, with openraft's types translated to plain ones.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::wire::codec;
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ForwardReason;
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use openraft::Instant as _;
use openraft::{Config, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;

use super::log::GroupLog;
use super::machine::{Apply, GroupMachine, GroupShared, Position, PAYLOAD_BARRIER, PAYLOAD_DIGEST};
use super::network::GroupNetworkFactory;
use super::retire::{retired, Retired};
use super::rpc;
use super::snapshot::{Into, Receiver, Sender, TransferError};
use super::types::{
    term_of, ClientWriteError, Entry, EntryPayload, OnComplete, Payload, Raft, TypeConfig, WriteResult,
};
use crate::config::ClusterConfig;
use crate::storage::LogStore;
use crate::transport::Transport;

/// Log entries kept below a snapshot for followers that are a little behind.
const LOG_ENTRIES_TO_KEEP: u64 = 500;

/// Log entries kept above that for a learner that is being copied to; beyond, it is sent the rows
/// again.
const LOG_HELD_MAX: u64 = 100_000;

/// Runs a task with a seed of its own for openraft's randomness.
pub fn seeded<F: Future>(seed: u64, task: F) -> impl Future<Output = F::Output> {
    DeterministicRng::<TokioRuntime>::scope(seed, task)
}

/// One replica of one group.
#[derive(Clone)]
pub struct Group {
    pub shard: ShardId,
    pub node: NodeId,
    pub shared: Arc<GroupShared>,
    pub(super) raft: Raft,
    log: GroupLog,
    receiver: Arc<Receiver>,
    transport: Transport,
    /// What this node once gave back of this group; see [`super::retire`].
    retired: Option<Arc<Retired>>,
    /// It is known to have all of that again, if there is any.
    restored: Arc<AtomicBool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    pub leader: Option<NodeId>,
    pub term: u64,
    /// This replica is the leader.
    pub leading: bool,
}

/// Why a proposal has no position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// Never appended: nothing was committed.
    Rejected { leader: Option<NodeId> },
    /// Never appended: this leader has not heard from a quorum lately. It may be proposed again.
    NotNow,
    /// Appended, then leadership was lost: it may commit.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub at: Position,
    /// Items that changed nothing, and never will.
    pub misfits: Vec<u32>,
    /// Items whose device was quarantined by them.
    pub torn: Vec<u32>,
}

/// How far another replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Entries it is behind.
    pub lag: u64,
    /// It is known to have something.
    pub begun: bool,
}

/// An entry of the log, without openraft's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub index: u64,
    pub term: u64,
    /// `None` for what is openraft's own.
    pub payload: Option<Bytes>,
}

pub type Proposed = Result<Committed, ProposeError>;

/// What it takes to open a replica.
pub struct Parts {
    pub shard: ShardId,
    pub log: Arc<dyn LogStore>,
    pub shared: Arc<GroupShared>,
    pub transport: Transport,
    pub app: Box<dyn Apply>,
}

#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("shard {shard}: {source}")]
    Disk { shard: ShardId, source: std::io::Error },
    #[error("shard {shard}: {reason}")]
    Raft { shard: ShardId, reason: String },
}

fn raft_config(config: &ClusterConfig) -> Config {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let election_max = ms(config.election_max);
    Config {
        cluster_name: config.cluster_id.clone(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(config.election_min),
        election_timeout_max: election_max,
        heartbeat_min_interval: Some(ms(config.heartbeat) / 2),
        enable_pre_vote: Some(true),
        // A leader that hears late from its followers goes on with its heartbeats. With probing it
        // would fall silent for a while, and a moment of too much load would become an election.
        // What probing is for, a leader that is heard and cannot hear, ends with its connections.
        quorum_loss_probe_interval: None,
        // Our own scheduler decides, after a flush.
        snapshot_policy: SnapshotPolicy::Never,
        #[cfg(not(feature = "planted"))]
        max_in_snapshot_log_to_keep: LOG_ENTRIES_TO_KEEP,
        #[cfg(feature = "planted")]
        max_in_snapshot_log_to_keep: match actors::planted::is(actors::planted::Planted::PurgeTooFar) {
            true => 0,
            false => LOG_ENTRIES_TO_KEEP,
        },
        purge_batch_size: 64,
        install_snapshot_timeout: 10_000,
        // Followers fsync while the leader does.
        broadcast_submitted_on_append: Some(true),
        // On by default. A leader that restarts within its term may lack what it had sent but not
        // written itself, and would put other entries at the same (term, index).
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        backoff: "20ms 40ms ...400ms".to_owned(),
        ..Config::default()
    }
}

impl Group {
    /// Recovers the replica from disk and starts it. Must run where its tasks shall run, inside
    /// [`seeded`].
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub async fn open(config: &ClusterConfig, parts: Parts) -> Result<Self, GroupError> {
        let shard = parts.shard;
        let disk = |source| GroupError::Disk { shard, source };
        let raft_error = |reason: String| GroupError::Raft { shard, reason };
        let retired = retired(&*parts.log, shard).map_err(disk)?.map(Arc::new);
        let log = GroupLog::open(shard, parts.log).map_err(disk)?;
        let restored = has_again(&log, retired.as_deref());
        let settings = Config {
            enable_elect: restored,
            ..raft_config(config)
        };
        let settings = settings.validate().map_err(|e| raft_error(e.to_string()))?;
        let network = GroupNetworkFactory {
            transport: parts.transport.clone(),
            shared: parts.shared.clone(),
        };
        let machine = GroupMachine::new(parts.shared.clone(), parts.app);
        let raft = Raft::new(config.node_id, Arc::new(settings), network, log.clone(), machine)
            .await
            .map_err(|e| raft_error(e.to_string()))?;
        let receiver = Arc::new(Receiver::new(parts.shared.clone()));
        Ok(Self {
            shard,
            node: config.node_id,
            shared: parts.shared,
            raft,
            log,
            receiver,
            transport: parts.transport,
            retired,
            restored: Arc::new(AtomicBool::new(restored)),
        })
    }

    /// Gives an empty replica its first membership; without effect on one that has any, or that
    /// is empty only because it was given back.
    pub async fn initialize(&self, voters: &BTreeSet<NodeId>) {
        if self.retired.is_some() {
            return;
        }
        let members: BTreeMap<NodeId, ()> = voters.iter().map(|id| (*id, ())).collect();
        if let Err(error) = self.raft.initialize(members).await {
            tracing::debug!(shard = %self.shard, %error, "not initialised");
        }
    }

    pub async fn is_initialized(&self) -> bool {
        if self.retired.is_some() {
            return true;
        }
        self.raft.is_initialized().await.unwrap_or(true)
    }

    /// Proposes bytes (see the first-byte rule of [`super::machine`]); `done` runs once, in the
    /// order of proposals.
    pub async fn propose(&self, payload: Bytes, done: impl FnOnce(Proposed) + Send + 'static) {
        // A stopping core drops what it was given; its owner must hear of that too.
        let done = AnswerOnce(Some(done));
        let responder = OnComplete::new(move |result: WriteResult| done.call(translate(result)));
        if let Err(error) = self.raft.client_write_ff(Payload(payload), Some(responder)).await {
            tracing::warn!(shard = %self.shard, %error, "proposal not taken, the group has stopped");
        }
    }

    async fn propose_and_wait(&self, payload: &'static [u8]) -> Proposed {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.propose(Bytes::from_static(payload), move |result| {
            let _ = tx.send(result);
        })
        .await;
        rx.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Commits and applies an empty entry: all that was proposed before has had its outcome.
    ///
    /// # Errors
    /// This node does not lead, or no longer.
    pub async fn barrier(&self) -> Proposed {
        self.propose_and_wait(&[PAYLOAD_BARRIER]).await
    }

    /// Asks every replica for a digest at the index of the returned position.
    ///
    /// # Errors
    /// This node does not lead, or no longer.
    pub async fn digest_marker(&self) -> Proposed {
        self.propose_and_wait(&[PAYLOAD_DIGEST]).await
    }

    /// Returns once this node is known to have led at some moment after the call, with all that
    /// was committed before it applied.
    ///
    /// # Errors
    /// The leader to ask, if known.
    pub async fn read_index(&self) -> Result<(), Option<NodeId>> {
        #[cfg(feature = "planted")]
        if actors::planted::is(actors::planted::Planted::StaleRead) && self.role().leading {
            return Ok(());
        }
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.forward_to_leader().and_then(|f| f.leader_id)),
        }
    }

    pub fn role(&self) -> Role {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        Role {
            leader: metrics.current_leader,
            term: metrics.vote.leader_id.term,
            leading: metrics.state == ServerState::Leader && metrics.current_leader == Some(self.node),
        }
    }

    /// Whether this replica may stand for election by itself when it does not hear its leader. To
    /// be called again and again: one that was given back once does not before it has caught up.
    pub fn stand_for_election(&self, allowed: bool) {
        self.raft.runtime_config().elect(allowed && self.is_restored());
    }

    /// Whether this replica has all that it had before this node gave it back.
    ///
    /// While it has less, its log may end in a membership from long ago. If that names this node
    /// alone, nobody else's vote would be needed to lead, and to commit what contradicts the others.
    fn is_restored(&self) -> bool {
        if !self.restored.load(Ordering::Relaxed) && has_again(&self.log, self.retired.as_deref()) {
            self.restored.store(true, Ordering::Relaxed);
        }
        self.restored.load(Ordering::Relaxed)
    }

    /// Calls `each` with the role now and after every change, until the group stops or `each`
    /// returns `false`.
    pub async fn follow_role(&self, mut each: impl FnMut(Role) -> bool) {
        let mut metrics = self.raft.server_metrics();
        let mut last = None;
        loop {
            let role = self.role();
            if last.as_ref() != Some(&role) {
                if !each(role.clone()) {
                    return;
                }
                last = Some(role);
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// The dead leader's lease no longer binds this voter; with `elect`, it stands for election at
    /// once. The way openraft hands leadership over, on other evidence: safety is in the votes.
    pub async fn give_up_on(&self, dead: NodeId, elect: bool) {
        let vote = self.raft.metrics().borrow_watched().vote;
        if vote.leader_id.voted_for != dead {
            return;
        }
        let successor = if elect && self.is_restored() { self.node } else { dead };
        let request = TransferLeaderRequest::new(vote, successor, None);
        if let Err(error) = self.raft.handle_transfer_leader(request).await {
            tracing::warn!(shard = %self.shard, %error, "cannot stand for election");
        }
    }

    /// Asks `to` to take over. Returns at once; watch the role.
    pub async fn start_transfer(&self, to: NodeId) {
        let _ = self.raft.trigger().transfer_leader(to).await;
    }

    /// Ends a hand-over that came to nothing. openraft refuses writes for the rest of a term once
    /// it has been told to hand over, so this leader really steps down, by granting its vote of
    /// the next term to `other` (always safe), and stands again.
    pub async fn end_transfer(&self, other: NodeId) {
        let vote = self.raft.metrics().borrow_watched().vote;
        if vote.leader_id.voted_for != self.node || other == self.node {
            return;
        }
        let term = vote.leader_id.term.saturating_add(1);
        // The log id is only compared with ours; it need not exist.
        let mut request = VoteRequest::new(
            super::types::Vote::new(term, other),
            Some(super::log::log_id(term, u64::MAX)),
        );
        request.leadership_transfer = true;
        if let Err(error) = self.raft.vote(request).await {
            tracing::warn!(shard = %self.shard, %error, "cannot step down");
        }
        let _ = self.raft.trigger().elect(false).await;
    }

    /// Lets openraft purge the log up to what is durable.
    pub async fn snapshot_metadata(&self) {
        let _ = self.raft.trigger().snapshot().await;
    }

    pub fn voters(&self) -> Vec<NodeId> {
        self.raft
            .metrics()
            .borrow_watched()
            .membership_config
            .voter_ids()
            .collect()
    }

    pub fn learners(&self) -> Vec<NodeId> {
        self.raft
            .metrics()
            .borrow_watched()
            .membership_config
            .membership()
            .learner_ids()
            .collect()
    }

    pub fn committed_index(&self) -> u64 {
        self.raft
            .metrics()
            .borrow_watched()
            .cluster_committed
            .map_or(0, |id| id.index)
    }

    pub fn applied_index(&self) -> u64 {
        self.shared.with_meta(super::machine::GroupMeta::applied_index)
    }

    /// Entries each other replica is behind; empty unless leading.
    pub fn lag(&self) -> BTreeMap<NodeId, u64> {
        let progress = self.progress_in(&self.raft.metrics().borrow_watched());
        let progress = progress.into_iter();
        progress.map(|(id, progress)| (id, progress.lag)).collect()
    }

    /// What a leader knows of the others, in metrics that are at hand: whoever holds them must not
    /// ask for them again, a writer may be waiting in between.
    pub(super) fn progress_in(&self, metrics: &RaftMetrics<TypeConfig>) -> BTreeMap<NodeId, Progress> {
        let last = metrics.last_log_index.unwrap_or(0);
        let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.node);
        let progress = others.map(|(id, matched)| {
            let progress = Progress {
                lag: last.saturating_sub(matched.map_or(0, |matched| matched.index)),
                begun: matched.is_some(),
            };
            (*id, progress)
        });
        progress.collect()
    }

    /// A new replica is being brought in and still needs log that a purge would take.
    pub fn holds_log(&self) -> bool {
        let learners = self.learners();
        let lag = self.lag();
        let behind = |id: &NodeId| lag.get(id).is_some_and(|lag| *lag > LOG_ENTRIES_TO_KEEP);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let purged = metrics.purged.map_or(0, |id| id.index);
        let held = metrics.last_log_index.unwrap_or(0).saturating_sub(purged);
        held < LOG_HELD_MAX && learners.iter().any(behind)
    }

    /// The payload of a log entry, as long as it is not purged.
    pub fn payload_at(&self, index: u64) -> Option<Bytes> {
        self.log.payload_at(index)
    }

    /// Entries of `from..to` that are still there; see [`GroupLog::entries`].
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn logged(&self, from: u64, to: u64, bytes_max: usize) -> std::io::Result<Vec<Logged>> {
        let entries = self.log.entries(from, to, bytes_max)?;
        let logged = |entry: Entry| Logged {
            index: entry.log_id.index,
            term: term_of(&entry.log_id),
            payload: match entry.payload {
                EntryPayload::Normal(payload) => Some(payload.0),
                _ => None,
            },
        };
        Ok(entries.into_iter().map(logged).collect())
    }

    /// Returns once more than `index` is applied here; never, if the group has stopped.
    pub async fn applied_beyond(&self, index: u64) {
        let mut metrics = self.raft.data_metrics();
        // openraft tells of what is applied after the machine has published it.
        while self.applied_index() <= index {
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Why the group has stopped, if it has.
    pub fn failure(&self) -> Option<String> {
        self.raft
            .metrics()
            .borrow_watched()
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string)
    }

    /// Serves one message of a peer. `None`: it is not one of ours, or the group has stopped.
    pub async fn serve(&self, from: NodeId, kind: u8, body: Bytes) -> Option<Bytes> {
        let answer = match kind {
            rpc::KIND_APPEND => {
                let request = rpc::decode_append(body)?;
                codec::encode(&self.raft.append_entries(request).await.ok()?)
            }
            rpc::KIND_VOTE => codec::encode(&self.raft.vote(self.candidacy(&body)?).await.ok()?),
            rpc::KIND_PRE_VOTE => codec::encode(&self.raft.pre_vote(self.candidacy(&body)?).await.ok()?),
            rpc::KIND_TRANSFER if self.is_restored() => codec::encode(
                &self
                    .raft
                    .handle_transfer_leader(codec::decode(&body).ok()?)
                    .await
                    .ok()?,
            ),
            rpc::KIND_SNAPSHOT_BEGIN | rpc::KIND_SNAPSHOT_CHUNK | rpc::KIND_SNAPSHOT_END => {
                return Some(self.receiver.serve(Into::Raft(&self.raft), from, kind, body).await)
            }
            _ => return None,
        };
        Some(Bytes::from(answer))
    }

    /// Streams this replica's state to one that has none and whose group does not run.
    ///
    /// # Errors
    /// It cannot be read or was not taken; nothing has changed there.
    pub async fn send_state(&self, to: NodeId) -> Result<(), TransferError> {
        let snapshot = self.shared.snapshot()?;
        let snapshot = snapshot.ok_or_else(|| TransferError::Refused("there is no state here either".into()))?;
        let vote = self.raft.metrics().borrow_watched().vote;
        let sender = Sender {
            transport: &self.transport,
            shared: &self.shared,
            target: to,
        };
        sender.send(vote, snapshot).await.map(|_| ())
    }

    /// The entry up to which `node` is known to have this group's log on its disk, and the term of
    /// the leader, this replica, that knows it. `None` where this one does not lead.
    pub fn acked_by(&self, node: NodeId) -> Option<(u64, Position)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = (*metrics.replication.as_ref()?.get(&node)?)?;
        let at = Position {
            term: term_of(&matched),
            index: matched.index,
        };
        Some((metrics.vote.leader_id.term, at))
    }

    /// Whether `node` has answered this leader within `age`.
    pub fn hears_from(&self, node: NodeId, age: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics
            .heartbeat
            .as_ref()
            .and_then(|heard| heard.get(&node)?.as_ref().map(|at| at.elapsed()));
        heard.is_some_and(|silent| silent <= age)
    }

    /// A request for a vote, unless it is one of a candidate that lacks what this node had before
    /// it gave its replica back.
    fn candidacy(&self, body: &[u8]) -> Option<VoteRequest<TypeConfig>> {
        let request: VoteRequest<TypeConfig> = codec::decode(body).ok()?;
        let floor = self.retired.as_ref().and_then(|retired| retired.floor);
        (request.last_log_id >= floor).then_some(request)
    }

    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = %self.shard, %error, "group did not stop cleanly");
        }
    }
}

/// An error counts as no: its log cannot be read, and it must not lead.
fn has_again(log: &GroupLog, retired: Option<&Retired>) -> bool {
    let floor = retired.and_then(|retired| retired.floor);
    floor.is_none() || log.last_id().is_ok_and(|last| last >= floor)
}

fn translate(result: WriteResult) -> Proposed {
    match result {
        Ok(done) => Ok(Committed {
            at: Position {
                term: term_of(&done.log_id),
                index: done.log_id.index,
            },
            misfits: done.data.misfits,
            torn: done.data.torn,
        }),
        Err(ClientWriteError::ForwardToLeader(forward)) if forward.reason == ForwardReason::LeaseExpired => {
            Err(ProposeError::NotNow)
        }
        Err(ClientWriteError::ForwardToLeader(forward)) => Err(ProposeError::Rejected {
            leader: forward.leader_id,
        }),
        Err(_) => Err(ProposeError::Unknown),
    }
}

/// Calls its closure exactly once: with `Unknown` if it is dropped.
struct AnswerOnce<F: FnOnce(Proposed)>(Option<F>);

impl<F: FnOnce(Proposed)> AnswerOnce<F> {
    fn call(mut self, result: Proposed) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl<F: FnOnce(Proposed)> Drop for AnswerOnce<F> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(ProposeError::Unknown));
        }
    }
}
