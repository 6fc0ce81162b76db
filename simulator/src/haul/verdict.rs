//! What the slopes mean: one sentence per node and figure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::scrape::NodeSample;
use super::slope::{fit, Slope, Trend};
use crate::run::window::Window;

/// A figure, what counts as growth of it per hour, its bound if it has one, and how it is written.
struct Figure {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    scale: f64,
    /// Growth per hour below which it is flat, in `unit`.
    matters: f64,
    bound: Bound,
    /// A figure that shrinks towards 0 is the worry.
    falls: bool,
}

/// Where it ends badly.
enum Bound {
    None,
    Fixed(f64),
    /// What the node tells of its own limit, under this name and in the same unit; a node that
    /// tells none is held to nothing.
    Told(&'static str),
}

const MIB: f64 = 1_048_576.0;
const FIGURES: [Figure; 4] = [
    Figure {
        name: "memory",
        title: "RSS",
        unit: "MiB",
        scale: 1.0 / MIB,
        matters: 0.2,
        bound: Bound::Told("memory_limit"),
        falls: false,
    },
    Figure {
        name: "descriptors",
        title: "open descriptors",
        unit: "",
        scale: 1.0,
        matters: 0.5,
        bound: Bound::Told("descriptors_limit"),
        falls: false,
    },
    Figure {
        name: "threads",
        title: "threads",
        unit: "",
        scale: 1.0,
        matters: 0.5,
        bound: Bound::None,
        falls: false,
    },
    Figure {
        name: "disk_free",
        title: "free disk",
        unit: "MiB",
        scale: 1.0 / MIB,
        matters: 1.0,
        bound: Bound::Fixed(0.0),
        falls: true,
    },
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// `None`: of the fleet, not of a node.
    pub node: Option<u64>,
    pub figure: String,
    pub unit: String,
    pub trend: Trend,
    pub slope: Option<Slope>,
    /// Until its bound is reached at this rate.
    pub hours_left: Option<f64>,
    pub text: String,
}

/// Judges every figure of every node, and the fleet's latency.
pub fn findings(samples: &[NodeSample], windows: &[Window]) -> Vec<Growth> {
    let mut nodes: BTreeMap<u64, Vec<&NodeSample>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.up) {
        nodes.entry(sample.node).or_default().push(sample);
    }
    let mut found = Vec::new();
    for (node, samples) in nodes {
        for figure in &FIGURES {
            let series = samples.iter().filter_map(|sample| {
                let value = sample.figures.get(figure.name)?;
                Some((sample.at_us, value * figure.scale))
            });
            let series: Vec<(u64, f64)> = since_restart(&samples, series.collect());
            if !series.is_empty() {
                found.push(judge(Some(node), figure, bound(figure, &samples), &series));
            }
        }
    }
    let latency = Figure {
        name: "latency",
        title: "median latency",
        unit: "ms",
        scale: 1.0,
        matters: 0.05,
        bound: Bound::None,
        falls: false,
    };
    let series: Vec<(u64, f64)> = windows
        .iter()
        .filter(|window| !window.latency.0.is_empty())
        .map(|window| {
            (
                window.to_us,
                window.latency.histogram().value_at_quantile(0.5) as f64 / 1e3,
            )
        })
        .collect();
    if !series.is_empty() {
        found.push(judge(None, &latency, None, &series));
    }
    found
}

/// The bound of a figure in its unit; of a node's own limits the newest that it told.
fn bound(figure: &Figure, samples: &[&NodeSample]) -> Option<f64> {
    match figure.bound {
        Bound::None => None,
        Bound::Fixed(bound) => Some(bound),
        Bound::Told(name) => {
            let told = samples.iter().rev().find_map(|sample| sample.figures.get(name));
            told.map(|limit| limit * figure.scale)
        }
    }
}

/// A node that began anew has another memory: only what it did since then is one series. CPU time
/// that falls tells.
fn since_restart(samples: &[&NodeSample], series: Vec<(u64, f64)>) -> Vec<(u64, f64)> {
    let cpu = |sample: &NodeSample| sample.figures.get("cpu").copied().unwrap_or(0.0);
    let restart = samples.windows(2).rev().find(|pair| cpu(pair[1]) + 1e-6 < cpu(pair[0]));
    match restart {
        Some(pair) => series.into_iter().filter(|(at, _)| *at >= pair[1].at_us).collect(),
        None => series,
    }
}

fn judge(node: Option<u64>, figure: &Figure, bound: Option<f64>, series: &[(u64, f64)]) -> Growth {
    let slope = fit(series);
    let trend = slope.map_or(Trend::Unknown, |slope| slope.trend(figure.matters));
    let worries = trend == if figure.falls { Trend::Falls } else { Trend::Grows };
    let hours_left = match (slope, bound) {
        (Some(slope), Some(bound)) if worries => slope.hours_until(bound),
        _ => None,
    };
    let whose = node.map_or(figure.title.to_owned(), |node| {
        format!("{} of node {node}", figure.title)
    });
    let space = if figure.unit.is_empty() { "" } else { " " };
    let unit = figure.unit;
    let text = match (trend, slope) {
        (Trend::Unknown, _) | (_, None) => format!("{whose}: too short to tell"),
        (Trend::Flat, Some(s)) => format!(
            "{whose} is flat ({:+.2}{space}{unit}/h, 95 %: {:+.2} to {:+.2})",
            s.per_hour, s.low, s.high
        ),
        (_, Some(s)) => {
            let verb = if trend == Trend::Grows { "grows" } else { "falls" };
            let end = match hours_left {
                Some(hours) if hours > 48.0 => format!(": would reach its limit in {:.0} days", hours / 24.0),
                Some(hours) => format!(": would reach its limit in {hours:.1} hours"),
                None => String::new(),
            };
            format!(
                "{whose} {verb} {:.2}{space}{unit}/h (95 %: {:.2} to {:.2}){end}",
                s.per_hour.abs(),
                s.low.abs().min(s.high.abs()),
                s.low.abs().max(s.high.abs())
            )
        }
    };
    Growth {
        node,
        figure: figure.name.to_owned(),
        unit: unit.to_owned(),
        trend,
        slope,
        hours_left,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, node: u64, memory_mb: f64, cpu: f64) -> NodeSample {
        NodeSample {
            at_us: at * 5_000_000,
            node,
            up: true,
            figures: BTreeMap::from([
                ("memory".into(), memory_mb * MIB),
                ("memory_limit".into(), 4_096.0 * MIB),
                ("cpu".into(), cpu),
            ]),
            stages: BTreeMap::new(),
        }
    }

    /// The sentence of the issue: which node, how fast, and for how long that goes well.
    #[test]
    fn a_leaking_node_is_named_with_the_day_it_dies() {
        let mut samples = Vec::new();
        for at in 0..4_000u64 {
            let hour = at as f64 / 720.0;
            let wobble = (at % 7) as f64 * 0.01;
            samples.push(sample(at, 1, 300.0 + wobble, at as f64));
            samples.push(sample(at, 2, 2_320.0 + 1.8 * hour + wobble, at as f64));
        }
        let found = findings(&samples, &[]);
        let memory: Vec<&Growth> = found.iter().filter(|growth| growth.figure == "memory").collect();
        assert_eq!((memory[0].node, memory[0].trend), (Some(1), Trend::Flat));
        assert_eq!((memory[1].node, memory[1].trend), (Some(2), Trend::Grows));
        assert!(
            memory[1].text.starts_with("RSS of node 2 grows 1.80 MiB/h"),
            "{}",
            memory[1].text
        );
        assert!(
            memory[1].text.ends_with("would reach its limit in 41 days"),
            "{}",
            memory[1].text
        );
    }

    /// The limit is the node's own: half of it is reached in half of the time, and a node that tells
    /// none is said to grow and no more.
    #[test]
    fn the_day_depends_on_what_the_node_may_use() {
        let told = |limit_mb: Option<f64>| {
            let samples: Vec<NodeSample> = (0..2_000u64)
                .map(|at| {
                    let mut sample = sample(at, 1, 1_000.0 + at as f64 / 7.2 + (at % 7) as f64 * 0.01, at as f64);
                    sample.figures.remove("memory_limit");
                    let limit = limit_mb.map(|mb| ("memory_limit".to_owned(), mb * MIB));
                    sample.figures.extend(limit);
                    sample
                })
                .collect();
            let memory = findings(&samples, &[]).remove(0);
            assert_eq!(memory.trend, Trend::Grows);
            memory.hours_left.map(f64::round)
        };
        let reached = 1_000.0 + 2_000.0 / 7.2;
        assert_eq!(told(Some(reached + 1_000.0)), Some(10.0));
        assert_eq!(told(Some(reached + 2_000.0)), Some(20.0));
        assert_eq!(told(None), None);
    }

    /// A node that was restarted is judged by what it did since.
    #[test]
    fn a_restart_is_not_a_leak() {
        let samples: Vec<NodeSample> = (0..2_000u64)
            .map(|at| match at < 1_000 {
                true => sample(at, 1, 100.0 + (at % 3) as f64 * 0.01, at as f64),
                false => sample(at, 1, 400.0 + (at % 3) as f64 * 0.01, (at - 1_000) as f64),
            })
            .collect();
        let found = findings(&samples, &[]);
        assert_eq!(found[0].trend, Trend::Flat, "{}", found[0].text);
    }
}
