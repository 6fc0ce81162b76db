//! The numbers of a run, computed from its history alone.

use std::collections::BTreeMap;
use std::path::Path;

use hdrhistogram::Histogram;

use super::op::{Kind, NoteKind, Outcome, Record};
use super::reader::{read, Broken, Tail};
use crate::drive::tally::{histogram, Counts};

/// What a history says in numbers.
pub struct Summary {
    pub counts: Counts,
    /// Latency of acknowledged telemetry from its intended time. µs.
    pub latency: Histogram<u64>,
    pub report_latency: Histogram<u64>,
    /// Operator's deeds by kind: done, refused, unknown.
    pub operator: BTreeMap<&'static str, [u64; 3]>,
    /// Records of all parts, and how each part ends.
    pub records: u64,
    pub tails: Vec<Tail>,
}

/// # Errors
/// The history cannot be read.
pub fn summarise(dir: &Path) -> Result<Summary, Broken> {
    let mut summary = Summary {
        counts: Counts::default(),
        latency: histogram(),
        report_latency: histogram(),
        operator: BTreeMap::new(),
        records: 0,
        tails: Vec::new(),
    };
    summary.tails = read(dir, |record| summary.add(&record))?;
    Ok(summary)
}

impl Summary {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        let counts = &mut self.counts;
        let op = match record {
            Record::Note(note) => {
                match note.kind {
                    NoteKind::Connected => counts.connects += 1,
                    NoteKind::Lost => counts.lost += 1,
                    NoteKind::Left => counts.left += 1,
                    NoteKind::ConnectFailed => counts.connects_failed += 1,
                }
                return;
            }
            Record::Op(op) => op,
        };
        let resends = u64::from(op.sends.saturating_sub(1));
        match op.kind {
            Kind::Telemetry => {
                counts.sent += u64::from(op.sends > 0);
                counts.resent += resends;
                counts.acks_disordered += u64::from(op.disordered);
                counts.unconfirmed += u64::from(op.unconfirmed);
                match op.outcome {
                    Outcome::Ok => {
                        counts.acked += 1;
                        self.latency.saturating_record(op.latency_us().max(1));
                    }
                    Outcome::Refused(_) => counts.refused += 1,
                    Outcome::Unknown if op.unconfirmed => {}
                    Outcome::Unknown => counts.unknown += 1,
                    Outcome::Dropped => counts.dropped += 1,
                }
            }
            Kind::Repeat => {
                counts.repeats += 1;
                counts.repeats_acked += u64::from(op.outcome == Outcome::Ok);
                counts.acks_disordered += u64::from(op.disordered);
            }
            Kind::Report => {
                counts.reports += 1;
                match op.outcome {
                    Outcome::Ok => {
                        counts.reports_acked += 1;
                        self.report_latency.saturating_record(op.latency_us().max(1));
                    }
                    Outcome::Refused(_) => counts.reports_refused += 1,
                    _ => counts.reports_unknown += 1,
                }
            }
            Kind::DeviceRead => counts.twin_reads += 1,
            Kind::DesiredSeen => counts.desired_seen += 1,
            Kind::Message => counts.messages += 1,
            Kind::DesiredWrite | Kind::OperatorRead | Kind::Method => {
                let row = self.operator.entry(op.kind.name()).or_default();
                match op.outcome {
                    Outcome::Ok => row[0] += 1,
                    Outcome::Refused(_) => row[1] += 1,
                    _ => row[2] += 1,
                }
            }
        }
    }
}
