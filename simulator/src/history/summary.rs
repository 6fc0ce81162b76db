//! The numbers of a run, computed from its history alone.

use std::collections::BTreeMap;
use std::path::Path;

use hdrhistogram::Histogram;

use super::op::{Kind, NoteKind, Op, Outcome, Record};
use super::reader::{read, Broken, Tail};
use crate::drive::tally::{histogram, Counts};

/// What a history says in numbers.
pub struct Summary {
    pub counts: Counts,
    /// Latency of acknowledged telemetry from its intended time. µs.
    pub latency: Histogram<u64>,
    pub report_latency: Histogram<u64>,
    /// The longest that one device waited for an answer, while something that it had sent was
    /// without one. µs.
    pub longest_wait_us: u64,
    /// When each subject last got an answer. µs.
    answered_us: Vec<u64>,
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
        longest_wait_us: 0,
        answered_us: Vec::new(),
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
        let op = match record {
            Record::Note(note) => {
                let counts = &mut self.counts;
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
        self.wait(op);
        let counts = &mut self.counts;
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

    /// A wait begins with the last answer, or with the send or its intended time if that is later. What is never
    /// answered ends one too.
    fn wait(&mut self, op: &Op) {
        let awaited = matches!(op.kind, Kind::Telemetry) && op.sends > 0 && !op.unconfirmed;
        if !awaited {
            return;
        }
        let at = op.subject as usize;
        if self.answered_us.len() <= at {
            self.answered_us.resize(at + 1, 0);
        }
        let waited = op
            .done_us
            .saturating_sub(self.answered_us[at].max(op.sent_us).max(op.intended_us));
        self.longest_wait_us = self.longest_wait_us.max(waited);
        if op.outcome != Outcome::Unknown {
            self.answered_us[at] = op.done_us;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::Header;
    use super::super::Writer;
    use super::*;

    /// Rows: subject, sent, done, outcome. Time without anything outstanding is no wait.
    #[test]
    fn waits_count_only_while_something_is_outstanding() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), Header::new(1, "a", "t", 1), None).unwrap();
        let rows = [
            (1, 10, 12, Outcome::Ok),
            (1, 5_000, 5_003, Outcome::Ok),         // idle for five seconds
            (1, 5_001, 5_415, Outcome::Refused(1)), // waits since the last answer, not since its own send
            (2, 5_000, 5_300, Outcome::Ok),
            (1, 5_100, 6_415, Outcome::Unknown), // never answered
        ];
        for (n, (subject, sent, done, outcome)) in rows.into_iter().enumerate() {
            let mut op = Op::new(subject, Kind::Telemetry, n as u64 + 1);
            (op.intended_us, op.sent_us, op.done_us, op.outcome) = (0, sent, done, outcome);
            writer.record(&Record::Op(op));
        }
        writer.close().unwrap();
        assert_eq!(summarise(dir.path()).unwrap().longest_wait_us, 1_000);
    }
}
