//! What a history says beyond the audit: per shard and second what was served, where acknowledged
//! writes stand in their logs, how long requests took. One pass to learn which subject belongs to
//! which shard, one to count. Memory: 40 bytes an acknowledgement.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use simulator::history::{self, Broken, Kind, NoteKind, Op, Outcome, Record};

/// A message counts as served when it was acknowledged this soon after its intended time.
pub const SERVED_US: u64 = 2_000_000;
/// One bucket of the time line.
pub const BUCKET_US: u64 = 1_000_000;
/// Requests remembered by name.
const SLOWEST_MAX: usize = 100;
/// Places remembered of each shard; beyond, the rest is not judged.
const PLACES_MAX: usize = 2_000_000;

/// A second of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Messages whose intended time is in it …
    pub intended: u32,
    /// … and those of them that were acknowledged soon.
    pub served: u32,
    /// Acknowledgements in it.
    pub acked: u32,
    pub worst_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub term: u64,
    pub index: u64,
    pub at_us: u64,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub kind: &'static str,
    pub subject: u32,
    pub at_us: u64,
    pub took_us: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Requests {
    pub count: u64,
    pub slowest: Vec<Request>,
}

#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub shard_of: BTreeMap<u32, u16>,
    pub buckets: BTreeMap<u16, Vec<Bucket>>,
    pub places: BTreeMap<u16, Vec<Position>>,
    /// When each shard acknowledged something; sorted.
    pub acks: BTreeMap<u16, Vec<u64>>,
    pub requests: Requests,
    /// Answers by subject and call, and when the last came.
    pub methods: BTreeMap<(u32, u64), (u32, u64)>,
    /// Acknowledged marks, and when.
    pub desired_writes: BTreeMap<u32, Vec<(u64, u64)>>,
    pub desired_seen: BTreeMap<u32, u64>,
    pub connected_at_end: BTreeSet<u32>,
    /// When connections were lost that nobody asked for, and when any were made.
    pub lost: Vec<u64>,
    pub connects: u64,
    pub acked: u64,
}

impl Facts {
    /// # Errors
    /// The history cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Broken> {
        let mut facts = Self::default();
        history::read(dir, |record| {
            if let Record::Op(Op {
                subject,
                place: Some(place),
                ..
            }) = record
            {
                facts.shard_of.entry(subject).or_insert(place.shard);
            }
        })?;
        history::read(dir, |record| facts.add(&record))?;
        facts.sort();
        Ok(facts)
    }

    /// From records in memory.
    pub fn of(records: &[Record]) -> Self {
        let mut facts = Self::default();
        for record in records {
            if let Record::Op(Op {
                subject,
                place: Some(place),
                ..
            }) = record
            {
                facts.shard_of.entry(*subject).or_insert(place.shard);
            }
        }
        records.iter().for_each(|record| facts.add(record));
        facts.sort();
        facts
    }

    fn sort(&mut self) {
        self.acks.values_mut().for_each(|acks| acks.sort_unstable());
        self.lost.sort_unstable();
    }

    fn add(&mut self, record: &Record) {
        match record {
            Record::Note(note) => match note.kind {
                NoteKind::Connected => {
                    self.connects += 1;
                    self.connected_at_end.insert(note.subject);
                }
                NoteKind::Lost => {
                    self.lost.push(note.at_us);
                    self.connected_at_end.remove(&note.subject);
                }
                NoteKind::Left | NoteKind::ConnectFailed => drop(self.connected_at_end.remove(&note.subject)),
            },
            Record::Op(op) => match op.kind {
                Kind::Telemetry => self.telemetry(op),
                Kind::DesiredSeen => {
                    let seen = self.desired_seen.entry(op.subject).or_default();
                    *seen = (*seen).max(op.n);
                }
                Kind::DesiredWrite | Kind::OperatorRead | Kind::Method => self.request(op),
                _ => {}
            },
        }
    }

    fn telemetry(&mut self, op: &Op) {
        let Some(shard) = self.shard_of.get(&op.subject).copied() else {
            return;
        };
        let buckets = self.buckets.entry(shard).or_default();
        let mut at = |us: u64, change: &dyn Fn(&mut Bucket)| {
            let at = (us / BUCKET_US) as usize;
            if at < 1_000_000 {
                if buckets.len() <= at {
                    buckets.resize(at + 1, Bucket::default());
                }
                change(&mut buckets[at]);
            }
        };
        let is_ok = op.outcome == Outcome::Ok;
        let soon = is_ok && op.latency_us() <= SERVED_US;
        at(op.intended_us, &|bucket| {
            bucket.intended += 1;
            bucket.served += u32::from(soon);
        });
        if is_ok {
            self.acked += 1;
            at(op.done_us, &|bucket| {
                bucket.acked += 1;
                bucket.worst_us = bucket.worst_us.max(op.latency_us());
            });
            self.acks.entry(shard).or_default().push(op.done_us);
            if let Some(place) = op.place {
                let places = self.places.entry(place.shard).or_default();
                if places.len() < PLACES_MAX {
                    places.push(Position {
                        term: place.term,
                        index: place.index,
                        at_us: op.done_us,
                    });
                }
            }
        }
    }

    fn request(&mut self, op: &Op) {
        self.requests.count += 1;
        let took_us = op.done_us.saturating_sub(op.sent_us);
        let slowest = &mut self.requests.slowest;
        slowest.push(Request {
            kind: op.kind.name(),
            subject: op.subject,
            at_us: op.sent_us,
            took_us,
        });
        if slowest.len() > SLOWEST_MAX * 2 {
            slowest.sort_by_key(|request| std::cmp::Reverse(request.took_us));
            slowest.truncate(SLOWEST_MAX);
        }
        if op.outcome != Outcome::Ok {
            return;
        }
        match op.kind {
            Kind::DesiredWrite => self
                .desired_writes
                .entry(op.subject)
                .or_default()
                .push((op.n, op.done_us)),
            Kind::Method => {
                let answers = self.methods.entry((op.subject, op.n)).or_default();
                *answers = (answers.0 + 1, op.done_us);
            }
            _ => {}
        }
    }

    /// Share of the messages intended within a stretch that were served; `None` where none was.
    pub fn availability(&self, from_us: u64, to_us: u64) -> Option<f64> {
        let (mut intended, mut served) = (0u64, 0u64);
        for buckets in self.buckets.values() {
            let range = (from_us / BUCKET_US) as usize..(to_us.div_ceil(BUCKET_US) as usize).min(buckets.len());
            for bucket in buckets.get(range).unwrap_or_default() {
                intended += u64::from(bucket.intended);
                served += u64::from(bucket.served);
            }
        }
        (intended > 0).then(|| served as f64 / intended as f64)
    }

    /// The first acknowledgement of a shard at or after a time.
    pub fn next_ack(&self, shard: u16, from_us: u64) -> Option<u64> {
        let acks = self.acks.get(&shard)?;
        acks.get(acks.partition_point(|at| *at < from_us)).copied()
    }
}
