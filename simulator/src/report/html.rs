//! `report.html`: one file without anything from elsewhere, to be sent to a colleague or customer.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::charts::{chart, heat_map, Band, Chart, HeatMap, Line};
use super::junit::escape;
use super::numbers::{grouped, millis, rate, stretch, Latency};
use super::page::{foot, head};
use super::{Report, Series, Verdict};
use crate::audit::Fact;
use crate::drive::tally::Tally;
use crate::haul::Trend;
use crate::run::window::Window;

/// Columns of a chart; more windows are added up.
const COLUMNS: usize = 240;
/// Violations told on the page; the JSON has more.
const TOLD: usize = 100;

pub fn page(report: &Report, series: &Series) -> String {
    let mut out = head(&report.run.name);
    banner(report, &mut out);
    tiles(report, &mut out);
    notices(report, &mut out);
    time_charts(report, series, &mut out);
    tables(report, &mut out);
    audit(report, &mut out);
    nodes(report, series, &mut out);
    configuration(report, &mut out);
    out + foot()
}

fn banner(report: &Report, out: &mut String) {
    let (class, word) = match report.verdict {
        Verdict::Pass => ("pass", "Passed"),
        Verdict::Violation => ("fail", "Failed"),
        Verdict::HarnessFailure => ("none", "No verdict"),
    };
    let run = &report.run;
    let loop_mode = match run.loop_mode.as_str() {
        "closed" => "<span class=\"tag warn\">closed loop</span>",
        _ => "<span class=\"tag\">open loop</span>",
    };
    let reasons: String = report
        .reasons
        .iter()
        .map(|reason| format!("<li>{}</li>", escape(reason)))
        .collect();
    let _ = write!(
        out,
        "<header class=\"{class}\"><div><p class=\"kicker\">Load test report</p><h1>{}</h1><p>{}</p><p class=\"meta\">{} {} devices · {} · {} · seed {} · {}</p></div><div class=\"verdict\"><strong>{word}</strong><ul>{reasons}</ul></div></header>\n<main>\n",
        escape(&run.name),
        escape(&run.description),
        loop_mode,
        grouped(u64::from(run.devices)),
        escape(&when(run.begin_unix_us)),
        stretch(run.ended_us.unwrap_or(0)),
        run.seed,
        escape(&run.version),
    );
}

fn when(unix_us: u64) -> String {
    let moment = time::OffsetDateTime::from_unix_timestamp((unix_us / 1_000_000) as i64);
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    moment
        .ok()
        .and_then(|moment| moment.format(&format).ok())
        .unwrap_or_default()
}

fn tiles(report: &Report, out: &mut String) {
    let counts = &report.counts;
    let lost = report.audit.as_ref().map(|audit| audit.count(Fact::AckedSurvive));
    let doubled = report.audit.as_ref().map(|audit| audit.count(Fact::StoredOnce));
    let number = |value: Option<u64>| value.map_or("not audited".to_owned(), grouped);
    let tiles = [
        (
            "acknowledged",
            grouped(counts.acked),
            format!("{}/s on average", rate(report.acked_per_second)),
        ),
        ("lost", number(lost), "acknowledged and not stored".into()),
        ("stored twice", number(doubled), "under one message id".into()),
        (
            "latency p50",
            millis(report.latency_ms.p50),
            "from the intended time".into(),
        ),
        (
            "latency p99",
            millis(report.latency_ms.p99),
            format!("p99.9 {}", millis(report.latency_ms.p999)),
        ),
        (
            "latency max",
            millis(report.latency_ms.max),
            format!("{} messages", grouped(report.latency_ms.count)),
        ),
        (
            "refused",
            grouped(counts.refused),
            format!("{} without an answer", grouped(counts.unknown)),
        ),
        (
            "connections lost",
            grouped(counts.lost),
            format!("{} opened", grouped(counts.connects)),
        ),
    ];
    out.push_str("<section class=\"tiles\">");
    for (name, value, note) in tiles {
        let bad = matches!(name, "lost" | "stored twice") && value != "0" && value != "not audited";
        let class = if bad { " bad" } else { "" };
        let _ = write!(
            out,
            "<div class=\"tile{class}\"><span>{name}</span><b>{}</b><small>{}</small></div>",
            escape(&value),
            escape(&note)
        );
    }
    out.push_str("</section>\n");
}

fn notices(report: &Report, out: &mut String) {
    for warning in &report.warnings {
        let _ = writeln!(out, "<p class=\"notice\">{}</p>", escape(warning));
    }
}

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

fn time_charts(report: &Report, series: &Series, out: &mut String) {
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
    let mut draw = |title: &str, hint: &str, logarithmic, unit: fn(f64) -> String, lines: Vec<Line>| {
        out.push_str(&chart(&Chart {
            title,
            hint,
            end_us,
            lines,
            bands: &bands,
            marks: &marks,
            logarithmic,
            unit,
        }));
    };
    draw(
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
    );
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
    let mut draw = |title: &str, hint: &str, logarithmic, unit: fn(f64) -> String, lines: Vec<Line>| {
        out.push_str(&chart(&Chart {
            title,
            hint,
            end_us,
            lines,
            bands: &bands,
            marks: &marks,
            logarithmic,
            unit,
        }));
    };
    draw(
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
    );
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
    draw(
        "The generator itself",
        "its own delay in sending, 99th percentile: has to stay far below the latencies",
        true,
        millis,
        vec![line("send lag p99", "c4", false, &|c| {
            (!c.2.lag.is_empty()).then(|| c.2.lag.value_at_quantile(0.99) as f64 / 1e3)
        })],
    );
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

fn bands(report: &Report) -> Vec<Band> {
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

fn table(title: &str, header: &[&str], rows: Vec<Vec<String>>, out: &mut String) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<section><h2>{}</h2><div class=\"scroll\"><table><thead><tr>",
        escape(title)
    );
    for cell in header {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div></section>\n");
}

fn mark(holds: bool) -> String {
    match holds {
        true => "<span class=\"ok\">holds</span>".into(),
        false => "<span class=\"no\">broken</span>".into(),
    }
}

fn tables(report: &Report, out: &mut String) {
    let checks = report.checks.iter().map(|check| {
        vec![
            escape(&check.name),
            escape(&check.limit),
            escape(&check.value),
            mark(check.holds),
        ]
    });
    table(
        "Thresholds",
        &["what", "allowed", "measured", ""],
        checks.collect(),
        out,
    );
    let columns: [(&str, &Latency); 4] = [
        ("telemetry", &report.latency_ms),
        ("twin reports", &report.report_latency_ms),
        ("connecting", &report.connect_ms),
        ("send lag", &report.send_lag_ms),
    ];
    let rows = (0..9).map(|at| {
        let mut row = vec![report.latency_ms.rows()[at].0.to_owned()];
        row.extend(columns.iter().map(|(_, latency)| match latency.count {
            0 => "–".to_owned(),
            _ => millis(latency.rows()[at].1),
        }));
        row
    });
    table(
        "Percentiles",
        &["", "telemetry", "twin reports", "connecting", "send lag"],
        rows.collect(),
        out,
    );
    let phases = report.phases.iter().map(|phase| {
        vec![
            escape(&phase.title),
            format!("{} – {}", stretch(phase.start_us), stretch(phase.end_us)),
            grouped(phase.counts.sent),
            grouped(phase.counts.acked),
            rate(phase.acked_per_second),
            millis(phase.latency.p50),
            millis(phase.latency.p99),
            grouped(phase.counts.refused),
            grouped(phase.counts.lost),
        ]
    });
    let header = [
        "phase",
        "when",
        "sent",
        "acked",
        "acked/s",
        "p50",
        "p99",
        "refused",
        "connections lost",
    ];
    table("Phases", &header, phases.collect(), out);
    let notes = report
        .run
        .notes
        .iter()
        .map(|note| vec![stretch(note.at_us), escape(&note.text)]);
    table("What happened", &["at", ""], notes.collect(), out);
    let mut errors: Vec<_> = report.errors.iter().collect();
    errors.sort_by(|a, b| b.1.cmp(a.1));
    let rows = errors
        .into_iter()
        .map(|(kind, count)| vec![escape(kind), grouped(*count)]);
    table("Errors", &["kind", "how often"], rows.collect(), out);
}

fn audit(report: &Report, out: &mut String) {
    let Some(audit) = &report.audit else {
        let why = report.not_audited.as_deref().unwrap_or("it was not asked for");
        let _ = write!(
            out,
            "<section><h2>Audit</h2><p>Nothing was read back: {}.</p></section>",
            escape(why)
        );
        return;
    };
    let rows = Fact::ALL.into_iter().map(|fact| {
        let count = audit.count(fact);
        vec![fact.sentence().to_owned(), grouped(count), mark(count == 0)]
    });
    table(
        "Audit: what was read back against what was recorded",
        &["promise", "violations", ""],
        rows.collect(),
        out,
    );
    let _ = write!(
        out,
        "<p>{} operations of {} devices against {} stored messages. Without an answer: {} stored, {} not; both are right. {} stored messages belong to others.{}</p>",
        grouped(audit.operations),
        grouped(audit.subjects),
        grouped(audit.stored),
        grouped(audit.unknown_stored),
        grouped(audit.unknown_absent),
        grouped(audit.others),
        match audit.duplicates_without_ids {
            0 => String::new(),
            count => format!(" {} possible duplicates of messages without ids.", grouped(count)),
        }
    );
    for remark in &audit.remarks {
        let _ = write!(out, "<p class=\"notice\">{}</p>", escape(remark));
    }
    let told = audit.violations.iter().take(TOLD).map(|violation| {
        vec![
            violation.fact.to_string(),
            escape(&violation.device),
            violation.seq.to_string(),
            stretch(violation.at_us),
            escape(violation.receipt.as_deref().unwrap_or("–")),
            escape(&violation.what),
        ]
    });
    table(
        "Violations",
        &["promise", "device", "seq", "at", "receipt", "what"],
        told.collect(),
        out,
    );
}

fn nodes(report: &Report, series: &Series, out: &mut String) {
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
        |v| format!("{v:.0} MB"),
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

fn configuration(report: &Report, out: &mut String) {
    let run = &report.run;
    let list = |addresses: &[std::net::SocketAddr]| {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        escape(&texts.join(", "))
    };
    let mut rows = vec![
        vec!["target".to_owned(), escape(&run.target)],
        vec!["MQTT".to_owned(), list(&run.endpoints.mqtt)],
        vec!["WebSocket".to_owned(), list(&run.endpoints.ws)],
        vec!["HTTP".to_owned(), list(&run.endpoints.http)],
        vec![
            "generator".to_owned(),
            format!(
                "{} workers of {} threads, {} of CPU time",
                run.workers,
                run.threads,
                stretch(run.cpu_us)
            ),
        ],
        vec!["compression".to_owned(), format!("{}", run.compression)],
        vec![
            "payload".to_owned(),
            format!("{} bytes in all", grouped(report.counts.payload_bytes)),
        ],
        vec![
            "runs".to_owned(),
            run.runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        ],
    ];
    rows.retain(|row| !row[1].is_empty());
    table("How it was run", &["", ""], rows, out);
}
