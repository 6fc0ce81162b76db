//! Whether a drill makes sense: key and reason of everything that does not.

use std::time::Duration;

use simulator::scenario::Span;

use super::model::{Drill, Hypothesis};
use super::{aim, scenario};
use crate::catalogue;

type Problems = Vec<(String, String)>;

pub fn problems(drill: &Drill) -> Problems {
    let mut found = Vec::new();
    names(drill, &mut found);
    cluster(drill, &mut found);
    phases(drill, &mut found);
    faults(drill, &mut found);
    nemesis(drill, &mut found);
    hypotheses(drill, &mut found);
    checks(drill, &mut found);
    // The scenario is only worth a look when the phases in it are.
    if found.is_empty() {
        found.extend(scenario::problems(drill));
    }
    found
}

fn names(drill: &Drill, found: &mut Problems) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if drill.name.is_empty() || drill.name.len() > 64 || !drill.name.chars().all(plain) {
        found.push(("name".into(), "must be 1 to 64 letters, digits, - and _".into()));
    }
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, value: T, low: T, high: T, found: &mut Problems) {
    if value < low || value > high {
        found.push((key.to_owned(), format!("{value} is not within {low}..={high}")));
    }
}

fn cluster(drill: &Drill, found: &mut Problems) {
    within("cluster.nodes", drill.cluster.nodes, 1, 9, found);
    within("cluster.shards", drill.cluster.shards, 1, 256, found);
    if let Some(mib) = drill.cluster.disk_mib {
        within("cluster.disk_mib", mib, 256, 16_384, found);
    }
    for name in drill.cluster.env.keys() {
        if !name.starts_with("HOLDFAST_") {
            found.push((
                format!("cluster.env.{name}"),
                "only HOLDFAST_ variables configure a node".into(),
            ));
        }
    }
}

fn span(key: &str, value: Span, low: Span, high: Span, found: &mut Problems) {
    within(key, value, low, high, found);
}

fn phases(drill: &Drill, found: &mut Problems) {
    let (second, hour) = (Span::secs(1), Span::secs(3_600));
    span("phases.ramp", drill.phases.ramp, second, hour, found);
    span("phases.steady", drill.phases.steady, second, hour, found);
    span("phases.faults", drill.phases.faults, second, Span::secs(86_400), found);
    span("phases.settle", drill.phases.settle, second, hour, found);
}

fn kind(key: &str, kind: &str, on: &str, with: &toml::Table, found: &mut Problems) {
    let Some(entry) = catalogue::find(kind) else {
        let near = catalogue::nearest(kind).map_or(String::new(), |near| format!("; did you mean {near}?"));
        found.push((
            format!("{key}.kind"),
            format!("there is no fault {kind:?}{near}; see `holdfast chaos list`"),
        ));
        return;
    };
    for (name, why) in entry.refuse(with) {
        found.push((format!("{key}.with.{name}"), why));
    }
    if let Err(why) = aim::parse(on) {
        found.push((format!("{key}.on"), why));
    }
}

fn faults(drill: &Drill, found: &mut Problems) {
    if drill.fault.is_empty() && drill.nemesis.is_none() {
        found.push(("fault".into(), "a drill needs a [[fault]] or a [nemesis]".into()));
    }
    for (at, fault) in drill.fault.iter().enumerate() {
        let key = format!("fault[{at}]");
        kind(&key, &fault.kind, &fault.on, &fault.with, found);
        span(
            &format!("{key}.for"),
            fault.length,
            Span::millis(100),
            Span::secs(3_600),
            found,
        );
        within(&format!("{key}.repeat"), fault.repeat, 1, 1_000, found);
        if fault.repeat > 1 {
            span(
                &format!("{key}.every"),
                fault.every,
                Span::millis(100),
                Span::secs(3_600),
                found,
            );
        }
        let last = fault.at.0 + fault.every.0.saturating_mul(fault.repeat.saturating_sub(1));
        if last >= drill.phases.faults.0 {
            let (last, phase) = (Span(last), drill.phases.faults);
            found.push((
                format!("{key}.at"),
                format!("begins at {last}, when the phase of faults ({phase}) is over"),
            ));
        }
    }
    if drill.fault.iter().map(|fault| u64::from(fault.repeat)).sum::<u64>() > 10_000 {
        found.push(("fault".into(), "more than 10000 faults".into()));
    }
}

fn nemesis(drill: &Drill, found: &mut Problems) {
    let Some(nemesis) = &drill.nemesis else { return };
    let hour = Span::secs(3_600);
    span(
        "nemesis.mean_between",
        nemesis.mean_between,
        Span::millis(100),
        hour,
        found,
    );
    span("nemesis.mean_length", nemesis.mean_length, Span::secs(1), hour, found);
    within("nemesis.at_once", nemesis.at_once, 1, 16, found);
    if nemesis.fault.is_empty() {
        found.push(("nemesis.fault".into(), "the nemesis has nothing to choose from".into()));
    }
    for (at, choice) in nemesis.fault.iter().enumerate() {
        let key = format!("nemesis.fault[{at}]");
        kind(&key, &choice.kind, &choice.on, &choice.with, found);
        if !(choice.weight > 0.0 && choice.weight <= 1e6) {
            found.push((format!("{key}.weight"), "must be above 0, and at most 1000000".into()));
        }
        let is_load = catalogue::find(&choice.kind).is_some_and(|entry| entry.family == "load");
        if is_load {
            found.push((
                format!("{key}.kind"),
                "what the fleet does is planned: use a [[fault]]".into(),
            ));
        }
    }
}

fn hypotheses(drill: &Drill, found: &mut Problems) {
    let thresholds = &drill.thresholds;
    for (name, hypothesis) in [
        ("before", &thresholds.before),
        ("during", &thresholds.during),
        ("after", &thresholds.after),
    ] {
        let Hypothesis {
            availability_min,
            connected_share_min,
            ..
        } = hypothesis;
        for (key, share) in [
            ("availability_min", availability_min),
            ("connected_share_min", connected_share_min),
        ] {
            if let Some(share) = share {
                within(&format!("thresholds.{name}.{key}"), *share, 0.0, 1.0, found);
            }
        }
    }
    if let Some(abort) = &drill.abort {
        within(
            "abort.throughput_share_min",
            abort.throughput_share_min,
            0.0,
            1.0,
            found,
        );
        span(
            "abort.within",
            abort.within,
            Span::secs(1),
            Span(Duration::from_secs(3_600)),
            found,
        );
    }
}

fn checks(drill: &Drill, found: &mut Problems) {
    let known = crate::check::names();
    for (at, name) in drill.checks.without.iter().enumerate() {
        if !known.contains(&name.as_str()) {
            let known = known.join(", ");
            found.push((
                format!("checks.without[{at}]"),
                format!("there is no invariant {name:?}; there are {known}"),
            ));
        }
    }
}
