//! `report.html`: one file without anything from elsewhere, that tells the drill's story to
//! somebody who was not there.

use std::fmt::Write;

use simulator::report::charts::{chart, Band, Chart, Line};
use simulator::report::junit::escape;
use simulator::report::numbers::{grouped, millis, rate, stretch};
use simulator::report::page::STYLE;
use simulator::run::window::Window;

use super::TimeLine;
use crate::check::{Bucket, Holds, Ruling};
use crate::drill::Impact;
use crate::run::{DrillResult, FaultRecord, Phase, Verdict};

const OWN_STYLE: &str = ".strip{position:relative;margin:0 .4rem 0 4.6rem}.strip svg{width:100%;height:auto;display:block}.strip .name{position:absolute;right:calc(100% + .5rem);font-size:.7rem;line-height:1;color:var(--soft);white-space:nowrap;transform:translateY(-10%)}.lane rect.fault{fill:var(--bad);opacity:.75}.lane rect.phase{fill:var(--soft);opacity:.12}.a0{fill:var(--rule)}.a1{fill:var(--bad)}.a2{fill:#e08a3c}.a3{fill:#d9c64a}.a4{fill:var(--good);opacity:.75}code{font-size:.9em;overflow-wrap:anywhere}.story li{margin:.15rem 0}";
/// A shard whose slowest message took longer is not green. µs.
const LATE_US: u64 = 500_000;
/// Breaches told on the page; result.json has more.
const TOLD: usize = 20;

pub fn page(result: &DrillResult, line: &TimeLine, windows: &[Window]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{} – drill report</title><style>{STYLE}{OWN_STYLE}</style></head><body>\n",
        escape(&result.name)
    );
    banner(result, &mut out);
    tiles(result, line, &mut out);
    time_line(result, line, windows, &mut out);
    faults(result, &mut out);
    impact(result, &mut out);
    invariants(result, &mut out);
    out.push_str("<h2>What it was</h2><section class=\"notice\"><p>");
    out.push_str(&escape(&result.teaches));
    let _ = write!(
        out,
        "</p><p>Run it again: <code>{}</code></p></section>",
        escape(&result.rerun)
    );
    for note in &result.notes {
        let _ = write!(out, "<p class=\"notice\">{}</p>", escape(note));
    }
    out.push_str("<footer>Made by holdfast chaos. Figures come from the recorded history of every operation and from what each node said of its shards. <b>Unknown</b> outcomes may have happened or not, and are never counted as loss. Detection and election are measured by asking every node five times a second. The files beside this one hold the evidence.</footer></main></body></html>\n");
    out
}

fn banner(result: &DrillResult, out: &mut String) {
    let (class, word) = match result.verdict {
        Verdict::Pass => ("pass", "Passed"),
        Verdict::Violation => ("fail", "Violation"),
        Verdict::HarnessFailure => ("none", "Harness failure"),
    };
    let reasons: String = result
        .reasons
        .iter()
        .map(|reason| format!("<li>{}</li>", escape(reason)))
        .collect();
    let said = match result.verdict {
        Verdict::HarnessFailure => {
            "<p class=\"meta\">The bench broke. This says nothing about the product, in either direction.</p>"
        }
        _ => "",
    };
    let _ = write!(
        out,
        "<header class=\"{class}\"><div><p class=\"kicker\">Failure drill</p><h1>{}</h1><p>{}</p><p class=\"meta\">{} nodes · {} shards · {} devices · {} · seed {} · {}</p></div><div class=\"verdict\"><strong>{word}</strong><ul>{reasons}</ul>{said}</div></header>\n<main>\n",
        escape(&result.name),
        escape(&result.title),
        result.nodes.len(),
        result.shards,
        grouped(u64::from(result.devices)),
        escape(&when(result.began_unix_us)),
        result.seed,
        escape(&result.version),
    );
}

fn when(unix_us: u64) -> String {
    let moment = time::OffsetDateTime::from_unix_timestamp((unix_us / 1_000_000) as i64);
    moment.map_or(String::new(), |moment| {
        let (date, time) = (moment.date(), moment.time());
        format!("{date} {:02}:{:02} UTC", time.hour(), time.minute())
    })
}

fn tiles(result: &DrillResult, line: &TimeLine, out: &mut String) {
    use simulator::audit::Fact;
    let count = |fact| {
        result
            .findings
            .as_ref()
            .map_or("not audited".to_owned(), |found| grouped(found.count(fact)))
    };
    let installed = result
        .faults
        .iter()
        .filter(|fault| fault.outcome == "installed")
        .count();
    let worst = |of: fn(&crate::run::Measured) -> Option<u64>| {
        let all = result.faults.iter().filter_map(|fault| of(fault.measured.as_ref()?));
        all.max().map_or("–".to_owned(), |us| millis(us as f64 / 1e3))
    };
    let tiles = [
        (
            "acknowledged",
            grouped(result.acknowledged),
            format!("of {} sent", grouped(result.sent)),
        ),
        ("lost", count(Fact::AckedSurvive), "acknowledged and not stored".into()),
        ("stored twice", count(Fact::StoredOnce), "under one message id".into()),
        (
            "faults",
            installed.to_string(),
            format!("{} skipped", result.faults.len() - installed),
        ),
        ("to detect", worst(|m| m.detect_us), "the slowest".into()),
        ("to elect", worst(|m| m.elect_us), "until every shard was led".into()),
        (
            "to recover",
            worst(|m| m.recover_us),
            "until every shard acknowledged".into(),
        ),
        (
            "to serve again",
            result
                .times
                .liveness_us
                .map_or("–".to_owned(), |us| millis(us as f64 / 1e3)),
            format!(
                "after a heal of {}; availability {}",
                millis(result.times.heal_us as f64 / 1e3),
                percent(whole(line))
            ),
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

fn percent(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), |share| format!("{:.2} %", share * 100.0))
}

fn whole(line: &TimeLine) -> Option<f64> {
    let all = line.shards.values().flatten();
    let (intended, served) = all.fold((0u64, 0u64), |(i, s), b| {
        (i + u64::from(b.intended), s + u64::from(b.served))
    });
    (intended > 0).then(|| served as f64 / intended as f64)
}

fn bands(result: &DrillResult) -> Vec<Band> {
    let phases = result.phases.iter().enumerate().map(|(at, phase)| Band {
        from_us: phase.from_us,
        to_us: phase.to_us,
        class: if at % 2 == 0 { "b0" } else { "b1" },
        title: phase.name.clone(),
    });
    let faults = result
        .faults
        .iter()
        .filter(|fault| fault.outcome != "skipped")
        .map(|fault| Band {
            from_us: fault.from_us,
            to_us: fault.to_us,
            class: "fault",
            title: describe(fault),
        });
    phases.chain(faults).collect()
}

fn describe(fault: &FaultRecord) -> String {
    let nodes: Vec<String> = fault.nodes.iter().map(u64::to_string).collect();
    match nodes.is_empty() {
        true => fault.id.clone(),
        false => format!("{} (node {})", fault.id, nodes.join(", ")),
    }
}

/// One time line: faults, throughput, latency, availability of every shard, on the same axis.
fn time_line(result: &DrillResult, line: &TimeLine, windows: &[Window], out: &mut String) {
    let end_us = result.phases.last().map_or(1, |phase: &Phase| phase.to_us).max(1);
    let bands = bands(result);
    out.push_str("<h2>What happened</h2>\n");
    lanes(result, end_us, out);
    let middle = |window: &Window| (window.from_us + window.to_us) / 2;
    let throughput = windows
        .iter()
        .map(|w| (middle(w), Some(w.counts.acked as f64 / w.seconds().max(0.001))));
    let connected = windows.iter().map(|w| (middle(w), Some(f64::from(w.states.connected))));
    out.push_str(&chart(&Chart {
        title: "Throughput",
        hint: "acknowledged messages a second, and connected devices",
        end_us,
        lines: vec![
            Line {
                name: "acknowledged a second".into(),
                class: "c1",
                points: throughput.collect(),
                fill: true,
            },
            Line {
                name: "devices connected".into(),
                class: "c3",
                points: connected.collect(),
                fill: false,
            },
        ],
        bands: &bands,
        marks: &[],
        logarithmic: false,
        unit: rate,
    }));
    let quantile = |window: &Window, q: f64| {
        let histogram = window.latency.histogram();
        (!histogram.is_empty()).then(|| histogram.value_at_quantile(q) as f64 / 1e3)
    };
    let latency = |q: f64| {
        windows
            .iter()
            .map(move |w| (middle(w), quantile(w, q)))
            .collect::<Vec<_>>()
    };
    out.push_str(&chart(&Chart {
        title: "Latency",
        hint: "of acknowledged messages, from their intended time",
        end_us,
        lines: vec![
            Line {
                name: "p50".into(),
                class: "c2",
                points: latency(0.5),
                fill: false,
            },
            Line {
                name: "p99".into(),
                class: "c4",
                points: latency(0.99),
                fill: false,
            },
        ],
        bands: &bands,
        marks: &[],
        logarithmic: true,
        unit: millis,
    }));
    availability(line, end_us, out);
}

/// A lane per fault, below each other.
fn lanes(result: &DrillResult, end_us: u64, out: &mut String) {
    let x = |at: u64| at as f64 / end_us as f64 * 1_000.0;
    let active: Vec<&FaultRecord> = result
        .faults
        .iter()
        .filter(|fault| fault.outcome != "skipped")
        .collect();
    let height = active.len().max(1) * 14;
    out.push_str("<figure class=\"chart\"><figcaption><b>Faults</b> <span class=\"hint\">when each was active; grey are the phases</span></figcaption><div class=\"strip lane\">");
    for (at, fault) in active.iter().enumerate() {
        let _ = write!(
            out,
            "<span class=\"name\" style=\"top:{:.1}%\">{}</span>",
            (at as f64 + 0.5) / active.len() as f64 * 100.0 - 3.0,
            escape(&short(&fault.id))
        );
    }
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 1000 {height}\" preserveAspectRatio=\"none\" style=\"height:{height}px\">"
    );
    for (at, phase) in result.phases.iter().enumerate().filter(|(at, _)| at % 2 == 1) {
        let _ = (
            at,
            write!(
            out,
            "<rect class=\"phase\" x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"{height}\"><title>{}</title></rect>",
            x(phase.from_us),
            x(phase.to_us) - x(phase.from_us),
            escape(&phase.name)
        ),
        );
    }
    for (at, fault) in active.iter().enumerate() {
        let _ = write!(
            out,
            "<rect class=\"fault\" x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"10\"><title>{}: {}</title></rect>",
            x(fault.from_us),
            at * 14 + 2,
            (x(fault.to_us) - x(fault.from_us)).max(2.0),
            escape(&describe(fault)),
            escape(&fault.why)
        );
    }
    out.push_str("</svg></div></figure>\n");
}

fn short(id: &str) -> String {
    id.chars().take(16).collect()
}

/// A row per shard, a cell per second.
fn availability(line: &TimeLine, end_us: u64, out: &mut String) {
    const ROW: usize = 10;
    let columns = (end_us / 1_000_000 + 1) as usize;
    let (wide, height) = (1_000.0 / columns as f64, line.shards.len().max(1) * ROW);
    out.push_str("<figure class=\"chart\"><figcaption><b>Availability of every shard</b> <span class=\"hint\">share of the messages intended in each second that were acknowledged within two</span></figcaption><div class=\"strip\">");
    for (row, shard) in line.shards.keys().enumerate() {
        let top = row as f64 / line.shards.len() as f64 * 100.0;
        let _ = write!(out, "<span class=\"name\" style=\"top:{top:.2}%\">shard {shard}</span>");
    }
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 1000 {height}\" preserveAspectRatio=\"none\" style=\"height:{height}px\">"
    );
    for (row, (shard, buckets)) in line.shards.iter().enumerate() {
        for (at, bucket) in buckets.iter().enumerate().take(columns) {
            if bucket.intended == 0 {
                continue;
            }
            let _ = write!(
                out,
                "<rect class=\"{}\" x=\"{:.2}\" y=\"{}\" width=\"{:.2}\" height=\"{}\"><title>shard {shard}, {at} s: {} of {} served, worst {}</title></rect>",
                class(bucket),
                at as f64 * wide,
                row * ROW,
                wide,
                ROW - 1,
                bucket.served,
                bucket.intended,
                millis(bucket.worst_us as f64 / 1e3)
            );
        }
    }
    out.push_str("</svg></div><div class=\"legend\"><span>green: all served within half a second</span><span>yellow: most, or later</span><span>orange: some</span><span>red: none</span></div></figure>\n");
}

fn class(bucket: &Bucket) -> &'static str {
    match f64::from(bucket.served) / f64::from(bucket.intended.max(1)) {
        share if share >= 0.999 && bucket.worst_us < LATE_US => "a4",
        share if share >= 0.5 => "a3",
        share if share > 0.0 => "a2",
        _ => "a1",
    }
}

fn span(us: Option<u64>) -> String {
    us.map_or("–".to_owned(), |us| millis(us as f64 / 1e3))
}

fn faults(result: &DrillResult, out: &mut String) {
    out.push_str("<h2>Faults</h2><div class=\"scroll\"><table><thead><tr><th>fault</th><th>on</th><th>by</th><th>from</th><th>for</th><th>outcome</th><th>detect</th><th>elect</th><th>recover</th><th>what was done</th></tr></thead><tbody>");
    for fault in &result.faults {
        let nodes: Vec<String> = fault.nodes.iter().map(u64::to_string).collect();
        let measured = fault.measured.clone().unwrap_or_default();
        let class = if fault.outcome == "installed" { "ok" } else { "soft" };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}{}</td></tr>",
            escape(&fault.id),
            escape(&fault.on),
            escape(&nodes.join(", ")),
            escape(&fault.mechanism),
            stretch(fault.from_us),
            stretch(fault.to_us.saturating_sub(fault.from_us)),
            escape(&fault.outcome),
            span(measured.detect_us),
            span(measured.elect_us),
            span(measured.recover_us),
            escape(&fault.why),
            fault.problem.as_ref().map_or(String::new(), |why| format!(" <span class=\"no\">not undone: {}</span>", escape(why))),
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn impact(result: &DrillResult, out: &mut String) {
    out.push_str("<h2>Predicted and measured</h2><div class=\"scroll\"><table><thead><tr><th>fault</th><th>shards that lose their leader</th><th>devices that reconnect</th><th>a majority goes on</th></tr></thead><tbody>");
    let yes = |is: bool| if is { "yes" } else { "no" };
    let mut row = |name: &str, predicted: &Impact, measured: &Impact| {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{} → {}</td><td>{} → {}</td><td>{} → {}</td></tr>",
            escape(name),
            predicted.shards_leaderless,
            measured.shards_leaderless,
            predicted.devices_reconnect,
            measured.devices_reconnect,
            yes(predicted.majority_survives),
            yes(measured.majority_survives)
        );
    };
    for fault in &result.faults {
        if let Some(measured) = &fault.measured {
            row(&fault.id, &fault.predicted, &measured.impact);
        }
    }
    row("the worst of all", &result.impacts.predicted, &result.impacts.measured);
    out.push_str("</tbody></table></div>\n");
    let score = result.impacts.score.map_or("nothing to score".to_owned(), |score| {
        format!(
            "{:.0} % of the figures were predicted rightly (within a quarter, or two)",
            score * 100.0
        )
    });
    let _ = write!(out, "<p class=\"hint\">Left of the arrow what was predicted from who led and voted at that moment, right of it what was seen. {}. Expected by whoever wrote the drill: {}</p>", escape(&score), escape(&result.impacts.expected));
}

fn invariants(result: &DrillResult, out: &mut String) {
    out.push_str("<h2>What had to hold</h2><div class=\"scroll\"><table><thead><tr><th>invariant</th><th></th><th>says</th><th>judged from</th></tr></thead><tbody>");
    for ruling in &result.rulings {
        let (class, word) = match ruling.holds {
            Holds::Yes => ("ok", "holds".to_owned()),
            Holds::No => ("no", format!("broken {} times", ruling.count)),
            Holds::NotJudged => ("soft", "not judged".to_owned()),
        };
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td class=\"{class}\">{word}</td><td>{}</td><td>{}</td></tr>",
            escape(&ruling.invariant),
            escape(&ruling.sentence),
            escape(&ruling.evidence)
        );
    }
    out.push_str("</tbody></table></div>\n");
    result.broken().for_each(|ruling| breaches(ruling, out));
}

fn breaches(ruling: &Ruling, out: &mut String) {
    let _ = write!(
        out,
        "<h2>{}, broken</h2><div class=\"scroll\"><table><thead><tr><th>at</th><th>what</th><th>receipt</th><th>active then</th><th>look at</th></tr></thead><tbody>",
        escape(&ruling.invariant)
    );
    for breach in ruling.breaches.iter().take(TOLD) {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
            if breach.at_us > 0 {
                stretch(breach.at_us)
            } else {
                String::new()
            },
            escape(&breach.what),
            escape(breach.receipt.as_deref().unwrap_or("")),
            escape(breach.during.as_deref().unwrap_or("")),
            escape(&breach.file)
        );
    }
    out.push_str("</tbody></table></div>\n");
}
