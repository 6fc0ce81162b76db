//! Devices in memory that really follow the rules, and a cluster around them that can fail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use actors::device::{
    answer, apply, decide, Answer, Command, DeviceState, Event, Message, Origin, Policy, TakenMessage,
    TelemetryRecorded,
};
use actors::id::{DeviceId, DeviceKey, Gateway, NodeId, ShardId, TenantId};
use actors::ports::{CallError, CallResult, Downlink, DownlinkBody, MessagePushed, Reply, ReplyTo};
use actors::time::Timestamp;
use actors::wire::receipt::Receipt;
use cluster::api::{DownlinkSink, MessagesTaken, TakeMessages};
use node::gateway::port::{Devices, TakenTo};
use tokio::sync::watch;

/// What becomes of one command instead of what should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    NotLeader,
    Overloaded,
    /// It never arrived, and nobody can tell.
    UnknownLost,
    /// It was committed, and nobody can tell.
    UnknownCommitted,
}

#[derive(Default)]
struct Inner {
    devices: BTreeMap<DeviceKey, DeviceState>,
    rows: Vec<(DeviceKey, TelemetryRecorded)>,
    contents: BTreeMap<(DeviceKey, u64), Message>,
    /// For the next questions for messages.
    take_faults: VecDeque<Fault>,
    taken: u64,
    /// For the next commands with an ordinal.
    faults: VecDeque<Fault>,
    /// For the next `OpenSession`s.
    open_faults: VecDeque<Fault>,
    held: Vec<(ReplyTo, CallResult)>,
    index: u64,
    submitted: u64,
    announced: u64,
}

pub struct Fake {
    inner: Mutex<Inner>,
    sink: Arc<dyn DownlinkSink>,
    policy: Policy,
    /// Answers wait for [`Fake::release`].
    hold: AtomicBool,
    draining: AtomicBool,
    drained: AtomicBool,
    leader: AtomicU64,
    changes: watch::Sender<u64>,
}

const GATEWAY: Gateway = Gateway { node: 1, boot: 7 };

pub fn key(id: &str) -> DeviceKey {
    DeviceKey::new(TenantId::DEFAULT, DeviceId::parse(id).unwrap())
}

impl Fake {
    pub fn new(sink: Arc<dyn DownlinkSink>) -> Arc<Self> {
        let policy = Policy {
            auto_register: true,
            ..Policy::default()
        };
        Arc::new(Self {
            inner: Mutex::default(),
            sink,
            policy,
            hold: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            leader: AtomicU64::new(1),
            changes: watch::Sender::new(0),
        })
    }

    pub fn state(&self, id: &str) -> DeviceState {
        self.inner
            .lock()
            .unwrap()
            .devices
            .get(&key(id))
            .cloned()
            .unwrap_or_default()
    }

    /// The bodies stored for a device, in order of seq.
    pub fn bodies(&self, id: &str) -> Vec<String> {
        let rows = self.rows(id);
        rows.iter()
            .map(|row| String::from_utf8_lossy(&row.telemetry.body).into_owned())
            .collect()
    }

    pub fn rows(&self, id: &str) -> Vec<TelemetryRecorded> {
        let key = key(id);
        let inner = self.inner.lock().unwrap();
        inner
            .rows
            .iter()
            .filter(|(k, _)| *k == key)
            .map(|(_, row)| row.clone())
            .collect()
    }

    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.lock().unwrap().faults.extend(faults);
    }

    pub fn fail_next_open(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.lock().unwrap().open_faults.extend(faults);
    }

    pub fn fail_next_take(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.lock().unwrap().take_faults.extend(faults);
    }

    /// Questions for messages so far.
    pub fn takes(&self) -> u64 {
        self.inner.lock().unwrap().taken
    }

    pub fn hold(&self) {
        self.hold.store(true, Ordering::SeqCst);
    }

    pub fn held(&self) -> usize {
        self.inner.lock().unwrap().held.len()
    }

    /// Gives the answers held back, the newest first.
    pub fn release(&self) {
        self.hold.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut self.inner.lock().unwrap().held);
        for (reply, result) in held.into_iter().rev() {
            reply.send(result);
        }
    }

    pub fn submitted(&self) -> u64 {
        self.inner.lock().unwrap().submitted
    }

    pub fn announced(&self) -> u64 {
        self.inner.lock().unwrap().announced
    }

    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub fn set_drained(&self) {
        self.set_draining();
        self.drained.store(true, Ordering::SeqCst);
    }

    pub fn change_leader(&self) {
        self.leader.fetch_add(1, Ordering::SeqCst);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Something an operator does.
    pub fn operate(&self, id: &str, command: Command) -> CallResult {
        let mut inner = self.inner.lock().unwrap();
        let (result, notes) = self.run(&mut inner, &key(id), &command);
        drop(inner);
        notes.into_iter().for_each(|note| self.sink.deliver(note));
        result
    }

    /// As above, and the notes are lost on the way.
    pub fn operate_silently(&self, id: &str, command: Command) {
        let mut inner = self.inner.lock().unwrap();
        self.run(&mut inner, &key(id), &command).0.unwrap();
    }

    fn fault(inner: &mut Inner, command: &Command) -> Fault {
        let queue = match command {
            Command::OpenSession(_) => &mut inner.open_faults,
            Command::Subscribe { .. }
            | Command::Unsubscribe { .. }
            | Command::RecordTelemetry {
                origin: Origin::Session { .. },
                ..
            }
            | Command::UpdateTwin {
                origin: Origin::Session { .. },
                ..
            } => &mut inner.faults,
            _ => return Fault::None,
        };
        queue.pop_front().unwrap_or(Fault::None)
    }

    fn run(&self, inner: &mut Inner, key: &DeviceKey, command: &Command) -> (CallResult, Vec<Downlink>) {
        let before = inner.devices.get(key).cloned().unwrap_or_default();
        let now = Timestamp(1_700_000_000_000);
        let events = match decide(key, &before, command, &self.policy, now) {
            Ok(events) => events,
            Err(refusal) => return (Err(CallError::Refused(refusal)), Vec::new()),
        };
        let mut after = before.clone();
        let mut seq = 0;
        for event in &events {
            apply(&mut after, event, now).expect("decided events apply");
            if let Event::TelemetryRecorded(row) = event {
                seq = row.seq;
                inner.rows.push((key.clone(), (**row).clone()));
            }
            if let Event::MessageQueued(queued) = event {
                inner
                    .contents
                    .insert((key.clone(), queued.number), queued.message.clone());
            }
        }
        inner.devices.insert(key.clone(), after.clone());
        inner.index += 1;
        let receipt = (!events.is_empty()).then_some(Receipt {
            shard: ShardId(0),
            term: 1,
            index: inner.index,
            seq,
        });
        let reply = Reply {
            answer: answer(&key.device, &before, &after, command, &events),
            receipt,
        };
        (Ok(reply), notes(key, (&before, &after), &events))
    }
}

/// The notes that follow from a change, as the device actors send them.
fn notes(key: &DeviceKey, (before, after): (&DeviceState, &DeviceState), events: &[Event]) -> Vec<Downlink> {
    let Some((gateway, session)) = before.connected_via().zip(before.session.as_deref()) else {
        return Vec::new();
    };
    let note = |body| Downlink {
        gateway,
        key: key.clone(),
        generation: session.generation,
        body,
    };
    let mut notes = Vec::new();
    for event in events {
        match event {
            Event::SessionOpened(_) => notes.push(note(DownlinkBody::TakenOver)),
            Event::StatusChanged { .. } | Event::DeviceDeleted => notes.push(note(DownlinkBody::NotAuthorised)),
            Event::GatewayAssigned { gateway } if session.via.is_some() && session.via != *gateway => {
                notes.push(note(DownlinkBody::NotAuthorised));
            }
            Event::TwinSectionChanged(changed) if changed.section == actors::device::Section::Desired => {
                let json = format!(r#"{{"changed":true,"$version":{}}}"#, changed.section_version);
                notes.push(note(DownlinkBody::DesiredChanged {
                    json,
                    qos: actors::device::Qos::AtLeastOnce,
                }));
            }
            Event::MessageQueued(queued) => notes.push(note(message(after, queued.number, &queued.message))),
            Event::DeadLetterReplayed { .. } | Event::MessagesNudged { next: Some(_) } => {
                notes.push(note(DownlinkBody::MessagesWaiting));
            }
            _ => {}
        }
    }
    notes
}

fn message(after: &DeviceState, number: u64, message: &Message) -> DownlinkBody {
    let queue = &after.messages().queue;
    let at = queue
        .iter()
        .position(|queued| queued.number == number)
        .expect("it was queued just now");
    if queue[at].generation == 0 {
        return DownlinkBody::MessagesWaiting;
    }
    DownlinkBody::Message(Box::new(MessagePushed {
        previous: at.checked_sub(1).map_or(0, |before| queue[before].number),
        taken: TakenMessage::from(&queue[at]),
        message: message.clone(),
    }))
}

impl Devices for Fake {
    fn submit(&self, device: DeviceKey, command: Command, reply: ReplyTo) {
        let mut inner = self.inner.lock().unwrap();
        inner.submitted += 1;
        if matches!(command, Command::AnnounceSession { .. }) {
            inner.announced += 1;
        }
        let fault = Self::fault(&mut inner, &command);
        let (result, notes) = match fault {
            Fault::None => self.run(&mut inner, &device, &command),
            Fault::NotLeader => {
                let not_leader = CallError::NotLeader {
                    shard: ShardId(0),
                    leader: None,
                };
                (Err(not_leader), Vec::new())
            }
            Fault::Overloaded => (Err(CallError::Overloaded { what: "test".into() }), Vec::new()),
            Fault::UnknownLost => (Err(CallError::Unknown), Vec::new()),
            Fault::UnknownCommitted => (Err(CallError::Unknown), self.run(&mut inner, &device, &command).1),
        };
        let hold = self.hold.load(Ordering::SeqCst) && !matches!(command, Command::OpenSession(_));
        if hold {
            inner.held.push((reply, result));
            return;
        }
        drop(inner);
        reply.send(result);
        notes.into_iter().for_each(|note| self.sink.deliver(note));
    }

    fn take_messages(&self, device: DeviceKey, take: TakeMessages, reply: TakenTo) {
        let mut inner = self.inner.lock().unwrap();
        inner.taken += 1;
        let fault = inner.take_faults.pop_front();
        if fault == Some(Fault::UnknownLost) {
            return reply(Err(CallError::Unknown));
        }
        let command = Command::TakeMessages {
            generation: take.generation,
            held: take.held,
            count_max: take.count_max,
        };
        let (result, _) = self.run(&mut inner, &device, &command);
        if fault == Some(Fault::UnknownCommitted) {
            return reply(Err(CallError::Unknown));
        }
        reply(result.map(|done| {
            let Answer::MessagesTaken { taken, more, ended } = done.answer else {
                return MessagesTaken::default();
            };
            let content = |taken: TakenMessage| {
                let message = inner.contents[&(device.clone(), taken.row)].clone();
                (taken, message)
            };
            MessagesTaken {
                messages: taken.into_iter().map(content).collect(),
                more,
                ended,
            }
        }));
    }

    fn shard_of(&self, device: &DeviceKey) -> ShardId {
        device.shard(16)
    }

    fn leader(&self, _shard: ShardId) -> Option<NodeId> {
        Some(self.leader.load(Ordering::SeqCst))
    }

    fn leadership_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn gateway(&self) -> Gateway {
        GATEWAY
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn drained(&self) -> bool {
        self.drained.load(Ordering::SeqCst)
    }
}

/// Only so that tests need not name the answer's fields.
pub fn is_done(result: &CallResult) -> bool {
    matches!(result, Ok(reply) if !matches!(reply.answer, Answer::Refused(_)))
}
