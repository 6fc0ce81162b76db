//! What the devices of one thread share.

use std::rc::Rc;
use std::sync::Arc;

use mio::Registry;

use super::clock::Clock;
use super::endpoints::Endpoints;
use super::sources::Sources;
use super::tally::{States, Tally};
use crate::history::{Note, NoteKind, Op, Record, Writer};
use crate::plan::stream::StreamPlan;
use crate::plan::Plan;
use crate::profiles::Profile;
use crate::scenario::{Fleet, LoopMode, TargetKind};

/// What the whole run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    Run = 0,
    /// The plan is over: what was due is still sent, what is outstanding awaited.
    Drain = 1,
    /// Nothing new is sent; what is outstanding is awaited.
    Stop = 2,
    /// Leave at once; what is outstanding is unknown.
    Abort = 3,
}

impl Mode {
    pub fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Run,
            1 => Self::Drain,
            2 => Self::Stop,
            _ => Self::Abort,
        }
    }
}

/// What the devices of one fleet share.
pub struct FleetContext {
    pub spec: Fleet,
    pub profile: Profile,
    pub streams: Arc<[StreamPlan]>,
    pub qos: u8,
    pub message_ids: bool,
    pub offline_queue: u32,
}

impl FleetContext {
    pub fn new(plan: &Plan, at: usize) -> Rc<Self> {
        let spec = plan.loaded.scenario.fleet[at].clone();
        let profile = plan.loaded.profile(at).clone();
        Rc::new(Self {
            streams: plan.streams(at).clone(),
            qos: spec.qos.unwrap_or(profile.qos),
            message_ids: spec.message_ids.unwrap_or(profile.message_ids),
            offline_queue: spec.offline_queue.unwrap_or(profile.offline_queue),
            spec,
            profile,
        })
    }
}

/// Everything a device needs from its thread.
pub struct Context {
    pub plan: Plan,
    pub clock: Clock,
    /// Real µs since the run began; refreshed with every turn of the loop.
    pub now_us: u64,
    pub mode: Mode,
    pub endpoints: Arc<Endpoints>,
    pub sources: Sources,
    /// Names this run in message ids; another run on the same devices has another.
    pub run: u32,
    pub registry: Registry,
    pub history: Writer,
    pub tally: Tally,
    pub states: States,
    /// The read buffer of all sockets.
    pub scratch: Vec<u8>,
    pub payload: Vec<u8>,
    pub text: Vec<u8>,
    pub topic: Vec<u8>,
}

impl Context {
    pub fn is_closed_loop(&self) -> bool {
        self.plan.loaded.scenario.run.mode == LoopMode::Closed
    }

    pub fn is_holdfast(&self) -> bool {
        self.plan.loaded.scenario.target.kind == TargetKind::Holdfast
    }

    pub fn scenario_now_us(&self) -> u64 {
        self.clock.scenario_us(self.now_us)
    }

    pub fn record(&mut self, op: Op) {
        self.history.record(&Record::Op(op));
    }

    pub fn note(&mut self, subject: u32, kind: NoteKind, code: u16) {
        self.history.record(&Record::Note(Note {
            subject,
            kind,
            at_us: self.now_us,
            code,
        }));
    }
}
