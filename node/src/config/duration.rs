//! Durations as people write them: `500ms`, `10s`, `5m`, `12h`, `30d`.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// # Errors
/// Says what a duration looks like; nothing is guessed.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .map(|(_, millis)| *millis);
    let millis = number
        .parse::<u64>()
        .ok()
        .zip(scale)
        .and_then(|(n, scale)| n.checked_mul(scale));
    millis.map(Duration::from_millis).ok_or_else(|| {
        format!("{text:?} is no duration; write a whole number and ms, s, m, h or d, such as \"500ms\" or \"10s\"")
    })
}

/// The shortest text that [`parse`] reads back as the same duration (to the millisecond).
pub fn show(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, scale): &&(&str, u64)| millis % scale == 0 && millis >= *scale;
    let (unit, scale) = UNITS.iter().rev().find(fits).unwrap_or(&UNITS[0]);
    format!("{}{unit}", millis / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_duration_agree() {
        for (text, millis) in [
            ("0ms", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("90s", 90_000),
            ("2m", 120_000),
            ("30d", 2_592_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(show(Duration::from_millis(millis)), text);
        }
        for text in ["", "s", "10", "-1s", "1.5s", "10 seconds", "99999999999999999999d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
