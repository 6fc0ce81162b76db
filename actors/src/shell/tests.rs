//! What the shells promise, on a journal and a store in memory.

#![allow(clippy::unwrap_used)] // a test may

mod downlinks;
mod house;
mod memory;
mod mix;
mod order;
mod panics;

use std::rc::Rc;
use std::sync::{Arc, Mutex};

use super::testing::{Ledger, Mode, StillClock};
use super::{on_this_local_set, Decide, HostLimits, HostParts, LivePolicy, Rules, ShardHost};
use crate::device::{
    self, Answer, Command, DeviceState, Event, Origin, Policy, Precondition, Refusal, Status, Telemetry,
};
use crate::id::{DeviceId, DeviceKey, TenantId};
use crate::ports::{CallError, CallResult, ReplyTo, Ticket};
use crate::time::{Clock, Timestamp};

/// A host on a ledger, and what its callers have heard so far.
struct Fixture {
    host: ShardHost,
    ledger: Rc<Ledger>,
    clock: Arc<StillClock>,
    heard: Arc<Mutex<Vec<(&'static str, CallResult)>>>,
}

impl Fixture {
    fn new(limits: HostLimits) -> Self {
        Self::with(limits, decide_or_panic)
    }

    fn with(limits: HostLimits, decide: Decide) -> Self {
        let ledger = Rc::new(Ledger::default());
        let clock = Arc::new(StillClock::default());
        let rules = Rules {
            policy: LivePolicy::default(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            decide,
        };
        let host = ShardHost::new(HostParts {
            rules: Rc::new(rules),
            journal: Rc::clone(&ledger) as _,
            store: Rc::clone(&ledger) as _,
            spawn: on_this_local_set(),
            limits,
        });
        Self {
            host,
            ledger,
            clock,
            heard: Arc::default(),
        }
    }

    /// Delivers; the outcome is heard under `label`.
    fn send(&mut self, label: &'static str, device: &str, command: Command) {
        let heard = Arc::clone(&self.heard);
        let reply = ReplyTo::new(move |result| heard.lock().unwrap().push((label, result)));
        self.host.deliver(key(device), command, reply).unwrap();
    }

    fn labels(&self) -> Vec<&'static str> {
        self.heard.lock().unwrap().iter().map(|(label, _)| *label).collect()
    }

    fn outcome(&self, label: &str) -> Option<CallResult> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .find(|(l, _)| *l == label)
            .map(|(_, result)| result.clone())
    }

    fn answer(&self, label: &str) -> Answer {
        self.outcome(label).expect("was answered").expect("was accepted").answer
    }

    async fn heard(&self, count: usize) {
        until(|| self.heard.lock().unwrap().len() >= count).await;
    }

    /// Sends and waits for the answer.
    async fn call(&mut self, label: &'static str, device: &str, command: Command) -> CallResult {
        self.send(label, device, command);
        until(|| self.outcome(label).is_some()).await;
        self.outcome(label).unwrap()
    }

    async fn pending(&self, count: usize) {
        until(|| self.ledger.pending() >= count).await;
    }

    fn tick_after(&mut self, millis: u64) {
        self.clock.advance(millis);
        self.host.tick(self.clock.monotonic_ms()).unwrap();
    }
}

/// Lets the actors run until `done`; nothing here needs time to pass.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the condition never came true");
}

/// Lets the actors do all they can.
async fn quiet() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn on_one_thread<F: std::future::Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

fn key(device: &str) -> DeviceKey {
    DeviceKey::new(TenantId::DEFAULT, DeviceId::parse(device).unwrap())
}

/// `device::decide`, but telemetry of the stream `boom` panics.
fn decide_or_panic(
    key: &DeviceKey,
    state: &DeviceState,
    command: &Command,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    if matches!(command, Command::RecordTelemetry { telemetry, .. } if telemetry.stream == "boom") {
        panic!("on purpose");
    }
    device::decide(key, state, command, policy, now)
}

fn register() -> Command {
    Command::PutDevice {
        status: Status::Enabled,
        condition: Precondition::None,
        gateway: None,
    }
}

fn register_new() -> Command {
    Command::PutDevice {
        status: Status::Enabled,
        condition: Precondition::Absent,
        gateway: None,
    }
}

fn telemetry_of(stream: &str) -> Command {
    Command::RecordTelemetry {
        origin: Origin::Operator,
        telemetry: Telemetry {
            stream: stream.to_owned(),
            body: b"21.5".to_vec(),
            ..Telemetry::default()
        },
    }
}

fn telemetry() -> Command {
    telemetry_of("")
}

fn seq(answer: Answer) -> u64 {
    match answer {
        Answer::Telemetry { seq, .. } => seq,
        other => panic!("{other:?}"),
    }
}
