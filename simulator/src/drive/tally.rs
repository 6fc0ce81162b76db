//! What a thread counts, in windows that whoever watches takes away.

use std::collections::BTreeMap;
use std::sync::Mutex;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies count up to this; longer ones as this. One hour, in µs.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// An empty histogram of µs, three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are constants in range")
}

/// Counts of one stretch of time; they add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Telemetry published for the first time.
    pub sent: u64,
    pub acked: u64,
    pub refused: u64,
    /// Without an answer when the run ended.
    pub unknown: u64,
    /// Never sent: no room in the device's queue while it was away.
    pub dropped: u64,
    /// QoS 0: nothing will be known of them; part of `sent`.
    pub unconfirmed: u64,
    /// Publishes sent again after a lost connection.
    pub resent: u64,
    /// Deliberate second publishes, and those of them that were acknowledged.
    pub repeats: u64,
    pub repeats_acked: u64,
    pub payload_bytes: u64,
    pub reports: u64,
    pub reports_acked: u64,
    pub reports_refused: u64,
    pub reports_unknown: u64,
    pub twin_reads: u64,
    pub desired_seen: u64,
    pub method_calls: u64,
    pub messages: u64,
    /// Acknowledgements of what was not outstanding, and those that overtook an earlier one.
    pub acks_foreign: u64,
    pub acks_disordered: u64,
    pub connects: u64,
    pub connects_failed: u64,
    /// Connections lost that nobody asked for …
    pub lost: u64,
    /// … and those given up on purpose.
    pub left: u64,
    pub malformed: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        let pairs: [(&mut u64, u64); 25] = [
            (&mut self.sent, other.sent),
            (&mut self.acked, other.acked),
            (&mut self.refused, other.refused),
            (&mut self.unknown, other.unknown),
            (&mut self.dropped, other.dropped),
            (&mut self.unconfirmed, other.unconfirmed),
            (&mut self.resent, other.resent),
            (&mut self.repeats, other.repeats),
            (&mut self.repeats_acked, other.repeats_acked),
            (&mut self.payload_bytes, other.payload_bytes),
            (&mut self.reports, other.reports),
            (&mut self.reports_acked, other.reports_acked),
            (&mut self.reports_refused, other.reports_refused),
            (&mut self.reports_unknown, other.reports_unknown),
            (&mut self.twin_reads, other.twin_reads),
            (&mut self.desired_seen, other.desired_seen),
            (&mut self.method_calls, other.method_calls),
            (&mut self.messages, other.messages),
            (&mut self.acks_foreign, other.acks_foreign),
            (&mut self.acks_disordered, other.acks_disordered),
            (&mut self.connects, other.connects),
            (&mut self.connects_failed, other.connects_failed),
            (&mut self.lost, other.lost),
            (&mut self.left, other.left),
            (&mut self.malformed, other.malformed),
        ];
        for (mine, theirs) in pairs {
            *mine += theirs;
        }
    }
}

/// How many devices are in which state now. Gauges: the newest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct States {
    /// Their time to connect has not come.
    pub waiting: u32,
    pub connecting: u32,
    pub connected: u32,
    /// Between two attempts.
    pub backing_off: u32,
    /// Away on purpose.
    pub away: u32,
    pub done: u32,
    /// Publishes without an answer yet.
    pub outstanding: u64,
}

impl States {
    pub fn add(&mut self, other: &States) {
        self.waiting += other.waiting;
        self.connecting += other.connecting;
        self.connected += other.connected;
        self.backing_off += other.backing_off;
        self.away += other.away;
        self.done += other.done;
        self.outstanding += other.outstanding;
    }
}

/// Everything counted in a stretch of time.
#[derive(Clone, Debug)]
pub struct Tally {
    pub counts: Counts,
    /// Latency of acknowledged telemetry from its intended time. µs.
    pub latency: Histogram<u64>,
    /// From when a message could have been sent to when it was: the generator's own delay. µs.
    pub lag: Histogram<u64>,
    /// Latency of acknowledged reports. µs.
    pub report_latency: Histogram<u64>,
    /// From connect to CONNACK. µs.
    pub connect_time: Histogram<u64>,
    pub errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            counts: Counts::default(),
            latency: histogram(),
            lag: histogram(),
            report_latency: histogram(),
            connect_time: histogram(),
            errors: BTreeMap::new(),
        }
    }
}

impl Tally {
    pub fn error(&mut self, text: String) {
        // Kinds are few; a server that invents texts cannot fill memory through them.
        if self.errors.len() < 64 || self.errors.contains_key(&text) {
            *self.errors.entry(text).or_default() += 1;
        } else {
            *self.errors.entry("other".into()).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: &Tally) {
        self.counts.add(&other.counts);
        for (mine, theirs) in [
            (&mut self.latency, &other.latency),
            (&mut self.lag, &other.lag),
            (&mut self.report_latency, &other.report_latency),
            (&mut self.connect_time, &other.connect_time),
        ] {
            if !theirs.is_empty() {
                mine.add(theirs).expect("all histograms have the same bounds");
            }
        }
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
    }

    /// Empties it and keeps its memory.
    pub fn reset(&mut self) {
        self.counts = Counts::default();
        self.errors.clear();
        for histogram in [
            &mut self.latency,
            &mut self.lag,
            &mut self.report_latency,
            &mut self.connect_time,
        ] {
            if !histogram.is_empty() {
                histogram.reset();
            }
        }
    }
}

/// Where a thread leaves what it counted, and others take it.
#[derive(Default)]
pub struct Board {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    tally: Tally,
    states: States,
    /// Why the thread stopped recording or ended, if it did.
    failure: Option<String>,
    records: u64,
}

impl Board {
    /// Adds what was counted since the last time, and empties it.
    pub fn post(&self, tally: &mut Tally, states: States, records: u64) {
        let mut inside = self.lock();
        inside.tally.add(tally);
        (inside.states, inside.records) = (states, records);
        tally.reset();
    }

    pub fn fail(&self, why: &str) {
        self.lock().failure.get_or_insert_with(|| why.to_owned());
    }

    /// Moves what was posted since the last time into `into`, and tells states and failure.
    pub fn take(&self, into: &mut Tally) -> (States, u64, Option<String>) {
        let mut inside = self.lock();
        into.add(&inside.tally);
        inside.tally.reset();
        (inside.states, inside.records, inside.failure.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inside> {
        // A panic while counting leaves numbers that are a little old, never torn ones.
        self.inside.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
