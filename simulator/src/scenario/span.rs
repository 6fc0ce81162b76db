//! A length of time as people write it: `500ms`, `90s`, `15m`, `24h`, `7d`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest span that can be written. Ten years.
pub const SPAN_MAX: Duration = Duration::from_secs(3_650 * 86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length of time: write a number and ms, s, m, h or d, such as \"500ms\" or \"15m\", up to 3650d")]
pub struct BadSpan(String);

impl Span {
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    pub fn micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let bad = || BadSpan(text.to_owned());
        let trimmed = text.trim();
        let unit_at = trimmed.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
        let (number, unit) = trimmed.split_at(unit_at);
        let number: f64 = number.trim().parse().map_err(|_| bad())?;
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(bad()),
        };
        let total = number * seconds;
        if !(0.0..=SPAN_MAX.as_secs_f64()).contains(&total) {
            return Err(bad());
        }
        Ok(Self(Duration::from_secs_f64(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.micros();
        for (unit, size) in [
            ("d", 86_400_000_000),
            ("h", 3_600_000_000),
            ("m", 60_000_000),
            ("s", 1_000_000),
            ("ms", 1_000),
        ] {
            if micros >= size && micros.is_multiple_of(size) {
                return write!(f, "{}{unit}", micros / size);
            }
        }
        match micros {
            0 => f.write_str("0s"),
            _ => write!(f, "{micros}us"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time: a number and its unit",
            "pattern": "^ *[0-9]+(\\.[0-9]+)? *(us|ms|s|m|h|d) *$",
            "examples": ["500ms", "15m", "24h"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_with_their_unit() {
        for (text, millis, written) in [
            ("500ms", 500, "500ms"),
            ("1.5s", 1_500, "1500ms"),
            ("90s", 90_000, "90s"),
            ("15m", 900_000, "15m"),
            ("24h", 86_400_000, "1d"),
            ("0s", 0, "0s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(
                (span.0.as_millis(), span.to_string()),
                (millis, written.to_owned()),
                "{text}"
            );
        }
        for bad in ["", "5", "s", "-1s", "1w", "99999d", "1e400s", "nan s", "1s2"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
