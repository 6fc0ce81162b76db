//! Times as text: RFC 3339 with milliseconds, in UTC. Reads the same, or milliseconds since 1970.

use actors::time::Timestamp;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::OffsetDateTime;

/// The last millisecond that four digits of a year can say; later times are shown as this one.
const LAST_MS: u64 = 253_402_300_799_999;

/// E.g. `2026-11-23T11:16:02.000Z`.
pub fn text(at: Timestamp) -> String {
    let ms = i128::from(at.0.min(LAST_MS));
    let when = OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).expect("LAST_MS lies within the range");
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    when.format(&format).expect("every component is there")
}

/// `None` when the text is neither RFC 3339 nor a number of milliseconds, or lies before 1970.
pub fn parse(text: &str) -> Option<Timestamp> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Timestamp);
    }
    let when = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(when.unix_timestamp_nanos() / 1_000_000)
        .ok()
        .map(Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_as_they_were_written() {
        for ms in [0, 1, 1_795_000_000_123, LAST_MS] {
            assert_eq!(parse(&text(Timestamp(ms))), Some(Timestamp(ms)));
        }
        assert_eq!(text(Timestamp(1_000)), "1970-01-01T00:00:01.000Z");
        assert_eq!(text(Timestamp(u64::MAX)), "9999-12-31T23:59:59.999Z");
        assert_eq!(parse("1970-01-01T02:00:00+02:00"), Some(Timestamp(0)));
        assert_eq!(parse("1500"), Some(Timestamp(1500)));
        for bad in ["", "yesterday", "-1", "1969-12-31T23:59:59Z", "99999999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
