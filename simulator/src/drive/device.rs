//! One simulated device: its state, its timers, and who is called when.
//!
//! Connecting is in `connecting`, sending in `sending`, what comes in `receiving`, and what the
//! machines of the profile do in `acting`. Nothing here blocks.

use std::collections::VecDeque;
use std::rc::Rc;

use mio::Token;

use super::context::{Context, FleetContext, Mode};
use super::flight::Flights;
use super::subject::{Backlog, Due, Subject};
use super::wire::Wire;
use crate::payloads::chance::{salt, Chance};
use crate::plan::cursor::Sender;
use crate::plan::names;
use crate::plan::roster::DevicePlan;
use crate::profiles::answering::Answer;
use crate::profiles::obeying::Obeyed;
use crate::profiles::outage::Outages;
use crate::profiles::updating::Updater;
use crate::protocol::{Codec, Version};

/// Times are real µs since the run began, those in `Away` scenario µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its time has not come.
    Waiting,
    Connecting {
        since_us: u64,
    },
    /// TCP stands; waiting for CONNACK.
    Opening {
        since_us: u64,
    },
    Live {
        since_us: u64,
    },
    BackingOff {
        until_us: u64,
    },
    Away {
        until_us: u64,
    },
    Done,
}

/// The report under way; a device has one at a time.
#[derive(Debug)]
pub struct ReportFlight {
    pub k: u64,
    pub intended_us: u64,
    pub sent_us: u64,
    pub acked_us: Option<u64>,
}

/// The twin's side of a device. Scenario µs where not said otherwise.
#[derive(Default)]
pub struct TwinSide {
    pub obeyed: Obeyed,
    pub report_due_us: u64,
    pub reports: u64,
    pub flight: Option<ReportFlight>,
    /// Members to be reported beside the simulator's own.
    pub to_report: serde_json::Map<String, serde_json::Value>,
    /// When the last question for the twin was sent; real µs.
    pub asked_us: Option<u64>,
    pub gets: u64,
}

/// When the machines of a profile want something. Scenario µs; `u64::MAX`: never.
pub struct Machines {
    pub outages: Option<Outages>,
    pub storms: VecDeque<u64>,
    pub updater: Option<Updater>,
    pub answers: VecDeque<Answer>,
    pub flap_us: u64,
    pub malformed_us: u64,
    pub slow_us: u64,
}

pub struct Device {
    pub token: Token,
    pub plan: DevicePlan,
    pub fleet: Rc<FleetContext>,
    /// When it connects first: as planned, or later in a run that is gone on with. Scenario µs.
    pub from_us: u64,
    /// Shares its id with another device and has no messages of its own.
    pub is_rival: bool,
    pub subjects: Vec<Subject>,
    pub due: Due,
    pub backlog: Option<Box<Backlog>>,
    pub state: State,
    pub wire: Option<Wire>,
    pub codec: Codec,
    pub flights: Flights,
    pub window: usize,
    /// Since when it could send; lag counts from here. Real µs.
    pub ready_us: u64,
    /// Until when it was away on purpose: what fell due before is meant to be sent then. Real µs.
    pub excused_us: u64,
    /// Subscriptions that the server has not answered yet.
    pub subscribing: u8,
    /// Since when an acknowledgement is awaited without progress.
    pub waiting_us: Option<u64>,
    pub written_us: u64,
    pub ping_us: Option<u64>,
    pub failures: u32,
    pub endpoint: usize,
    pub chance: Chance,
    pub twin: TwinSide,
    pub machines: Machines,
    pub was_connected: bool,
    pub pause_until_us: u64,
    /// When it wants to be looked at again; real µs.
    pub wake_us: u64,
    /// The latest time that stands for it in the lane's heap.
    pub timer_us: u64,
}

impl Device {
    /// `from_us` as in the field; `steps` bounds what is stepped over, see [`Plan::cursors_from`].
    ///
    /// [`Plan::cursors_from`]: crate::plan::Plan::cursors_from
    pub fn new(
        plan: DevicePlan,
        fleet: Rc<FleetContext>,
        token: Token,
        is_rival: bool,
        (from_us, steps): (u64, &mut u64),
        cx: &Context,
    ) -> Self {
        let seed = cx.plan.loaded.scenario.seed;
        let mut chance = Chance::fork(seed, &[salt("drive"), u64::from(plan.device), u64::from(is_rival)]);
        let version = if plan.protocol.is_v5() {
            Version::V5
        } else {
            Version::V311
        };
        let machines = Machines::new(&plan, &fleet, is_rival, from_us, &mut chance, cx);
        let mut device = Self {
            endpoint: (plan.device as usize).wrapping_add(usize::from(is_rival)),
            token,
            subjects: Vec::new(),
            due: Due::default(),
            backlog: None,
            state: State::Waiting,
            wire: None,
            codec: Codec::new(version),
            flights: Flights::default(),
            window: 1,
            ready_us: 0,
            excused_us: 0,
            subscribing: 0,
            waiting_us: None,
            written_us: 0,
            ping_us: None,
            failures: 0,
            twin: TwinSide {
                report_due_us: u64::MAX,
                ..Default::default()
            },
            machines,
            was_connected: false,
            pause_until_us: 0,
            wake_us: u64::MAX,
            timer_us: u64::MAX,
            plan,
            fleet,
            from_us,
            is_rival,
            chance,
        };
        if !is_rival {
            device.begin_subjects(steps, cx);
            device.begin_reports();
        }
        device
    }

    fn begin_subjects(&mut self, steps: &mut u64, cx: &Context) {
        for child in 0..=self.plan.children {
            let id = match child {
                0 => self.plan.id.clone(),
                child => names::child(&self.plan.id, child),
            };
            let sender = Sender {
                device: &id,
                fleet: &self.fleet.spec.name,
                at: self.plan.at,
                clock_skew_ms: self.plan.habits.clock_skew_ms,
            };
            let cursors = match self.from_us > self.plan.connect_us {
                true => cx.plan.cursors_from(&self.plan, child, sender, self.from_us, steps),
                false => cx.plan.cursors(&self.plan, child, sender),
            };
            for (at, cursor) in cursors.iter().enumerate() {
                self.due.push(cursor.at_us, child as u16, at as u8);
            }
            self.subjects.push(Subject {
                number: self.plan.subject + child,
                id: id.into(),
                n: 0,
                cursors,
            });
        }
    }

    fn begin_reports(&mut self) {
        let interval = self.fleet.profile.twin.as_ref().and_then(|twin| twin.report_interval);
        if let Some(interval) = interval {
            let place = self.chance.unit();
            self.twin.report_due_us = self.from_us + (interval.micros() as f64 * place) as u64;
        }
    }

    /// Whether an answer of the server is due.
    pub fn is_awaiting(&self) -> bool {
        !self.flights.is_empty() || self.subscribing > 0
    }

    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    pub fn enter(&mut self, state: State, cx: &mut Context) {
        gauge(&mut cx.states, self.state, false);
        gauge(&mut cx.states, state, true);
        self.state = state;
    }

    /// The timer fired, or the run's mode changed.
    pub fn on_time(&mut self, cx: &mut Context) {
        match self.state {
            State::Done => return,
            _ if cx.mode == Mode::Abort => return self.finish(cx),
            State::Waiting if cx.mode != Mode::Run => return self.finish(cx),
            State::Waiting if cx.now_us >= cx.clock.real_us(self.from_us) => self.connect(cx),
            State::Connecting { since_us } | State::Opening { since_us } => self.check_opening(since_us, cx),
            State::BackingOff { until_us } if cx.now_us >= until_us => self.connect(cx),
            // What it kept is sent before the run ends; who is bricked has nothing to send.
            State::Away { until_us: u64::MAX } if cx.mode != Mode::Run => return self.finish(cx),
            State::Away { until_us } if cx.mode != Mode::Run || cx.scenario_now_us() >= until_us => {
                self.return_from_away(cx);
            }
            State::Live { .. } => self.live(cx),
            _ => {}
        }
        self.settle_down(cx);
    }

    /// The socket said something.
    pub fn on_io(&mut self, readable: bool, writable: bool, cx: &mut Context) {
        if self.wire.is_none() {
            return;
        }
        if writable {
            if let State::Connecting { .. } = self.state {
                self.tcp_connected(cx);
            } else if let Some(wire) = &mut self.wire {
                wire.unblock();
            }
        }
        if readable {
            self.read(cx);
        }
        match self.state {
            State::Live { .. } => self.live(cx),
            State::Opening { .. } => self.write(cx),
            _ => {}
        }
        self.settle_down(cx);
    }

    /// Everything a connected device does when it gets a turn.
    fn live(&mut self, cx: &mut Context) {
        if self.act(cx) {
            self.keep_up(cx);
        }
        if self.is_live() && cx.mode != Mode::Stop {
            self.send_due(cx);
            self.send_report(cx);
        }
        if self.is_live() && self.is_finished(cx) {
            return self.say_goodbye(cx);
        }
        self.write(cx);
    }

    /// What is not connected lets its queue grow; then everybody sets the timer.
    fn settle_down(&mut self, cx: &mut Context) {
        if !self.is_live() && self.state != State::Done && self.state != State::Waiting {
            self.age_backlog(cx);
            if cx.mode != Mode::Run && self.is_finished(cx) {
                self.finish(cx);
            }
        }
        self.set_wake(cx);
    }

    /// Nothing is left to send or to wait for.
    fn is_finished(&self, cx: &Context) -> bool {
        let idle = self.flights.is_empty() && self.twin.flight.is_none();
        match cx.mode {
            Mode::Run => false,
            Mode::Drain => idle && (self.due.is_empty() || cx.is_closed_loop()),
            Mode::Stop | Mode::Abort => idle,
        }
    }

    /// When this device has to be looked at again.
    fn set_wake(&mut self, cx: &Context) {
        let real = |scenario_us: u64| cx.clock.real_us(scenario_us);
        let next_due = self.due.peek().map_or(u64::MAX, |(at, ..)| real(at));
        let run = &cx.plan.loaded.scenario.run;
        self.wake_us = match self.state {
            State::Done => u64::MAX,
            State::Waiting => real(self.from_us),
            State::Connecting { since_us } | State::Opening { since_us } => {
                (since_us + run.connect_timeout.micros()).min(self.backlog_wake(cx))
            }
            State::BackingOff { until_us } => until_us.min(self.backlog_wake(cx)),
            State::Away { until_us } => real(until_us).min(self.backlog_wake(cx)),
            State::Live { .. } => {
                let mut wake = self.written_us + self.ping_interval_us();
                let mut earliest = |at: u64| wake = wake.min(at);
                if let Some(since) = self.waiting_us {
                    earliest(since + run.ack_timeout.micros());
                }
                if let Some(since) = self.ping_us {
                    earliest(since + run.ack_timeout.micros());
                }
                if self.has_room() && matches!(cx.mode, Mode::Run | Mode::Drain) {
                    // A closed loop is woken by its answers; only a curve that rises again is not.
                    let next = if cx.is_closed_loop() {
                        cx.now_us + 50_000
                    } else {
                        next_due
                    };
                    // A full socket or a pause wakes by itself.
                    earliest(next.max(self.pause_until_us));
                }
                if let Some(acked) = self.twin.flight.as_ref().and_then(|flight| flight.acked_us) {
                    earliest(acked + TWIN_ANSWER_US);
                } else if self.twin.flight.is_none() && cx.mode == Mode::Run {
                    earliest(real(self.twin.report_due_us));
                }
                if cx.mode == Mode::Run {
                    earliest(real(self.machines.next_us()));
                }
                wake
            }
        };
        self.wake_us = self.wake_us.max(cx.now_us + 1);
    }

    fn backlog_wake(&self, cx: &Context) -> u64 {
        let backlog = self.backlog.as_ref().and_then(|backlog| backlog.due.peek());
        backlog.map_or(u64::MAX, |(at, ..)| cx.clock.real_us(at))
    }

    pub fn ping_interval_us(&self) -> u64 {
        self.fleet.spec.keep_alive.micros() / 2
    }
}

/// How long an acknowledged report waits for its answer before it is recorded without a version.
pub const TWIN_ANSWER_US: u64 = 2_000_000;

fn gauge(states: &mut super::tally::States, state: State, enters: bool) {
    let count = match state {
        State::Waiting => &mut states.waiting,
        State::Connecting { .. } | State::Opening { .. } => &mut states.connecting,
        State::Live { .. } => &mut states.connected,
        State::BackingOff { .. } => &mut states.backing_off,
        State::Away { .. } => &mut states.away,
        State::Done => &mut states.done,
    };
    *count = if enters { *count + 1 } else { count.saturating_sub(1) };
}
