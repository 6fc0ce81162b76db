//! One lease: a fault, until when it acts, and how often it did.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::kind::Fault;

pub struct Lease {
    pub id: String,
    pub fault: Fault,
    pub seed: u64,
    /// On the machine's own monotonic clock, as everything here.
    pub began_ms: u64,
    ends_ms: AtomicU64,
    /// Set when it is healed before its time.
    healed: AtomicBool,
    hits: AtomicU64,
    hits_metric: metrics::Counter,
    chance: Mutex<SmallRng>,
}

impl Lease {
    pub fn new(id: &str, fault: Fault, seed: Option<u64>, (began_ms, ends_ms): (u64, u64)) -> Self {
        let seed = seed.unwrap_or_else(|| xxhash_rust::xxh3::xxh3_64(id.as_bytes()));
        Self {
            id: id.to_owned(),
            hits_metric: metrics::counter!("holdfast_chaos_hits_total", "kind" => fault.kind()),
            fault,
            seed,
            began_ms,
            ends_ms: AtomicU64::new(ends_ms),
            healed: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            chance: Mutex::new(SmallRng::seed_from_u64(seed)),
        }
    }

    pub fn acts(&self, now_ms: u64) -> bool {
        !self.healed.load(Relaxed) && now_ms < self.ends_ms()
    }

    pub fn ends_ms(&self) -> u64 {
        self.ends_ms.load(Relaxed)
    }

    pub fn renew(&self, ends_ms: u64) {
        self.ends_ms.store(ends_ms, Relaxed);
    }

    pub fn heal(&self) {
        self.healed.store(true, Relaxed);
    }

    /// The fault has acted.
    pub fn hit(&self) {
        self.hits_metric.increment(1);
        self.hits.fetch_add(1, Relaxed);
    }

    /// As [`Self::hit`]; `true` for the first only.
    pub fn hit_once(&self) -> bool {
        let first = self.hits.compare_exchange(0, 1, Relaxed, Relaxed).is_ok();
        if first {
            self.hits_metric.increment(1);
        }
        first
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Relaxed)
    }

    /// Whether it strikes this time, and counts it if so.
    pub fn strikes(&self, percent: f64) -> bool {
        let strikes = percent >= 100.0 || self.below(1 << 20) as f64 * 100.0 < percent * f64::from(1 << 20);
        if strikes {
            self.hit();
        }
        strikes
    }

    /// By chance, 0..`end`; 0 when there is nothing to choose.
    pub fn below(&self, end: u64) -> u64 {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        chance.random_range(0..end.max(1))
    }

    pub fn view(&self, now_ms: u64) -> LeaseView {
        LeaseView {
            id: self.id.clone(),
            kind: self.fault.kind(),
            fault: self.fault.clone(),
            seed: self.seed,
            expires_in_ms: self.ends_ms().saturating_sub(now_ms),
            hits: self.hits(),
        }
    }
}

/// A lease as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeaseView {
    pub id: String,
    pub kind: &'static str,
    pub fault: Fault,
    pub seed: u64,
    pub expires_in_ms: u64,
    pub hits: u64,
}

/// A lease that is over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastView {
    pub id: String,
    pub kind: &'static str,
    pub fault: Fault,
    pub seed: u64,
    /// `healed` or `expired`.
    pub reason: &'static str,
    pub ended_ms_ago: u64,
    pub hits: u64,
}
