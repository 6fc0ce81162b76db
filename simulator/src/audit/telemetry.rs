//! One subject's telemetry: what it sent against what is stored, page by page.

use std::collections::BTreeMap;

use super::findings::{Fact, Findings, Violation};
use super::ledger::{Ledger, Message, ACKED, DISORDERED, HAS_ID, NEVER_SENT, REFUSED, RESENT, UNKNOWN};

/// One stored message, as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub seq: u64,
    pub message_id: Option<String>,
    /// crc32c of the body.
    pub digest: u32,
}

/// Compares one subject. Feed it what is stored in the order of `seq`, then `finish`.
pub struct Comparison<'a> {
    device: &'a str,
    ledger: &'a Ledger,
    /// Runs of this history; messages of others are not judged.
    runs: &'a [u32],
    /// The history was closed in order, so it knows everything that was sent.
    is_complete: bool,
    /// Seq of each message of the ledger; 0: not seen.
    places: Vec<u64>,
    /// For subjects without ids: places in the ledger by digest.
    by_digest: BTreeMap<u32, Vec<u32>>,
    /// Highest place in the ledger that was stored so far.
    highest: Option<usize>,
    next_seq: u64,
    first_seq: u64,
    pub findings: Findings,
}

impl<'a> Comparison<'a> {
    /// `first_seq`: what the device's registration says; retention removed what is before.
    pub fn new(device: &'a str, ledger: &'a Ledger, runs: &'a [u32], is_complete: bool, first_seq: u64) -> Self {
        let mut by_digest: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (at, message) in ledger.messages.iter().enumerate() {
            if !message.is(HAS_ID) && !message.is(NEVER_SENT) {
                by_digest.entry(message.digest).or_default().push(at as u32);
            }
        }
        Self {
            device,
            ledger,
            runs,
            is_complete,
            places: vec![0; ledger.messages.len()],
            by_digest,
            highest: None,
            next_seq: first_seq,
            first_seq,
            findings: Findings::default(),
        }
    }

    pub fn stored(&mut self, stored: &Stored) {
        self.findings.stored += 1;
        if stored.seq != self.next_seq {
            let what = format!("seq {} where {} belongs", stored.seq, self.next_seq);
            self.violate(Fact::SeqGapFree, 0, stored.seq, None, what);
        }
        self.next_seq = stored.seq + 1;
        match stored.message_id.as_deref().and_then(parse_id) {
            Some((run, n)) if self.runs.contains(&run) => self.ours(stored, run, n),
            Some(_) => self.findings.others += 1,
            None => self.without_id(stored),
        }
    }

    fn ours(&mut self, stored: &Stored, run: u32, n: u64) {
        let found = self
            .ledger
            .messages
            .binary_search_by_key(&(run, n), |message| (message.run, message.n));
        let Ok(at) = found else {
            if self.is_complete {
                let what = format!("message {n} is stored with seq {} and was never sent", stored.seq);
                self.violate(Fact::NothingInvented, n, stored.seq, None, what);
            } else {
                self.findings.unrecorded += 1;
            }
            return;
        };
        let message = self.ledger.messages[at];
        if message.is(NEVER_SENT) {
            let what = format!(
                "message {n} is stored with seq {} and was dropped before it was sent",
                stored.seq
            );
            self.violate(Fact::NothingInvented, n, stored.seq, Some(&message), what);
        }
        if message.digest != stored.digest {
            let what = format!("message {n} was altered (seq {})", stored.seq);
            self.violate(Fact::PayloadIntact, n, stored.seq, Some(&message), what);
        }
        self.place(at, stored, &message);
    }

    fn place(&mut self, at: usize, stored: &Stored, message: &Message) {
        let place = self.places[at];
        if place != 0 {
            let what = format!("message {} has seq {place} and {}", message.n, stored.seq);
            self.violate(Fact::StoredOnce, message.n, stored.seq, Some(message), what);
            return; // a duplicate is told as that, not as disorder as well
        }
        self.places[at] = stored.seq;
        match self.highest {
            Some(highest) if at < highest => {
                let later = self.ledger.messages[highest];
                let what = format!("message {} is stored after {} (seq {})", message.n, later.n, stored.seq);
                self.violate(Fact::InOrder, message.n, stored.seq, Some(message), what);
            }
            _ => self.highest = Some(at),
        }
    }

    /// Told by its content, which is unique as long as it names its number.
    fn without_id(&mut self, stored: &Stored) {
        let Some(candidates) = self.by_digest.get(&stored.digest) else {
            self.findings.others += 1;
            return;
        };
        let free = candidates.iter().find(|at| self.places[**at as usize] == 0);
        match free {
            Some(at) => self.places[*at as usize] = stored.seq,
            None => self.findings.duplicates_without_ids += 1,
        }
    }

    /// Everything stored was fed; what is missing now is missing.
    pub fn finish(mut self) -> Findings {
        for at in 0..self.ledger.messages.len() {
            let message = self.ledger.messages[at];
            let place = self.places[at];
            if message.is(ACKED) {
                self.acked(&message, place);
            } else if message.is(UNKNOWN) {
                match place {
                    0 => self.findings.unknown_absent += 1,
                    _ => self.findings.unknown_stored += 1,
                }
            } else if message.is(REFUSED) && !message.is(RESENT) && place != 0 && promises_absence(message.code) {
                let what = format!(
                    "message {} was refused with {:#04x} and has seq {place}",
                    message.n, message.code
                );
                self.violate(Fact::RefusedAbsent, message.n, place, Some(&message), what);
            }
            if message.is(DISORDERED) {
                let what = format!("the acknowledgement of message {} overtook an earlier one", message.n);
                self.violate(Fact::AcksInOrder, message.n, message.seq, Some(&message), what);
            }
        }
        self.findings.subjects = 1;
        self.findings.operations = self.ledger.operations;
        self.findings
    }

    fn acked(&mut self, message: &Message, place: u64) {
        self.findings.acked += 1;
        if place == 0 {
            if message.seq != 0 && message.seq < self.first_seq {
                self.findings.expired += 1;
                return;
            }
            let seq = match message.seq {
                0 => String::new(),
                seq => format!(" (seq {seq})"),
            };
            let what = format!("message {}{seq} was acknowledged and is not stored", message.n);
            self.violate(Fact::AckedSurvive, message.n, message.seq, Some(message), what);
        } else if message.seq != 0 && message.seq != place {
            let what = format!(
                "message {} has seq {place}, its receipt says {}",
                message.n, message.seq
            );
            self.violate(Fact::ReceiptsTrue, message.n, place, Some(message), what);
        }
    }

    fn violate(&mut self, fact: Fact, n: u64, seq: u64, message: Option<&Message>, what: String) {
        self.findings.violate(Violation {
            fact,
            device: self.device.to_owned(),
            n,
            seq,
            at_us: message.map_or(0, |message| message.at_us),
            receipt: message.and_then(Message::receipt),
            what,
        });
    }
}

/// Run and number of a message id of ours.
fn parse_id(id: &str) -> Option<(u32, u64)> {
    let (run, n) = id.split_once('-')?;
    Some((run.parse().ok()?, n.parse().ok()?))
}

/// Answers that promise that nothing was stored.
fn promises_absence(code: u16) -> bool {
    matches!(code, 0x97 | 429 | 503)
}
