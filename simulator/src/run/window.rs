//! A stretch of a run as it is stored and sent between processes: counts, and histograms as pairs.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::drive::tally::{histogram, Counts, States, Tally};

/// A histogram of µs as (value, count) pairs; gives back the same histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pairs(pub Vec<(u64, u64)>);

impl From<&Histogram<u64>> for Pairs {
    fn from(histogram: &Histogram<u64>) -> Self {
        let pairs = histogram.iter_recorded();
        Self(
            pairs
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        )
    }
}

impl Pairs {
    pub fn add_to(&self, into: &mut Histogram<u64>) {
        for (value, count) in &self.0 {
            let _ = into.record_n(*value, *count);
        }
    }

    pub fn histogram(&self) -> Histogram<u64> {
        let mut whole = histogram();
        self.add_to(&mut whole);
        whole
    }
}

/// What happened from `from_us` to `to_us`, real µs since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub from_us: u64,
    pub to_us: u64,
    pub counts: Counts,
    pub states: States,
    pub latency: Pairs,
    pub lag: Pairs,
    #[serde(default)]
    pub report_latency: Pairs,
    #[serde(default)]
    pub connect_time: Pairs,
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
}

impl Window {
    pub fn of(tally: &Tally, states: States, from_us: u64, to_us: u64) -> Self {
        Self {
            from_us,
            to_us,
            counts: tally.counts,
            states,
            latency: (&tally.latency).into(),
            lag: (&tally.lag).into(),
            report_latency: (&tally.report_latency).into(),
            connect_time: (&tally.connect_time).into(),
            errors: tally.errors.clone(),
        }
    }

    /// Adds what was counted to `into`.
    pub fn add_to(&self, into: &mut Tally) {
        into.counts.add(&self.counts);
        self.latency.add_to(&mut into.latency);
        self.lag.add_to(&mut into.lag);
        self.report_latency.add_to(&mut into.report_latency);
        self.connect_time.add_to(&mut into.connect_time);
        for (kind, count) in &self.errors {
            *into.errors.entry(kind.clone()).or_default() += count;
        }
    }

    pub fn seconds(&self) -> f64 {
        (self.to_us.saturating_sub(self.from_us)) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payloads::Chance;

    /// What goes through a file or another process gives the same percentiles.
    #[test]
    fn histograms_survive_as_pairs() {
        let mut chance = Chance::new(4);
        let mut whole = histogram();
        for _ in 0..20_000 {
            whole.saturating_record((chance.exponential() * 5_000.0) as u64 + 1);
        }
        let text = serde_json::to_string(&Pairs::from(&whole)).unwrap();
        let again = serde_json::from_str::<Pairs>(&text).unwrap().histogram();
        assert_eq!(again, whole);
    }
}
