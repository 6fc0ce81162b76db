//! What a fleet saw, counted from its history: every figure over a stretch of time comes from the
//! recorded times of each operation.

use std::path::{Path, PathBuf};

use actors::id::{DeviceId, DeviceKey, TenantId};
use simulator::drive::tally::histogram;
use simulator::history::{self, Kind, Op, Outcome, Record};
use simulator::plan::Plan;
use simulator::report::numbers::Latency;
use tempfile::TempDir;

use crate::cli::local::HarnessError;

/// What a fleet saw, in its directory; gone when this is dropped.
pub struct Recorded {
    /// When it was told to stop. Real µs since it began.
    pub ended_us: u64,
    pub plan: Plan,
    dir: TempDir,
}

/// Counts of a stretch of time.
pub struct Stretch {
    pub sent: u64,
    pub acked: u64,
    pub refused: u64,
    /// Due in it and never sent.
    pub dropped: u64,
    /// Of what was acknowledged in it, from the intended time.
    pub latency: Latency,
}

impl Stretch {
    /// p50 and p99 in milliseconds; NaN when nothing was acknowledged.
    pub fn p50_p99_ms(&self) -> (f64, f64) {
        match self.latency.count {
            0 => (f64::NAN, f64::NAN),
            _ => (self.latency.p50, self.latency.p99),
        }
    }
}

impl Recorded {
    pub fn new(ended_us: u64, plan: Plan, dir: TempDir) -> Self {
        Self { ended_us, plan, dir }
    }

    pub fn history(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// What happened from `from_us` up to `to_us`.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn stretch(&self, from_us: u64, to_us: u64) -> Result<Stretch, HarnessError> {
        let inside = |at_us: u64| (from_us..to_us).contains(&at_us);
        let mut latency = histogram();
        let mut found = Stretch {
            sent: 0,
            acked: 0,
            refused: 0,
            dropped: 0,
            latency: Latency::default(),
        };
        each(self.dir.path(), |op| {
            if op.kind != Kind::Telemetry {
                return;
            }
            found.sent += u64::from(op.sends > 0 && inside(op.sent_us));
            match op.outcome {
                Outcome::Ok if inside(op.done_us) => {
                    found.acked += 1;
                    latency.saturating_record(op.latency_us().max(1));
                }
                Outcome::Refused(_) => found.refused += u64::from(inside(op.done_us)),
                Outcome::Dropped => found.dropped += u64::from(inside(op.intended_us)),
                _ => {}
            }
        })?;
        found.latency = Latency::from(&latency);
        Ok(found)
    }

    /// Acknowledged twin reports from `from_us` up to `to_us`.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn reports(&self, from_us: u64, to_us: u64) -> Result<u64, HarnessError> {
        let mut count = 0;
        each(self.dir.path(), |op| {
            let counts = op.kind == Kind::Report && op.outcome == Outcome::Ok;
            count += u64::from(counts && (from_us..to_us).contains(&op.done_us));
        })?;
        Ok(count)
    }

    /// Messages without an answer, and acknowledged ones, over the whole life of the fleet.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn unknown_and_acked(&self) -> Result<(u64, u64), HarnessError> {
        let (mut unknown, mut acked) = (0, 0);
        each(self.dir.path(), |op| {
            if op.kind == Kind::Telemetry {
                unknown += u64::from(op.outcome == Outcome::Unknown);
                acked += u64::from(op.outcome == Outcome::Ok);
            }
        })?;
        Ok((unknown, acked))
    }

    /// When each shard acknowledged something, sorted. Real µs since the fleet began.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn acknowledged_us(&self, shards: u16) -> Result<Vec<Vec<u64>>, HarnessError> {
        let mut times = vec![Vec::new(); usize::from(shards)];
        each(self.dir.path(), |op| {
            if let (Kind::Telemetry, Outcome::Ok) = (op.kind, op.outcome) {
                times[shard_of(&self.plan, op.subject, shards)].push(op.done_us);
            }
        })?;
        times.iter_mut().for_each(|times| times.sort_unstable());
        Ok(times)
    }
}

/// When each shard first acknowledged something, in a history that may still be written.
///
/// # Errors
/// It cannot be read.
pub fn first_acknowledged_us(dir: &Path, plan: &Plan, shards: u16) -> Result<Vec<Option<u64>>, HarnessError> {
    let mut first: Vec<Option<u64>> = vec![None; usize::from(shards)];
    if history::parts(dir).is_err() {
        return Ok(first); // nothing is written yet
    }
    each(dir, |op| {
        if let (Kind::Telemetry, Outcome::Ok) = (op.kind, op.outcome) {
            let place = &mut first[shard_of(plan, op.subject, shards)];
            *place = Some(place.map_or(op.done_us, |at| at.min(op.done_us)));
        }
    })?;
    Ok(first)
}

fn each(dir: &Path, mut take: impl FnMut(&Op)) -> Result<(), HarnessError> {
    let read = history::read(dir, |record| {
        if let Record::Op(op) = record {
            take(&op);
        }
    });
    read.map(drop).map_err(|e| HarnessError::new("the fleet's history", e))
}

fn shard_of(plan: &Plan, subject: u32, shards: u16) -> usize {
    let (id, _) = plan.roster.subject_id(&plan.loaded, subject);
    let id = DeviceId::parse(&id).expect("names of a checked scenario are device ids");
    usize::from(DeviceKey::new(TenantId::DEFAULT, id).shard(shards).0)
}
