//! After a run: reads the cluster back if that was asked for, judges, writes the reports.
//!
//! Works on a directory, right after the run or years later; `sim audit` and `sim report` are the
//! same thing again.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use super::{compute, Report, ReportError};
use crate::audit::{audit, AuditError, Claims, Findings, HttpSource};
use crate::drive::endpoints::BadEndpoints;
use crate::drive::Endpoints;
use crate::plan::Plan;
use crate::run::api::runtime;
use crate::run::directory::{RunDir, RunFile};
use crate::scenario::{self, LoadError, TargetKind};

#[derive(Debug, thiserror::Error)]
pub enum ConcludeError {
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("the scenario of the run: {0}")]
    Scenario(#[from] LoadError),
    #[error(transparent)]
    Endpoints(#[from] BadEndpoints),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("{0}")]
    Disk(#[from] std::io::Error),
}

/// What becomes of the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auditing {
    /// Read the cluster back now. `read` counts.
    Now,
    /// Take what an earlier audit of this run found, if there was one.
    Earlier,
}

/// Audits, judges and writes. An audit that fails is told in the report, which is written all the
/// same; then the error is returned beside it.
///
/// # Errors
/// The directory holds no run, or something cannot be read or written.
pub fn conclude(
    dir: &Path,
    auditing: Auditing,
    read: &AtomicU64,
) -> Result<(Report, Option<ConcludeError>), ConcludeError> {
    let files = RunDir(dir.to_owned());
    let run: RunFile = files.read_json("run.json")?;
    let mut problem = None;
    let (findings, why_not) = match auditing {
        Auditing::Earlier => {
            let earlier = files.read_json::<Findings>("audit.json").ok();
            let why = earlier.is_none().then(|| "this run was not audited".to_owned());
            (earlier, why)
        }
        Auditing::Now => match audit_now(&files, &run, read) {
            Ok(Ok(findings)) => (Some(findings), None),
            Ok(Err(why)) => (None, Some(why)),
            Err(error) => {
                let why = error.to_string();
                problem = Some(error);
                (None, Some(why))
            }
        },
    };
    let (mut report, series) = compute(dir, findings, why_not)?;
    if let Some(error) = &problem {
        report.audit_failed(&error.to_string());
    }
    report.write(dir, &series)?;
    Ok((report, problem))
}

/// The inner error says why there is nothing to audit.
fn audit_now(files: &RunDir, run: &RunFile, read: &AtomicU64) -> Result<Result<Findings, String>, ConcludeError> {
    let loaded = scenario::load(&files.file("scenario.toml"))?;
    if !loaded.scenario.audit.enabled {
        return Ok(Err("the scenario does not want it".into()));
    }
    if loaded.scenario.target.kind == TargetKind::Mqtt {
        return Ok(Err(
            "the target is a plain MQTT broker, which cannot be read back".into()
        ));
    }
    let endpoints = Endpoints::resolve(&loaded)?;
    if endpoints.http.is_empty() {
        return Ok(Err("the target names no HTTP endpoint to read back from".into()));
    }
    let deadline = loaded.scenario.audit.read_deadline.0;
    let plan = Plan::new(Arc::new(loaded));
    let source = HttpSource::new(&endpoints, deadline).map_err(AuditError::from)?;
    let claims = Claims {
        plan: &plan,
        history: &files.history(),
        runs: &run.runs,
        sending_ended_us: run.sending_ended_us.unwrap_or(0),
        scratch: files.file("audit-scratch"),
        read,
    };
    let mut findings = runtime()?.block_on(audit(&claims, &source))?;
    if let Some(samples) = &run.samples {
        // What a sample saw broken is broken, even if it looks well now.
        for violation in &samples.violations {
            if !findings.violations.contains(violation) {
                findings.violate(violation.clone());
            }
        }
    }
    files.write_json("audit.json", &findings)?;
    Ok(Ok(findings))
}

impl Report {
    /// A pass that could not be audited is none.
    fn audit_failed(&mut self, why: &str) {
        self.warnings.push(format!("the audit could not be finished: {why}"));
        if self.verdict == super::Verdict::Pass {
            self.verdict = super::Verdict::HarnessFailure;
            self.reasons = vec![format!("the audit could not be finished: {why}")];
        }
    }
}
