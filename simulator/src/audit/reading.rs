//! Brings a history and a cluster together, in pieces that fit into memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt};

use super::findings::{Fact, Findings, Violation};
use super::ledger::Ledger;
use super::source::{Source, Twins};
use super::telemetry::Comparison;
use super::twin::{self, Final};
use crate::history::{self, Broken, Ending, Header, Writer};
use crate::plan::Plan;
use crate::run::api::ApiError;

/// Operations held in memory at a time.
const OPERATIONS_MAX: u64 = 2_000_000;
/// Pieces a large history is divided into; beyond, pieces get larger.
const PIECES_MAX: u64 = 256;
/// Subjects read at the same time.
const READERS: usize = 16;

const NOTHING: Final = Final { version: 0, mark: None };
/// The twin of a device that is not there.
const NO_TWINS: Twins = Twins {
    desired: NOTHING,
    reported: NOTHING,
};

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the history: {0}")]
    History(#[from] Broken),
    #[error("the cluster could not be read back: {0}")]
    Cluster(#[from] ApiError),
    #[error("the audit's own files: {0}")]
    Disk(#[from] std::io::Error),
}

/// What an audit is told beside history and cluster.
pub struct Claims<'a> {
    pub plan: &'a Plan,
    pub history: &'a Path,
    /// Runs of this history, in order; part `r0-…` belongs to the first.
    pub runs: &'a [u32],
    /// When devices were told to leave; real µs. Desired changes are judged up to here.
    pub sending_ended_us: u64,
    /// Room for pieces of a history that does not fit into memory.
    pub scratch: PathBuf,
    /// Messages read back so far.
    pub read: &'a AtomicU64,
}

/// Audits everything.
///
/// # Errors
/// History or cluster cannot be read; the findings would be incomplete, so there are none.
pub async fn audit(claims: &Claims<'_>, source: &impl Source) -> Result<Findings, AuditError> {
    let mut per_subject = vec![0u32; claims.plan.roster.subjects() as usize];
    let mut unknown_subjects = 0u64;
    let parts = history::parts(claims.history)?;
    let mut is_complete = true;
    let mut findings = Findings::default();
    for part in &parts {
        let tail = history::read_part(
            part,
            &mut |record| match per_subject.get_mut(record.subject() as usize) {
                Some(count) => *count += 1,
                None => unknown_subjects += 1,
            },
        )?;
        if tail.ending != Ending::Closed {
            is_complete = false;
            findings.remarks.push(format!(
                "part {} of the history ends early: what it does not know is not judged",
                part.part
            ));
        }
        if tail.missing_segments > 0 {
            is_complete = false;
            findings.remarks.push(format!(
                "the first {} segments of part {} were deleted to save room and are not judged",
                tail.missing_segments, part.part
            ));
        }
    }
    if unknown_subjects > 0 {
        findings.remarks.push(format!(
            "{unknown_subjects} records are of devices that this scenario does not have"
        ));
    }
    let pieces = divide(&per_subject);
    let files = split(claims, &parts, &pieces)?;
    for (at, piece) in pieces.iter().enumerate() {
        let ledgers = match &files {
            None => load(claims, &parts, piece.clone())?,
            Some(files) => load_pieces(claims, &files[at], piece.clone())?,
        };
        findings.add(judge(claims, source, ledgers, is_complete, true).await?);
    }
    if files.is_some() {
        std::fs::remove_dir_all(&claims.scratch)?;
    }
    Ok(findings)
}

/// Audits some subjects while the run goes on: what the history has now must be in the cluster
/// afterwards. Final states are not judged.
///
/// # Errors
/// As [`audit`].
pub async fn sample(claims: &Claims<'_>, source: &impl Source, subjects: &[u32]) -> Result<Findings, AuditError> {
    let mut ledgers: BTreeMap<u32, Ledger> = subjects.iter().map(|subject| (*subject, Ledger::default())).collect();
    for part in history::parts(claims.history)? {
        let run = run_of(&part.part, claims.runs);
        history::read_part(&part, &mut |record| {
            if let Some(ledger) = ledgers.get_mut(&record.subject()) {
                ledger.add(&record, run);
            }
        })?;
    }
    judge(claims, source, ledgers, false, false).await
}

/// `r2-w0-t1` was recorded by the third run.
fn run_of(part: &str, runs: &[u32]) -> u32 {
    let digits = part.strip_prefix('r').and_then(|rest| rest.split('-').next());
    let at = digits.and_then(|digits| digits.parse::<usize>().ok()).unwrap_or(0);
    runs.get(at).copied().unwrap_or(0)
}

/// Ranges of subjects with so few operations that they fit.
fn divide(per_subject: &[u32]) -> Vec<std::ops::Range<u32>> {
    let total: u64 = per_subject.iter().map(|count| u64::from(*count)).sum();
    let most = OPERATIONS_MAX.max(total / PIECES_MAX);
    let (mut pieces, mut begin, mut held) = (Vec::new(), 0u32, 0u64);
    for (at, count) in per_subject.iter().enumerate() {
        if held > 0 && held + u64::from(*count) > most {
            pieces.push(begin..at as u32);
            (begin, held) = (at as u32, 0);
        }
        held += u64::from(*count);
    }
    pieces.push(begin..per_subject.len() as u32);
    pieces
}

/// Copies a history that does not fit into a directory per piece. `None`: it fits.
fn split(
    claims: &Claims<'_>,
    parts: &[history::PartPath],
    pieces: &[std::ops::Range<u32>],
) -> Result<Option<Vec<PathBuf>>, AuditError> {
    if pieces.len() == 1 {
        return Ok(None);
    }
    let _ = std::fs::remove_dir_all(&claims.scratch);
    let dirs: Vec<PathBuf> = (0..pieces.len())
        .map(|at| claims.scratch.join(at.to_string()))
        .collect();
    for (number, _) in claims.runs.iter().enumerate() {
        let prefix = format!("r{number}-");
        let create = |dir: &PathBuf| {
            let header = Header::new(claims.runs[number], &format!("r{number}-piece"), "audit", 0);
            Writer::create(dir, header, None)
        };
        let mut writers = dirs.iter().map(create).collect::<Result<Vec<_>, _>>()?;
        for part in parts.iter().filter(|part| part.part.starts_with(&prefix)) {
            history::read_part(part, &mut |record| {
                let subject = record.subject();
                let at = pieces.partition_point(|piece| piece.end <= subject);
                if let Some(writer) = writers.get_mut(at) {
                    writer.record(&record);
                }
            })?;
        }
        for writer in writers {
            writer.close()?;
        }
    }
    Ok(Some(dirs))
}

fn load(
    claims: &Claims<'_>,
    parts: &[history::PartPath],
    subjects: std::ops::Range<u32>,
) -> Result<BTreeMap<u32, Ledger>, AuditError> {
    let mut ledgers: BTreeMap<u32, Ledger> = subjects.clone().map(|subject| (subject, Ledger::default())).collect();
    for part in parts {
        let run = run_of(&part.part, claims.runs);
        history::read_part(part, &mut |record| {
            if let Some(ledger) = ledgers.get_mut(&record.subject()) {
                ledger.add(&record, run);
            }
        })?;
    }
    Ok(ledgers)
}

fn load_pieces(
    claims: &Claims<'_>,
    dir: &Path,
    subjects: std::ops::Range<u32>,
) -> Result<BTreeMap<u32, Ledger>, AuditError> {
    load(claims, &history::parts(dir)?, subjects)
}

async fn judge(
    claims: &Claims<'_>,
    source: &impl Source,
    mut ledgers: BTreeMap<u32, Ledger>,
    is_complete: bool,
    is_final: bool,
) -> Result<Findings, AuditError> {
    // Nothing is asked of whom nothing is known.
    ledgers.retain(|_, ledger| ledger.operations > 0);
    let checks = ledgers
        .into_iter()
        .map(|(subject, ledger)| one(claims, source, subject, ledger, is_complete, is_final));
    let mut checks = stream::iter(checks).buffer_unordered(READERS);
    let mut whole = Findings::default();
    while let Some(found) = checks.next().await {
        whole.add(found?);
    }
    whole
        .violations
        .sort_by(|a, b| (a.fact, &a.device, a.n).cmp(&(b.fact, &b.device, b.n)));
    Ok(whole)
}

async fn one(
    claims: &Claims<'_>,
    source: &impl Source,
    subject: u32,
    mut ledger: Ledger,
    is_complete: bool,
    is_final: bool,
) -> Result<Findings, AuditError> {
    ledger.settle();
    let (id, _) = claims.plan.roster.subject_id(&claims.plan.loaded, subject);
    let registration = source.registration(&id).await?;
    let first_seq = registration.map_or(1, |registration| registration.first_seq);
    let mut comparison = Comparison::new(&id, &ledger, claims.runs, is_complete, first_seq);
    let mut after = first_seq - 1;
    while registration.is_some() && !ledger.messages.is_empty() {
        let page = source.telemetry(&id, after).await?;
        claims.read.fetch_add(page.len() as u64, Ordering::Relaxed);
        page.iter().for_each(|stored| comparison.stored(stored));
        match page.last() {
            // A page that does not advance would be read for ever.
            Some(last) if last.seq > after => after = last.seq,
            _ => break,
        }
    }
    let mut findings = comparison.finish();
    let wrote = ledger
        .desired
        .iter()
        .chain(&ledger.reported)
        .any(|op| twin::is_write(op.kind));
    let twins = match is_final && wrote {
        // A device that nobody knows any more holds nothing.
        true => Some(source.twins(&id).await?.unwrap_or(NO_TWINS)),
        false => None,
    };
    let sections = [
        ("desired", &ledger.desired, twins.map(|twins| twins.desired)),
        ("reported", &ledger.reported, twins.map(|twins| twins.reported)),
    ];
    for (section, ops, last) in sections {
        twin::check(&id, section, ops, last, &mut findings);
    }
    if is_final {
        reached(claims, subject, &id, &ledger, &mut findings);
    }
    Ok(findings)
}

/// The newest acknowledged change of desired properties must have come to a device that was
/// connected long enough after it.
fn reached(claims: &Claims<'_>, subject: u32, id: &str, ledger: &Ledger, findings: &mut Findings) {
    let plan = claims.plan;
    let profile = plan.loaded.profile(plan.roster.fleet_of_subject(subject));
    // Whoever steals ids or does not read cannot complain.
    if profile.twin.is_none() || profile.misbehave.is_some() {
        return;
    }
    let writes = ledger
        .desired
        .iter()
        .filter(|op| twin::is_write(op.kind) && op.version != 0);
    let (Some(newest), Some(since_us)) = (writes.max_by_key(|op| op.version), ledger.connected_since_us) else {
        return;
    };
    let patience = plan.loaded.scenario.audit.desired_deadline.micros();
    let in_time = newest.end_us.max(since_us).saturating_add(patience) < claims.sending_ended_us;
    if in_time && ledger.seen_version < newest.version {
        findings.violate(Violation {
            fact: Fact::DesiredReaches,
            device: id.to_owned(),
            n: newest.n,
            seq: newest.version,
            at_us: newest.end_us,
            receipt: None,
            what: format!(
                "desired version {} (write {}) never reached the device, which saw version {} last",
                newest.version, newest.n, ledger.seen_version
            ),
        });
    }
}
