//! The actor that keeps one active device.
//!
//! It decides against its speculative head, applies what it decided, hands the events to the
//! journal together with the reply, and takes the next message. It never waits for a disk and
//! never answers a success itself; what became of the events is the journal's word.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Message};

use super::downlink::downlinks;
use super::live_policy::LivePolicy;
use super::spawn::{DeviceTask, Spawn};
use crate::device::{answer, apply, decide, Answer, Command, DeviceState, Event, Policy, Refusal};
use crate::id::DeviceKey;
use crate::ports::{Downlink, Journal, ReplyTo, Submission, Ticket};
use crate::time::{Clock, Timestamp};

/// The signature of [`crate::device::decide`].
pub type Decide = fn(&DeviceKey, &DeviceState, &Command, &Policy, Timestamp) -> Result<Vec<Event>, Refusal>;

/// What all devices of a node are judged by.
#[derive(Clone)]
pub struct Rules {
    pub policy: LivePolicy,
    pub clock: Arc<dyn Clock>,
    /// `device::decide`; tests put one that panics.
    pub decide: Decide,
}

impl Rules {
    pub fn new(policy: LivePolicy, clock: Arc<dyn Clock>) -> Self {
        Self { policy, clock, decide }
    }
}

/// Shared by the actors of one host between two resets.
pub(super) struct Crew {
    pub(super) rules: Rc<Rules>,
    pub(super) journal: Rc<dyn Journal>,
    /// Set by a reset. An actor that still finds messages in its mailbox must not submit them:
    /// its head may hold events that were never committed, under versions that will be used again.
    pub(super) retired: Cell<bool>,
    /// Devices whose actor panicked since the host last looked.
    pub(super) fallen: RefCell<Vec<Rc<Desk>>>,
}

impl Crew {
    pub(super) fn new(rules: Rc<Rules>, journal: Rc<dyn Journal>) -> Self {
        Self {
            rules,
            journal,
            retired: Cell::default(),
            fallen: RefCell::default(),
        }
    }
}

/// What the host and the actor of one device both see.
pub(super) struct Desk {
    pub(super) key: DeviceKey,
    /// The device's newest submission.
    pub(super) last_ticket: Cell<Ticket>,
    /// Messages in the mailbox.
    pub(super) queued: Cell<u32>,
    /// A handler runs, or ended in a panic: nobody else on this thread looks while one runs.
    pub(super) in_hand: Cell<bool>,
    /// The host's tick of the last message.
    pub(super) used_ms: Cell<u64>,
    /// Where the device stands in the idle order.
    pub(super) listed_ms: Cell<u64>,
}

impl Desk {
    pub(super) fn new(key: DeviceKey, now_ms: u64) -> Self {
        Self {
            key,
            last_ticket: Cell::default(),
            queued: Cell::default(),
            in_hand: Cell::default(),
            used_ms: Cell::new(now_ms),
            listed_ms: Cell::default(),
        }
    }

    /// Whether the committed state, once `settled` is, is all there is to know of the device.
    pub(super) fn at_rest(&self, settled: Ticket) -> bool {
        self.queued.get() == 0 && self.last_ticket.get() <= settled
    }
}

/// A command for a device, as it lies in a mailbox.
pub(super) struct Ask {
    pub(super) command: Command,
    pub(super) reply: ReplyTo,
}

impl Message for Ask {
    type Result = ();
}

pub struct DeviceActor {
    /// The committed state plus everything submitted since.
    head: DeviceState,
    desk: Rc<Desk>,
    crew: Rc<Crew>,
}

impl Actor for DeviceActor {
    type Context = Context<Self>;
}

impl DeviceActor {
    /// Starts the actor of the device at `desk`, whose committed state is `head`.
    pub(super) fn start(
        (desk, head): (Rc<Desk>, DeviceState),
        crew: Rc<Crew>,
        mailbox_max: usize,
        spawn: &Spawn,
    ) -> Addr<Self> {
        let mut context = Context::new();
        context.set_mailbox_capacity(mailbox_max);
        let actor = Self { head, desk, crew };
        let future = context.into_future(actor);
        let addr = future.address();
        spawn(DeviceTask(Box::new(future)));
        addr
    }

    fn carry_out(&mut self, ask: Ask) {
        let rules = &self.crew.rules;
        let at = rules.clock.now();
        let prev_version = self.head.version;
        let decided = (rules.decide)(&self.desk.key, &self.head, &ask.command, &rules.policy.get(), at);
        let (events, outcome, downlinks) = match decided {
            Ok(events) => {
                let (answer, downlinks) = self.advance(&ask.command, &events, at);
                (events, Ok(answer), downlinks)
            }
            Err(refusal) => (Vec::new(), Err(refusal), Vec::new()),
        };
        let ticket = self.crew.journal.submit(Submission {
            key: self.desk.key.clone(),
            prev_version,
            at,
            events,
            outcome,
            reply: ask.reply,
            downlinks,
        });
        self.desk.last_ticket.set(ticket);
    }

    /// Moves the head over `events`; says what the caller and the gateways learn once they have
    /// committed.
    fn advance(&mut self, command: &Command, events: &[Event], at: Timestamp) -> (Answer, Vec<Downlink>) {
        let device = &self.desk.key.device;
        if events.is_empty() {
            return (answer(device, &self.head, &self.head, command, events), Vec::new());
        }
        // Telemetry is most of the traffic, its answer lies in its events and no gateway hears of
        // it: no copy of the state.
        let before = (!matches!(command, Command::RecordTelemetry { .. })).then(|| self.head.clone());
        for event in events {
            if let Err(misfit) = apply(&mut self.head, event, at) {
                // The head may be half changed. The panic takes it away, and only it: the host
                // starts the device again from what is committed.
                panic!("device {}: a decided event was not applied: {misfit}", self.desk.key);
            }
        }
        match before {
            Some(before) => (
                answer(device, &before, &self.head, command, events),
                downlinks(&self.desk.key, &before, &self.head, command, events),
            ),
            None => (answer(device, &self.head, &self.head, command, events), Vec::new()),
        }
    }
}

impl Handler<Ask> for DeviceActor {
    type Result = ();

    fn handle(&mut self, ask: Ask, _: &mut Context<Self>) {
        self.desk.queued.set(self.desk.queued.get().saturating_sub(1));
        if self.crew.retired.get() {
            return;
        }
        self.desk.in_hand.set(true);
        self.carry_out(ask);
        self.desk.in_hand.set(false);
    }
}

impl Drop for DeviceActor {
    fn drop(&mut self) {
        if self.desk.in_hand.get() {
            // The handler never came back: this is the unwinding of its panic.
            tracing::error!(device = %self.desk.key, "device actor panicked; it starts again from what is committed");
            self.crew.fallen.borrow_mut().push(Rc::clone(&self.desk));
        }
    }
}
