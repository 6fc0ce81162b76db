//! A cluster in memory: one shard leader that never fails, unless it is told to.
//!
//! Devices follow the real rules of `actors::device`; only the journey to the disks is left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use actors::device::{answer, apply, decide, device_view, Command, DeviceState, Event, Message, Policy};
use actors::id::{DeviceKey, NodeId, ShardId};
use actors::ports::{CallError, CallResult, Reply};
use actors::time::Timestamp;
use actors::wire::receipt::Receipt;
use cluster::admin::{AdminAsk, AdminDone, Admitted, Denied, DeniedKind};
use cluster::api::*;
use futures::future::LocalBoxFuture;
use futures::FutureExt as _;

use super::super::port::Backend;
use crate::live::source::Source;

pub const SHARDS: u16 = 4;

/// What the next call meets instead of the device.
pub enum Trouble {
    Error(CallError),
    /// No answer, ever.
    Silence,
    Panic,
}

#[derive(Default)]
struct Kept {
    state: DeviceState,
    rows: Vec<TelemetryRow>,
    contents: BTreeMap<u64, Message>,
    feedback: Vec<FeedbackRow>,
}

#[derive(Default)]
struct World {
    devices: BTreeMap<DeviceKey, Kept>,
    index: u64,
    now_ms: u64,
    draining: BTreeSet<NodeId>,
    trouble: VecDeque<Trouble>,
}

/// Method calls that came, and what becomes of the next ones.
#[derive(Default)]
pub struct Calls {
    pub asked: Vec<(DeviceKey, String, String, Duration)>,
    pub answers: VecDeque<MethodResult>,
}

#[derive(Default)]
pub struct Fake {
    world: Mutex<World>,
    pub calls: Mutex<Calls>,
    pub draining: AtomicBool,
    pub leaderless: AtomicBool,
}

impl Fake {
    pub fn trouble(&self, trouble: Trouble) {
        self.world.lock().unwrap().trouble.push_back(trouble);
    }

    /// How many have not been met yet.
    pub fn troubles(&self) -> usize {
        self.world.lock().unwrap().trouble.len()
    }

    /// Runs a command that did not come over HTTP.
    pub fn run(&self, key: &DeviceKey, command: &Command) -> CallResult {
        self.world.lock().unwrap().run(key, command)
    }

    /// The next trouble, as the future every question shares.
    fn meet<'a, T: 'a>(
        &'a self,
        deadline: Duration,
        answer: impl FnOnce(&mut World) -> Result<T, CallError> + 'a,
    ) -> LocalBoxFuture<'a, Result<T, CallError>> {
        assert!(deadline <= Duration::from_secs(60));
        async move {
            let trouble = self.world.lock().unwrap().trouble.pop_front();
            match trouble {
                Some(Trouble::Error(error)) => Err(error),
                Some(Trouble::Silence) => futures::future::pending().await,
                Some(Trouble::Panic) => panic!("as the test asked"),
                None => answer(&mut self.world.lock().unwrap()),
            }
        }
        .boxed_local()
    }
}

impl World {
    fn run(&mut self, key: &DeviceKey, command: &Command) -> CallResult {
        self.now_ms += 1;
        let now = Timestamp(1_700_000_000_000 + self.now_ms);
        let kept = self.devices.entry(key.clone()).or_default();
        let before = kept.state.clone();
        let events = decide(key, &before, command, &Policy::default(), now)?;
        if !events.is_empty() {
            self.index += 1;
        }
        let mut receipt = Receipt {
            shard: key.shard(SHARDS),
            term: 1,
            index: self.index,
            seq: 0,
        };
        for event in &events {
            if let Event::MessageEnded {
                number,
                outcome,
                feedback_seq,
                ..
            } = event
            {
                let queued = kept.state.messages().queued(*number).expect("decided events fit");
                kept.feedback.push(FeedbackRow {
                    seq: *feedback_seq,
                    message_id: queued.id.to_string(),
                    outcome: *outcome,
                    at: now,
                    enqueued_at: queued.enqueued_at,
                    deliveries: queued.deliveries,
                });
            }
            apply(&mut kept.state, event, now).expect("decided events apply");
            match event {
                Event::TelemetryRecorded(recorded) => {
                    receipt.seq = recorded.seq;
                    kept.rows.push(TelemetryRow {
                        seq: recorded.seq,
                        enqueued_at: now,
                        receipt,
                        will: recorded.will,
                        telemetry: recorded.telemetry.clone(),
                    });
                }
                Event::MessageQueued(queued) => {
                    kept.contents.insert(queued.number, queued.message.clone());
                }
                Event::DeviceDeleted => kept.rows.clear(),
                _ => {}
            }
        }
        Ok(Reply {
            answer: answer(&key.device, &before, &kept.state, command, &events),
            receipt: (!events.is_empty()).then_some(receipt),
        })
    }

    fn telemetry(&mut self, key: &DeviceKey, query: &TelemetryQuery) -> Result<TelemetryPage, CallError> {
        self.run(key, &Command::ReadDevice)?;
        let kept = &self.devices[key];
        let wanted = |row: &&TelemetryRow| {
            row.seq > query.after_seq
                && query.from.is_none_or(|from| row.enqueued_at >= from)
                && query.to.is_none_or(|to| row.enqueued_at < to)
        };
        let mut rows: Vec<_> = kept.rows.iter().filter(wanted).cloned().collect();
        let more = rows.len() > query.limit as usize;
        rows.truncate(query.limit as usize);
        let next = rows.last().filter(|_| more).map(|row| row.seq);
        Ok(TelemetryPage { rows, next })
    }

    fn messages(&mut self, key: &DeviceKey, query: &MessageQuery) -> Result<MessagePage, CallError> {
        self.run(key, &Command::ReadMessages)?;
        let kept = &self.devices[key];
        let messages = kept.state.messages();
        let row = |number, row, state, enqueued_at, expires_at, deliveries| MessageRow {
            number,
            state,
            enqueued_at,
            expires_at,
            deliveries,
            receipt: "0-1-1-0".parse().expect("a receipt"),
            message: kept.contents[&row].clone(),
        };
        let queue = messages.queue.iter().map(|q| {
            let expires_at = Some(q.expires_at);
            row(
                q.number,
                q.row,
                MessageState::Queued,
                q.enqueued_at,
                expires_at,
                q.deliveries,
            )
        });
        let dead = messages.dead.iter().map(|d| {
            let state = MessageState::Dead {
                reason: d.reason,
                at: d.died_at,
            };
            row(d.number, d.row, state, d.enqueued_at, None, d.deliveries)
        });
        let is_dead = |row: &MessageRow| matches!(row.state, MessageState::Dead { .. });
        let mut rows: Vec<_> = queue
            .chain(dead)
            .filter(|row| row.number > query.after_number)
            .collect();
        rows.retain(|row| match &query.which {
            MessageSelection::Queue => !is_dead(row),
            MessageSelection::Dead => is_dead(row),
            MessageSelection::Id(id) => row.message.id == *id,
        });
        let more = rows.len() > query.limit as usize;
        rows.truncate(query.limit as usize);
        let next = rows.last().filter(|_| more).map(|row| row.number);
        Ok(MessagePage { rows, next })
    }

    fn feedback(&mut self, key: &DeviceKey, (after_seq, limit): (u64, u32)) -> Result<FeedbackPage, CallError> {
        self.run(key, &Command::ReadDevice)?;
        let mut rows = self.devices[key].feedback.clone();
        rows.retain(|row| row.seq > after_seq);
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|row| row.seq);
        Ok(FeedbackPage { rows, next })
    }

    fn list(&self, query: &ListQuery) -> DevicePage {
        let wanted = |view: &actors::device::DeviceView| {
            let connected = view.connection.as_ref().is_some_and(|c| c.connected);
            query.after.as_ref().is_none_or(|after| view.id > *after)
                && query.status.is_none_or(|status| view.status == status)
                && query.connected.is_none_or(|asked| connected == asked)
                && (query.gateway.is_none() || query.gateway == view.gateway)
                && query
                    .id_prefix
                    .as_ref()
                    .is_none_or(|prefix| view.id.as_str().starts_with(prefix))
        };
        let of_tenant = self.devices.iter().filter(|(key, _)| key.tenant == query.tenant);
        let views = of_tenant.filter_map(|(key, kept)| device_view(&key.device, &kept.state));
        let mut devices: Vec<_> = views.filter(wanted).collect();
        let more = devices.len() > query.limit as usize;
        devices.truncate(query.limit as usize);
        let next = devices.last().filter(|_| more).map(|view| view.id.clone());
        DevicePage { devices, next }
    }

    fn status(&self) -> ClusterStatus {
        let shard = |id| ShardStatus {
            id,
            leader: Some(1),
            term: 1,
            voters: vec![1, 2, 3],
            learners: vec![],
            applied: self.index,
            committed: self.index,
            lag: vec![(2, 0), (3, 5)],
            fault: None,
            target: vec![1, 2, 3],
        };
        let node = |id| NodeStatus {
            id,
            zone: format!("zone-{id}"),
            state: if self.draining.contains(&id) {
                NodeState::Draining
            } else {
                NodeState::Up
            },
            version: "0.1.0".into(),
            mqtt: "127.0.0.1:18830".into(),
            http: "127.0.0.1:18831".into(),
            peer: "127.0.0.1:18832".into(),
            leads: 1,
            fault: None,
            repaired: None,
            scrub: None,
            replicas: 2,
        };
        ClusterStatus {
            epoch: 7,
            cluster_id: "test".into(),
            answered_by: 1,
            nodes: (1..=3).map(node).collect(),
            shards: (0..SHARDS).map(|id| shard(ShardId(id))).collect(),
            catalog: shard(ShardId::CATALOG),
            replication: 3,
            moving: None,
            next_node: 4,
            tokens: Vec::new(),
        }
    }
}

impl Source for Fake {
    fn shards(&self) -> u16 {
        SHARDS
    }

    fn shard_for(&self, device: &DeviceKey) -> ShardId {
        device.shard(SHARDS)
    }

    /// Nothing ever happens.
    fn page(&self, query: LiveQuery, _: usize) -> LocalBoxFuture<'_, Result<LivePage, CallError>> {
        async move {
            if query.after.is_some() {
                futures::future::pending::<()>().await;
            }
            Ok(LivePage {
                term_before: Some(1),
                ..LivePage::default()
            })
        }
        .boxed_local()
    }
}

impl Backend for Fake {
    fn shard_of(&self, device: &DeviceKey) -> ShardId {
        device.shard(SHARDS)
    }

    fn call<'a>(
        &'a self,
        device: &'a DeviceKey,
        command: Command,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, CallResult> {
        self.meet(deadline, move |world| world.run(device, &command))
    }

    fn telemetry<'a>(
        &'a self,
        device: &'a DeviceKey,
        query: TelemetryQuery,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<TelemetryPage, CallError>> {
        self.meet(deadline, move |world| world.telemetry(device, &query))
    }

    fn messages<'a>(
        &'a self,
        device: &'a DeviceKey,
        query: MessageQuery,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<MessagePage, CallError>> {
        self.meet(deadline, move |world| world.messages(device, &query))
    }

    fn feedback<'a>(
        &'a self,
        device: &'a DeviceKey,
        page: (u64, u32),
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<FeedbackPage, CallError>> {
        self.meet(deadline, move |world| world.feedback(device, page))
    }

    fn list_devices(&self, query: ListQuery, deadline: Duration) -> LocalBoxFuture<'_, Result<DevicePage, CallError>> {
        self.meet(deadline, move |world| Ok(world.list(&query)))
    }

    fn receipt(&self, receipt: Receipt, deadline: Duration) -> LocalBoxFuture<'_, Result<ReceiptState, CallError>> {
        self.meet(deadline, move |world| {
            Ok(match receipt.term {
                1 if receipt.index <= world.index => ReceiptState::Committed,
                1 => ReceiptState::Absent,
                _ => ReceiptState::Unknown,
            })
        })
    }

    fn invoke<'a>(
        &'a self,
        device: &'a DeviceKey,
        name: &'a str,
        payload: String,
        timeout: Duration,
    ) -> LocalBoxFuture<'a, MethodResult> {
        let asked = (device.clone(), name.to_owned(), payload, timeout);
        let mut calls = self.calls.lock().unwrap();
        calls.asked.push(asked);
        let answer = calls
            .answers
            .pop_front()
            .expect("the test says what the device answers");
        async move { answer }.boxed_local()
    }

    fn status(&self) -> LocalBoxFuture<'_, ClusterStatus> {
        async { self.world.lock().unwrap().status() }.boxed_local()
    }

    fn digest(
        &self,
        shard: ShardId,
        index: Option<u64>,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<Vec<ReplicaDigest>, CallError>> {
        self.meet(deadline, move |world| {
            let applied = Some(index.unwrap_or(world.index));
            let digest = Some(format!("{:032x}", shard.0));
            let answers = |node| ReplicaDigest {
                node,
                applied,
                digest: digest.clone(),
                error: None,
            };
            let silent = ReplicaDigest {
                node: 3,
                applied: None,
                digest: None,
                error: Some("does not answer".into()),
            };
            Ok(vec![answers(1), answers(2), silent])
        })
    }

    fn admin(
        &self,
        ask: AdminAsk,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<Result<AdminDone, Denied>, CallError>> {
        self.meet(deadline, move |_| {
            Ok(match ask {
                AdminAsk::Remove { node: 3, dead: true } => Ok(AdminDone::Removing { node: 3 }),
                AdminAsk::Rebalance { .. } => Ok(AdminDone::Rebalancing {
                    replicas: 19,
                    replication: 3,
                }),
                AdminAsk::Admit(newcomer) if newcomer.token.is_some() => Err(Denied {
                    kind: DeniedKind::Forbidden,
                    reason: "no such token".into(),
                }),
                AdminAsk::Admit(newcomer) => Ok(AdminDone::Admitted(Admitted {
                    node: newcomer.wanted.unwrap_or(4),
                    shards: SHARDS,
                    peers: vec![(1, "127.0.0.1:1".into())],
                })),
                _ => Err(Denied {
                    kind: DeniedKind::Conflict,
                    reason: "too few nodes would be left".into(),
                }),
            })
        })
    }

    fn set_draining(
        &self,
        node: NodeId,
        draining: bool,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<(), CallError>> {
        self.meet(deadline, move |world| {
            if draining {
                world.draining.insert(node);
            } else {
                world.draining.remove(&node);
            }
            Ok(())
        })
    }

    fn scrub(&self, _node: NodeId, deadline: Duration) -> LocalBoxFuture<'_, Result<ScrubReport, CallError>> {
        self.meet(deadline, |_| {
            Ok(ScrubReport {
                running: true,
                passes: 1,
                bytes: 2,
            })
        })
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn ready(&self) -> bool {
        !self.leaderless.load(Ordering::Relaxed)
    }
}
