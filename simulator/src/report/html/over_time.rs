//! What the fleet did and felt, over the time of the run.

use std::collections::BTreeMap;

use crate::drive::tally::Tally;
use crate::report::charts::{chart, heat_map, Band, Chart, HeatMap, Line};
use crate::report::numbers::{millis, rate};
use crate::report::{Report, Series};
use crate::run::window::Window;

/// Columns of a chart; more windows are added up.
const COLUMNS: usize = 240;

/// From, to, what was counted between, and the last window of it.
type Column<'a> = (u64, u64, Tally, &'a Window);

/// Windows added up until there are few enough for a chart.
fn coarse(windows: &[Window]) -> Vec<Column<'_>> {
    let size = windows.len().div_ceil(COLUMNS).max(1);
    let add = |chunk: &'_ [Window]| {
        let mut tally = Tally::default();
        chunk.iter().for_each(|window| window.add_to(&mut tally));
        (chunk[0].from_us, chunk[chunk.len() - 1].to_us, tally)
    };
    let chunks = windows.chunks(size);
    chunks
        .map(|chunk| {
            let (from, to, tally) = add(chunk);
            (from, to, tally, &chunk[chunk.len() - 1])
        })
        .collect()
}

pub fn charts(report: &Report, series: &Series, out: &mut String) {
    let end_us = report.run.ended_us.unwrap_or(report.run.planned_us).max(1);
    let columns = coarse(&series.windows);
    if columns.is_empty() {
        out.push_str("<p class=\"notice\">There are no figures over time.</p>");
        return;
    }
    let bands = bands(report);
    let marks: Vec<(u64, String)> = report
        .run
        .notes
        .iter()
        .map(|note| (note.at_us, note.text.clone()))
        .collect();
    let line = |name: &str, class, fill, value: &dyn Fn(&Column<'_>) -> Option<f64>| Line {
        name: name.to_owned(),
        class,
        fill,
        points: columns
            .iter()
            .map(|column| ((column.0 + column.1) / 2, value(column)))
            .collect(),
    };
    let per_second = |count: u64, column: &Column<'_>| Some(count as f64 / ((column.1 - column.0).max(1) as f64 / 1e6));
    let quantile = |quantile: f64| {
        move |column: &Column<'_>| {
            let latency = &column.2.latency;
            (!latency.is_empty()).then(|| latency.value_at_quantile(quantile) as f64 / 1e3)
        }
    };
    let draw = |title: &str, hint: &str, logarithmic, unit: fn(f64) -> String, lines: Vec<Line>| {
        chart(&Chart {
            title,
            hint,
            end_us,
            lines,
            bands: &bands,
            marks: &marks,
            logarithmic,
            unit,
        })
    };
    out.push_str(&draw(
        "Throughput",
        "messages a second; shaded: phases",
        false,
        rate,
        vec![
            line("acknowledged", "c1", true, &|c| per_second(c.2.counts.acked, c)),
            line("sent", "c2", false, &|c| per_second(c.2.counts.sent, c)),
            line("refused", "bad", false, &|c| per_second(c.2.counts.refused, c)),
            line("dropped by devices", "c5", false, &|c| {
                per_second(c.2.counts.dropped, c)
            }),
        ],
    ));
    draw(
        "Latency",
        "from the intended time of each message, whatever the server did meanwhile",
        true,
        millis,
        vec![
            line("max", "soft", false, &quantile(1.0)),
            line("p99.9", "c3", false, &quantile(0.999)),
            line("p99", "bad", false, &quantile(0.99)),
            line("p90", "c2", false, &quantile(0.9)),
            line("p50", "c1", false, &quantile(0.5)),
        ],
    );
    out.push_str(&heat_map(&HeatMap {
        title: "Latency, every message",
        hint: "each column is a moment, each cell a range of latencies",
        end_us,
        columns: columns
            .iter()
            .map(|column| {
                let pairs = column.2.latency.iter_recorded();
                let pairs = pairs.map(|step| (step.value_iterated_to() as f64 / 1e3, step.count_at_value()));
                (column.0, column.1, pairs.collect())
            })
            .collect(),
        unit: millis,
    }));
    out.push_str(&draw(
        "Devices",
        "by the state of their connection",
        false,
        rate,
        vec![
            line("connected", "c1", true, &|c| Some(f64::from(c.3.states.connected))),
            line("backing off", "bad", false, &|c| {
                Some(f64::from(c.3.states.backing_off))
            }),
            line("connecting", "c2", false, &|c| Some(f64::from(c.3.states.connecting))),
            line("away on purpose", "c5", false, &|c| Some(f64::from(c.3.states.away))),
        ],
    ));
    draw(
        "Connections",
        "a second",
        false,
        rate,
        vec![
            line("opened", "c1", false, &|c| per_second(c.2.counts.connects, c)),
            line("failed", "bad", false, &|c| per_second(c.2.counts.connects_failed, c)),
            line("lost", "c3", false, &|c| per_second(c.2.counts.lost, c)),
            line("left on purpose", "c5", false, &|c| per_second(c.2.counts.left, c)),
        ],
    );
    if !report.errors.is_empty() {
        draw(
            "Errors",
            "a second, by kind",
            false,
            rate,
            errors(&columns, &report.errors),
        );
    }
    out.push_str(&draw(
        "The generator itself",
        "its own delay in sending, 99th percentile: has to stay far below the latencies",
        true,
        millis,
        vec![line("send lag p99", "c4", false, &|c| {
            (!c.2.lag.is_empty()).then(|| c.2.lag.value_at_quantile(0.99) as f64 / 1e3)
        })],
    ));
}

fn errors(columns: &[Column<'_>], all: &BTreeMap<String, u64>) -> Vec<Line> {
    let mut kinds: Vec<(&String, &u64)> = all.iter().collect();
    kinds.sort_by(|a, b| b.1.cmp(a.1));
    let classes = ["bad", "c2", "c3", "c4", "c5", "c6"];
    let one = |((kind, _), class): ((&String, &u64), &'static str)| Line {
        name: kind.clone(),
        class,
        fill: false,
        points: columns
            .iter()
            .map(|(from, to, tally, _)| {
                let count = tally.errors.get(kind).copied().unwrap_or(0);
                ((from + to) / 2, Some(count as f64 / ((to - from).max(1) as f64 / 1e6)))
            })
            .collect(),
    };
    kinds.into_iter().zip(classes).map(one).collect()
}

pub fn bands(report: &Report) -> Vec<Band> {
    let phase = |(at, span): (usize, &crate::plan::curve::PhaseSpan)| Band {
        from_us: span.start_us,
        to_us: span.end_us,
        class: if at % 2 == 0 { "b0" } else { "b1" },
        title: match span.title == span.kind {
            true => span.title.clone(),
            false => format!("{} ({})", span.title, span.kind),
        },
    };
    let mut bands: Vec<Band> = report.run.phases.iter().enumerate().map(phase).collect();
    let faults = report.run.notes.iter().filter_map(|note| Some((note, note.until_us?)));
    bands.extend(faults.map(|(note, until)| Band {
        from_us: note.at_us,
        to_us: until,
        class: "fault",
        title: note.text.clone(),
    }));
    bands
}
