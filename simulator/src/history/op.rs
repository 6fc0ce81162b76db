//! One line of a history, and its bytes.
//!
//! Numbers are LEB128; times are relative to the record before. A record of telemetry with its
//! receipt is about 25 bytes.

/// Sort of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// A telemetry message; `n` counts per subject in the order of sending.
    Telemetry = 0,
    /// A deliberate second publish of message `n`.
    Repeat = 1,
    /// A patch of reported properties; `version` is that of the section.
    Report = 2,
    /// A device read its twin: `version` desired, `other` reported.
    DeviceRead = 3,
    /// A device saw desired properties of `version`; `n` is the operator's mark, 0 for none.
    DesiredSeen = 4,
    /// The operator changed desired properties; `n` is its mark.
    DesiredWrite = 5,
    /// The operator read a twin: `version` desired, `other` reported.
    OperatorRead = 6,
    /// The operator called a method; `version` is the device's status.
    Method = 7,
    /// A device got a message from its queue.
    Message = 8,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Self::Telemetry,
        Self::Repeat,
        Self::Report,
        Self::DeviceRead,
        Self::DesiredSeen,
        Self::DesiredWrite,
        Self::OperatorRead,
        Self::Method,
        Self::Message,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Repeat => "repeat",
            Self::Report => "report",
            Self::DeviceRead => "device read",
            Self::DesiredSeen => "desired seen",
            Self::DesiredWrite => "desired write",
            Self::OperatorRead => "operator read",
            Self::Method => "method",
            Self::Message => "message",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// With the protocol's code: MQTT reason, HTTP status.
    Refused(u16),
    /// No answer: it may have happened. Neither success nor loss.
    Unknown,
    /// Never sent: no room in the device's queue while it was away.
    Dropped,
}

/// Where an acknowledged write stands in its shard's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Place {
    pub shard: u16,
    pub term: u64,
    pub index: u64,
}

/// One operation. Times are real µs since the run began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    pub subject: u32,
    pub kind: Kind,
    pub n: u64,
    /// When it should have begun. Later than it was sent where the device then was away on purpose,
    /// by the time of its absence.
    pub intended_us: u64,
    /// When it was first sent.
    pub sent_us: u64,
    /// When its outcome was known.
    pub done_us: u64,
    /// 1 for what was sent once, 0 for what never was.
    pub sends: u32,
    pub outcome: Outcome,
    /// Telemetry: `seq` of the receipt. Twins: a version. 0: none was told.
    pub version: u64,
    /// Reads: the version of reported properties.
    pub other: u64,
    pub place: Option<Place>,
    /// crc32c of the payload; 0 where there is none.
    pub digest: u32,
    /// The message carried an id.
    pub has_id: bool,
    /// The acknowledgement overtook that of an earlier publish of the connection.
    pub disordered: bool,
    /// QoS 0: nothing will ever be known of it.
    pub unconfirmed: bool,
}

impl Op {
    pub fn new(subject: u32, kind: Kind, n: u64) -> Self {
        Self {
            subject,
            kind,
            n,
            intended_us: 0,
            sent_us: 0,
            done_us: 0,
            sends: 1,
            outcome: Outcome::Ok,
            version: 0,
            other: 0,
            place: None,
            digest: 0,
            has_id: false,
            disordered: false,
            unconfirmed: false,
        }
    }

    pub fn latency_us(&self) -> u64 {
        self.done_us.saturating_sub(self.intended_us)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NoteKind {
    Connected = 0,
    /// Lost without anybody of the fleet having asked for it; `code` as in `drive::errors`.
    Lost = 1,
    /// Given up on purpose: outage, storm, reboot, flapping.
    Left = 2,
    ConnectFailed = 3,
}

/// Something that happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    pub subject: u32,
    pub kind: NoteKind,
    pub at_us: u64,
    pub code: u16,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record {
    Op(Op),
    Note(Note),
}

impl Record {
    /// The device or child that it is about.
    pub fn subject(&self) -> u32 {
        match self {
            Self::Op(op) => op.subject,
            Self::Note(note) => note.subject,
        }
    }
}

const NOTE: u8 = 0x80;
const HAS_PLACE: u8 = 1;
const HAS_ID: u8 = 2;
const DISORDERED: u8 = 4;
const UNCONFIRMED: u8 = 8;
const HAS_OTHER: u8 = 16;
/// Bits 5 and 6: the outcome.
const OUTCOME: u8 = 5;

fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Appends a record. `before` is the time of the one before in this block.
pub fn encode(record: &Record, before: &mut u64, out: &mut Vec<u8>) {
    let mut time = |at: u64, out: &mut Vec<u8>| {
        put(zigzag(at.wrapping_sub(*before) as i64), out);
        *before = at;
    };
    match record {
        Record::Note(note) => {
            out.push(NOTE | note.kind as u8);
            put(u64::from(note.subject), out);
            time(note.at_us, out);
            put(u64::from(note.code), out);
        }
        Record::Op(op) => {
            let (outcome, code) = match op.outcome {
                Outcome::Ok => (0u8, 0),
                Outcome::Refused(code) => (1, code),
                Outcome::Unknown => (2, 0),
                Outcome::Dropped => (3, 0),
            };
            let flag = |is: bool, bit: u8| if is { bit } else { 0 };
            let flags = flag(op.place.is_some(), HAS_PLACE)
                | flag(op.has_id, HAS_ID)
                | flag(op.disordered, DISORDERED)
                | flag(op.unconfirmed, UNCONFIRMED)
                | flag(op.other != 0, HAS_OTHER)
                | outcome << OUTCOME;
            out.push(op.kind as u8);
            out.push(flags);
            put(u64::from(op.subject), out);
            put(op.n, out);
            time(op.done_us, out);
            put(zigzag(op.done_us.wrapping_sub(op.sent_us) as i64), out);
            put(zigzag(op.sent_us.wrapping_sub(op.intended_us) as i64), out);
            put(u64::from(op.sends), out);
            put(op.version, out);
            if outcome == 1 {
                put(u64::from(code), out);
            }
            if op.other != 0 {
                put(op.other, out);
            }
            if let Some(place) = op.place {
                put(u64::from(place.shard), out);
                put(place.term, out);
                put(place.index, out);
            }
            out.extend_from_slice(&op.digest.to_le_bytes());
        }
    }
}

/// Takes bytes from the front; `None` when they do not suffice or say nonsense.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        self.number()?.try_into().ok()
    }
}

/// Takes a record from the front of `bytes`.
pub fn decode(bytes: &mut &[u8], before: &mut u64) -> Option<Record> {
    let mut cursor = Cursor(bytes);
    let record = decode_one(&mut cursor, before)?;
    *bytes = cursor.0;
    Some(record)
}

fn decode_one(cursor: &mut Cursor<'_>, before: &mut u64) -> Option<Record> {
    let first = cursor.byte()?;
    if first & NOTE != 0 {
        let kind = match first & !NOTE {
            0 => NoteKind::Connected,
            1 => NoteKind::Lost,
            2 => NoteKind::Left,
            3 => NoteKind::ConnectFailed,
            _ => return None,
        };
        let subject = cursor.small()?;
        *before = before.wrapping_add(unzigzag(cursor.number()?) as u64);
        return Some(Record::Note(Note {
            subject,
            kind,
            at_us: *before,
            code: cursor.small()?,
        }));
    }
    let kind = *Kind::ALL.get(usize::from(first))?;
    let flags = cursor.byte()?;
    let mut op = Op::new(cursor.small()?, kind, cursor.number()?);
    *before = before.wrapping_add(unzigzag(cursor.number()?) as u64);
    op.done_us = *before;
    op.sent_us = op.done_us.wrapping_sub(unzigzag(cursor.number()?) as u64);
    op.intended_us = op.sent_us.wrapping_sub(unzigzag(cursor.number()?) as u64);
    op.sends = cursor.small()?;
    op.version = cursor.number()?;
    op.outcome = match flags >> OUTCOME {
        0 => Outcome::Ok,
        1 => Outcome::Refused(cursor.small()?),
        2 => Outcome::Unknown,
        _ => Outcome::Dropped,
    };
    if flags & HAS_OTHER != 0 {
        op.other = cursor.number()?;
    }
    if flags & HAS_PLACE != 0 {
        op.place = Some(Place {
            shard: cursor.small()?,
            term: cursor.number()?,
            index: cursor.number()?,
        });
    }
    let mut digest = [0u8; 4];
    for byte in &mut digest {
        *byte = cursor.byte()?;
    }
    op.digest = u32::from_le_bytes(digest);
    op.has_id = flags & HAS_ID != 0;
    op.disordered = flags & DISORDERED != 0;
    op.unconfirmed = flags & UNCONFIRMED != 0;
    Some(Record::Op(op))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payloads::Chance;
    use rand::RngCore;

    fn any(chance: &mut Chance) -> Record {
        if chance.hit(0.1) {
            return Record::Note(Note {
                subject: chance.next_u32(),
                kind: NoteKind::Lost,
                at_us: chance.below(1 << 40),
                code: chance.below(1 << 16) as u16,
            });
        }
        let mut op = Op::new(
            chance.next_u32(),
            Kind::ALL[chance.below(9) as usize],
            chance.next_u64() >> chance.below(64),
        );
        op.intended_us = chance.below(1 << 40);
        op.sent_us = op.intended_us + chance.below(1 << 20);
        op.done_us = op.sent_us + chance.below(1 << 20);
        op.sends = chance.below(5) as u32;
        op.version = chance.next_u64() >> chance.below(64);
        op.other = chance.below(3);
        op.outcome = match chance.below(4) {
            0 => Outcome::Ok,
            1 => Outcome::Refused(chance.below(1 << 16) as u16),
            2 => Outcome::Unknown,
            _ => Outcome::Dropped,
        };
        op.place = chance.hit(0.5).then(|| Place {
            shard: chance.below(1 << 16) as u16,
            term: chance.below(100),
            index: chance.next_u64(),
        });
        op.digest = chance.next_u32();
        (op.has_id, op.disordered, op.unconfirmed) = (chance.hit(0.5), chance.hit(0.5), chance.hit(0.5));
        Record::Op(op)
    }

    #[test]
    fn records_survive_their_bytes() {
        let mut chance = Chance::new(11);
        let records: Vec<Record> = (0..5_000).map(|_| any(&mut chance)).collect();
        let (mut bytes, mut before) = (Vec::new(), 77);
        records
            .iter()
            .for_each(|record| encode(record, &mut before, &mut bytes));
        let (mut rest, mut before) = (bytes.as_slice(), 77);
        for record in &records {
            assert_eq!(decode(&mut rest, &mut before).as_ref(), Some(record));
        }
        assert!(rest.is_empty());
    }

    /// Bytes of all kinds give a record or nothing, and never a panic.
    #[test]
    fn nonsense_is_no_record() {
        let mut chance = Chance::new(12);
        for _ in 0..20_000 {
            let mut bytes = vec![0u8; chance.below(40) as usize];
            chance.fill_bytes(&mut bytes);
            let mut rest = bytes.as_slice();
            let mut before = 0;
            while decode(&mut rest, &mut before).is_some() {}
        }
    }
}
