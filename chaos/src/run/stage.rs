//! What the load looks like from outside its thread: how far it is, what it gets, and the wish to
//! end it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use simulator::run::{View, Watcher, Wish};

/// Glances remembered: five minutes of four a second.
const GLANCES_MAX: usize = 1_200;

#[derive(Clone, Copy, Debug)]
pub struct Glance {
    pub at_us: u64,
    pub acked: u64,
    pub took_us: u64,
    /// The 99th percentile of what was acknowledged meanwhile, from its intended time.
    pub p99_us: u64,
}

struct State {
    /// Run time at an instant.
    anchor: Option<(Instant, u64)>,
    glances: VecDeque<Glance>,
    acked: u64,
    connected: u32,
    devices: u32,
    wish: Wish,
}

#[derive(Clone)]
pub struct Stage(Arc<Mutex<State>>);

impl Stage {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            anchor: None,
            glances: VecDeque::new(),
            acked: 0,
            connected: 0,
            devices: 0,
            wish: Wish::GoOn,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Real µs since the run began; `None` before it does.
    pub fn now_us(&self) -> Option<u64> {
        let (instant, us) = self.lock().anchor?;
        Some(us + instant.elapsed().as_micros() as u64)
    }

    pub fn wish(&self, wish: Wish) {
        let mut state = self.lock();
        state.wish = state.wish.max(wish);
    }

    /// Acknowledged in all, connected now, devices.
    pub fn figures(&self) -> (u64, u32, u32) {
        let state = self.lock();
        (state.acked, state.connected, state.devices)
    }

    /// Acknowledgements a second since `from_us`.
    pub fn rate_since(&self, from_us: u64) -> f64 {
        let state = self.lock();
        let recent = state.glances.iter().filter(|glance| glance.at_us > from_us);
        let (acked, took) = recent.fold((0, 0), |(acked, took), glance| {
            (acked + glance.acked, took + glance.took_us)
        });
        acked as f64 / (took.max(1) as f64 / 1e6)
    }

    /// The worst 99th percentile of latency since `from_us`; 0 when nothing was acknowledged.
    pub fn p99_since(&self, from_us: u64) -> u64 {
        let state = self.lock();
        let recent = state.glances.iter().filter(|glance| glance.at_us > from_us);
        recent.map(|glance| glance.p99_us).max().unwrap_or(0)
    }

    pub fn watcher(&self) -> Eye {
        Eye(self.clone())
    }
}

/// The simulator's watcher; tells nothing on the screen.
pub struct Eye(Stage);

impl Watcher for Eye {
    fn prepared(&mut self, _: &str) {}

    fn update(&mut self, view: &View<'_>) {
        let mut state = self.0.lock();
        if view.elapsed_us > 0 {
            state.anchor = Some((Instant::now(), view.elapsed_us));
        }
        state.acked = view.total.counts.acked;
        (state.connected, state.devices) = (view.states.connected, view.devices);
        state.glances.push_back(Glance {
            at_us: view.elapsed_us,
            acked: view.recent.counts.acked,
            took_us: view.recent_us,
            p99_us: view.recent.latency.value_at_quantile(0.99),
        });
        if state.glances.len() > GLANCES_MAX {
            state.glances.pop_front();
        }
    }

    fn note(&mut self, _: &str) {}

    fn wish(&self) -> Wish {
        self.0.lock().wish
    }
}
