//! What the nodes tell of themselves: memory, connections, CPU, stages, and whether anything grows.

use std::collections::BTreeMap;

use super::over_time::bands;
use super::tables::table;
use crate::haul::Trend;
use crate::report::charts::{chart, Chart, Line};
use crate::report::junit::escape;
use crate::report::numbers::{millis, rate};
use crate::report::{Report, Series};

pub fn charts(report: &Report, series: &Series, out: &mut String) {
    let end_us = report.run.ended_us.unwrap_or(report.run.planned_us).max(1);
    let bands = bands(report);
    let mut ids: Vec<u64> = series.nodes.iter().map(|sample| sample.node).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return;
    }
    out.push_str("<h2>The nodes, by their own figures</h2>\n");
    let classes = ["c1", "c2", "c3", "c4", "c5", "c6"];
    let figure = |name: &str, scale: f64| -> Vec<Line> {
        let one = |(at, node): (usize, &u64)| Line {
            name: format!("node {node}"),
            class: classes[at % classes.len()],
            fill: false,
            points: series
                .nodes
                .iter()
                .filter(|sample| sample.node == *node)
                .map(|sample| (sample.at_us, sample.figures.get(name).map(|value| value * scale)))
                .collect(),
        };
        ids.iter().enumerate().map(one).collect()
    };
    let mut draw = |title: &str, hint: &str, logarithmic, unit: fn(f64) -> String, lines: Vec<Line>| {
        out.push_str(&chart(&Chart {
            title,
            hint,
            end_us,
            lines,
            bands: &bands,
            marks: &[],
            logarithmic,
            unit,
        }));
    };
    draw(
        "Resident memory",
        "a gap: the node did not answer",
        false,
        |v| format!("{v:.0} MiB"),
        figure("memory", 1.0 / 1_048_576.0),
    );
    draw(
        "Connections",
        "open device connections of each node",
        false,
        rate,
        figure("connections", 1.0),
    );
    draw(
        "CPU",
        "cores in use",
        false,
        |v| format!("{v:.2}"),
        differences(figure("cpu", 1.0)),
    );
    draw(
        "Stages of a write",
        "99th percentile over all nodes, as the nodes tell",
        true,
        |s| millis(s * 1e3),
        stages(series),
    );
    let rows = report.growth.iter().map(|growth| {
        let word = match growth.trend {
            Trend::Unknown => "<span class=\"soft\">too short</span>",
            Trend::Flat => "<span class=\"ok\">flat</span>",
            Trend::Grows | Trend::Falls if growth.hours_left.is_some() => "<span class=\"no\">will end</span>",
            Trend::Grows => "grows",
            Trend::Falls => "falls",
        };
        vec![escape(&growth.text), word.to_owned()]
    });
    table("Growth", &["", ""], rows.collect(), out);
}

/// Of counters, how much each second.
fn differences(lines: Vec<Line>) -> Vec<Line> {
    let one = |mut line: Line| {
        let mut before: Option<(u64, f64)> = None;
        for (at, value) in &mut line.points {
            let now = value.map(|value| (*at, value));
            *value = match (before, now) {
                (Some((t0, v0)), Some((t1, v1))) if t1 > t0 && v1 >= v0 => Some((v1 - v0) / ((t1 - t0) as f64 / 1e6)),
                _ => None,
            };
            before = now;
        }
        line
    };
    lines.into_iter().map(one).collect()
}

fn stages(series: &Series) -> Vec<Line> {
    let mut names: Vec<&String> = series.nodes.iter().flat_map(|sample| sample.stages.keys()).collect();
    names.sort();
    names.dedup();
    let classes = ["c1", "c2", "c3", "c4", "c5", "c6", "bad", "soft"];
    let one = |(at, name): (usize, &&String)| {
        // The slowest node of each moment: samples of all nodes come close together.
        let mut points: BTreeMap<u64, f64> = BTreeMap::new();
        for sample in &series.nodes {
            if let Some((_, p99)) = sample.stages.get(*name) {
                let slot = points.entry(sample.at_us / 1_000_000).or_insert(0.0);
                *slot = slot.max(*p99);
            }
        }
        Line {
            name: (*name).clone(),
            class: classes[at % classes.len()],
            fill: false,
            points: points
                .into_iter()
                .map(|(second, value)| (second * 1_000_000, Some(value)))
                .collect(),
        }
    };
    names.iter().enumerate().map(one).collect()
}
