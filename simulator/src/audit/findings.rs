//! What an audit found: which facts do not hold, and each violation with everything one needs to
//! look into it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Violations told in full; the counts are always complete.
pub const TOLD_MAX: usize = 1_000;

/// What must be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// Each acknowledged message is stored.
    AckedSurvive,
    /// No message is stored twice.
    StoredOnce,
    /// Messages are stored in the order in which they were sent.
    InOrder,
    /// seq runs without a gap.
    SeqGapFree,
    /// What is stored is what was sent.
    PayloadIntact,
    /// A receipt names the seq under which its message is stored.
    ReceiptsTrue,
    /// A connection's PUBACKs leave in the order of its PUBLISHes.
    AcksInOrder,
    /// What was refused at its first send for lack of room is not stored.
    RefusedAbsent,
    /// Nothing is stored that was not sent.
    NothingInvented,
    /// A version of a twin belongs to one write, and later writes have higher ones.
    TwinVersionsGrow,
    /// A read never returns less than what was there before it began.
    TwinReadsFresh,
    /// In the end the twin holds the newest acknowledged write.
    TwinWritesSurvive,
    /// What was desired of a connected device reached it.
    DesiredReaches,
}

impl Fact {
    pub const ALL: [Fact; 13] = [
        Self::AckedSurvive,
        Self::StoredOnce,
        Self::InOrder,
        Self::SeqGapFree,
        Self::PayloadIntact,
        Self::ReceiptsTrue,
        Self::AcksInOrder,
        Self::RefusedAbsent,
        Self::NothingInvented,
        Self::TwinVersionsGrow,
        Self::TwinReadsFresh,
        Self::TwinWritesSurvive,
        Self::DesiredReaches,
    ];

    /// For a table that people read.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::AckedSurvive => "every acknowledged message is stored",
            Self::StoredOnce => "no message is stored twice",
            Self::InOrder => "messages are stored in the order in which they were sent",
            Self::SeqGapFree => "sequence numbers have no gap",
            Self::PayloadIntact => "what is stored is what was sent",
            Self::ReceiptsTrue => "receipts name where their message is stored",
            Self::AcksInOrder => "acknowledgements come in the order of the messages",
            Self::RefusedAbsent => "what was refused is not stored",
            Self::NothingInvented => "nothing is stored that was not sent",
            Self::TwinVersionsGrow => "versions of a twin only grow",
            Self::TwinReadsFresh => "no read of a twin was stale",
            Self::TwinWritesSurvive => "acknowledged writes of twins survive",
            Self::DesiredReaches => "desired changes reached connected devices",
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = serde_json::to_value(self).ok();
        f.write_str(name.as_ref().and_then(serde_json::Value::as_str).unwrap_or("fact"))
    }
}

/// One thing that should not be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    pub fact: Fact,
    pub device: String,
    /// Number of the message, the report or the operator's mark; 0 where there is none.
    pub n: u64,
    /// Sequence number or version; 0 where there is none.
    pub seq: u64,
    /// When it was acknowledged or observed, real µs since the run began; 0: not known.
    pub at_us: u64,
    pub receipt: Option<String>,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.fact, self.device, self.what)?;
        if self.at_us > 0 {
            write!(f, " (at {:.3} s", self.at_us as f64 / 1e6)?;
            match &self.receipt {
                Some(receipt) => write!(f, ", receipt {receipt})")?,
                None => f.write_str(")")?,
            }
        }
        Ok(())
    }
}

/// The result of an audit, or of a sample of one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    pub subjects: u64,
    /// Operations of the history that were judged.
    pub operations: u64,
    pub acked: u64,
    /// Messages read back.
    pub stored: u64,
    /// Of messages without an answer, how many are stored and how many are not. Both are right.
    pub unknown_stored: u64,
    pub unknown_absent: u64,
    /// Messages of subjects without message ids that are stored more than once: possible, counted
    /// apart, no violation.
    pub duplicates_without_ids: u64,
    /// Stored messages of other runs or other senders; not judged.
    pub others: u64,
    /// Stored messages of this run that an unfinished history does not know.
    pub unrecorded: u64,
    /// Acknowledged messages that retention has removed since; not judged.
    pub expired: u64,
    pub twin_operations: u64,
    pub counts: BTreeMap<Fact, u64>,
    pub violations: Vec<Violation>,
    /// Why something was not judged, if so.
    #[serde(default)]
    pub remarks: Vec<String>,
}

impl Findings {
    pub fn violate(&mut self, violation: Violation) {
        *self.counts.entry(violation.fact).or_default() += 1;
        if self.violations.len() < TOLD_MAX {
            self.violations.push(violation);
        }
    }

    pub fn count(&self, fact: Fact) -> u64 {
        self.counts.get(&fact).copied().unwrap_or(0)
    }

    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    pub fn add(&mut self, other: Findings) {
        self.subjects += other.subjects;
        self.operations += other.operations;
        self.acked += other.acked;
        self.stored += other.stored;
        self.unknown_stored += other.unknown_stored;
        self.unknown_absent += other.unknown_absent;
        self.duplicates_without_ids += other.duplicates_without_ids;
        self.others += other.others;
        self.unrecorded += other.unrecorded;
        self.expired += other.expired;
        self.twin_operations += other.twin_operations;
        for (fact, count) in other.counts {
            *self.counts.entry(fact).or_default() += count;
        }
        self.violations.extend(other.violations);
        self.violations.truncate(TOLD_MAX);
        for remark in other.remarks {
            if !self.remarks.contains(&remark) {
                self.remarks.push(remark);
            }
        }
    }
}
