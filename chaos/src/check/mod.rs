//! The invariants: one file each, a pure function from evidence to a ruling. Usable from a drill,
//! from a test, and from a simulation.
//!
//! An operation without an answer is *unknown*: it may have happened or not, and neither is a
//! violation. What could not be observed is *not judged*, with the reason; it never holds silently.

mod acked_survive;
mod desired_arrives;
mod device_order;
mod facts;
mod memory_bounded;
mod no_hang;
mod no_stale_read;
mod one_method_answer;
mod one_owner_per_term;
mod presence_converges;
mod replicas_agree;
mod stored_once;
mod twin_linearizable;
mod unaffected_undisturbed;

use serde::{Deserialize, Serialize};
use simulator::audit::{Fact, Findings};

pub use facts::{Bucket, Facts, Position, SERVED_US};

/// Breaches told in full; the counts are always complete.
pub const TOLD_MAX: usize = 50;

/// Everything that was observed. Times are real µs since the run began.
#[derive(Default)]
pub struct Evidence {
    pub facts: Facts,
    /// From reading the cluster back; `None` with the reason beside it.
    pub findings: Option<Findings>,
    pub not_audited: String,
    /// Which node said that which shard is led by whom in which term.
    pub sightings: Vec<Sighting>,
    pub faults: Vec<Active>,
    /// One per shard, after everything was healed.
    pub digests: Vec<ShardDigest>,
    pub presence: Option<Presence>,
    /// Highest resident memory of each node, bytes.
    pub memory: Vec<(u64, u64)>,
    pub bounds: Bounds,
}

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub memory_bytes: u64,
    pub unaffected_gap_us: u64,
    pub request_us: u64,
    /// When devices were told to leave.
    pub sending_ended_us: u64,
    /// Desired changes newer than this before the end need not have arrived.
    pub desired_grace_us: u64,
    /// Device ids do not begin before this many subjects: how many there are.
    pub subjects: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            memory_bytes: u64::MAX,
            unaffected_gap_us: 10_000_000,
            request_us: 20_000_000,
            sending_ended_us: u64::MAX,
            desired_grace_us: 10_000_000,
            subjects: u32::MAX,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    pub at_us: u64,
    /// Who said it.
    pub node: u64,
    pub shard: u16,
    pub leader: Option<u64>,
    pub term: u64,
}

/// A fault that was active.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Active {
    pub id: String,
    pub kind: String,
    pub nodes: Vec<u64>,
    pub from_us: u64,
    pub to_us: u64,
    /// Shards that a node of this fault led, or that somebody else's fault may concern.
    pub shards: Vec<u16>,
    /// Whether it concerns nothing but the processes of `nodes`, so that other shards must go on.
    pub is_contained: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDigest {
    pub shard: u16,
    /// Node, applied index, digest.
    pub replicas: Vec<(u64, u64, String)>,
    /// Why replicas are missing, if any is.
    pub missing: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Devices that were connected when the load stood still …
    pub connected: u32,
    /// … and those the cluster took for connected, when they were the same or the deadline was over.
    pub listed: u32,
    /// The same after all devices had left.
    pub listed_after_leaving: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    Yes,
    No,
    /// Not observed.
    NotJudged,
}

/// What an invariant says of the evidence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ruling {
    pub invariant: String,
    pub sentence: String,
    pub holds: Holds,
    /// What it was judged from, or why it was not.
    pub evidence: String,
    /// How often it was broken.
    pub count: u64,
    pub breaches: Vec<Breach>,
}

/// One thing that should not be, with everything one needs to look into it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breach {
    pub what: String,
    pub device: Option<String>,
    pub receipt: Option<String>,
    pub at_us: u64,
    /// The fault that was active then.
    pub during: Option<String>,
    /// Where to look, within the verdict's directory.
    pub file: String,
}

type Judge = fn(&Evidence) -> Ruling;

const ALL: [(&str, Judge); 13] = [
    (acked_survive::NAME, acked_survive::judge),
    (stored_once::NAME, stored_once::judge),
    (device_order::NAME, device_order::judge),
    (twin_linearizable::NAME, twin_linearizable::judge),
    (no_stale_read::NAME, no_stale_read::judge),
    (one_owner_per_term::NAME, one_owner_per_term::judge),
    (replicas_agree::NAME, replicas_agree::judge),
    (one_method_answer::NAME, one_method_answer::judge),
    (desired_arrives::NAME, desired_arrives::judge),
    (presence_converges::NAME, presence_converges::judge),
    (no_hang::NAME, no_hang::judge),
    (memory_bounded::NAME, memory_bounded::judge),
    (unaffected_undisturbed::NAME, unaffected_undisturbed::judge),
];

/// Names of all invariants.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

/// Judges everything but what `without` names.
pub fn judge(evidence: &Evidence, without: &[String]) -> Vec<Ruling> {
    let wanted = ALL
        .iter()
        .filter(|(name, _)| !without.iter().any(|left_out| left_out == name));
    wanted.map(|(_, judge)| judge(evidence)).collect()
}

impl Evidence {
    /// The fault that was active at a time, or the last one before.
    pub fn during(&self, at_us: u64) -> Option<String> {
        let active = self
            .faults
            .iter()
            .filter(|fault| (fault.from_us..=fault.to_us).contains(&at_us));
        let before = || {
            self.faults
                .iter()
                .filter(|fault| fault.to_us <= at_us)
                .max_by_key(|fault| fault.to_us)
        };
        let ids: Vec<&str> = active.map(|fault| fault.id.as_str()).collect();
        match (ids.is_empty(), before()) {
            (false, _) => Some(ids.join(", ")),
            (true, Some(last)) if at_us > 0 => Some(format!("none; the last was {}", last.id)),
            _ => None,
        }
    }

    /// A ruling from some facts of the audit.
    fn audited(&self, name: &str, sentence: &str, facts: &[Fact], what: impl Fn(&Findings) -> (u64, String)) -> Ruling {
        let Some(findings) = &self.findings else {
            return Ruling::not_judged(name, sentence, &self.not_audited);
        };
        let (judged, evidence) = what(findings);
        let count = facts.iter().map(|fact| findings.count(*fact)).sum();
        let told = findings
            .violations
            .iter()
            .filter(|violation| facts.contains(&violation.fact));
        let breaches = told.take(TOLD_MAX).map(|violation| Breach {
            what: violation.to_string(),
            device: Some(violation.device.clone()),
            receipt: violation.receipt.clone(),
            at_us: violation.at_us,
            during: self.during(violation.at_us),
            file: "run/audit.json".into(),
        });
        let breaches = breaches.collect();
        match judged {
            0 if count == 0 => Ruling::not_judged(name, sentence, &format!("nothing of the kind happened: {evidence}")),
            _ => Ruling::of(name, sentence, evidence, count, breaches),
        }
    }
}

impl Ruling {
    pub fn of(name: &str, sentence: &str, evidence: String, count: u64, breaches: Vec<Breach>) -> Self {
        Self {
            invariant: name.to_owned(),
            sentence: sentence.to_owned(),
            holds: if count == 0 { Holds::Yes } else { Holds::No },
            evidence,
            count,
            breaches,
        }
    }

    pub fn not_judged(name: &str, sentence: &str, why: &str) -> Self {
        Self {
            holds: Holds::NotJudged,
            ..Self::of(name, sentence, why.to_owned(), 0, Vec::new())
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
