//! A payload as text with `${name}` in it, compiled once and written many times.
//!
//! `$` alone stands for itself, so that JSON needs no escapes. `${name:2}` writes two decimals of
//! a number, or pads `${n:5}` with zeros.

use std::collections::BTreeMap;

use super::value::{Value, Variable};

/// Names that every template knows, beside its variables.
pub const BUILT_IN: [&str; 8] = ["device", "fleet", "stream", "n", "time", "time_ms", "pad", "clock_ms"];

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Box<str>),
    Device,
    Fleet,
    Stream,
    /// Number of the message, of the device and stream, from 1.
    Number {
        width: usize,
    },
    Time,
    TimeMillis,
    /// Filled so that the whole reaches the wanted size.
    Pad,
    /// A variable, by its place in the stream's list.
    Variable {
        at: usize,
        decimals: usize,
    },
    Lat {
        at: usize,
    },
    Lon {
        at: usize,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
    /// Index of `Pad`, if there is one.
    pad: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    #[error("${{{name}}} is no variable; there are {known}")]
    Unknown { name: String, known: String },
    #[error("`${{` is not closed by `}}`")]
    Open,
    #[error("{0:?} is no number of decimals from 0 to 9")]
    Format(String),
    #[error("more than one ${{pad}}")]
    Pads,
}

/// What a template is written from.
pub struct Filling<'a> {
    pub device: &'a str,
    pub fleet: &'a str,
    pub stream: &'a str,
    pub n: u64,
    /// Milliseconds since 1970 by the device's own clock.
    pub time_ms: i64,
    pub variables: &'a [Variable],
    pub values: &'a [Value],
    /// The whole payload is padded to this where it has a `${pad}`. Unit: bytes.
    pub size: usize,
}

impl Template {
    /// # Errors
    /// The text names something that is not there, or is not well formed.
    pub fn parse(text: &str, variables: &BTreeMap<String, Variable>) -> Result<Self, BadTemplate> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if at > 0 {
                parts.push(Part::Text(rest[..at].into()));
            }
            let inner = &rest[at + 2..];
            let end = inner.find('}').ok_or(BadTemplate::Open)?;
            parts.push(part(&inner[..end], variables)?);
            rest = &inner[end + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        let mut pads = parts.iter().enumerate().filter(|(_, part)| **part == Part::Pad);
        let pad = pads.next().map(|(at, _)| at);
        if pads.next().is_some() {
            return Err(BadTemplate::Pads);
        }
        Ok(Self { parts, pad })
    }

    /// Appends the payload to `out`.
    pub fn write(&self, filling: &Filling<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        let (head, tail) = match self.pad {
            Some(at) => (&self.parts[..at], &self.parts[at + 1..]),
            None => (&self.parts[..], &[][..]),
        };
        head.iter().for_each(|part| write_part(part, filling, out));
        if self.pad.is_none() {
            return;
        }
        let before = out.len();
        tail.iter().for_each(|part| write_part(part, filling, out));
        let missing = filling.size.saturating_sub(out.len() - start);
        if missing > 0 {
            let end = out.len();
            out.resize(end + missing, b'x');
            out.copy_within(before..end, before + missing);
            out[before..before + missing].fill(b'x');
        }
    }
}

fn part(inner: &str, variables: &BTreeMap<String, Variable>) -> Result<Part, BadTemplate> {
    let (name, format) = match inner.split_once(':') {
        Some((name, format)) => (name, Some(format)),
        None => (inner, None),
    };
    let digits = match format {
        None => None,
        Some(text) => Some(
            text.parse::<usize>()
                .ok()
                .filter(|digits| *digits <= 9)
                .ok_or_else(|| BadTemplate::Format(text.to_owned()))?,
        ),
    };
    let at = |name: &str| variables.keys().position(|key| key == name);
    Ok(match name {
        "device" => Part::Device,
        "fleet" => Part::Fleet,
        "stream" => Part::Stream,
        "n" => Part::Number {
            width: digits.unwrap_or(0),
        },
        "time" => Part::Time,
        "time_ms" | "clock_ms" => Part::TimeMillis,
        "pad" => Part::Pad,
        _ => {
            let place = name.rsplit_once('.').and_then(|(base, axis)| Some((at(base)?, axis)));
            match (at(name), place) {
                (Some(at), _) => Part::Variable {
                    at,
                    decimals: digits.unwrap_or(2),
                },
                (None, Some((at, "lat"))) => Part::Lat { at },
                (None, Some((at, "lon"))) => Part::Lon { at },
                _ => {
                    let mut known: Vec<&str> = BUILT_IN.to_vec();
                    known.extend(variables.keys().map(String::as_str));
                    return Err(BadTemplate::Unknown {
                        name: name.to_owned(),
                        known: known.join(", "),
                    });
                }
            }
        }
    })
}

fn write_part(part: &Part, filling: &Filling<'_>, out: &mut Vec<u8>) {
    use std::io::Write;
    match part {
        Part::Text(text) => out.extend_from_slice(text.as_bytes()),
        Part::Device => out.extend_from_slice(filling.device.as_bytes()),
        Part::Fleet => out.extend_from_slice(filling.fleet.as_bytes()),
        Part::Stream => out.extend_from_slice(filling.stream.as_bytes()),
        Part::Number { width } => put_unsigned(filling.n, *width, out),
        Part::Time => put_time(filling.time_ms, out),
        Part::TimeMillis => {
            let _ = write!(out, "{}", filling.time_ms);
        }
        Part::Pad => {}
        Part::Variable { at, decimals } => match &filling.values[*at] {
            Value::Number(number) => put_number(*number, *decimals, out),
            Value::Text(place) => {
                let texts = filling.variables[*at].texts();
                if let Some(text) = texts.get(*place as usize) {
                    out.extend_from_slice(text.as_bytes());
                }
            }
            Value::Bytes(bytes) => put_hex(bytes, out),
            Value::Place { lat, lon } => {
                put_number(*lat, 6, out);
                out.push(b',');
                put_number(*lon, 6, out);
            }
        },
        Part::Lat { at } | Part::Lon { at } => {
            if let Value::Place { lat, lon } = &filling.values[*at] {
                put_number(if matches!(part, Part::Lat { .. }) { *lat } else { *lon }, 6, out);
            }
        }
    }
}

/// Decimal digits, at least `width` of them.
pub fn put_unsigned(mut value: u64, width: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while value > 0 || at == digits.len() || digits.len() - at < width {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if at == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A number with fixed decimals; much quicker than `format!`, which the hot path would feel.
fn put_number(value: f64, decimals: usize, out: &mut Vec<u8>) {
    const POWERS: [u64; 10] = [
        1,
        10,
        100,
        1_000,
        10_000,
        100_000,
        1_000_000,
        10_000_000,
        100_000_000,
        1_000_000_000,
    ];
    let power = POWERS[decimals.min(9)];
    let scaled = (value.abs() * power as f64).round();
    if !scaled.is_finite() || scaled >= 9e18 {
        out.push(b'0'); // no sensor means this, and JSON has no word for it
        return;
    }
    let scaled = scaled as u64;
    if value < 0.0 && scaled > 0 {
        out.push(b'-');
    }
    put_unsigned(scaled / power, 1, out);
    if decimals > 0 {
        out.push(b'.');
        put_unsigned(scaled % power, decimals, out);
    }
}

fn put_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// RFC 3339 in UTC with milliseconds.
fn put_time(millis: i64, out: &mut Vec<u8>) {
    let (days, in_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000) as u64);
    let (year, month, day) = civil(days);
    put_unsigned(u64::try_from(year).unwrap_or(0), 4, out);
    for (sign, value, width) in [
        (b'-', month, 2),
        (b'-', day, 2),
        (b'T', in_day / 3_600_000, 2),
        (b':', in_day / 60_000 % 60, 2),
        (b':', in_day / 1_000 % 60, 2),
        (b'.', in_day % 1_000, 3),
    ] {
        out.push(sign);
        put_unsigned(value, width, out);
    }
    out.push(b'Z');
}

/// Days since 1970 as year, month, day (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * shifted_month + 2) / 5 + 1) as u64;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    } as u64;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filling<'a>(variables: &'a [Variable], values: &'a [Value], size: usize) -> Filling<'a> {
        Filling {
            device: "d-1",
            fleet: "f",
            stream: "",
            n: 42,
            time_ms: 1_709_210_096_789,
            variables,
            values,
            size,
        }
    }

    #[test]
    fn names_are_replaced() {
        let variables = BTreeMap::from([
            (
                "mode".to_owned(),
                Variable::Sequence {
                    of: vec!["on".into(), "off".into()],
                },
            ),
            ("t".to_owned(), Variable::Constant { value: -1.5 }),
        ]);
        let list: Vec<Variable> = variables.values().cloned().collect();
        let values = [Value::Text(1), Value::Number(-1.5)];
        for (text, expected) in [
            (r#"{"d":"${device}","n":${n}}"#, r#"{"d":"d-1","n":42}"#),
            ("${n:5} $5 ${mode} ${t:0} ${t} ${t:3}", "00042 $5 off -2 -1.50 -1.500"),
            ("${time}", "2024-02-29T12:34:56.789Z"),
            ("${time_ms}", "1709210096789"),
            ("", ""),
        ] {
            let mut out = Vec::new();
            Template::parse(text, &variables)
                .unwrap()
                .write(&filling(&list, &values, 0), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn pads_reach_the_size() {
        let template = Template::parse(r#"{"n":${n},"p":"${pad}"}"#, &BTreeMap::new()).unwrap();
        for (size, length) in [(64, 64), (0, 15), (15, 15), (16, 16)] {
            let mut out = b"before".to_vec();
            template.write(&filling(&[], &[], size), &mut out);
            let payload = &out[6..];
            assert_eq!(payload.len(), length, "{size}");
            assert!(payload.starts_with(br#"{"n":42,"p":""#) && payload.ends_with(br#""}"#));
        }
    }

    #[test]
    fn bad_templates_are_refused() {
        for bad in ["${nothing}", "${n", "${n:x}", "${n:10}", "${pad}${pad}"] {
            assert!(Template::parse(bad, &BTreeMap::new()).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_as_format_writes_them() {
        let mut chance = super::super::chance::Chance::new(5);
        for _ in 0..2_000 {
            let (value, decimals) = (chance.between(-1e6, 1e6), chance.below(7) as usize);
            let mut out = Vec::new();
            put_number(value, decimals, &mut out);
            let read: f64 = std::str::from_utf8(&out).unwrap().parse().unwrap();
            assert!(
                (read - value).abs() <= 0.51 / 10f64.powi(decimals as i32),
                "{value} {decimals}"
            );
        }
    }
}
