//! One thread of the fleet: an event loop over its devices' sockets and timers.
//!
//! No task per device: a device is a struct that gets a turn when its socket or its timer says so,
//! and writes once per turn. That is what makes 60,000 acknowledged messages a second possible on
//! one core, and 20,000 idle connections cheap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::clock::Clock;
use super::context::{Context, FleetContext, Mode};
use super::device::{Device, State};
use super::endpoints::Endpoints;
use super::sources::Sources;
use super::tally::{Board, States, Tally};
use crate::history::{Header, Writer};
use crate::plan::roster::golden;
use crate::plan::Plan;

const READ_BUFFER_BYTES: usize = 256 * 1024;
/// Counters are posted and the history flushed this often. Unit: µs.
const TICK_US: u64 = 200_000;
/// Longest sleep: so often the mode is looked at. Unit: µs.
const SLEEP_MAX_US: u64 = 50_000;
/// Timers served before sockets get their turn again.
const TIMERS_PER_TURN: usize = 1_024;
/// Messages that a run which is gone on with steps over, per thread: a few seconds of work.
const STEPS_MAX: u64 = 20_000_000;
const TIMER: Token = Token(usize::MAX - 1);

/// When a device of a run that goes on connects again: at the connect rate. Scenario µs.
fn again_us(plan: &Plan, number: u32, resume_us: u64) -> u64 {
    let scenario = &plan.loaded.scenario;
    let whole = f64::from(plan.roster.devices()) / scenario.run.connect_rate * 1e6 * scenario.compression;
    resume_us + (golden(number) * whole) as u64
}

/// What one thread drives.
pub struct LaneSpec {
    pub plan: Plan,
    /// This lane's place among all lanes of all workers, and their number.
    pub index: u32,
    pub of: u32,
    pub clock: Clock,
    pub resume_us: u64,
    pub endpoints: Arc<Endpoints>,
    pub sources: Sources,
    pub run: u32,
    pub history_dir: PathBuf,
    pub part: String,
    pub history_bytes_max: Option<u64>,
    pub mode: Arc<AtomicU8>,
    pub board: Arc<Board>,
}

/// Runs until every device is done. Returns the number of records written.
///
/// # Errors
/// The loop or the history could not be set up or written; what was recorded before stays.
pub fn run(spec: LaneSpec) -> io::Result<u64> {
    let board = spec.board.clone();
    let result = Lane::new(spec).and_then(Lane::run);
    if let Err(error) = &result {
        board.fail(&error.to_string());
    }
    result
}

struct Lane {
    poll: Poll,
    timer: TimerFd,
    armed_us: u64,
    devices: Vec<Device>,
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    cx: Context,
    mode: Arc<AtomicU8>,
    board: Arc<Board>,
    next_tick_us: u64,
}

impl Lane {
    fn new(spec: LaneSpec) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let fd = timer.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        let scenario = &spec.plan.loaded.scenario;
        let header = Header::new(spec.run, &spec.part, &scenario.name, scenario.seed);
        let history = Writer::create(&spec.history_dir, header, spec.history_bytes_max)?;
        let cx = Context {
            clock: spec.clock,
            now_us: 0,
            mode: Mode::Run,
            endpoints: spec.endpoints,
            sources: spec.sources,
            run: spec.run,
            registry: poll.registry().try_clone()?,
            history,
            tally: Tally::default(),
            states: States::default(),
            scratch: vec![0; READ_BUFFER_BYTES],
            payload: Vec::new(),
            text: Vec::new(),
            topic: Vec::new(),
            plan: spec.plan,
        };
        let mut lane = Self {
            poll,
            timer,
            armed_us: u64::MAX,
            devices: Vec::new(),
            timers: BinaryHeap::new(),
            cx,
            mode: spec.mode,
            board: spec.board,
            next_tick_us: 0,
        };
        lane.populate(spec.index, spec.of, spec.resume_us);
        Ok(lane)
    }

    fn populate(&mut self, index: u32, of: u32, resume_us: u64) {
        let plan = self.cx.plan.clone();
        let fleets: Vec<_> = (0..plan.loaded.scenario.fleet.len())
            .map(|at| FleetContext::new(&plan, at))
            .collect();
        let mut steps = STEPS_MAX;
        for number in (index..plan.roster.devices()).step_by(of as usize) {
            let device = plan.device(number);
            let from_us = match resume_us {
                0 => device.connect_us,
                at_us => again_us(&plan, number, self.cx.clock.scenario_us(at_us)).max(device.connect_us),
            };
            let fleet = fleets[device.fleet].clone();
            if device.habits.has_rival {
                let mut rival = device.clone();
                rival.children = 0;
                rival.habits = Default::default();
                let (token, late_us) = (Token(self.devices.len()), from_us + 2_000_000);
                let fleet = fleet.clone();
                self.add(Device::new(rival, fleet, token, true, (late_us, &mut steps), &self.cx));
            }
            let token = Token(self.devices.len());
            self.add(Device::new(
                device,
                fleet,
                token,
                false,
                (from_us, &mut steps),
                &self.cx,
            ));
        }
    }

    fn add(&mut self, mut device: Device) {
        device.wake_us = self.cx.clock.real_us(device.from_us);
        device.timer_us = device.wake_us;
        self.timers.push(Reverse((device.wake_us, self.devices.len() as u32)));
        self.cx.states.waiting += 1;
        self.devices.push(device);
    }

    fn run(mut self) -> io::Result<u64> {
        let mut events = Events::with_capacity(1_024);
        while !self.is_over() {
            self.cx.now_us = self.cx.clock.now_us();
            self.follow_mode();
            let more = self.serve_timers();
            if self.cx.now_us >= self.next_tick_us {
                self.tick();
            }
            self.wait(&mut events, more)?;
            self.cx.now_us = self.cx.clock.now_us();
            for event in &events {
                if event.token() == TIMER {
                    continue;
                }
                let at = event.token().0;
                let readable = event.is_readable() || event.is_read_closed() || event.is_error();
                let writable = event.is_writable() || event.is_write_closed() || event.is_error();
                self.devices[at].on_io(readable, writable, &mut self.cx);
                self.set_timer(at as u32);
            }
        }
        self.tick();
        let records = self.cx.history.records();
        let Self { cx, .. } = self;
        cx.history.close()?;
        Ok(records)
    }

    fn is_over(&self) -> bool {
        self.cx.mode != Mode::Run && self.cx.states.done as usize == self.devices.len()
    }

    /// Every device hears of a change at once.
    fn follow_mode(&mut self) {
        let mode = Mode::from_u8(self.mode.load(Ordering::Relaxed));
        if mode == self.cx.mode {
            return;
        }
        self.cx.mode = mode;
        for at in 0..self.devices.len() {
            self.devices[at].on_time(&mut self.cx);
            self.set_timer(at as u32);
        }
    }

    /// Gives a turn to the devices whose time has come; `true` when some are left.
    fn serve_timers(&mut self) -> bool {
        for _ in 0..TIMERS_PER_TURN {
            match self.timers.peek() {
                Some(Reverse((at_us, _))) if *at_us <= self.cx.now_us => {}
                _ => return false,
            }
            let Some(Reverse((at_us, number))) = self.timers.pop() else {
                return false;
            };
            let device = &mut self.devices[number as usize];
            // A timer that was moved stands in the heap twice; only the right one counts.
            if device.timer_us == at_us {
                device.timer_us = u64::MAX;
                if device.wake_us <= self.cx.now_us {
                    device.on_time(&mut self.cx);
                }
                self.set_timer(number);
            }
        }
        true
    }

    /// Puts an earlier time into the heap. A later one is found when the timer that stands there
    /// fires: moving it each time would fill the heap with times that mean nothing.
    fn set_timer(&mut self, number: u32) {
        let device = &mut self.devices[number as usize];
        if device.state != State::Done && device.wake_us < device.timer_us {
            device.timer_us = device.wake_us;
            self.timers.push(Reverse((device.wake_us, number)));
        }
    }

    fn wait(&mut self, events: &mut Events, more: bool) -> io::Result<()> {
        let next = self.timers.peek().map_or(u64::MAX, |Reverse((at_us, _))| *at_us);
        let now = self.cx.clock.now_us();
        let timeout = if more || next <= now {
            Duration::ZERO
        } else {
            // epoll counts milliseconds; the timer is exact.
            if next != self.armed_us && next - now < SLEEP_MAX_US {
                let in_us = Duration::from_micros(next - now);
                self.timer.set(
                    Expiration::OneShot(TimeSpec::from_duration(in_us)),
                    TimerSetTimeFlags::empty(),
                )?;
                self.armed_us = next;
            }
            Duration::from_micros(SLEEP_MAX_US)
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => other,
        }
    }

    fn tick(&mut self) {
        self.next_tick_us = self.cx.now_us + TICK_US;
        self.cx.history.flush();
        if let Some(failure) = self.cx.history.failure() {
            self.board.fail(&format!("the history cannot be written: {failure}"));
        }
        self.board
            .post(&mut self.cx.tally, self.cx.states, self.cx.history.records());
    }
}
