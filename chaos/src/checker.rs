//! Compares what devices saw with what is stored, and states which facts do not hold.
//!
//! Pure: no network, no clock. A message that was neither acknowledged nor refused is *unknown*
//! and may be stored once or not at all; that is never a violation.

use std::collections::BTreeMap;
use std::fmt;

use bytes::BytesMut;
use serde::Serialize;
use simulator::ledger::DeviceLedger;
use simulator::payload;

/// Examples kept per finding; the count is always complete.
const EXAMPLES_MAX: usize = 5;

/// What must be true of every device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// Each acknowledged message is stored.
    AckedSurvive,
    /// No message is stored twice.
    StoredOnce,
    /// Messages are stored in the order in which they were sent.
    InOrder,
    /// seq runs 1, 2, 3 … without a gap.
    SeqGapFree,
    /// The twin is at least at the newest acknowledged report, and versions only grew.
    AckedTwinVersionsSurvive,
    /// What is stored is what was sent.
    PayloadIntact,
    /// A receipt names the seq under which its message is stored.
    ReceiptsTrue,
    /// A connection's PUBACKs leave in the order of its PUBLISHes.
    AcksInOrder,
    /// What was refused for lack of room (0x97) is not stored.
    RefusedAbsent,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fact::AckedSurvive => "acked_survive",
            Fact::StoredOnce => "stored_once",
            Fact::InOrder => "in_order",
            Fact::SeqGapFree => "seq_gap_free",
            Fact::AckedTwinVersionsSurvive => "acked_twin_versions_survive",
            Fact::PayloadIntact => "payload_intact",
            Fact::ReceiptsTrue => "receipts_true",
            Fact::AcksInOrder => "acks_in_order",
            Fact::RefusedAbsent => "refused_absent",
        })
    }
}

/// One stored telemetry message, as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMessage {
    pub seq: u64,
    pub body: serde_json::Value,
}

/// The reported section of a twin, as read back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredTwin {
    pub reported: serde_json::Value,
    /// 0 when the answer names none.
    pub version: u64,
}

/// How often a fact did not hold, with a few examples.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Breach {
    pub count: u64,
    pub examples: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    pub acknowledged: u64,
    pub twin_acknowledged: u64,
    pub stored: u64,
    /// Unknown messages that turned out to be stored.
    pub unknown_stored: u64,
    pub unknown_absent: u64,
    /// Stored messages of other runs on the same devices; not judged.
    pub other_runs: u64,
    pub devices: u64,
    pub breaches: BTreeMap<Fact, Breach>,
}

impl Findings {
    pub fn lost(&self) -> u64 {
        self.count(Fact::AckedSurvive)
    }

    pub fn duplicated(&self) -> u64 {
        self.count(Fact::StoredOnce)
    }

    pub fn count(&self, fact: Fact) -> u64 {
        self.breaches.get(&fact).map_or(0, |breach| breach.count)
    }

    pub fn add(&mut self, other: Findings) {
        self.acknowledged += other.acknowledged;
        self.twin_acknowledged += other.twin_acknowledged;
        self.stored += other.stored;
        self.unknown_stored += other.unknown_stored;
        self.unknown_absent += other.unknown_absent;
        self.other_runs += other.other_runs;
        self.devices += other.devices;
        for (fact, breach) in other.breaches {
            let mine = self.breaches.entry(fact).or_default();
            mine.count += breach.count;
            mine.examples.extend(breach.examples);
            mine.examples.truncate(EXAMPLES_MAX);
        }
    }

    fn breach(&mut self, fact: Fact, example: impl FnOnce() -> String) {
        let breach = self.breaches.entry(fact).or_default();
        breach.count += 1;
        if breach.examples.len() < EXAMPLES_MAX {
            breach.examples.push(example());
        }
    }
}

/// Judges one device. `stored` is everything stored of it, in the order it was read (by seq).
/// `twin`: `None` when the device sent no reports.
pub fn check_device(ledger: &DeviceLedger, stored: &[StoredMessage], twin: Option<&StoredTwin>) -> Findings {
    let mut findings = Findings {
        acknowledged: ledger.acks.len() as u64,
        twin_acknowledged: ledger.twin_acks.len() as u64,
        stored: stored.len() as u64,
        devices: 1,
        ..Default::default()
    };
    check_seq(ledger, stored, &mut findings);
    let places = check_stored(ledger, stored, &mut findings);
    check_acks(ledger, &places, &mut findings);
    check_twin(ledger, twin, &mut findings);
    findings
}

fn check_seq(ledger: &DeviceLedger, stored: &[StoredMessage], findings: &mut Findings) {
    for (expected, message) in (1u64..).zip(stored) {
        if message.seq != expected {
            findings.breach(Fact::SeqGapFree, || {
                format!("{}: seq {} where {expected} belongs", ledger.device, message.seq)
            });
            return; // everything after it is shifted and says nothing new
        }
    }
}

/// Looks at what is stored; returns where each message of this run was first found (0: nowhere).
fn check_stored(ledger: &DeviceLedger, stored: &[StoredMessage], findings: &mut Findings) -> Vec<u64> {
    let mut places = vec![0u64; ledger.sent as usize + 1];
    let mut highest = 0u32;
    let mut expected = BytesMut::new();
    for message in stored {
        let (device, number) = (&ledger.device, |name: &str| {
            message.body.get(name).and_then(serde_json::Value::as_u64)
        });
        if message.body.get("d").and_then(serde_json::Value::as_str) != Some(device) {
            findings.breach(Fact::PayloadIntact, || {
                format!("{device}: seq {} is not a message of this device", message.seq)
            });
            continue;
        }
        if number("r") != Some(u64::from(ledger.run)) {
            findings.other_runs += 1;
            continue;
        }
        let n = number("n")
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| (1..=ledger.sent).contains(n));
        let Some(n) = n else {
            findings.breach(Fact::PayloadIntact, || {
                format!("{device}: seq {} holds a message never sent", message.seq)
            });
            continue;
        };
        expected.clear();
        payload::telemetry(device, ledger.run, n, ledger.payload_bytes, &mut expected);
        if serde_json::from_slice::<serde_json::Value>(&expected).ok().as_ref() != Some(&message.body) {
            findings.breach(Fact::PayloadIntact, || {
                format!("{device}: message {n} was altered (seq {})", message.seq)
            });
        }
        let place = &mut places[n as usize];
        if *place != 0 {
            findings.breach(Fact::StoredOnce, || {
                format!("{device}: message {n} has seq {place} and {}", message.seq)
            });
            continue; // a duplicate is reported as that, not as disorder as well
        }
        *place = message.seq;
        if n < highest {
            findings.breach(Fact::InOrder, || {
                format!("{device}: message {n} is stored after {highest} (seq {})", message.seq)
            });
        }
        highest = highest.max(n);
    }
    places
}

fn check_acks(ledger: &DeviceLedger, places: &[u64], findings: &mut Findings) {
    let device = &ledger.device;
    let place = |n: u32| places.get(n as usize).copied().unwrap_or(0);
    for ack in &ledger.acks {
        let stored = place(ack.n);
        if stored == 0 {
            findings.breach(Fact::AckedSurvive, || {
                format!(
                    "{device}: message {} acknowledged at {} ms (seq {}) is not stored",
                    ack.n, ack.at_ms, ack.seq
                )
            });
        } else if ack.seq != 0 && u64::from(ack.seq) != stored {
            findings.breach(Fact::ReceiptsTrue, || {
                format!(
                    "{device}: message {} has seq {stored}, its receipt says {}",
                    ack.n, ack.seq
                )
            });
        }
    }
    for n in &ledger.unknown {
        match place(*n) {
            0 => findings.unknown_absent += 1,
            _ => findings.unknown_stored += 1,
        }
    }
    // Only 0x97 at the first send says that nothing was stored; other codes do not promise it.
    for refusal in ledger
        .refused
        .iter()
        .filter(|r| r.code == 0x97 && !r.resent && place(r.n) != 0)
    {
        findings.breach(Fact::RefusedAbsent, || {
            format!("{device}: message {} was refused and is stored", refusal.n)
        });
    }
    if ledger.acks_out_of_order + ledger.acks_foreign > 0 {
        findings.breach(Fact::AcksInOrder, || {
            format!(
                "{device}: {} out of order, {} of nothing sent",
                ledger.acks_out_of_order, ledger.acks_foreign
            )
        });
    }
}

fn check_twin(ledger: &DeviceLedger, twin: Option<&StoredTwin>, findings: &mut Findings) {
    let Some(newest) = ledger.twin_acks.iter().map(|ack| ack.k).max() else {
        return;
    };
    let device = &ledger.device;
    let mut before = 0;
    for ack in ledger.twin_acks.iter().filter(|ack| ack.version != 0) {
        if ack.version <= before {
            findings.breach(Fact::AckedTwinVersionsSurvive, || {
                format!("{device}: report {} got version {} after {before}", ack.k, ack.version)
            });
        }
        before = before.max(ack.version);
    }
    let Some(twin) = twin else {
        findings.breach(Fact::AckedTwinVersionsSurvive, || {
            format!("{device}: the twin could not be found")
        });
        return;
    };
    let number = |name: &str| twin.reported.get(name).and_then(serde_json::Value::as_u64);
    let k = number("k")
        .filter(|_| number("run") == Some(u64::from(ledger.run)))
        .unwrap_or(0);
    let sent = newest.max(ledger.twin_unknown.iter().copied().max().unwrap_or(0));
    if k < u64::from(newest) || k > u64::from(sent) {
        findings.breach(Fact::AckedTwinVersionsSurvive, || {
            format!("{device}: report {newest} was acknowledged, the twin holds {k}")
        });
    }
    if twin.version != 0 && twin.version < u64::from(before) {
        findings.breach(Fact::AckedTwinVersionsSurvive, || {
            format!(
                "{device}: version {before} was acknowledged, the twin is at {}",
                twin.version
            )
        });
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
