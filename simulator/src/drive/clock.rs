//! Real time since the run began, in µs, the same in every thread and process of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begin: Instant,
    compression: f64,
}

impl Clock {
    /// A run that begins (or began) at `begin_unix_us`, µs since 1970.
    pub fn new(begin_unix_us: u64, compression: f64) -> Self {
        let (now, unix) = (Instant::now(), unix_us());
        let begin = match begin_unix_us.checked_sub(unix) {
            Some(ahead) => now + Duration::from_micros(ahead),
            None => now
                .checked_sub(Duration::from_micros(unix - begin_unix_us))
                .unwrap_or(now),
        };
        Self { begin, compression }
    }

    /// 0 before the beginning.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Scenario time of a real one.
    pub fn scenario_us(&self, real_us: u64) -> u64 {
        (real_us as f64 * self.compression) as u64
    }

    /// Real time of a scenario one; `u64::MAX` stays never.
    pub fn real_us(&self, scenario_us: u64) -> u64 {
        match scenario_us {
            u64::MAX => u64::MAX,
            at => (at as f64 / self.compression) as u64,
        }
    }
}

/// µs since 1970.
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
