//! A variable of a payload: how its next value comes from the one before.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chance::Chance;
use super::dist::Dist;

/// How a variable behaves from message to message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Variable {
    /// Always the same number.
    Constant {
        value: f64,
    },
    /// Starts somewhere in `start` ± `spread` and moves by up to `step`, drawn back to `start`.
    Walk {
        start: f64,
        #[serde(default)]
        spread: f64,
        step: f64,
        #[serde(default)]
        min: Option<f64>,
        #[serde(default)]
        max: Option<f64>,
        /// Part of the way back to the start taken each time. 0..=1.
        #[serde(default)]
        pull: f64,
    },
    /// A walk drawn towards a desired property, where the device was told one.
    Follow {
        property: String,
        start: f64,
        step: f64,
        #[serde(default = "tenth")]
        pull: f64,
    },
    /// Only grows, by a draw.
    Rising {
        #[serde(default)]
        start: f64,
        by: Dist,
    },
    Draw {
        dist: Dist,
    },
    /// `mean + amplitude · sin(2π t / period)` in scenario time, with noise.
    Sine {
        mean: f64,
        amplitude: f64,
        #[serde(default = "day_secs")]
        period_secs: f64,
        #[serde(default)]
        noise: f64,
    },
    /// One of several texts, by weight.
    Choice {
        of: Vec<String>,
        #[serde(default)]
        weights: Vec<f64>,
    },
    /// One text after the other, from the beginning again.
    Sequence {
        of: Vec<String>,
    },
    /// States and how likely each goes to the next; rows follow `states`.
    Markov {
        states: Vec<String>,
        next: Vec<Vec<f64>>,
    },
    /// Random bytes in hexadecimal; `bytes` may be up to 131072.
    Hex {
        bytes: Dist,
    },
    /// Latitude and longitude by `${name.lat}` and `${name.lon}`: steps of up to `step_m` metres
    /// around a place.
    Place {
        lat: f64,
        lon: f64,
        spread_km: f64,
        step_m: f64,
    },
}

fn tenth() -> f64 {
    0.1
}
fn day_secs() -> f64 {
    86_400.0
}

/// The present value of a variable.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    /// A place in the variable's texts.
    Text(u32),
    Bytes(Vec<u8>),
    Place {
        lat: f64,
        lon: f64,
    },
}

impl Variable {
    pub fn begin(&self, chance: &mut Chance) -> Value {
        match self {
            Self::Constant { value } => Value::Number(*value),
            Self::Walk { start, spread, .. } => Value::Number(start + chance.between(-spread, *spread)),
            Self::Follow { start, .. } | Self::Rising { start, .. } => Value::Number(*start),
            Self::Draw { .. } | Self::Sine { .. } => Value::Number(0.0),
            Self::Choice { .. } | Self::Markov { .. } => Value::Text(0),
            Self::Sequence { .. } => Value::Text(u32::MAX),
            Self::Hex { .. } => Value::Bytes(Vec::new()),
            Self::Place {
                lat, lon, spread_km, ..
            } => {
                let spread = spread_km / 111.0;
                Value::Place {
                    lat: lat + chance.between(-spread, spread),
                    lon: lon + chance.between(-spread, spread),
                }
            }
        }
    }

    /// `told`: the desired property that a `follow` goes after, if the device knows one.
    pub fn step(&self, value: &mut Value, at_secs: f64, told: Option<f64>, chance: &mut Chance) {
        match (self, value) {
            (
                Self::Walk {
                    start,
                    step,
                    min,
                    max,
                    pull,
                    ..
                },
                Value::Number(now),
            ) => {
                *now += chance.between(-step, *step) + (start - *now) * pull;
                *now = now.clamp(min.unwrap_or(f64::MIN), max.unwrap_or(f64::MAX));
            }
            (Self::Follow { start, step, pull, .. }, Value::Number(now)) => {
                *now += chance.between(-step, *step) + (told.unwrap_or(*start) - *now) * pull;
            }
            (Self::Rising { by, .. }, Value::Number(now)) => *now += by.draw(chance).max(0.0),
            (Self::Draw { dist }, Value::Number(now)) => *now = dist.draw(chance),
            (
                Self::Sine {
                    mean,
                    amplitude,
                    period_secs,
                    noise,
                },
                Value::Number(now),
            ) => {
                let turn = std::f64::consts::TAU * at_secs / period_secs;
                *now = mean + amplitude * turn.sin() + chance.between(-noise, *noise);
            }
            (Self::Choice { of, weights }, Value::Text(now)) => {
                *now = if weights.is_empty() {
                    chance.below(of.len() as u64) as u32
                } else {
                    chance.weighted(weights) as u32
                };
            }
            (Self::Sequence { of }, Value::Text(now)) => *now = now.wrapping_add(1) % of.len().max(1) as u32,
            (Self::Markov { next, .. }, Value::Text(now)) => {
                if let Some(row) = next.get(*now as usize) {
                    *now = chance.weighted(row) as u32;
                }
            }
            (Self::Hex { bytes }, Value::Bytes(now)) => {
                let size = bytes.draw(chance).clamp(0.0, HEX_BYTES_MAX as f64) as usize;
                now.resize(size, 0);
                rand::RngCore::fill_bytes(chance, now);
            }
            (Self::Place { step_m, .. }, Value::Place { lat, lon }) => {
                let step = step_m / 111_000.0;
                *lat = (*lat + chance.between(-step, step)).clamp(-90.0, 90.0);
                *lon = (*lon + chance.between(-step, step)).clamp(-180.0, 180.0);
            }
            _ => {}
        }
    }

    /// The texts that a [`Value::Text`] is a place in.
    pub fn texts(&self) -> &[String] {
        match self {
            Self::Choice { of, .. } | Self::Sequence { of } => of,
            Self::Markov { states, .. } => states,
            _ => &[],
        }
    }

    /// What makes no sense, as key and reason.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut weights = |key, weights: &[f64], wanted: usize| {
            if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || weights.iter().sum::<f64>() <= 0.0 {
                found.push((key, "weights are numbers from 0, not all 0".to_owned()));
            } else if weights.len() != wanted {
                found.push((key, format!("has {} weights for {wanted} texts", weights.len())));
            }
        };
        match self {
            Self::Choice { of, weights: w } if !w.is_empty() => weights("weights", w, of.len()),
            Self::Markov { states, next } => {
                next.iter().for_each(|row| weights("next", row, states.len()));
                if next.len() != states.len() {
                    found.push(("next", format!("has {} rows for {} states", next.len(), states.len())));
                }
            }
            Self::Rising { by, .. } => found.extend(by.problem().map(|reason| ("by", reason))),
            Self::Draw { dist } => found.extend(dist.problem().map(|reason| ("dist", reason))),
            Self::Hex { bytes } => {
                found.extend(bytes.problem().map(|reason| ("bytes", reason)));
                if bytes.mean() > HEX_BYTES_MAX as f64 {
                    found.push(("bytes", format!("is above the limit of {HEX_BYTES_MAX}")));
                }
            }
            Self::Sine { period_secs, .. } if !period_secs.is_finite() || *period_secs <= 0.0 => {
                found.push(("period_secs", "must be above 0".to_owned()));
            }
            Self::Place { lat, lon, .. } if lat.abs() > 90.0 || lon.abs() > 180.0 => {
                found.push(("lat", "is no place on Earth".to_owned()));
            }
            _ => {}
        }
        if matches!(self, Self::Choice { of, .. } | Self::Sequence { of } if of.is_empty()) {
            found.push(("of", "is empty".to_owned()));
        }
        found
    }
}

/// Bytes of one `hex` variable.
pub const HEX_BYTES_MAX: usize = 131_072;
