//! Live counters of a running fleet, shared between its threads and whoever watches.
//!
//! Counters only grow (except `connected`); a watcher takes differences. Nothing here is part of
//! the record that is judged.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub struct Progress {
    pub started: Instant,
    pub connected: AtomicU64,
    pub published: AtomicU64,
    pub acknowledged: AtomicU64,
    pub twin_acknowledged: AtomicU64,
    pub refused: AtomicU64,
    /// Messages that were due while the window was full, and so were never sent ([`crate::Load::Shed`]).
    pub held_back: AtomicU64,
    pub reconnects: AtomicU64,
    /// CONNACKs that real devices take as final.
    pub final_refusals: AtomicU64,
    /// Latencies are recorded while not 0; another number starts an empty histogram.
    pub measurement: AtomicU32,
    shards: Vec<ShardClock>,
}

/// When a shard last acknowledged anything, and its longest silence since `reset_gaps`. Unit: µs.
#[derive(Default)]
struct ShardClock {
    last: AtomicU64,
    longest: AtomicU64,
}

impl Progress {
    pub(crate) fn new(shards: u16) -> Self {
        Self {
            started: Instant::now(),
            connected: AtomicU64::new(0),
            published: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            twin_acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            final_refusals: AtomicU64::new(0),
            measurement: AtomicU32::new(0),
            shards: (0..shards).map(|_| ShardClock::default()).collect(),
        }
    }

    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn shard_acknowledged(&self, shard: u16, now: Duration) {
        if let Some(clock) = self.shards.get(usize::from(shard)) {
            let now = micros(now);
            let before = clock.last.swap(now, Ordering::Relaxed);
            if before != 0 {
                clock.longest.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
            }
        }
    }

    /// Starts measuring anew, from each shard's last acknowledgement.
    pub fn reset_gaps(&self) {
        for clock in &self.shards {
            clock.longest.store(0, Ordering::Relaxed);
        }
    }

    /// Per shard, the longest time without an acknowledgement, the present silence included.
    /// Meaningful while every shard has devices that always wait for something (closed loop).
    /// `None`: no device of this fleet lives there.
    pub fn shard_gaps(&self) -> Vec<Option<Duration>> {
        let now = micros(self.started.elapsed());
        let gap = |clock: &ShardClock| {
            let last = clock.last.load(Ordering::Relaxed);
            let open = now.saturating_sub(last);
            (last != 0).then(|| Duration::from_micros(clock.longest.load(Ordering::Relaxed).max(open)))
        };
        self.shards.iter().map(gap).collect()
    }
}

fn micros(at: Duration) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX).max(1)
}
