//! One stream of one device: when its next message is due, and what that message holds.
//!
//! Everything follows from the seed. A message that cannot be sent is stepped over all the same,
//! so that what comes after it does not change.

use super::curve::Curve;
use super::stream::{Source, StreamPlan};
use crate::payloads::template::Filling;
use crate::payloads::{Chance, Value};
use crate::profiles::Spread;

/// Midnight of 1 January 2026, UTC: where the scenario's clock begins. Unit: ms since 1970.
pub const CLOCK_BEGINS_MS: i64 = 1_767_225_600_000;

/// A stream's place in its plan. The pending message is number `k`.
#[derive(Clone, Debug)]
pub struct Cursor {
    pub stream: u8,
    /// Scenario µs; `u64::MAX` when nothing more is due in this run.
    pub at_us: u64,
    /// From 1.
    pub k: u64,
    /// Operational time of the pending message, or for aligned and replayed ones the place in their
    /// own series.
    x: f64,
    interval_us: f64,
    chance: Chance,
    values: Vec<Value>,
    size: usize,
    /// A payload that changes places with the one before it.
    held: Option<Vec<u8>>,
    swapped: bool,
}

/// Who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    pub device: &'a str,
    pub fleet: &'a str,
    /// Place in the fleet; chooses a lane of a replayed trace.
    pub at: u32,
    pub clock_skew_ms: i64,
}

/// What is needed to step a cursor.
pub struct Setting<'a> {
    pub plan: &'a StreamPlan,
    pub curve: &'a Curve,
    pub sender: Sender<'a>,
    /// Desired numbers the device was told, by variable name.
    pub told: &'a dyn Fn(&str) -> Option<f64>,
}

impl Cursor {
    /// The first message of a stream that begins at `start_us`.
    pub fn begin(stream: u8, setting: &Setting<'_>, start_us: u64, mut chance: Chance) -> Self {
        let plan = setting.plan;
        let interval_us = plan.interval_us(setting.sender.at);
        let place = chance.unit();
        let values = match &plan.source {
            Source::Template(source) => source.variables.iter().map(|v| v.begin(&mut chance)).collect(),
            Source::Replay { .. } => Vec::new(),
        };
        let mut cursor = Self {
            stream,
            at_us: 0,
            k: 0,
            x: 0.0,
            interval_us,
            chance,
            values,
            size: 0,
            held: None,
            swapped: false,
        };
        cursor.x = match (&plan.source, plan.align) {
            (Source::Replay { .. }, _) => -1.0,
            // The first multiple not before the start; every device scatters by its own place.
            (_, true) => {
                (start_us as f64 / interval_us).ceil() * interval_us + place * plan.jitter * interval_us - interval_us
            }
            (_, false) => setting.curve.operational(start_us) + place * interval_us - interval_us,
        };
        cursor.advance(setting);
        cursor
    }

    /// Operational µs between two messages from now on, as the device was told.
    pub fn set_interval(&mut self, interval_us: f64) {
        self.interval_us = interval_us.max(1.0);
    }

    /// Goes on to the next message.
    pub fn advance(&mut self, setting: &Setting<'_>) {
        if self.at_us == u64::MAX {
            return;
        }
        self.k += 1;
        let plan = setting.plan;
        match &plan.source {
            Source::Replay { trace, speed, repeat } => {
                let lane = trace.lanes.get(setting.sender.at as usize % trace.lanes.len().max(1));
                let Some(lane) = lane.filter(|lane| !lane.is_empty()) else {
                    self.at_us = u64::MAX;
                    return;
                };
                let (round, row) = ((self.k - 1) / lane.len() as u64, (self.k - 1) as usize % lane.len());
                let again = trace.length_us as f64 * round as f64;
                let at = ((lane[row].at_us as f64 + again) / speed) as u64;
                let over = round > 0 && (!repeat || trace.length_us == 0) || at >= setting.curve.end_us();
                self.at_us = if over { u64::MAX } else { at };
            }
            Source::Template(_) => {
                self.next_time(setting);
                self.next_payload(setting);
            }
        }
    }

    /// Goes on to the next message whatever the time: for closed loops, which have no times.
    pub fn advance_untimed(&mut self, setting: &Setting<'_>) {
        if matches!(setting.plan.source, Source::Template(_)) {
            self.k += 1;
            self.next_payload(setting);
        } else {
            self.at_us = 0;
            self.advance(setting);
        }
    }

    fn next_time(&mut self, setting: &Setting<'_>) {
        let plan = setting.plan;
        if plan.align {
            self.x += self.interval_us;
            let at = self.x.max(0.0) as u64;
            let end = setting.curve.end_us();
            // A drain in the middle of a run stops a meter, and it goes on afterwards.
            while self.x < end as f64 && setting.curve.factor(self.x as u64) <= 0.0 {
                self.x += self.interval_us;
            }
            self.at_us = if self.x >= end as f64 {
                u64::MAX
            } else {
                at.max(self.x as u64)
            };
            return;
        }
        let interval = match self.k {
            1 => self.interval_us,
            _ => self.by_state(plan).unwrap_or(self.interval_us),
        };
        // The first one has its place within the interval already.
        let factor = match (plan.spread, self.k) {
            (_, 1) => 1.0,
            (Spread::Fixed, _) => 1.0 + plan.jitter * self.chance.between(-1.0, 1.0),
            (Spread::Exponential, _) => self.chance.exponential(),
            // Median below the mean, so that the mean stays 1.
            (Spread::Bursty, _) => (std::f64::consts::LN_2 * self.chance.normal() - 0.2402).exp(),
        };
        self.x += interval * factor.max(0.0);
        self.at_us = setting.curve.at(self.x.max(0.0)).unwrap_or(u64::MAX);
    }

    fn by_state(&self, plan: &StreamPlan) -> Option<f64> {
        let Source::Template(source) = &plan.source else {
            return None;
        };
        let (at, _) = source.by.as_ref()?;
        match self.values[*at] {
            Value::Text(state) => plan.state_interval_us(state),
            _ => None,
        }
    }

    fn next_payload(&mut self, setting: &Setting<'_>) {
        if self.swapped {
            self.swapped = false; // what was held comes now
            return;
        }
        self.held = None;
        self.step(setting);
        let every = setting.plan.reorder_every;
        if every > 0 && self.k.is_multiple_of(every) {
            let mut later = Vec::new();
            self.compose(self.k, setting, &mut later);
            self.step(setting);
            (self.held, self.swapped) = (Some(later), true);
        }
    }

    fn step(&mut self, setting: &Setting<'_>) {
        let Source::Template(source) = &setting.plan.source else {
            return;
        };
        let at_secs = self.at_us as f64 / 1e6;
        for (variable, value) in source.variables.iter().zip(&mut self.values) {
            let told = match variable {
                crate::payloads::Variable::Follow { property, .. } => (setting.told)(property),
                _ => None,
            };
            variable.step(value, at_secs, told, &mut self.chance);
        }
        self.size = source.size.draw(&mut self.chance).clamp(0.0, 262_144.0) as usize;
    }

    /// Appends the pending message's payload.
    pub fn write(&self, setting: &Setting<'_>, out: &mut Vec<u8>) {
        match (&setting.plan.source, &self.held) {
            (Source::Replay { trace, .. }, _) => {
                let lane = &trace.lanes[setting.sender.at as usize % trace.lanes.len()];
                out.extend_from_slice(&lane[(self.k - 1) as usize % lane.len()].payload);
            }
            (_, Some(held)) if !self.swapped => out.extend_from_slice(held),
            (_, Some(_)) => self.compose(self.k + 1, setting, out),
            (_, None) => self.compose(self.k, setting, out),
        }
    }

    /// Whether the pending message is to be published twice.
    pub fn is_doubled(&self, plan: &StreamPlan) -> bool {
        plan.duplicate_every > 0 && self.k.is_multiple_of(plan.duplicate_every)
    }

    fn compose(&self, number: u64, setting: &Setting<'_>, out: &mut Vec<u8>) {
        let Source::Template(source) = &setting.plan.source else {
            return;
        };
        let at_ms = i64::try_from(self.at_us / 1_000).unwrap_or(0);
        source.template.write(
            &Filling {
                device: setting.sender.device,
                fleet: setting.sender.fleet,
                stream: &setting.plan.name,
                n: number,
                time_ms: CLOCK_BEGINS_MS + at_ms + setting.sender.clock_skew_ms,
                variables: &source.variables,
                values: &self.values,
                size: self.size,
            },
            out,
        );
    }
}
