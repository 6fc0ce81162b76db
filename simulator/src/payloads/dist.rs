//! A distribution of numbers, as a scenario writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chance::Chance;

/// Where a number comes from: `5`, or a table with one of the names below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Dist {
    Fixed(f64),
    Uniform {
        uniform: [f64; 2],
    },
    /// Mean and deviation.
    Normal {
        normal: [f64; 2],
    },
    /// Mean.
    Exponential {
        exponential: f64,
    },
    /// Median, and the factor within which two thirds lie.
    LogNormal {
        log_normal: [f64; 2],
    },
    /// Values and, optionally, weights.
    Of {
        of: Vec<f64>,
        #[serde(default)]
        weights: Vec<f64>,
    },
}

impl Default for Dist {
    fn default() -> Self {
        Self::Fixed(0.0)
    }
}

impl Dist {
    pub fn draw(&self, chance: &mut Chance) -> f64 {
        match self {
            Self::Fixed(value) => *value,
            Self::Uniform { uniform: [low, high] } => chance.between(*low, *high),
            Self::Normal {
                normal: [mean, deviation],
            } => mean + deviation * chance.normal(),
            Self::Exponential { exponential } => exponential * chance.exponential(),
            Self::LogNormal {
                log_normal: [median, factor],
            } => median * (factor.ln() * chance.normal()).exp(),
            Self::Of { of, weights } if weights.is_empty() => of[chance.below(of.len() as u64) as usize],
            Self::Of { of, weights } => of[chance.weighted(weights)],
        }
    }

    pub fn mean(&self) -> f64 {
        match self {
            Self::Fixed(value) => *value,
            Self::Uniform { uniform: [low, high] } => (low + high) / 2.0,
            Self::Normal { normal: [mean, _] } => *mean,
            Self::Exponential { exponential } => *exponential,
            Self::LogNormal {
                log_normal: [median, factor],
            } => median * (factor.ln().powi(2) / 2.0).exp(),
            Self::Of { of, weights } if weights.is_empty() => of.iter().sum::<f64>() / of.len().max(1) as f64,
            Self::Of { of, weights } => {
                let total: f64 = weights.iter().sum();
                of.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>() / total
            }
        }
    }

    /// Why it makes no sense, if it makes none.
    pub fn problem(&self) -> Option<String> {
        let numbers: Vec<f64> = match self {
            Self::Fixed(value) => vec![*value],
            Self::Uniform { uniform } => uniform.to_vec(),
            Self::Normal { normal } => normal.to_vec(),
            Self::Exponential { exponential } => vec![*exponential],
            Self::LogNormal { log_normal } => log_normal.to_vec(),
            Self::Of { of, weights } => [of.as_slice(), weights].concat(),
        };
        if numbers.iter().any(|n| !n.is_finite()) {
            return Some("is not a finite number".into());
        }
        match self {
            Self::Uniform { uniform: [low, high] } if low > high => Some(format!("{low} is above {high}")),
            Self::Normal { normal: [_, deviation] } if *deviation < 0.0 => Some("a deviation is not below 0".into()),
            Self::Exponential { exponential } if *exponential < 0.0 => Some("a mean is not below 0 here".into()),
            Self::LogNormal {
                log_normal: [median, factor],
            } if *median <= 0.0 || *factor < 1.0 => Some("needs a median above 0 and a factor from 1".into()),
            Self::Of { of, .. } if of.is_empty() => Some("is empty".into()),
            Self::Of { of, weights } if !weights.is_empty() && weights.len() != of.len() => {
                Some(format!("has {} weights for {} values", weights.len(), of.len()))
            }
            Self::Of { weights, .. } if !weights.is_empty() && weights.iter().sum::<f64>() <= 0.0 => {
                Some("needs a weight above 0".into())
            }
            Self::Of { weights, .. } if weights.iter().any(|w| *w < 0.0) => Some("a weight is not below 0".into()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Row {
        d: Dist,
    }

    #[test]
    fn every_form_is_read_and_has_its_mean() {
        for (text, mean) in [
            ("d = 5", 5.0),
            ("d = { uniform = [1, 3] }", 2.0),
            ("d = { normal = [10.0, 2.0] }", 10.0),
            ("d = { exponential = 4 }", 4.0),
            ("d = { of = [1, 9], weights = [3, 1] }", 3.0),
        ] {
            let row: Row = toml::from_str(text).unwrap();
            assert_eq!(row.d.problem(), None, "{text}");
            let mut chance = Chance::new(3);
            let drawn = (0..50_000).map(|_| row.d.draw(&mut chance)).sum::<f64>() / 50_000.0;
            assert!((row.d.mean() - mean).abs() < 1e-9, "{text}: {}", row.d.mean());
            assert!((drawn - mean).abs() < mean * 0.05, "{text}: {drawn}");
        }
        for bad in [
            "d = { uniform = [3, 1] }",
            "d = { of = [] }",
            "d = { of = [1], weights = [0] }",
            "d = nan",
        ] {
            let row: Row = toml::from_str(bad).unwrap();
            assert!(row.d.problem().is_some(), "{bad}");
        }
    }
}
