//! Everything that is a table: thresholds, percentiles, phases, errors, the audit, how it was run.

use std::fmt::Write;

use crate::audit::Fact;
use crate::report::junit::escape;
use crate::report::numbers::{grouped, millis, rate, stretch};
use crate::report::Report;

/// Violations told on the page; the JSON has more.
const TOLD: usize = 100;

pub fn results(report: &Report, out: &mut String) {
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
    let columns = [
        &report.latency_ms,
        &report.report_latency_ms,
        &report.connect_ms,
        &report.send_lag_ms,
    ];
    let rows = (0..9).map(|at| {
        let mut row = vec![report.latency_ms.rows()[at].0.to_owned()];
        row.extend(columns.iter().map(|latency| match latency.count {
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
            format!(
                "<span class=\"line\">{} – {}</span>",
                stretch(phase.start_us),
                stretch(phase.end_us)
            ),
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

pub fn audit(report: &Report, out: &mut String) {
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

pub fn configuration(report: &Report, out: &mut String) {
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

pub fn table(title: &str, header: &[&str], rows: Vec<Vec<String>>, out: &mut String) {
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
