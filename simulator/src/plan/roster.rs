//! Who is in the fleets: each device by its place, without a list of all of them.
//!
//! A *device* has a connection. A *subject* has messages of its own: every device, and behind a
//! gateway each child. Both are numbered over all fleets; histories name subjects.

use super::curve::Curve;
use super::names;
use crate::payloads::chance::{salt, Chance};
use crate::profiles::citizen::Habits;
use crate::scenario::{Loaded, PhaseWord, Protocol};

#[derive(Clone, Debug)]
struct FleetSpan {
    devices_before: u32,
    subjects_before: u32,
    count: u32,
    children: u32,
    /// Each protocol as often as its weight says, in parts of 1.
    protocols: Vec<(f64, Protocol)>,
}

#[derive(Clone, Debug)]
pub struct Roster {
    fleets: Vec<FleetSpan>,
    seed: u64,
}

/// One device, as planned.
#[derive(Clone, Debug, PartialEq)]
pub struct DevicePlan {
    pub device: u32,
    pub fleet: usize,
    /// Place in the fleet, from 0.
    pub at: u32,
    /// Its own subject; those of its children follow.
    pub subject: u32,
    pub children: u32,
    pub id: String,
    pub protocol: Protocol,
    pub habits: Habits,
    /// Scenario µs.
    pub connect_us: u64,
}

impl Roster {
    pub fn new(loaded: &Loaded) -> Self {
        let (mut devices, mut subjects) = (0, 0);
        let fleets = loaded.scenario.fleet.iter().enumerate().map(|(at, fleet)| {
            let children = loaded
                .profile(at)
                .gateway
                .as_ref()
                .map_or(0, |gateway| gateway.children);
            let span = FleetSpan {
                devices_before: devices,
                subjects_before: subjects,
                count: fleet.count,
                children,
                protocols: shares(&fleet.protocols),
            };
            devices += fleet.count;
            subjects += fleet.count * (1 + children);
            span
        });
        Self {
            fleets: fleets.collect(),
            seed: loaded.scenario.seed,
        }
    }

    pub fn devices(&self) -> u32 {
        self.fleets.last().map_or(0, |last| last.devices_before + last.count)
    }

    pub fn subjects(&self) -> u32 {
        let end = |last: &FleetSpan| last.subjects_before + last.count * (1 + last.children);
        self.fleets.last().map_or(0, end)
    }

    pub fn subjects_of(&self, fleet: usize) -> std::ops::Range<u32> {
        let span = &self.fleets[fleet];
        span.subjects_before..span.subjects_before + span.count * (1 + span.children)
    }

    /// The fleet of a device.
    pub fn fleet_of(&self, device: u32) -> usize {
        self.fleets.partition_point(|span| span.devices_before <= device) - 1
    }

    /// The fleet of a subject.
    pub fn fleet_of_subject(&self, subject: u32) -> usize {
        self.fleets.partition_point(|span| span.subjects_before <= subject) - 1
    }

    /// The id of a subject, and for a child its gateway's.
    pub fn subject_id(&self, loaded: &Loaded, subject: u32) -> (String, Option<String>) {
        let fleet = self.fleet_of_subject(subject);
        let span = &self.fleets[fleet];
        let (at, child) = (
            (subject - span.subjects_before) / (1 + span.children),
            (subject - span.subjects_before) % (1 + span.children),
        );
        let spec = &loaded.scenario.fleet[fleet];
        let id = names::device(spec, spec.first + at);
        match child {
            0 => (id, None),
            child => (names::child(&id, child), Some(id)),
        }
    }

    pub fn device(&self, loaded: &Loaded, curve: &Curve, device: u32) -> DevicePlan {
        let fleet = self.fleet_of(device);
        let span = &self.fleets[fleet];
        let at = device - span.devices_before;
        let spec = &loaded.scenario.fleet[fleet];
        let place = golden(at);
        let drawn = span.protocols.iter().find(|(end, _)| place < *end);
        let mut chance = Chance::fork(self.seed, &[salt("habits"), salt(&spec.name), u64::from(at)]);
        let habits = match &loaded.profile(fleet).misbehave {
            Some(misbehave) => Habits::draw(misbehave, &mut chance),
            None => Habits::default(),
        };
        DevicePlan {
            device,
            fleet,
            at,
            subject: span.subjects_before + at * (1 + span.children),
            children: span.children,
            id: names::device(spec, spec.first + at),
            protocol: drawn
                .or(span.protocols.last())
                .map_or(Protocol::Mqtt5, |(_, protocol)| *protocol),
            habits,
            connect_us: self.connect_us(loaded, curve, device),
        }
    }

    /// Evenly over a ramp the run begins with, else at the connect rate.
    fn connect_us(&self, loaded: &Loaded, curve: &Curve, device: u32) -> u64 {
        let scenario = &loaded.scenario;
        let at_rate = f64::from(self.devices()) / scenario.run.connect_rate * 1e6 * scenario.compression;
        let whole = match scenario.phase.first() {
            Some(first) if first.kind == PhaseWord::Ramp => first.duration.micros() as f64,
            _ => at_rate,
        };
        ((golden(device.wrapping_mul(7)) * whole) as u64).min(curve.end_us())
    }

    /// When a device loses its connection to the storms of the phases. Scenario µs, in order.
    pub fn storms(&self, loaded: &Loaded, curve: &Curve, device: u32) -> Vec<u64> {
        let phases = loaded.scenario.phase.iter().zip(curve.spans()).enumerate();
        let storms = phases.filter(|(_, (phase, _))| phase.kind == PhaseWord::ReconnectStorm);
        let hits = storms.filter_map(|(at, (phase, span))| {
            let mut chance = Chance::fork(self.seed, &[salt("storm"), at as u64, u64::from(device)]);
            let (hit, place) = (chance.unit() < phase.share.unwrap_or(1.0), chance.unit());
            let over = phase.over.map_or(0.0, |over| over.micros() as f64);
            hit.then_some(span.start_us + (place * over) as u64)
        });
        hits.collect()
    }
}

/// A place in 0..1 that spreads numbers evenly, however many there are.
pub fn golden(number: u32) -> f64 {
    (f64::from(number) * 0.618_033_988_749_894_9 + 0.5).fract()
}

fn shares(weights: &std::collections::BTreeMap<Protocol, u32>) -> Vec<(f64, Protocol)> {
    let total: u32 = weights.values().sum();
    let mut end = 0.0;
    let shares = weights
        .iter()
        .filter(|(_, weight)| **weight > 0)
        .map(|(protocol, weight)| {
            end += f64::from(*weight) / f64::from(total.max(1));
            (end, *protocol)
        });
    shares.collect()
}
