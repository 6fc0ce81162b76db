//! The task of one shard's replica, on its arbiter: follows who leads, and while it is this node,
//! serves the shard's devices.
//!
//! ```text
//! following ──elected──► recovering (a barrier commits) ──► serving
//!     ▲                      ▲                                 │
//!     └──── another leads ───┴────── a proposal failed ────────┘
//! ```

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use actors::device::Command;
use actors::id::{DeviceKey, Gateway, NodeId};
use actors::ports::{CallError, Downlink, ReplyTo, Store};
use actors::shell::{on_this_local_set, HostCounts, HostLimits, HostParts, Rules, ShardHost};
use actors::time::Clock;
use tokio::sync::{mpsc, watch};

use super::due;
use super::journal::{Barrier, ShardJournal};
use super::pace::Pace;
use super::presence::{GatewayLife, Presence};
use super::rows;
use super::stages;
use crate::config::ClusterConfig;
use crate::raft::group::{seeded, Group, Role};
use crate::raft::machine::GroupShared;

/// How often a runtime looks at what time has brought.
const TICK: std::time::Duration = std::time::Duration::from_millis(50);
/// Ticks between looks into the due and gateway indexes.
const SWEEP_TICKS: u64 = 20;
/// Messages taken from the queue at once.
const TAKE_MAX: usize = 256;
/// How long a hand-over may take before this node leads on.
const TRANSFER_DEADLINE_MS: u64 = 2_000;

/// How long a new leader may take to commit its barrier before callers are sent away.
const RECOVERY_PATIENCE_MS: u64 = 1_000;

/// Told every change of a group's role.
pub type RoleChanged = Arc<dyn Fn(actors::id::ShardId, &Role) + Send + Sync>;

/// What a shard's replica can be asked from any thread. A box around each call would cost more than
/// the room that the few others waste.
#[allow(clippy::large_enum_variant)]
pub enum ShardMsg {
    Call {
        key: DeviceKey,
        command: Command,
        reply: ReplyTo,
        /// When it was queued; taken for a sample only.
        queued: Option<tokio::time::Instant>,
    },
    /// Reads that need no single device: run behind everything submitted, at the leader.
    Barrier(Barrier),
    /// Settle what is pending and hand leadership to `to`.
    Transfer { to: NodeId },
}

impl ShardMsg {
    fn refuse(self, error: CallError) {
        match self {
            ShardMsg::Call { reply, .. } => reply.send(Err(error)),
            ShardMsg::Barrier(done) => done(Err(error)),
            ShardMsg::Transfer { .. } => {}
        }
    }
}

/// Reaches one shard's replica on this node.
#[derive(Clone)]
pub struct ShardHandle {
    pub group: Group,
    tx: mpsc::Sender<ShardMsg>,
}

impl ShardHandle {
    pub fn send(&self, message: ShardMsg) {
        use mpsc::error::TrySendError::{Closed, Full};
        match self.tx.try_send(message) {
            Ok(()) => {}
            Err(Full(message)) => message.refuse(CallError::Overloaded {
                what: "shard queue".into(),
            }),
            Err(Closed(message)) => {
                message.refuse(CallError::NotLeader {
                    shard: self.group.shard,
                    leader: None,
                });
            }
        }
    }
}

/// What every shard of a node shares; `stop` is each one's own.
#[derive(Clone)]
pub struct ShardEnv {
    pub config: ClusterConfig,
    pub clock: Arc<dyn Clock>,
    pub downlink: Arc<dyn Fn(Downlink) + Send + Sync>,
    pub gateway_life: Arc<dyn Fn(Gateway) -> GatewayLife + Send + Sync>,
    /// When the shards led here propose.
    pub pace: Arc<Pace>,
    /// How full the disk is; see [`crate::disk`].
    pub disk: Arc<crate::disk::DiskGuard>,
    /// Set while the process uses nearly as much memory as it may: idle devices leave at once.
    pub memory_pressure: Arc<std::sync::atomic::AtomicBool>,
    /// Set while it uses all of it: telemetry is refused.
    pub memory_full: Arc<std::sync::atomic::AtomicBool>,
    /// Called with every change of a group's role.
    pub role_changed: RoleChanged,
    /// Ends the process, with the reason.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub stop: watch::Receiver<bool>,
}

struct CommittedRows(Arc<GroupShared>);

impl Store for CommittedRows {
    fn load(&self, key: &DeviceKey) -> std::io::Result<actors::device::DeviceState> {
        match self.0.device(key) {
            Some(state) => Ok(state),
            None => rows::load(&*self.0.store, self.0.space(), key),
        }
    }
}

struct Serving {
    host: ShardHost,
    journal: Rc<ShardJournal>,
}

enum Lead {
    Following,
    Recovering { attempt: u64 },
    Serving(Box<Serving>),
}

struct HandOver {
    to: NodeId,
    since_ms: u64,
    asked: bool,
}

enum Internal {
    Role(Role),
    BarrierDone {
        attempt: u64,
        ok: bool,
    },
    JournalEnded {
        attempt: u64,
    },
    /// openraft's core is gone, by an error or a panic.
    GroupEnded,
}

pub struct Runtime {
    group: Group,
    env: Arc<ShardEnv>,
    role: Role,
    lead: Lead,
    /// Since when this node leads without serving.
    recovering_since_ms: u64,
    /// Counts the times this node tried to serve; tells late news from current.
    attempt: u64,
    waiting: VecDeque<ShardMsg>,
    hand_over: Option<HandOver>,
    presence: Presence,
    internal: mpsc::UnboundedSender<Internal>,
    ticks: u64,
    route_seconds: metrics::Histogram,
    reported: HostCounts,
}

/// Makes the handle of a replica and the mailbox its runtime will read.
pub fn mailbox(group: Group, queue_max: usize) -> (ShardHandle, mpsc::Receiver<ShardMsg>) {
    let (tx, rx) = mpsc::channel(queue_max);
    (ShardHandle { group, tx }, rx)
}

impl Runtime {
    /// Serves until the node stops. Runs on the shard's arbiter (`LocalSet`).
    pub async fn run(group: Group, env: Arc<ShardEnv>, rx: &mut mpsc::Receiver<ShardMsg>) {
        let (internal, mut news) = mpsc::unbounded_channel();
        let roles = internal.clone();
        let watched = group.clone();
        let watcher = tokio::task::spawn_local(async move {
            watched
                .follow_role(|role| roles.send(Internal::Role(role)).is_ok())
                .await;
            let _ = roles.send(Internal::GroupEnded);
        });
        let role = Role {
            leader: None,
            term: 0,
            leading: false,
        };
        let mut runtime = Runtime {
            group,
            env: env.clone(),
            role,
            lead: Lead::Following,
            recovering_since_ms: 0,
            attempt: 0,
            waiting: VecDeque::new(),
            hand_over: None,
            presence: Presence::default(),
            internal,
            ticks: 0,
            route_seconds: stages::histogram("route"),
            reported: HostCounts::default(),
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = env.stop.clone();
        let mut taken = Vec::with_capacity(TAKE_MAX);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => break,
                Some(news) = news.recv() => runtime.on_news(news),
                _ = tick.tick() => runtime.on_tick().await,
                count = rx.recv_many(&mut taken, TAKE_MAX) => {
                    if count == 0 {
                        break;
                    }
                    for message in taken.drain(..) {
                        runtime.on_message(message);
                    }
                }
            }
        }
        watcher.abort();
        runtime.step_down();
    }

    fn on_news(&mut self, news: Internal) {
        match news {
            Internal::Role(role) => self.on_role(role),
            Internal::BarrierDone { attempt, ok } if attempt == self.attempt => self.on_barrier(ok),
            Internal::JournalEnded { attempt } if attempt == self.attempt => {
                tracing::info!(shard = %self.group.shard, "pipeline failed, reloading behind a barrier");
                self.lead = Lead::Following;
                self.hand_over = None;
                if self.role.leading {
                    self.recover();
                }
            }
            Internal::GroupEnded if !*self.env.stop.borrow() => {
                (self.env.fatal)(format!("shard {}: its Raft task has ended", self.group.shard));
            }
            _ => {}
        }
    }

    fn on_role(&mut self, role: Role) {
        (self.env.role_changed)(self.group.shard, &role);
        let (was, is) = (self.role.leading, role.leading);
        let new_term = self.role.term != role.term;
        self.role = role;
        if was && (!is || new_term) {
            self.step_down();
        }
        if is && matches!(self.lead, Lead::Following) {
            self.recover();
        }
        if !is && self.role.leader.is_some() {
            self.refuse_waiting();
        }
    }

    /// Commits a barrier; once it has, whatever earlier leaders left is applied.
    fn recover(&mut self) {
        self.attempt += 1;
        let attempt = self.attempt;
        if self.recovering_since_ms == 0 {
            self.recovering_since_ms = self.env.clock.monotonic_ms();
        }
        self.lead = Lead::Recovering { attempt };
        let (group, internal) = (self.group.clone(), self.internal.clone());
        tokio::task::spawn_local(seeded(attempt, async move {
            let ok = group.barrier().await.is_ok();
            if !ok {
                // A fresh leader refuses proposals until a quorum has answered it once.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let _ = internal.send(Internal::BarrierDone { attempt, ok });
        }));
    }

    fn on_barrier(&mut self, ok: bool) {
        if !matches!(self.lead, Lead::Recovering { attempt } if attempt == self.attempt) {
            return;
        }
        if !ok {
            self.lead = Lead::Following;
            if self.role.leading {
                self.recover();
            }
            return;
        }
        self.serve();
        for message in std::mem::take(&mut self.waiting) {
            self.on_message(message);
        }
    }

    fn serve(&mut self) {
        let env = &self.env;
        let downlink = env.downlink.clone();
        let journal = ShardJournal::new(
            self.group.clone(),
            env.pace.clone(),
            Rc::new(move |note| downlink(note)),
        );
        let (attempt, internal) = (self.attempt, self.internal.clone());
        let (run, stop) = (journal.clone(), env.stop.clone());
        tokio::task::spawn_local(async move {
            run.run(stop).await;
            let _ = internal.send(Internal::JournalEnded { attempt });
        });
        let config = &env.config;
        let host = ShardHost::new(HostParts {
            rules: Rc::new(Rules {
                decide: stages::timed_decide,
                ..Rules::new(config.policy.clone(), env.clock.clone())
            }),
            journal: journal.clone(),
            store: Rc::new(CommittedRows(self.group.shared.clone())),
            spawn: on_this_local_set(),
            limits: HostLimits {
                queue_max: config.shard_queue_max,
                active_max: config.active_devices_max,
                passivate_after_ms: u64::try_from(config.passivate_after.as_millis()).unwrap_or(u64::MAX),
                ..HostLimits::default()
            },
        });
        self.reported = HostCounts::default();
        tracing::info!(shard = %self.group.shard, term = self.role.term, "serving");
        self.recovering_since_ms = 0;
        self.lead = Lead::Serving(Box::new(Serving { host, journal }));
    }

    /// Devices leave memory; what was not proposed was not committed.
    fn step_down(&mut self) {
        self.hand_over = None;
        self.recovering_since_ms = 0;
        if let Lead::Serving(mut serving) = std::mem::replace(&mut self.lead, Lead::Following) {
            self.attempt += 1;
            self.report(&serving.host, true);
            serving.host.reset();
            serving.journal.give_up();
        }
        self.refuse_waiting();
    }

    fn is_stuck(&self) -> bool {
        let since = self.recovering_since_ms;
        since != 0 && self.env.clock.monotonic_ms().saturating_sub(since) > RECOVERY_PATIENCE_MS
    }

    fn refuse_waiting(&mut self) {
        let error = self.not_leader();
        for message in std::mem::take(&mut self.waiting) {
            message.refuse(error.clone());
        }
    }

    fn not_leader(&self) -> CallError {
        CallError::NotLeader {
            shard: self.group.shard,
            leader: self.role.leader.filter(|l| *l != self.group.node),
        }
    }

    fn on_message(&mut self, message: ShardMsg) {
        let stuck = self.is_stuck();
        match &mut self.lead {
            Lead::Following => message.refuse(self.not_leader()),
            Lead::Recovering { .. } if self.waiting.len() >= self.env.config.shard_queue_max => {
                message.refuse(CallError::Overloaded {
                    what: "shard queue".into(),
                });
            }
            // Without a quorum nothing is committed: say so rather than let callers time out.
            Lead::Recovering { .. } if stuck => message.refuse(self.not_leader()),
            // The keeper asks again.
            Lead::Recovering { .. } if matches!(message, ShardMsg::Transfer { .. }) => {}
            Lead::Recovering { .. } => self.waiting.push_back(message),
            Lead::Serving(serving) => match message {
                ShardMsg::Call {
                    key,
                    command,
                    reply,
                    queued,
                } => {
                    if !self.env.disk.admits(&command) {
                        return reply.send(Err(CallError::Overloaded {
                            what: crate::disk::REFUSAL.into(),
                        }));
                    }
                    let full = self.env.memory_full.load(std::sync::atomic::Ordering::Relaxed);
                    if full && crate::disk::is_telemetry(&command) {
                        return reply.send(Err(CallError::Overloaded {
                            what: "memory of this node".into(),
                        }));
                    }
                    if let Some(queued) = queued {
                        self.route_seconds.record(queued.elapsed().as_secs_f64());
                    }
                    if let Err(error) = serving.host.deliver(key, command, reply) {
                        (self.env.fatal)(format!("shard {}: state cannot be read: {error}", self.group.shard));
                    }
                }
                ShardMsg::Barrier(done) => serving.journal.barrier(done),
                ShardMsg::Transfer { to } => self.begin_hand_over(to),
            },
        }
    }

    fn begin_hand_over(&mut self, to: NodeId) {
        let Lead::Serving(serving) = &self.lead else { return };
        if self.hand_over.is_some() || to == self.group.node {
            return;
        }
        tracing::info!(shard = %self.group.shard, to, "handing leadership over");
        serving.journal.hold(true);
        self.hand_over = Some(HandOver {
            to,
            since_ms: self.env.clock.monotonic_ms(),
            asked: false,
        });
        self.go_on_with_hand_over();
    }

    /// Asks the successor once nothing is in flight; leads on when it does not take over in time.
    fn go_on_with_hand_over(&mut self) {
        let (Some(hand_over), Lead::Serving(serving)) = (&mut self.hand_over, &self.lead) else {
            return;
        };
        let now = self.env.clock.monotonic_ms();
        if now.saturating_sub(hand_over.since_ms) > TRANSFER_DEADLINE_MS {
            tracing::warn!(shard = %self.group.shard, to = hand_over.to, "successor did not take over, leading on");
            let (asked, to) = (hand_over.asked, hand_over.to);
            self.hand_over = None;
            serving.journal.hold(false);
            if asked {
                let group = self.group.clone();
                tokio::task::spawn_local(seeded(now, async move { group.end_transfer(to).await }));
            }
            return;
        }
        if !hand_over.asked && serving.journal.is_idle() {
            hand_over.asked = true;
            let (group, to) = (self.group.clone(), hand_over.to);
            tokio::task::spawn_local(seeded(now, async move { group.start_transfer(to).await }));
        }
    }

    async fn on_tick(&mut self) {
        self.ticks += 1;
        self.go_on_with_hand_over();
        if let Some(reason) = self.group.failure() {
            (self.env.fatal)(format!("shard {} has stopped: {reason}", self.group.shard));
        }
        let now_ms = self.env.clock.monotonic_ms();
        let sweep = (self.ticks + u64::from(self.group.shard.0)).is_multiple_of(SWEEP_TICKS);
        if !matches!(self.lead, Lead::Serving(_)) {
            if self.is_stuck() {
                self.refuse_waiting();
            }
            return;
        }
        let due = if sweep { self.swept(now_ms) } else { Ok(Vec::new()) };
        let Lead::Serving(serving) = &mut self.lead else { return };
        let result = due.and_then(|due| {
            for (key, command) in due {
                serving.host.deliver(key, command, ReplyTo::nobody())?;
            }
            serving.host.on_settled()?;
            if sweep {
                let pressed = self.env.memory_pressure.load(std::sync::atomic::Ordering::Relaxed);
                let active = serving.host.counts().active;
                // Halves what is awake with every sweep, until the pressure is gone.
                let awake_max = if pressed {
                    active / 2
                } else {
                    self.env.config.active_devices_max
                };
                serving.host.limit_active(awake_max.max(1));
            }
            serving.host.tick(now_ms)
        });
        if let Err(error) = result {
            (self.env.fatal)(format!("shard {}: state cannot be read: {error}", self.group.shard));
        }
        if sweep {
            if let Lead::Serving(serving) = &self.lead {
                let counts = serving.host.counts();
                self.report_counts(counts, serving.journal.depth());
            }
        }
    }

    fn swept(&mut self, now_ms: u64) -> std::io::Result<Vec<(DeviceKey, Command)>> {
        let config = &self.env.config;
        let shared = &self.group.shared;
        let mut due = due::sweep(shared, self.env.clock.now(), config.telemetry_age_max)?;
        let grace_ms = u64::try_from(config.gateway_grace.as_millis()).unwrap_or(u64::MAX);
        due.extend(self.presence.sweep(shared, now_ms, grace_ms, &*self.env.gateway_life)?);
        Ok(due)
    }

    fn report(&mut self, host: &ShardHost, ended: bool) {
        let mut counts = host.counts();
        if ended {
            (counts.active, counts.outstanding) = (0, 0);
        }
        self.report_counts(counts, 0);
    }

    fn report_counts(&mut self, counts: HostCounts, depth: usize) {
        let shard = self.group.shard.to_string();
        metrics::gauge!("holdfast_devices_active", "shard" => shard.clone()).set(counts.active as f64);
        metrics::gauge!("holdfast_queue_depth", "queue" => "journal", "shard" => shard).set(depth as f64);
        metrics::counter!("holdfast_device_panics_total").increment(counts.panics - self.reported.panics);
        self.reported = counts;
    }
}
