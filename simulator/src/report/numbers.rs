//! The figures of a report, as machines read them.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub p9999: f64,
    pub max: f64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let ms = |us: u64| us as f64 / 1e3;
        let at = |quantile: f64| ms(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: ms(histogram.max()),
        }
    }
}

impl Latency {
    /// Name and value, for tables.
    pub fn rows(&self) -> [(&'static str, f64); 9] {
        [
            ("mean", self.mean),
            ("p50", self.p50),
            ("p75", self.p75),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("p99.99", self.p9999),
            ("max", self.max),
        ]
    }
}

/// `61204` as `61,204`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Milliseconds as people read them: three digits, and no zeros that say nothing.
pub fn millis(ms: f64) -> String {
    let digits = |value: f64| {
        let text = match value {
            value if value >= 100.0 => format!("{value:.0}"),
            value if value >= 10.0 => format!("{value:.1}"),
            value if value >= 1.0 => format!("{value:.2}"),
            value => format!("{value:.3}"),
        };
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    };
    match ms {
        ms if ms >= 600_000.0 => format!("{} min", digits(ms / 60_000.0)),
        ms if ms >= 1_000.0 => format!("{} s", digits(ms / 1_000.0)),
        ms => format!("{} ms", digits(ms)),
    }
}

/// µs as a length of time.
pub fn stretch(us: u64) -> String {
    let secs = us / 1_000_000;
    match secs {
        0..=119 => format!("{:.1} s", us as f64 / 1e6),
        120..=7_199 => format!("{} min {:02} s", secs / 60, secs % 60),
        7_200..=172_799 => format!("{} h {:02} min", secs / 3_600, secs / 60 % 60),
        _ => format!("{} d {:02} h", secs / 86_400, secs / 3_600 % 24),
    }
}

/// A rate a second.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 100.0 || rate.fract() == 0.0 => grouped(rate.round() as u64),
        rate if rate >= 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(61_204), grouped(1_000_000)],
            ["0", "999", "61,204", "1,000,000"]
        );
        assert_eq!(
            [
                millis(0.25),
                millis(2.5),
                millis(250.0),
                millis(2_512.0),
                millis(100_000.0)
            ],
            ["0.25 ms", "2.5 ms", "250 ms", "2.51 s", "100 s"]
        );
        assert_eq!(
            [stretch(1_500_000), stretch(600_000_000), stretch(90_000_000_000)],
            ["1.5 s", "10 min 00 s", "25 h 00 min"]
        );
    }
}
