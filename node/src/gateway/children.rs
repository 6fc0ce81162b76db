//! A gateway device's children: one lane per child, with a session of the child's own.
//!
//! A lane is opened by the first thing the gateway does for a child. It has its own generation and
//! ordinals, so that order, dedupe and going back are those of a direct connection. What the
//! gateway's client is told, and in which order, is the connection's business: a lane only says
//! what became of what.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use actors::device::{Answer, CloseCause, Command, Fence, OpenSession, Refusal, Subscription};
use actors::id::{DeviceId, DeviceKey};
use actors::ports::{CallError, CallResult, Reply, ReplyTo};
use rand::Rng;

use super::inflight::{After, InFlight, Outcome, Pause};
use super::mailbox::{Answered, Lane, Mailbox};
use super::reasons::{self, End};
use super::session::SessionGuard;
use super::shared::Shared;
use super::{closer, metrics};

/// The number under which the answer to an `OpenSession` comes.
const OPENING: u64 = u64::MAX;
/// The same for an announcement; commands count from 1.
const ANNOUNCEMENT: u64 = 0;

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
    last_lane: Lane,
}

struct Child {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    key: DeviceKey,
    session: Session,
    inflight: InFlight,
    subscriptions: Vec<Subscription>,
    announce_at: Option<Instant>,
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
    pub fn lost(&mut self, device: &DeviceId, taken_over: bool) {
        let Some(lane) = self.lanes.get(device).copied() else {
            return;
        };
        let Some(child) = self.children.get_mut(&lane) else {
            return;
        };
        child.give_up_session(taken_over);
        if child.inflight.is_empty() && !taken_over {
            self.forget(lane);
        }
    }

    fn forget(&mut self, lane: Lane) {
        self.busy.remove(&lane);
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
            if child.inflight.is_empty() && child.announce_at.is_none() && !child.is_opening() && !child.is_wanted {
                idle.push(*lane);
            }
        }
        for lane in idle {
            self.busy.remove(&lane);
        }
    }

    /// When there is something to be sent.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.busy_children().filter_map(Child::next_deadline).min()
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
        let Some(child) = self.children.get_mut(&lane) else {
            return Ok(Vec::new());
        };
        self.busy.insert(lane);
        if answered.number == OPENING {
            if let Err(refusal) = child.opened(answered.result, now) {
                let settled = child.refuse_all(&refusal);
                self.forget(lane);
                return Ok(settled);
            }
            return Ok(child.finished());
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
                child.give_up_session(end == End::TakenOver);
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
            announce_at: None,
            was_open: false,
            is_wanted: false,
        }
    }

    fn is_opening(&self) -> bool {
        matches!(self.session, Session::Opening { .. })
    }

    fn begin(&mut self) {
        self.is_wanted = false;
        self.session = Session::Opening {
            asked: false,
            retry_at: None,
            pause: self.shared.limits.retry_min,
        };
    }

    fn submit_due(&mut self, lane: Lane, open: &OpenSession, now: Instant) {
        match &mut self.session {
            Session::Idle => {}
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
                        ..
                    },
                ..
            }) => {
                self.carry_on(generation, session_present, subscriptions, now);
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
            Ok(_) => Ok(()),
            Err(CallError::Refused(refusal)) => reasons::ends_session(&refusal).map_or(Ok(()), Err),
            Err(_) => {
                self.announce_at = Some(now + super::connection::ANNOUNCE_RETRY);
                Ok(())
            }
        }
    }

    /// The session is of no use any more; the device knows already if it was taken over.
    fn give_up_session(&mut self, taken_over: bool) {
        self.announce_at = None;
        if let Session::Open(guard) = std::mem::replace(&mut self.session, Session::Idle) {
            guard.end((!taken_over).then_some(CloseCause::Abrupt));
        }
    }

    fn finished(&mut self) -> Vec<Settled> {
        let mut settled = Vec::new();
        while let Some(finished) = self.inflight.pop_finished() {
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
        [retry_at, resend_at, self.announce_at].into_iter().flatten().min()
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
            Session::Open(guard) => guard.end(Some(CloseCause::Abrupt)),
        }
    }
}
