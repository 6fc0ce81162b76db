//! `sim report` and `sim audit`, and how a verdict is printed.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use clap::Args;
use serde_json::json;
use simulator::audit::Fact;
use simulator::report::conclude::{conclude, Auditing, ConcludeError};
use simulator::report::numbers::{grouped, millis, rate};
use simulator::report::{Report, Verdict};

use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// Violations printed; the report has more.
const TOLD: usize = 20;

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
        ConcludeError::Endpoints(_) | ConcludeError::Audit(_) => {
            (Exit::Unavailable, "start the cluster, then: holdfast sim audit DIR")
        }
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
