//! Device ids out of a pattern: `meter-${n:5}` and 42 make `meter-00042`.

use crate::payloads::template::put_unsigned;
use crate::scenario::Fleet;

/// The fleet's pattern, or the default made from its name.
pub fn pattern(fleet: &Fleet) -> String {
    fleet.id.clone().unwrap_or_else(|| format!("{}-${{n}}", fleet.name))
}

/// The id of the fleet's device `number`.
pub fn device(fleet: &Fleet, number: u32) -> String {
    fill(&pattern(fleet), number)
}

/// The id of the `child`-th child, from 1, of a gateway.
pub fn child(gateway: &str, child: u32) -> String {
    format!("{gateway}-c{child}")
}

fn fill(pattern: &str, number: u32) -> String {
    let mut out = Vec::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    while let Some(at) = rest.find("${n") {
        let Some(end) = rest[at..].find('}') else { break };
        let inner = &rest[at + 3..at + end];
        let width = inner.strip_prefix(':').and_then(|digits| digits.parse::<usize>().ok());
        out.extend_from_slice(&rest.as_bytes()[..at]);
        put_unsigned(u64::from(number), width.unwrap_or(1).min(20), &mut out);
        rest = &rest[at + end + 1..];
    }
    out.extend_from_slice(rest.as_bytes());
    String::from_utf8(out).expect("whole characters and digits were copied")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_filled_in() {
        for (pattern, expected) in [
            ("m-${n}", "m-42"),
            ("${n:5}", "00042"),
            ("a${n:1}b${n}", "a42b42"),
            ("plain", "plain"),
            ("${n:99}", "00000000000000000042"),
        ] {
            assert_eq!(fill(pattern, 42), expected);
        }
        assert_eq!(child("hub-1", 3), "hub-1-c3");
    }
}
