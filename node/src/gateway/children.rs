//! A gateway device's children: one lane per child, with a session of the child's own.
//!
//! A lane is opened by the first thing the gateway does for a child. It has its own generation and
//! ordinals, so that order, dedupe and going back are those of a direct connection. What the
//! gateway's client is told, and in which order, is the connection's business: a lane only says
//! what became of what.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use actors::device::{Answer, CloseCause, Command, Fence, OpenSession, Refusal, Subscription};
use actors::id::{DeviceId, DeviceKey};
use actors::ports::{CallError, CallResult, Reply, ReplyTo};
use rand::Rng;

use super::inflight::{After, InFlight, Outcome, Pause};
use super::mailbox::{Answered, Lane, Mailbox};
use super::messages::{Messages, SETTLEMENT};
use super::reasons::{self, End};
use super::session::SessionGuard;
use super::shared::Shared;
use super::{closer, metrics};

mod messages;

/// The number under which the answer to an `OpenSession` comes.
const OPENING: u64 = u64::MAX;
/// The same for an announcement; commands count from 1.
const ANNOUNCEMENT: u64 = 0;

/// The same for a look at whether a child is connected by itself.
const LOOK: u64 = u64::MAX - 2;

/// Sessions of woken children that are being opened at a time.
const WOKEN_AT_ONCE_MAX: usize = 64;

/// What became of an entry of a lane.
pub type Settled = (After, Outcome);

pub struct Children {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    gateway: DeviceKey,
    /// How the gateway itself is connected; its children are in the same way.
    open: OpenSession,
    lanes: HashMap<DeviceId, Lane>,
    children: HashMap<Lane, Child>,
    /// Lanes in which something waits or is due.
    busy: BTreeSet<Lane>,
    /// Lanes whose messages are to be asked for, sent or settled.
    messaging: BTreeSet<Lane>,
    /// Which of them is asked first: the one behind the one asked last.
    turn: Lane,
    /// Whose message the client has not acknowledged.
    sent: HashMap<NonZeroU16, Lane>,
    /// Children that turned out not to be the gateway's; see [`Self::take_refused`].
    refused: Vec<DeviceId>,
    last_lane: Lane,
}

struct Child {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    key: DeviceKey,
    session: Session,
    inflight: InFlight,
    subscriptions: Vec<Subscription>,
    /// Of its queue, what is on its way through this connection.
    messages: Messages,
    announce_at: Option<Instant>,
    /// When to look whether the connection that took the session still holds it.
    look_at: Option<Instant>,
    /// It had a session in this connection.
    was_open: bool,
    /// A session is to be opened though there is nothing to do yet.
    is_wanted: bool,
}

enum Session {
    /// None, until there is something to do.
    Idle,
    Opening {
        asked: bool,
        retry_at: Option<Instant>,
        pause: std::time::Duration,
    },
    Open(SessionGuard),
}

impl Children {
    pub fn new(shared: &Arc<Shared>, mailbox: &Arc<Mailbox>, gateway: &DeviceKey, open: OpenSession) -> Self {
        Self {
            shared: shared.clone(),
            mailbox: mailbox.clone(),
            gateway: gateway.clone(),
            open,
            lanes: HashMap::new(),
            children: HashMap::new(),
            busy: BTreeSet::new(),
            messaging: BTreeSet::new(),
            turn: 0,
            sent: HashMap::new(),
            refused: Vec::new(),
            last_lane: 0,
        }
    }

    /// Whether something can be done for this child: it has a lane, or may get one.
    pub fn has_room_for(&self, device: &DeviceId, beside: usize) -> bool {
        self.lanes.len() + beside < self.shared.limits.children_max || self.lanes.contains_key(device)
    }

    /// Opens the session of a child that has subscriptions from an earlier connection.
    pub fn wake(&mut self, device: &DeviceId) {
        self.lane(device).is_wanted = true;
    }

    /// Takes a command of the child's session.
    pub fn push(&mut self, device: &DeviceId, after: After, now: Instant, command: impl FnOnce(Fence) -> Command) {
        let child = self.lane(device);
        child.inflight.push(after, 0, 0, now, command);
    }

    pub fn push_read(&mut self, device: &DeviceId, after: After, command: Command, now: Instant) {
        let child = self.lane(device);
        child.inflight.push_read(after, command, now);
    }

    /// The child's lane, which something is about to be done in.
    fn lane(&mut self, device: &DeviceId) -> &mut Child {
        let lane = *self.lanes.entry(device.clone()).or_insert_with(|| {
            self.last_lane += 1;
            self.last_lane
        });
        self.busy.insert(lane);
        self.children.entry(lane).or_insert_with(|| {
            metrics::child_lane_opened();
            self.mailbox.set_children(self.lanes.len());
            Child::new(
                &self.shared,
                &self.mailbox,
                DeviceKey::new(self.gateway.tenant, device.clone()),
            )
        })
    }

    /// The generation of the child's session, if it has one here.
    pub fn generation(&self, device: &DeviceId) -> Option<u64> {
        let child = self.children.get(self.lanes.get(device)?)?;
        match &child.session {
            Session::Open(guard) => Some(guard.generation),
            _ => None,
        }
    }

    pub fn subscriptions(&self, device: &DeviceId) -> &[Subscription] {
        let child = self.lanes.get(device).and_then(|lane| self.children.get(lane));
        child.map_or(&[], |child| &child.subscriptions)
    }

    pub fn subscriptions_mut(&mut self, device: &DeviceId) -> Option<&mut Vec<Subscription>> {
        let child = self.children.get_mut(self.lanes.get(device)?)?;
        Some(&mut child.subscriptions)
    }

    /// The child's session is another connection's now, or the child is not this gateway's any
    /// more. What waits is tried in a new session, which is refused if so it must be.
    pub fn lost(&mut self, device: &DeviceId, taken_over: bool, now: Instant) {
        let Some(lane) = self.lanes.get(device).copied() else {
            return;
        };
        let Some(child) = self.children.get_mut(&lane) else {
            return;
        };
        child.give_up_session(taken_over, now);
        self.busy.insert(lane);
        if child.inflight.is_empty() && !taken_over {
            self.refused.push(device.clone());
            self.forget(lane);
        }
    }

    /// Children that are not the gateway's, as it turned out since the last call.
    pub fn take_refused(&mut self) -> Vec<DeviceId> {
        std::mem::take(&mut self.refused)
    }

    fn forget(&mut self, lane: Lane) {
        self.busy.remove(&lane);
        self.messaging.remove(&lane);
        if let Some(child) = self.children.remove(&lane) {
            self.lanes.remove(&child.key.device);
        }
    }

    /// A leader changed for this child's shard.
    pub fn leader_changed(&mut self, lane: Lane, now: Instant) {
        let Some(child) = self.children.get_mut(&lane) else {
            return;
        };
        child.inflight.leader_changed(now);
        if matches!(child.session, Session::Open(_)) {
            let spread = self.shared.limits.announce_spread;
            let after = spread.mul_f64(rand::rng().random_range(0.0..1.0));
            child.announce_at.get_or_insert(now + after);
        }
        self.busy.insert(lane);
    }

    /// Sends what may be sent.
    pub fn submit_due(&mut self, now: Instant) {
        let mut idle = Vec::new();
        let mut opening = self.busy_children().filter(|child| child.is_opening()).count();
        for lane in &self.busy {
            let Some(child) = self.children.get_mut(lane) else {
                idle.push(*lane);
                continue;
            };
            let is_wanted = child.is_wanted && opening < WOKEN_AT_ONCE_MAX;
            if matches!(child.session, Session::Idle) && (is_wanted || !child.inflight.is_empty()) {
                child.begin();
                opening += 1;
            }
            child.submit_due(*lane, &self.open, now);
            let is_due = child.announce_at.or(child.look_at).is_some();
            if child.inflight.is_empty() && !is_due && !child.is_opening() && !child.is_wanted {
                idle.push(*lane);
            }
        }
        for lane in idle {
            self.busy.remove(&lane);
        }
    }

    /// When there is something to be sent.
    pub fn next_deadline(&self) -> Option<Instant> {
        let messaging = self.messaging.iter().filter_map(|lane| self.children.get(lane));
        let messages = messaging.filter_map(|child| child.messages.due_at());
        self.busy_children()
            .filter_map(Child::next_deadline)
            .chain(messages)
            .min()
    }

    fn busy_children(&self) -> impl Iterator<Item = &Child> {
        self.busy.iter().filter_map(|lane| self.children.get(lane))
    }

    /// Takes the answer to one attempt; gives what became of what, in the child's order.
    ///
    /// # Errors
    /// The whole connection has to end.
    pub fn answered(&mut self, answered: Answered, now: Instant) -> Result<Vec<Settled>, End> {
        let lane = answered.lane;
        let settled = self.take_answer(answered, now);
        if self.children.get(&lane).is_some_and(|child| !child.messages.is_quiet()) {
            self.messaging.insert(lane);
        }
        settled
    }

    fn take_answer(&mut self, answered: Answered, now: Instant) -> Result<Vec<Settled>, End> {
        let lane = answered.lane;
        let Some(child) = self.children.get_mut(&lane) else {
            return Ok(Vec::new());
        };
        self.busy.insert(lane);
        match answered.number {
            OPENING => {
                if let Err(refusal) = child.opened(answered.result, now) {
                    let settled = child.refuse_all(&refusal);
                    if matches!(refusal, Refusal::NotGateway { .. } | Refusal::NotRegistered) {
                        self.refused.push(child.key.device.clone());
                    }
                    self.forget(lane);
                    return Ok(settled);
                }
                return Ok(child.finished());
            }
            SETTLEMENT => {
                child.messages.settlement_answered(&answered.result, now);
                return Ok(Vec::new());
            }
            LOOK => {
                child.looked(answered.result, now);
                return Ok(Vec::new());
            }
            _ => {}
        }
        if !matches!(child.session, Session::Open(_)) {
            return Ok(Vec::new());
        }
        let taken = if answered.number == ANNOUNCEMENT {
            child.announced(answered.result, now)
        } else {
            child
                .inflight
                .answered(answered.number, answered.attempt, answered.result, now)
        };
        match taken {
            Ok(()) => Ok(child.finished()),
            // Somebody else's session, or none of ours any more: a new one is tried for what waits.
            Err(end @ (End::TakenOver | End::NotAuthorised)) => {
                let settled = child.finished();
                child.give_up_session(end == End::TakenOver, now);
                Ok(settled)
            }
            Err(end) => Err(end),
        }
    }
}

impl Child {
    fn new(shared: &Arc<Shared>, mailbox: &Arc<Mailbox>, key: DeviceKey) -> Self {
        let pause = Pause {
            min: shared.limits.retry_min,
            max: shared.limits.retry_max,
        };
        Self {
            shared: shared.clone(),
            mailbox: mailbox.clone(),
            key,
            session: Session::Idle,
            inflight: InFlight::new(0, pause),
            subscriptions: Vec::new(),
            messages: Messages::default(),
            announce_at: None,
            look_at: None,
            was_open: false,
            is_wanted: false,
        }
    }

    fn is_opening(&self) -> bool {
        matches!(self.session, Session::Opening { .. })
    }

    fn begin(&mut self) {
        self.is_wanted = false;
        self.look_at = None;
        self.session = Session::Opening {
            asked: false,
            retry_at: None,
            pause: self.shared.limits.retry_min,
        };
    }

    fn submit_due(&mut self, lane: Lane, open: &OpenSession, now: Instant) {
        match &mut self.session {
            Session::Idle => {
                if self.look_at.is_some_and(|at| at <= now) {
                    self.look_at = None;
                    self.submit(lane, LOOK, 0, Command::ReadDevice);
                }
            }
            Session::Opening { asked, retry_at, .. } => {
                if *asked || retry_at.is_some_and(|at| now < at) {
                    return;
                }
                *asked = true;
                self.shared.registry.opening(&self.key, &self.mailbox, lane);
                let mut open = open.clone();
                open.clean_start &= !self.was_open;
                self.submit(lane, OPENING, 0, Command::OpenSession(Box::new(open)));
            }
            Session::Open(guard) => {
                let generation = guard.generation;
                while let Some(due) = self.inflight.due(now) {
                    self.submit(lane, due.number, due.attempt, due.command);
                }
                if self.announce_at.is_some_and(|at| at <= now) {
                    self.announce_at = None;
                    let gateway = self.shared.devices.gateway();
                    let command = Command::AnnounceSession { generation, gateway };
                    self.submit(lane, ANNOUNCEMENT, 0, command);
                }
            }
        }
    }

    fn submit(&self, lane: Lane, number: u64, attempt: u32, command: Command) {
        let mailbox = self.mailbox.clone();
        let reply = ReplyTo::new(move |result| {
            mailbox.answer(Answered {
                lane,
                number,
                attempt,
                result,
            });
        });
        self.shared.devices.submit(self.key.clone(), command, reply);
    }

    /// # Errors
    /// There will be no session for this child.
    fn opened(&mut self, result: CallResult, now: Instant) -> Result<(), Refusal> {
        let Session::Opening { asked, retry_at, pause } = &mut self.session else {
            return Ok(());
        };
        let error = match result {
            Ok(Reply {
                answer:
                    Answer::SessionOpened {
                        generation,
                        session_present,
                        subscriptions,
                        messages,
                        ..
                    },
                ..
            }) => {
                self.carry_on(generation, session_present, subscriptions, now);
                self.messages = Messages::new(messages);
                return Ok(());
            }
            Ok(Reply {
                answer: Answer::Refused(refusal),
                ..
            }) => CallError::Refused(refusal),
            Ok(_) => CallError::Unknown,
            Err(error) => error,
        };
        self.shared.registry.remove(&self.key, &self.mailbox);
        match error {
            CallError::Refused(refusal) => {
                self.session = Session::Idle;
                Err(refusal)
            }
            // Opening again is safe even if this attempt committed: it only costs a generation.
            _ => {
                *asked = false;
                *retry_at = Some(now + *pause);
                *pause = (*pause * 2).min(self.shared.limits.retry_max);
                Ok(())
            }
        }
    }

    fn carry_on(&mut self, generation: u64, present: bool, kept: Vec<Subscription>, now: Instant) {
        self.shared.registry.opened(&self.key, &self.mailbox, generation);
        let guard = SessionGuard::new(&self.shared, &self.key, generation, self.mailbox.clone()).of_child();
        self.session = Session::Open(guard);
        self.inflight.renew(generation);
        if present && !self.was_open {
            self.subscriptions = kept;
        } else if !present && !self.subscriptions.is_empty() {
            // Taken over meanwhile: the gateway's client knows nothing of it, and asked once.
            let subscriptions = self.subscriptions.clone();
            self.inflight
                .push(After::Nothing, 0, 0, now, |fence| Command::Subscribe {
                    fence,
                    subscriptions,
                });
        }
        self.was_open = true;
    }

    fn announced(&mut self, result: CallResult, now: Instant) -> Result<(), End> {
        match result {
            Ok(reply) => {
                if let Answer::SessionLive { messages } = reply.answer {
                    self.messages.counted(messages);
                }
                Ok(())
            }
            Err(CallError::Refused(refusal)) => reasons::ends_session(&refusal).map_or(Ok(()), Err),
            Err(_) => {
                self.announce_at = Some(now + super::connection::ANNOUNCE_RETRY);
                Ok(())
            }
        }
    }

    /// The session is of no use any more; the device knows already if it was taken over.
    fn give_up_session(&mut self, taken_over: bool, now: Instant) {
        self.announce_at = None;
        self.look_at =
            (taken_over && !self.subscriptions.is_empty()).then(|| now + self.shared.limits.child_look_every);
        if let Session::Open(guard) = std::mem::replace(&mut self.session, Session::Idle) {
            self.owe_settlements(guard.generation);
            guard.end((!taken_over).then_some(CloseCause::Abrupt));
        }
    }

    /// What the client acknowledged in the session that ends is still committed; the rest is handed
    /// over again in the next one.
    fn owe_settlements(&mut self, generation: u64) {
        if let Some(command) = std::mem::take(&mut self.messages).unsettled(generation) {
            closer::carry_out(&self.shared, self.key.clone(), command);
        }
    }

    /// The connection that took the session is looked at. Once it is gone, the child is this
    /// gateway's to speak for again: what it subscribed to for it would reach nobody otherwise.
    fn looked(&mut self, result: CallResult, now: Instant) {
        if !matches!(self.session, Session::Idle) {
            return;
        }
        match result {
            Ok(Reply {
                answer: Answer::Device(view),
                ..
            }) if !view.connection.as_ref().is_some_and(|c| c.connected) => self.is_wanted = true,
            Err(CallError::Refused(_)) => {}
            _ => self.look_at = Some(now + self.shared.limits.child_look_every),
        }
    }

    fn finished(&mut self) -> Vec<Settled> {
        let mut settled = Vec::new();
        while let Some(finished) = self.inflight.pop_finished() {
            if matches!(finished.after, After::Nothing) {
                // Its subscriptions are back.
                self.messages.noticed();
            }
            settled.push((finished.after, finished.outcome));
        }
        settled
    }

    fn refuse_all(&mut self, refusal: &Refusal) -> Vec<Settled> {
        metrics::child_refused();
        let refused = || Outcome::Device(Err(CallError::Refused(refusal.clone())));
        let waiting = self.inflight.abandon();
        waiting.into_iter().map(|after| (after, refused())).collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retry_at = match &self.session {
            Session::Opening {
                asked: false, retry_at, ..
            } => *retry_at,
            _ => None,
        };
        let resend_at = match &self.session {
            Session::Open(_) => self.inflight.resend_at(),
            _ => None,
        };
        [retry_at, resend_at, self.announce_at, self.look_at]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        metrics::child_lane_closed();
        match std::mem::replace(&mut self.session, Session::Idle) {
            Session::Idle => {}
            // It may commit behind our back; nobody would hold it then.
            Session::Opening { .. } => {
                self.shared.registry.remove(&self.key, &self.mailbox);
                closer::settle(&self.shared, self.key.clone());
            }
            Session::Open(guard) => {
                self.owe_settlements(guard.generation);
                guard.end(Some(CloseCause::Abrupt));
            }
        }
    }
}
