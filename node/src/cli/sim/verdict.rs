//! `sim report`, `sim audit` and `sim history`, and how a verdict is printed.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use simulator::audit::Fact;
use simulator::history::{self, Ending, Record};
use simulator::plan::Plan;
use simulator::report::conclude::{conclude, Auditing, ConcludeError};
use simulator::report::numbers::{grouped, millis, rate};
use simulator::report::{Report, Verdict};
use simulator::scenario;

use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// Violations printed; the report has more.
const TOLD: usize = 20;
/// Kinds of errors printed, the most frequent first.
const ERRORS_TOLD: usize = 5;

#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// The directory of a run, or a file in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl ReportArgs {
    fn directory(&self) -> &Path {
        match self.dir.is_file() {
            true => self.dir.parent().unwrap_or(Path::new(".")),
            false => &self.dir,
        }
    }
}

pub fn report(args: &ReportArgs, output: Output) -> Result<u8, Failure> {
    finish(args, Auditing::Earlier, output)
}

pub fn audit(args: &ReportArgs, output: Output) -> Result<u8, Failure> {
    finish(args, Auditing::Now, output)
}

/// Prints the history, a JSON object per line, as it is read.
///
/// # Errors
/// DIR is no run, or its history is damaged.
pub fn history(args: &ReportArgs) -> Result<u8, Failure> {
    let dir = args.directory();
    let loaded = scenario::load(&dir.join("scenario.toml"));
    let loaded = loaded.map_err(|error| unreadable(&ConcludeError::Scenario(error)))?;
    let plan = Plan::new(Arc::new(loaded));
    let mut out = BufWriter::new(std::io::stdout().lock());
    // A reader that went away (`| head`) is no failure.
    let mut is_read = true;
    let print = |record: Record| {
        if is_read {
            let (device, _) = plan.roster.subject_id(&plan.loaded, record.subject());
            is_read = writeln!(out, "{}", history::export::entry(&record, &device)).is_ok();
        }
    };
    let read = history::read(&dir.join("history"), print);
    let tails = read.map_err(|error| unreadable(&ConcludeError::Report(error.into())))?;
    let _ = out.flush();
    if tails.iter().any(|tail| tail.ending != Ending::Closed) {
        output::warn("the history has no end: its run was broken off, or still goes on");
    }
    Ok(Exit::Success as u8)
}

fn finish(args: &ReportArgs, auditing: Auditing, output: Output) -> Result<u8, Failure> {
    let dir = args.directory();
    let (report, problem) = conclude(dir, auditing, &AtomicU64::new(0)).map_err(|error| unreadable(&error))?;
    print(&report, dir, output);
    match problem {
        Some(problem) if report.verdict != Verdict::Violation => Err(unreadable(&problem)),
        _ => Ok(report.verdict.exit_code()),
    }
}

pub fn unreadable(error: &ConcludeError) -> Failure {
    let (exit, advice) = match error {
        ConcludeError::Endpoints(_) | ConcludeError::Audit(_) => (
            Exit::Unavailable,
            "see that the cluster runs and that the token of [target] is its operator's, then: holdfast sim audit DIR",
        ),
        ConcludeError::Scenario(_) => (Exit::BadInput, "the directory has to be that of a run"),
        ConcludeError::Report(_) | ConcludeError::Disk(_) => {
            (Exit::Disk, "the directory has to be that of a run, with its history")
        }
    };
    Failure::new(exit, "the run could not be judged")
        .because(error)
        .advise(advice)
}

/// The result, on standard output. The verdict is the last line, whatever was found.
pub fn print(report: &Report, dir: &Path, output: Output) {
    if output == Output::Json {
        output::json(&json!(report));
        return;
    }
    let (counts, latency) = (&report.counts, &report.latency_ms);
    if report.run.loop_mode == "closed" {
        output::line("CLOSED LOOP: devices waited for answers, so stalls hardly show in these latencies");
    }
    output::line(&format!(
        "{} sent, {} acknowledged ({}/s), {} refused, {} without an answer, {} dropped",
        grouped(counts.sent),
        grouped(counts.acked),
        rate(report.acked_per_second),
        grouped(counts.refused),
        grouped(counts.unknown),
        grouped(counts.dropped),
    ));
    if latency.count > 0 {
        let parts = latency.rows().map(|(name, ms)| format!("{name} {}", millis(ms)));
        output::line(&format!("latency from intended time: {}", parts.join(", ")));
    }
    let mut errors: Vec<_> = report.errors.iter().collect();
    errors.sort_by(|a, b| b.1.cmp(a.1));
    let told = errors.into_iter().take(ERRORS_TOLD);
    let told: Vec<String> = told
        .map(|(kind, count)| format!("{} × {kind}", grouped(*count)))
        .collect();
    if !told.is_empty() {
        output::line(&format!("errors: {}", told.join("; ")));
    }
    let rows = report.checks.iter().map(|check| {
        let word = if check.holds { "holds" } else { "BROKEN" };
        vec![
            check.name.clone(),
            check.limit.clone(),
            check.value.clone(),
            word.to_owned(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        output::table(&["threshold", "allowed", "measured", ""], rows);
    }
    match (&report.audit, &report.not_audited) {
        (Some(audit), _) => {
            output::line(&format!(
                "audit: {} operations against {} stored messages; lost {}, stored twice {}, {} violations in all",
                grouped(audit.operations),
                grouped(audit.stored),
                grouped(audit.count(Fact::AckedSurvive)),
                grouped(audit.count(Fact::StoredOnce)),
                grouped(audit.counts.values().sum())
            ));
            audit
                .violations
                .iter()
                .take(TOLD)
                .for_each(|violation| output::line(&format!("BROKEN {violation}")));
        }
        (None, Some(why)) => output::line(&format!("no audit: {why}")),
        (None, None) => {}
    }
    report
        .warnings
        .iter()
        .for_each(|warning| output::line(&format!("note: {warning}")));
    output::line(&format!("report: {}", dir.join("report.html").display()));
    output::line(&format!("verdict: {}: {}", report.verdict, report.reasons.join("; ")));
}
