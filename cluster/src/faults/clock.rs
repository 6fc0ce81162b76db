//! The clock that drills may bend. Leases themselves go by the one below it.
//!
//! A step, a strobe and a freeze bend the time of day only, as setting a machine's clock does. A
//! drift is a crystal that is off: the monotonic clock has it too, and keeps what it has gained
//! when the lease ends, because it never runs backwards.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use actors::time::{Clock, Timestamp};

use super::kind::{Area, Fault};
use super::lease::Lease;
use super::table::Faults;

/// What the bent clocks remember.
#[derive(Default)]
pub struct Skew {
    /// What drifts that are over have added to the monotonic clock.
    drifted_ms: i64,
    /// Whether there ever was one.
    pub drifts: bool,
    /// Where the time of day stood when it was frozen, per lease.
    frozen: Vec<(Arc<Lease>, u64)>,
}

impl Skew {
    pub fn begins(&mut self, lease: &Arc<Lease>, clock: &dyn Clock) {
        if lease.fault == Fault::ClockFreeze {
            self.frozen.push((lease.clone(), clock.now().0));
        }
        self.drifts |= matches!(lease.fault, Fault::ClockDrift { .. });
    }

    pub fn ends(&mut self, lease: &Arc<Lease>, now_ms: u64) {
        self.frozen.retain(|(frozen, _)| !Arc::ptr_eq(frozen, lease));
        if let Fault::ClockDrift { ppm } = lease.fault {
            self.drifted_ms += drift(ppm, lease, now_ms);
        }
    }
}

/// What a drift has added until `now_ms`, in milliseconds.
fn drift(ppm: i64, lease: &Lease, now_ms: u64) -> i64 {
    let ran_ms = now_ms.min(lease.ends_ms()).saturating_sub(lease.began_ms);
    let added = i128::from(ran_ms) * i128::from(ppm) / 1_000_000;
    i64::try_from(added).unwrap_or(0)
}

/// A clock with the faults of `faults` on top of the machine's.
pub struct DrillClock {
    machine: Arc<dyn Clock>,
    faults: Arc<Faults>,
    last_ms: AtomicU64,
}

impl DrillClock {
    pub fn new(machine: Arc<dyn Clock>, faults: Arc<Faults>) -> Self {
        Self {
            machine,
            faults,
            last_ms: AtomicU64::new(0),
        }
    }

    /// The time of day as it is shown, where the machine says `machine_ms`.
    fn bent(&self, machine_ms: u64) -> u64 {
        let table = self.faults.lock();
        let now_ms = self.faults.now_ms();
        let mut offset = 0_i64;
        for lease in table.clock_leases().filter(|lease| table.acts(lease, now_ms)) {
            offset += match lease.fault {
                Fault::ClockStep { ms } => ms,
                Fault::ClockDrift { ppm } => drift(ppm, lease, now_ms),
                Fault::ClockStrobe { ms, period_ms } => {
                    let forth = ((now_ms - lease.began_ms.min(now_ms)) / period_ms).is_multiple_of(2);
                    if forth {
                        ms
                    } else {
                        0
                    }
                }
                _ => 0,
            };
            lease.hit();
        }
        let frozen = table.skew.frozen.iter().filter(|(lease, _)| table.acts(lease, now_ms));
        let base = frozen.map(|(_, at_ms)| *at_ms).next_back().unwrap_or(machine_ms);
        base.saturating_add_signed(offset)
    }

    fn drifted(&self) -> u64 {
        let table = self.faults.lock();
        let now_ms = self.faults.now_ms();
        let mut offset = table.skew.drifted_ms;
        // Those whose time is up as well, until the table has noticed: they are not in the sum yet.
        for lease in table.clock_leases() {
            if let Fault::ClockDrift { ppm } = lease.fault {
                offset += drift(ppm, lease, now_ms);
                if table.acts(lease, now_ms) {
                    lease.hit();
                }
            }
        }
        let shown = self.machine.monotonic_ms().saturating_add_signed(offset);
        self.last_ms.fetch_max(shown, Relaxed).max(shown)
    }
}

impl Clock for DrillClock {
    fn now(&self) -> Timestamp {
        let machine = self.machine.now();
        if self.faults.asked(Area::Clock) {
            return Timestamp(self.bent(machine.0));
        }
        machine
    }

    fn monotonic_ms(&self) -> u64 {
        match self.faults.asked(Area::Drift) {
            true => self.drifted(),
            false => self.machine.monotonic_ms(),
        }
    }
}
