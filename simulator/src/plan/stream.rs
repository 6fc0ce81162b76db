//! What the streams of a fleet have in common, prepared once.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::payloads::replay::Trace;
use crate::payloads::{Dist, Template, Variable};
use crate::profiles::{Profile, Spread, Stream};
use crate::scenario::Fleet;

/// One stream of a fleet.
#[derive(Clone, Debug)]
pub struct StreamPlan {
    pub name: String,
    pub source: Source,
    /// Factor on all intervals, from the fleet's `rate` or `interval`.
    scale: f64,
    interval_us: f64,
    intervals_us: Vec<f64>,
    pub spread: Spread,
    pub jitter: f64,
    pub align: bool,
    pub duplicate_every: u64,
    pub reorder_every: u64,
}

#[derive(Clone, Debug)]
pub enum Source {
    Template(Box<TemplateSource>),
    Replay { trace: Trace, speed: f64, repeat: bool },
}

#[derive(Clone, Debug)]
pub struct TemplateSource {
    pub template: Template,
    /// Only those the payload or the intervals need, by name.
    pub variables: Vec<Variable>,
    pub names: Vec<String>,
    pub size: Dist,
    /// The variable that decides intervals, and the interval of each of its states (µs).
    pub by: Option<(usize, Vec<Option<f64>>)>,
}

impl StreamPlan {
    /// Mean interval of the fleet's device `at`, in operational µs.
    pub fn interval_us(&self, at: u32) -> f64 {
        let own = match self.intervals_us.len() {
            0 => self.interval_us,
            len => self.intervals_us[at as usize % len],
        };
        (own * self.scale).max(1.0)
    }

    pub fn state_interval_us(&self, state: u32) -> Option<f64> {
        let Source::Template(source) = &self.source else {
            return None;
        };
        let (_, intervals) = source.by.as_ref()?;
        intervals
            .get(state as usize)
            .copied()
            .flatten()
            .map(|us| (us * self.scale).max(1.0))
    }
}

/// The streams of a fleet whose scenario was checked.
pub fn prepare(fleet: &Fleet, profile: &Profile, trace: Option<&Trace>) -> Arc<[StreamPlan]> {
    if let (Some(trace), Some(replay)) = (trace, &fleet.replay) {
        let mut plan = bare(String::new(), 1.0);
        plan.source = Source::Replay {
            trace: trace.clone(),
            speed: replay.speed,
            repeat: replay.repeat,
        };
        return [plan].into();
    }
    let scale = scale(fleet, profile);
    profile
        .stream
        .iter()
        .map(|stream| one(stream, fleet, profile, scale))
        .collect()
}

/// A rate fixes the sum over all streams, an interval that of the first one.
fn scale(fleet: &Fleet, profile: &Profile) -> f64 {
    let seconds = |stream: &Stream| stream.interval.as_secs_f64();
    if let Some(interval) = fleet.interval {
        return profile
            .stream
            .first()
            .map_or(1.0, |first| interval.as_secs_f64() / seconds(first));
    }
    let Some(rate) = fleet.rate else { return 1.0 };
    let subjects = f64::from(fleet.count) * f64::from(profile.gateway.as_ref().map_or(1, |gateway| gateway.children));
    let natural: f64 = profile.stream.iter().map(|stream| 1.0 / seconds(stream)).sum();
    subjects * natural / rate
}

fn bare(name: String, scale: f64) -> StreamPlan {
    StreamPlan {
        name,
        source: Source::Replay {
            trace: Trace::default(),
            speed: 1.0,
            repeat: false,
        },
        scale,
        interval_us: 1e6,
        intervals_us: Vec::new(),
        spread: Spread::Fixed,
        jitter: 0.0,
        align: false,
        duplicate_every: 0,
        reorder_every: 0,
    }
}

fn one(stream: &Stream, fleet: &Fleet, profile: &Profile, scale: f64) -> StreamPlan {
    let payload = padded(&stream.payload, fleet.payload_bytes.is_some());
    let by = stream.by.as_ref();
    let is_used = |name: &String| {
        let named = payload.match_indices("${").any(|(at, _)| {
            let rest = &payload[at + 2..];
            rest.strip_prefix(name.as_str())
                .is_some_and(|rest| rest.starts_with(['}', ':', '.']))
        });
        named || by.is_some_and(|by| by.variable == *name)
    };
    let used: BTreeMap<String, Variable> = profile
        .variables
        .iter()
        .filter(|(name, _)| is_used(name))
        .map(|(name, variable)| (name.clone(), variable.clone()))
        .collect();
    let names: Vec<String> = used.keys().cloned().collect();
    let variables: Vec<Variable> = used.values().cloned().collect();
    let by = by.and_then(|by| {
        let at = names.iter().position(|name| *name == by.variable)?;
        let states = variables[at].texts().iter();
        let micros = |state: &String| by.intervals.get(state).map(|span| span.micros() as f64);
        Some((at, states.map(micros).collect()))
    });
    let template = Template::parse(&payload, &used).expect("the scenario was checked");
    let size = fleet.payload_bytes.map(|bytes| Dist::Fixed(f64::from(bytes)));
    StreamPlan {
        source: Source::Template(Box::new(TemplateSource {
            template,
            variables,
            names,
            size: size.or_else(|| stream.size.clone()).unwrap_or_default(),
            by,
        })),
        interval_us: stream.interval.micros() as f64,
        intervals_us: stream.intervals.iter().map(|span| span.micros() as f64).collect(),
        spread: stream.spread,
        jitter: stream.jitter,
        align: stream.align,
        duplicate_every: u64::from(stream.duplicate_every),
        reorder_every: u64::from(stream.reorder_every),
        ..bare(stream.name.clone(), scale)
    }
}

/// A fleet that asks for a size gets room for it in any JSON object.
fn padded(payload: &str, wants_size: bool) -> String {
    if !wants_size || payload.contains("${pad}") {
        return payload.to_owned();
    }
    match payload.trim_end().strip_suffix('}') {
        Some(open) if open.len() > 1 => format!("{open},\"pad\":\"${{pad}}\"}}"),
        _ => format!("{payload}${{pad}}"),
    }
}
