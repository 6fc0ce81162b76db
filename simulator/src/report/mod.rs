//! What a run says in the end: for people, machines and continuous integration.
//!
//! Everything is computed from the run's directory, so that it can be made again at any time, and
//! every total from the history.

pub mod charts;
pub mod conclude;
mod html;
mod judge;
pub mod junit;
pub mod live;
pub mod metrics;
pub mod numbers;
pub mod page;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::audit::Findings;
use crate::drive::tally::{Counts, Tally};
use crate::haul::{self, Growth, NodeSample};
use crate::history::summary::{summarise, Summary};
use crate::history::{Broken, Ending};
use crate::run::directory::{read_lines, RunDir, RunFile};
use crate::run::window::Window;
use crate::scenario::{self, Thresholds};
use numbers::Latency;

pub use judge::{Check, Verdict};

/// Send lag beyond which the generator is called the bottleneck. Unit: ms.
const LAG_WARNING_MS: f64 = 20.0;

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    History(#[from] Broken),
}

/// What happened in one phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseFigures {
    pub title: String,
    pub kind: String,
    pub start_us: u64,
    pub end_us: u64,
    pub counts: Counts,
    pub acked_per_second: f64,
    pub latency: Latency,
}

/// `report.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub warnings: Vec<String>,
    pub run: RunFile,
    /// From the history.
    pub counts: Counts,
    pub latency_ms: Latency,
    pub report_latency_ms: Latency,
    pub connect_ms: Latency,
    /// The generator's own delay.
    pub send_lag_ms: Latency,
    pub acked_per_second: f64,
    /// The longest that one device waited for an answer to something it had sent.
    #[serde(default)]
    pub longest_wait_ms: f64,
    pub operations: u64,
    pub operator: std::collections::BTreeMap<String, [u64; 3]>,
    pub errors: std::collections::BTreeMap<String, u64>,
    pub phases: Vec<PhaseFigures>,
    pub checks: Vec<Check>,
    pub audit: Option<Findings>,
    /// Why there is no audit, if there is none.
    pub not_audited: Option<String>,
    pub growth: Vec<Growth>,
}

/// What charts are drawn from, beside the report.
pub struct Series {
    pub windows: Vec<Window>,
    pub nodes: Vec<NodeSample>,
}

/// Computes the report of a run.
///
/// # Errors
/// Its files or its history cannot be read.
pub fn compute(
    dir: &Path,
    audit: Option<Findings>,
    not_audited: Option<String>,
) -> Result<(Report, Series), ReportError> {
    let files = RunDir(dir.to_owned());
    let run: RunFile = files.read_json("run.json")?;
    // Only the thresholds are of interest: traces and names need not be there any more.
    let text = std::fs::read_to_string(files.file("scenario.toml"))?;
    let scenario: scenario::Scenario = toml::from_str(&text).map_err(io::Error::other)?;
    let series = Series {
        windows: files.windows()?,
        nodes: read_lines(&files.file("nodes.jsonl"))?,
    };
    let summary = summarise(&files.history())?;
    Ok((
        assemble(run, &scenario.thresholds, &series, &summary, audit, not_audited),
        series,
    ))
}

fn assemble(
    run: RunFile,
    thresholds: &Thresholds,
    series: &Series,
    summary: &Summary,
    audit: Option<Findings>,
    not_audited: Option<String>,
) -> Report {
    let mut live = Tally::default();
    series.windows.iter().for_each(|window| window.add_to(&mut live));
    let counts = whole_counts(&summary.counts, &live.counts);
    let latency = Latency::from(&summary.latency);
    let lag = Latency::from(&live.lag);
    let growth = haul::findings(&series.nodes, &series.windows);
    let facts = judge::Facts {
        run: &run,
        counts: &counts,
        latency: &latency,
        lag: &lag,
        growth: &growth,
    };
    let checks = judge::checks(thresholds, &facts);
    let harness = disagreements(&run, summary, &live);
    let (verdict, reasons) = judge::verdict(&run, &counts, &checks, audit.as_ref(), &harness);
    let seconds = run.sending_ended_us.unwrap_or(run.planned_us).max(1) as f64 / 1e6;
    Report {
        verdict,
        reasons,
        warnings: warnings(&run, thresholds, &lag, &counts, &growth),
        acked_per_second: counts.acked as f64 / seconds,
        counts,
        latency_ms: latency,
        report_latency_ms: Latency::from(&summary.report_latency),
        connect_ms: Latency::from(&live.connect_time),
        send_lag_ms: lag,
        longest_wait_ms: summary.longest_wait_us as f64 / 1e3,
        operations: summary.records,
        operator: summary
            .operator
            .iter()
            .map(|(kind, row)| ((*kind).to_owned(), *row))
            .collect(),
        errors: live.errors,
        phases: phases(&run, &series.windows),
        checks,
        audit,
        not_audited,
        growth,
        run,
    }
}

/// The history's counts, and from the live ones what a history does not hold.
fn whole_counts(history: &Counts, live: &Counts) -> Counts {
    Counts {
        resent: live.resent,
        payload_bytes: live.payload_bytes,
        method_calls: live.method_calls,
        acks_foreign: live.acks_foreign,
        malformed: live.malformed,
        ..*history
    }
}

/// Live figures and history must agree where both know everything.
fn disagreements(run: &RunFile, summary: &Summary, live: &Tally) -> Vec<String> {
    if run.incomplete.is_some()
        || summary
            .tails
            .iter()
            .any(|tail| tail.ending != Ending::Closed || tail.missing_segments > 0)
    {
        return Vec::new();
    }
    let (a, b) = (&summary.counts, &live.counts);
    let pairs = [
        ("sent", a.sent, b.sent),
        ("acknowledged", a.acked, b.acked),
        ("refused", a.refused, b.refused),
        ("unknown", a.unknown, b.unknown),
        ("dropped", a.dropped, b.dropped),
        ("reports acknowledged", a.reports_acked, b.reports_acked),
        ("latencies", summary.latency.len(), live.latency.len()),
    ];
    let differ = pairs.into_iter().filter(|(_, history, live)| history != live);
    differ
        .map(|(what, history, live)| {
            format!("{what}: the history says {history}, the live figures {live}: a fault of the simulator")
        })
        .collect()
}

fn warnings(run: &RunFile, thresholds: &Thresholds, lag: &Latency, counts: &Counts, growth: &[Growth]) -> Vec<String> {
    let mut found = Vec::new();
    if run.loop_mode == "closed" {
        found.push("closed loop: devices wait for answers before they send, so a stalled server is asked less and its stalls hardly show in these latencies".to_owned());
    } else if lag.p99 > LAG_WARNING_MS {
        found.push(format!(
            "the generator was the bottleneck: its own delay had a 99th percentile of {}, which is part of the latencies here; use more threads or workers, or less load",
            numbers::millis(lag.p99)
        ));
    }
    if counts.unconfirmed > 0 {
        found.push(format!(
            "{} messages were sent with QoS 0: nobody knows what became of them, and they are in no latency",
            numbers::grouped(counts.unconfirmed)
        ));
    }
    if counts.dropped > 0 {
        found.push(format!("{} messages fell due and were never sent: no room in a queue or window, or still waiting when the run ended", numbers::grouped(counts.dropped)));
    }
    if counts.connects_failed > 0 && run.connected_at_end < run.devices {
        found.push(format!(
            "{} of {} devices were not connected when sending ended, after {} failed attempts; the errors say why",
            numbers::grouped(u64::from(run.devices - run.connected_at_end)),
            numbers::grouped(u64::from(run.devices)),
            numbers::grouped(counts.connects_failed)
        ));
    }
    if let Some(why) = &run.incomplete {
        found.push(format!("this run is incomplete: {why}"));
    }
    if !run.is_whole() && (thresholds.throughput_min.is_some() || thresholds.connected_share_min.is_some()) {
        found.push("throughput and devices connected at the end are judged of whole runs only".to_owned());
    }
    let growing = growth.iter().filter(|growth| growth.hours_left.is_some());
    found.extend(growing.map(|growth| growth.text.clone()));
    found
}

fn phases(run: &RunFile, windows: &[Window]) -> Vec<PhaseFigures> {
    let figures = run.phases.iter().map(|span| {
        let mut tally = Tally::default();
        let inside = windows.iter().filter(|window| {
            let middle = (window.from_us + window.to_us) / 2;
            (span.start_us..span.end_us).contains(&middle)
        });
        let mut covered = 0;
        for window in inside {
            window.add_to(&mut tally);
            covered += window.to_us - window.from_us;
        }
        PhaseFigures {
            title: span.title.clone(),
            kind: span.kind.clone(),
            start_us: span.start_us,
            end_us: span.end_us,
            acked_per_second: tally.counts.acked as f64 / (covered.max(1) as f64 / 1e6),
            latency: Latency::from(&tally.latency),
            counts: tally.counts,
        }
    });
    figures.collect()
}

impl Report {
    /// Writes `report.json`, `report.html` and `junit.xml` into the run's directory.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn write(&self, dir: &Path, series: &Series) -> io::Result<()> {
        let files = RunDir(dir.to_owned());
        files.write_json("report.json", self)?;
        files.write("junit.xml", junit::xml(self).as_bytes())?;
        files.write("report.html", html::page(self, series).as_bytes())
    }
}
