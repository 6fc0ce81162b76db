//! Whether a figure grows, how fast, and how sure that is.
//!
//! Samples of a process are not independent: memory goes up and down in waves of minutes. So they
//! are first averaged over blocks, a straight line is fitted through the blocks, and the interval
//! is Student's for as many blocks as there are, widened by how much neighbours still agree. The
//! first part, when caches fill, is left out.

use serde::{Deserialize, Serialize};

/// Part of the samples at the beginning that is warm-up.
const WARM_UP: f64 = 0.25;
const BLOCKS: usize = 24;
/// Blocks below which nothing is said.
const BLOCKS_MIN: usize = 8;
/// Hours behind the warm-up below which nothing is said: a process that has just begun always grows.
const HOURS_MIN: f64 = 0.5;

/// A line through the samples. Units are the figure's, per hour of real time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slope {
    pub per_hour: f64,
    /// Bounds of the 95 % interval.
    pub low: f64,
    pub high: f64,
    /// Where the line stands at the end.
    pub last: f64,
    pub hours: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trend {
    /// Too few samples or too short.
    Unknown,
    /// No growth that matters, or none that can be told from chance.
    Flat,
    Grows,
    Falls,
}

/// Fits samples of (µs, value); `None`: too few to say anything.
pub fn fit(samples: &[(u64, f64)]) -> Option<Slope> {
    let begin = samples.first()?.0;
    let end = samples.last()?.0;
    let from = begin + ((end - begin) as f64 * WARM_UP) as u64;
    let kept: Vec<(f64, f64)> = samples
        .iter()
        .filter(|(at, _)| *at >= from)
        .map(|(at, value)| ((at - begin) as f64 / 3.6e9, *value))
        .collect();
    let blocks = blocks(&kept);
    if blocks.len() < BLOCKS_MIN {
        return None;
    }
    let count = blocks.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| blocks.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|b| b.0), mean(|b| b.1));
    let spread: f64 = blocks.iter().map(|b| (b.0 - x_mean).powi(2)).sum();
    if spread <= 0.0 {
        return None;
    }
    let slope = blocks.iter().map(|b| (b.0 - x_mean) * (b.1 - y_mean)).sum::<f64>() / spread;
    let rest: Vec<f64> = blocks.iter().map(|b| b.1 - y_mean - slope * (b.0 - x_mean)).collect();
    let error = rest.iter().map(|r| r * r).sum::<f64>() / (count - 2.0);
    let agree = correlation(&rest).clamp(0.0, 0.9);
    let width = student(blocks.len() - 2) * (error / spread).sqrt() * ((1.0 + agree) / (1.0 - agree)).sqrt();
    let x_last = kept.last()?.0;
    if x_last - kept.first()?.0 < HOURS_MIN {
        return None;
    }
    Some(Slope {
        per_hour: slope,
        low: slope - width,
        high: slope + width,
        last: y_mean + slope * (x_last - x_mean),
        hours: x_last - kept.first()?.0,
    })
}

fn blocks(kept: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = kept.len().div_ceil(BLOCKS).max(1);
    let whole = kept.chunks(size).filter(|chunk| chunk.len() * 2 >= size);
    let average = |chunk: &[(f64, f64)]| {
        let count = chunk.len() as f64;
        (
            chunk.iter().map(|s| s.0).sum::<f64>() / count,
            chunk.iter().map(|s| s.1).sum::<f64>() / count,
        )
    };
    whole.map(average).collect()
}

/// How much neighbours agree: the correlation of the residuals at distance one.
fn correlation(rest: &[f64]) -> f64 {
    let all: f64 = rest.iter().map(|r| r * r).sum();
    match all > 0.0 {
        true => rest.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / all,
        false => 0.0,
    }
}

/// Student's t, 97.5 %, by degrees of freedom.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 23] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069,
    ];
    TABLE.get(freedom.saturating_sub(1)).copied().unwrap_or(2.0)
}

impl Slope {
    /// `matters`: growth per hour below which it is called flat.
    pub fn trend(&self, matters: f64) -> Trend {
        match self {
            _ if self.low > 0.0 && self.per_hour > matters => Trend::Grows,
            _ if self.high < 0.0 && self.per_hour < -matters => Trend::Falls,
            _ => Trend::Flat,
        }
    }

    /// Hours until the line reaches a bound; `None`: never.
    pub fn hours_until(&self, bound: f64) -> Option<f64> {
        let hours = (bound - self.last) / self.per_hour;
        (hours.is_finite() && hours >= 0.0).then_some(hours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payloads::Chance;

    /// `hours` of samples each 5 s: a line with noise in waves, and a warm-up at the beginning.
    fn samples(per_hour: f64, noise: f64, hours: f64, seed: u64) -> Vec<(u64, f64)> {
        let mut chance = Chance::new(seed);
        let mut wave = 0.0;
        let count = (hours * 720.0) as u64;
        let one = |at: u64| {
            wave = 0.95 * wave + chance.normal() * noise * 0.3;
            let hour = at as f64 / 720.0;
            let warm_up = -50.0 * (-(hour / hours) * 30.0).exp();
            (at * 5_000_000, 500.0 + warm_up + per_hour * hour + wave)
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn a_leak_is_seen_and_its_size_is_within_the_interval() {
        for seed in 0..20 {
            let slope = fit(&samples(1.8, 1.0, 6.0, seed)).unwrap();
            assert_eq!(slope.trend(0.05), Trend::Grows, "{seed} {slope:?}");
            assert!((slope.per_hour - 1.8).abs() < 0.5, "{seed} {slope:?}");
            let hours = slope.hours_until(2_000.0).unwrap();
            assert!((600.0..1_200.0).contains(&hours), "{hours}");
        }
    }

    /// Waves alone are called growth in at most a few of a hundred runs.
    #[test]
    fn waves_are_not_leaks() {
        let grows = (0..200).filter(|seed| {
            let slope = fit(&samples(0.0, 3.0, 6.0, *seed)).unwrap();
            slope.trend(0.05) == Trend::Grows
        });
        let count = grows.count();
        assert!(count <= 14, "{count} of 200 flat runs were called growing");
    }

    #[test]
    fn little_says_nothing() {
        assert_eq!(fit(&[]), None);
        assert_eq!(fit(&samples(1.0, 0.0, 0.01, 1)), None);
        let flat: Vec<(u64, f64)> = (0..1_000).map(|at| (at * 5_000_000, 5.0)).collect();
        assert_eq!(fit(&flat).unwrap().trend(0.0), Trend::Flat);
        assert_eq!(fit(&flat).unwrap().hours_until(10.0), None);
    }
}
