//! The actor that keeps one active device.
//!
//! It decides against its speculative head, applies what it decided, hands the events to the
//! journal together with the reply, and takes the next message. It never waits for a disk and
//! never answers a success itself; what became of the events is the journal's word.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Message};

use super::downlink::{downlinks, Link};
use super::spawn::Spawn;
use crate::device::{answer, apply, decide, Answer, Command, DeviceState, Event, Policy, Refusal};
use crate::id::DeviceKey;
use crate::ports::{Downlink, Journal, ReplyTo, Submission, Ticket};
use crate::time::{Clock, Timestamp};

/// The signature of [`crate::device::decide`].
pub type Decide = fn(&DeviceKey, &DeviceState, &Command, &Policy, Timestamp) -> Result<Vec<Event>, Refusal>;

/// What all devices of a node are judged by.
#[derive(Clone)]
pub struct Rules {
    pub policy: Policy,
    pub clock: Arc<dyn Clock>,
    /// `device::decide`; tests put one that panics.
    pub decide: Decide,
}

impl Rules {
    pub fn new(policy: Policy, clock: Arc<dyn Clock>) -> Self {
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
    pub(super) fallen: RefCell<Vec<DeviceKey>>,
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
#[derive(Default)]
pub(super) struct Desk {
    /// The device's newest submission.
    pub(super) last_ticket: Cell<Ticket>,
    /// Messages in the mailbox.
    pub(super) queued: Cell<u32>,
    /// A handler runs, or ended in a panic: nobody else on this thread looks while one runs.
    pub(super) in_hand: Cell<bool>,
}

/// A command for a device, as it lies in a mailbox.
pub(super) struct Ask {
    pub(super) command: Command,
    pub(super) reply: ReplyTo,
}

impl Message for Ask {
    type Result = ();
}

pub(super) struct DeviceActor {
    key: DeviceKey,
    /// The committed state plus everything submitted since.
    head: DeviceState,
    desk: Rc<Desk>,
    crew: Rc<Crew>,
}

impl Actor for DeviceActor {
    type Context = Context<Self>;
}

impl DeviceActor {
    /// Starts the actor of a device whose committed state is `head`.
    pub(super) fn start(
        (key, head): (DeviceKey, DeviceState),
        (crew, desk): (Rc<Crew>, Rc<Desk>),
        mailbox_max: usize,
        spawn: &Spawn,
    ) -> Addr<Self> {
        let mut context = Context::new();
        context.set_mailbox_capacity(mailbox_max);
        let actor = Self { key, head, desk, crew };
        let future = context.into_future(actor);
        let addr = future.address();
        spawn(Box::pin(future));
        addr
    }

    fn carry_out(&mut self, ask: Ask) {
        let rules = &self.crew.rules;
        let at = rules.clock.now();
        let prev_version = self.head.version;
        let decided = (rules.decide)(&self.key, &self.head, &ask.command, &rules.policy, at);
        let (events, outcome, downlinks) = match decided {
            Ok(events) => {
                let (answer, downlinks) = self.advance(&ask.command, &events, at);
                (events, Ok(answer), downlinks)
            }
            Err(refusal) => (Vec::new(), Err(refusal), Vec::new()),
        };
        let ticket = self.crew.journal.submit(Submission {
            key: self.key.clone(),
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
        let device = &self.key.device;
        if events.is_empty() {
            return (answer(device, &self.head, &self.head, command, events), Vec::new());
        }
        let link = Link::of(&self.head);
        // Telemetry is most of the traffic and its answer lies in its event: no copy of the state.
        let before = (!matches!(command, Command::RecordTelemetry { .. })).then(|| self.head.clone());
        for event in events {
            if let Err(misfit) = apply(&mut self.head, event, at) {
                // The head may be half changed. The panic takes it away, and only it: the host
                // starts the device again from what is committed.
                panic!("device {}: a decided event was not applied: {misfit}", self.key);
            }
        }
        let before = before.as_ref().unwrap_or(&self.head);
        let answer = answer(device, before, &self.head, command, events);
        (answer, downlinks(&self.key, link, &self.head, command, events))
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
            tracing::error!(device = %self.key, "device actor panicked; it starts again from what is committed");
            self.crew.fallen.borrow_mut().push(self.key.clone());
        }
    }
}
