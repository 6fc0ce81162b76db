//! Which fault happens when: the fixed ones, and those that the nemesis draws from the seed. Same
//! drill and seed, same plan.

use std::time::Duration;

use serde::Serialize;
use simulator::payloads::chance::{salt, Chance};

use super::model::{Drill, Nemesis};
use crate::catalogue::{self, Entry};

/// Faults one drill has, at most.
const FAULTS_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    /// Names it in this drill: `1-process.kill`.
    pub id: String,
    #[serde(skip)]
    pub entry: &'static Entry,
    pub kind: &'static str,
    pub on: String,
    /// From the beginning of the phase of faults.
    pub at: Duration,
    pub length: Duration,
    /// With its defaults.
    pub with: toml::Table,
    /// Decides whom `random` hits.
    pub seed: u64,
}

/// All faults, in order of time.
pub fn plan(drill: &Drill, seed: u64) -> Vec<Planned> {
    let mut found = Vec::new();
    for fault in &drill.fault {
        for round in 0..fault.repeat {
            let at = fault.at.0 + fault.every.0 * round;
            push(&mut found, &fault.kind, &fault.on, at, fault.length.0, &fault.with);
        }
    }
    if let Some(nemesis) = &drill.nemesis {
        draw(nemesis, drill.phases.faults.0, seed, &mut found);
    }
    found.sort_by_key(|planned| planned.at);
    found.truncate(FAULTS_MAX);
    for (number, planned) in (1u64..).zip(&mut found) {
        planned.id = format!("{number}-{}", planned.kind);
        planned.seed = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    found
}

fn push(found: &mut Vec<Planned>, kind: &str, on: &str, at: Duration, length: Duration, with: &toml::Table) {
    let Some(entry) = catalogue::find(kind) else { return };
    found.push(Planned {
        id: String::new(),
        entry,
        kind: entry.id,
        on: on.to_owned(),
        at,
        length,
        with: entry.fill(with),
        seed: 0,
    });
}

fn draw(nemesis: &Nemesis, phase: Duration, seed: u64, found: &mut Vec<Planned>) {
    let mut chance = Chance::fork(seed, &[salt("nemesis")]);
    let weights: Vec<f64> = nemesis.fault.iter().map(|choice| choice.weight).collect();
    let mut at = Duration::ZERO;
    let mut ends: Vec<Duration> = Vec::new();
    loop {
        at += nemesis.mean_between.0.mul_f64(chance.exponential().clamp(0.1, 4.0));
        if at >= phase || found.len() >= FAULTS_MAX {
            return;
        }
        let choice = &nemesis.fault[chance.weighted(&weights)];
        let length = nemesis
            .mean_length
            .0
            .mul_f64(chance.exponential().clamp(0.2, 3.0))
            .max(Duration::from_secs(1));
        ends.retain(|end| *end > at);
        if ends.len() >= nemesis.at_once as usize {
            continue;
        }
        ends.push(at + length);
        push(found, &choice.kind, &choice.on, at, length, &choice.with);
    }
}

/// One fault by itself, now.
///
/// # Errors
/// What is wrong with it: key and reason.
pub fn single(kind: &str, on: &str, length: Duration, with: &toml::Table) -> Result<Planned, Vec<(String, String)>> {
    let Some(entry) = catalogue::find(kind) else {
        let near = catalogue::nearest(kind).map_or(String::new(), |near| format!("; did you mean {near}?"));
        return Err(vec![("fault".into(), format!("there is no {kind:?}{near}"))]);
    };
    let mut problems = entry.refuse(with);
    problems.extend(super::aim::parse(on).err().map(|why| ("on".to_owned(), why)));
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut found = Vec::new();
    push(&mut found, kind, on, Duration::ZERO, length, with);
    let mut planned = found.remove(0);
    planned.id = format!("inject-{kind}");
    planned.seed = u64::from(std::process::id());
    Ok(planned)
}
