//! `report.html`: one file without anything from elsewhere, to be sent to a colleague or customer.
//!
//! What is drawn over time is in `over_time`, what the nodes tell in `nodes`, and tables in `tables`.

mod nodes;
mod over_time;
mod tables;

use std::fmt::Write;

use super::junit::escape;
use super::numbers::{grouped, millis, rate, stretch};
use super::page::{foot, head};
use super::{Report, Series, Verdict};
use crate::audit::Fact;

pub fn page(report: &Report, series: &Series) -> String {
    let mut out = head(&report.run.name);
    banner(report, &mut out);
    tiles(report, &mut out);
    notices(report, &mut out);
    over_time::charts(report, series, &mut out);
    tables::results(report, &mut out);
    tables::audit(report, &mut out);
    nodes::charts(report, series, &mut out);
    tables::configuration(report, &mut out);
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
