//! When a device is out of reach: times within reach and out of it, one after the other.

use super::Connectivity;
use crate::payloads::Chance;

/// The next outage of a device. Times are scenario time in µs.
#[derive(Clone, Debug)]
pub struct Outages {
    pub begins_us: u64,
    pub ends_us: u64,
}

impl Outages {
    pub fn begin(plan: &Connectivity, chance: &mut Chance) -> Self {
        let mut first = Self {
            begins_us: 0,
            ends_us: 0,
        };
        first.next(plan, chance);
        first
    }

    /// Moves on to the outage after this one.
    pub fn next(&mut self, plan: &Connectivity, chance: &mut Chance) {
        let micros = |secs: f64| (secs.max(0.1) * 1e6) as u64;
        self.begins_us = self.ends_us.saturating_add(micros(plan.online_secs.draw(chance)));
        self.ends_us = self.begins_us.saturating_add(micros(plan.offline_secs.draw(chance)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payloads::Dist;

    #[test]
    fn outages_follow_one_another_and_are_the_seeds() {
        let plan = Connectivity {
            online_secs: Dist::Exponential { exponential: 10.0 },
            offline_secs: Dist::Fixed(2.0),
            graceful: false,
        };
        let list = |seed| {
            let mut chance = Chance::new(seed);
            let mut outages = Outages::begin(&plan, &mut chance);
            let mut found = Vec::new();
            for _ in 0..50 {
                found.push((outages.begins_us, outages.ends_us));
                outages.next(&plan, &mut chance);
            }
            found
        };
        let found = list(1);
        assert!(found.iter().all(|(begin, end)| end - begin == 2_000_000));
        assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert_eq!(found, list(1));
        assert_ne!(found, list(2));
    }
}
