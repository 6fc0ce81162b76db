//! The verdict: what was promised by the scenario and by the product, against what happened.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::numbers::{millis, rate, stretch, Latency};
use crate::audit::Findings;
use crate::drive::tally::Counts;
use crate::haul::{Growth, Trend};
use crate::run::directory::RunFile;
use crate::scenario::{Span, Thresholds};

/// One threshold, and whether it held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub limit: String,
    pub value: String,
    pub holds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    /// A promise or a threshold was broken.
    Violation,
    /// The test itself failed, or was stopped; says nothing about the product.
    HarnessFailure,
}

impl Verdict {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Violation => 1,
            Self::HarnessFailure => 75,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Violation => "violation",
            Self::HarnessFailure => "no verdict",
        })
    }
}

/// What the thresholds are held against.
pub struct Facts<'a> {
    pub run: &'a RunFile,
    pub counts: &'a Counts,
    pub latency: &'a Latency,
    pub lag: &'a Latency,
    pub growth: &'a [Growth],
}

pub fn checks(thresholds: &Thresholds, facts: &Facts<'_>) -> Vec<Check> {
    let mut found = Vec::new();
    let mut at_most = |name: &str, limit: Option<Span>, ms: f64| {
        if let Some(limit) = limit {
            found.push(Check {
                name: name.to_owned(),
                limit: format!("at most {limit}"),
                value: millis(ms),
                holds: ms <= limit.as_secs_f64() * 1e3,
            });
        }
    };
    let latency = facts.latency;
    at_most("latency p50", thresholds.latency_p50, latency.p50);
    at_most("latency p99", thresholds.latency_p99, latency.p99);
    at_most("latency p99.9", thresholds.latency_p999, latency.p999);
    at_most("latency max", thresholds.latency_max, latency.max);
    at_most("send lag p99", thresholds.send_lag_p99, facts.lag.p99);
    let counts = facts.counts;
    let settled = (counts.acked + counts.refused + counts.unknown).max(1) as f64;
    for (name, limit, part) in [
        ("refused", thresholds.refused_share_max, counts.refused),
        ("unknown", thresholds.unknown_share_max, counts.unknown),
    ] {
        if let Some(limit) = limit {
            let share = part as f64 / settled;
            found.push(Check {
                name: format!("share {name}"),
                limit: format!("at most {:.3} %", limit * 100.0),
                value: format!("{:.3} %", share * 100.0),
                holds: share <= limit,
            });
        }
    }
    if facts.run.is_whole() {
        found.extend(of_the_whole(thresholds, facts));
    }
    if let Some(limit) = thresholds.disconnects_max {
        found.push(Check {
            name: "connections lost".into(),
            limit: format!("at most {limit}"),
            value: counts.lost.to_string(),
            holds: counts.lost <= limit,
        });
    }
    if let Some(limit) = thresholds.memory_growth_max {
        found.extend(memory(limit, facts.growth));
    }
    found
}

/// What only a run that came to its end can be held to.
fn of_the_whole(thresholds: &Thresholds, facts: &Facts<'_>) -> Vec<Check> {
    let (mut found, counts) = (Vec::new(), facts.counts);
    if let Some(limit) = thresholds.throughput_min {
        let seconds = facts.run.sending_ended_us.unwrap_or(facts.run.planned_us) as f64 / 1e6;
        let reached = counts.acked as f64 / seconds.max(0.001);
        found.push(Check {
            name: "throughput".into(),
            limit: format!("at least {}/s", rate(limit)),
            value: format!("{}/s", rate(reached)),
            holds: reached >= limit,
        });
    }
    if let Some(limit) = thresholds.connected_share_min {
        let share = f64::from(facts.run.connected_at_end) / f64::from(facts.run.devices.max(1));
        found.push(Check {
            name: "devices connected at the end".into(),
            limit: format!("at least {:.1} %", limit * 100.0),
            value: format!("{:.1} %", share * 100.0),
            holds: share >= limit,
        });
    }
    found
}

fn memory(limit: f64, growth: &[Growth]) -> Vec<Check> {
    let memory = growth.iter().filter(|growth| growth.figure == "memory");
    let check = |growth: &Growth| Check {
        name: format!("memory growth of node {}", growth.node.unwrap_or(0)),
        limit: format!("at most {limit} MiB/h"),
        value: growth.text.clone(),
        // Where it is too short to tell, nothing is held against anybody.
        holds: growth.trend == Trend::Unknown || growth.slope.is_none_or(|slope| slope.low <= limit),
    };
    memory.map(check).collect()
}

/// The verdict and the reasons for it, the weightiest first.
pub fn verdict(
    run: &RunFile,
    counts: &Counts,
    checks: &[Check],
    audit: Option<&Findings>,
    harness: &[String],
) -> (Verdict, Vec<String>) {
    let mut reasons = Vec::new();
    if let Some(audit) = audit {
        let broken = audit
            .counts
            .iter()
            .map(|(fact, count)| format!("{fact} is broken {count} times"));
        reasons.extend(broken);
    }
    let missed = checks.iter().filter(|check| !check.holds);
    reasons.extend(missed.map(|check| format!("{} is {}, allowed is {}", check.name, check.value, check.limit)));
    if !reasons.is_empty() {
        return (Verdict::Violation, reasons);
    }
    reasons.extend(harness.iter().cloned());
    if let Some(why) = &run.incomplete {
        reasons.push(format!("incomplete: {why}"));
    }
    if run.ended_us.is_none() {
        reasons
            .push("the run was broken off, or still goes on; `holdfast sim run DIR --resume` goes on with it".into());
    }
    if counts.sent > 0 && counts.acked == 0 && counts.unconfirmed < counts.sent {
        reasons.push("nothing was acknowledged, so nothing was tested".into());
    }
    if counts.connects == 0 {
        reasons.push("no device ever connected, so nothing was tested".into());
    }
    match reasons.is_empty() {
        true => (
            Verdict::Pass,
            vec![format!("held for {}", stretch(run.ended_us.unwrap_or(0)))],
        ),
        false => (Verdict::HarnessFailure, reasons),
    }
}
