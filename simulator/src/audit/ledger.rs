//! What the history says of one subject, in the form that the checkers want.

use crate::history::{Kind, Note, NoteKind, Op, Outcome, Place, Record};

pub const ACKED: u8 = 1;
pub const UNKNOWN: u8 = 2;
pub const REFUSED: u8 = 4;
pub const HAS_ID: u8 = 8;
pub const RESENT: u8 = 16;
pub const DISORDERED: u8 = 32;
pub const NEVER_SENT: u8 = 64;

/// A telemetry message, 56 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub n: u64,
    pub run: u32,
    pub digest: u32,
    /// Of its receipt; 0 without one.
    pub seq: u64,
    pub at_us: u64,
    pub index: u64,
    pub term: u32,
    pub shard: u16,
    /// Code of a refusal.
    pub code: u16,
    pub flags: u8,
}

impl Message {
    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn receipt(&self) -> Option<String> {
        (self.index != 0).then(|| format!("{}-{}-{}-{}", self.shard, self.term, self.index, self.seq))
    }
}

/// Something that named a version of a section.
#[derive(Clone, Copy, Debug)]
pub struct TwinOp {
    pub kind: Kind,
    pub n: u64,
    pub run: u32,
    pub begin_us: u64,
    pub end_us: u64,
    pub outcome: Outcome,
    pub version: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By run and number.
    pub messages: Vec<Message>,
    pub desired: Vec<TwinOp>,
    pub reported: Vec<TwinOp>,
    /// The highest desired version the device saw, and the highest mark of the operator's.
    pub seen_version: u64,
    /// Since when it is connected, at the end of the history; `None`: it is not.
    pub connected_since_us: Option<u64>,
    pub operations: u64,
}

impl Ledger {
    pub fn add(&mut self, record: &Record, run: u32) {
        match record {
            Record::Note(note) => self.note(note),
            Record::Op(op) => {
                self.operations += 1;
                self.op(op, run);
            }
        }
    }

    fn note(&mut self, note: &Note) {
        self.connected_since_us = match note.kind {
            NoteKind::Connected => Some(note.at_us),
            NoteKind::Lost | NoteKind::Left | NoteKind::ConnectFailed => None,
        };
    }

    fn op(&mut self, op: &Op, run: u32) {
        match op.kind {
            Kind::Telemetry | Kind::Repeat => self.messages.push(message(op, run)),
            Kind::Report => self.reported.push(twin(op, run, op.version)),
            Kind::DesiredWrite => self.desired.push(twin(op, run, op.version)),
            Kind::DeviceRead | Kind::OperatorRead => {
                if op.outcome == Outcome::Ok {
                    self.desired.push(twin(op, run, op.version));
                    self.reported.push(twin(op, run, op.other));
                }
            }
            Kind::DesiredSeen => self.seen_version = self.seen_version.max(op.version),
            Kind::Method | Kind::Message => {}
        }
    }

    /// Puts messages in order and joins what belongs together: a repeat that was acknowledged says
    /// as much as its first send.
    pub fn settle(&mut self) {
        self.messages.sort_by_key(|message| (message.run, message.n));
        let mut joined: Vec<Message> = Vec::with_capacity(self.messages.len());
        for message in self.messages.drain(..) {
            match joined.last_mut() {
                Some(last) if last.run == message.run && last.n == message.n => join(last, &message),
                _ => joined.push(message),
            }
        }
        self.messages = joined;
    }
}

fn join(into: &mut Message, other: &Message) {
    let refused_both = into.is(REFUSED) && other.is(REFUSED);
    if other.is(ACKED) && !into.is(ACKED) {
        let flags = into.flags;
        *into = *other;
        into.flags |= flags;
    }
    into.flags |= other.flags | RESENT;
    if into.is(ACKED) {
        into.flags &= !(UNKNOWN | REFUSED);
    } else if !refused_both {
        // One of the two may have been stored.
        into.flags = (into.flags | UNKNOWN) & !REFUSED;
    }
}

fn message(op: &Op, run: u32) -> Message {
    let Place { shard, term, index } = op.place.unwrap_or_default();
    let (outcome, code) = match op.outcome {
        Outcome::Ok => (ACKED, 0),
        Outcome::Refused(code) => (REFUSED, code),
        Outcome::Unknown => (UNKNOWN, 0),
        Outcome::Dropped => (NEVER_SENT, 0),
    };
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    Message {
        n: op.n,
        run,
        digest: op.digest,
        seq: op.version,
        at_us: op.done_us,
        index,
        term: u32::try_from(term).unwrap_or(u32::MAX),
        shard,
        code,
        flags: outcome | flag(op.has_id, HAS_ID) | flag(op.sends > 1, RESENT) | flag(op.disordered, DISORDERED),
    }
}

fn twin(op: &Op, run: u32, version: u64) -> TwinOp {
    TwinOp {
        kind: op.kind,
        n: op.n,
        run,
        begin_us: op.sent_us,
        end_us: op.done_us,
        outcome: op.outcome,
        version,
    }
}
