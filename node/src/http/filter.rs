//! The filter of the device list: `status=disabled and connected=true and id=pump-*`.
//!
//! Terms are joined by `and`, each at most once; device ids hold no white space, so white space
//! separates. Richer queries belong to a later language, not to this grammar.

use actors::device::Status;
use actors::id::DeviceId;

/// Longest filter, in bytes.
pub const FILTER_BYTES_MAX: usize = 512;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub id_prefix: Option<String>,
    pub status: Option<Status>,
    pub connected: Option<bool>,
    /// The gateway device that may act for them.
    pub gateway: Option<DeviceId>,
}

/// `position` counts characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at position {position}: {reason}")]
pub struct BadFilter {
    pub position: usize,
    pub reason: String,
}

/// # Errors
/// Names the first place that does not fit the grammar.
pub fn parse(text: &str) -> Result<Filter, BadFilter> {
    let fail = |at: usize, reason: String| BadFilter {
        position: text[..at].chars().count() + 1,
        reason,
    };
    if text.len() > FILTER_BYTES_MAX {
        return Err(fail(
            0,
            format!(
                "the filter has {} bytes, at most {FILTER_BYTES_MAX} are allowed",
                text.len()
            ),
        ));
    }
    let mut filter = Filter::default();
    let mut expect_term = true;
    for (at, word) in words(text) {
        if expect_term {
            term(&mut filter, word).map_err(|(inside, reason)| fail(at + inside, reason))?;
        } else if word != "and" {
            return Err(fail(at, format!("expected `and`, found `{word}`")));
        }
        expect_term = !expect_term;
    }
    let ends_with_and = expect_term && filter != Filter::default();
    if ends_with_and {
        return Err(fail(text.len(), "expected a term after `and`".into()));
    }
    Ok(filter)
}

/// The words of a text, with the byte each starts at.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = text.as_ptr() as usize;
    text.split_whitespace()
        .map(move |word| (word.as_ptr() as usize - start, word))
}

/// On failure: the byte within the word, and the reason.
fn term(filter: &mut Filter, word: &str) -> Result<(), (usize, String)> {
    let known = "expected status=enabled|disabled, connected=true|false, id=prefix* or gateway=id";
    let Some((name, value)) = word.split_once('=') else {
        return Err((0, format!("`{word}` is no term; {known}")));
    };
    let value_at = name.len() + 1;
    let bad = |what: &str| (value_at, format!("`{value}` is no value of {name}; {what}"));
    let twice = match name {
        "status" => {
            let status = match value {
                "enabled" => Status::Enabled,
                "disabled" => Status::Disabled,
                _ => return Err(bad("enabled or disabled")),
            };
            filter.status.replace(status).is_some()
        }
        "connected" => {
            let connected = value.parse().map_err(|_| bad("true or false"))?;
            filter.connected.replace(connected).is_some()
        }
        "id" => {
            let prefix = value.strip_suffix('*').ok_or_else(|| bad("a prefix followed by *"))?;
            filter.id_prefix.replace(prefix.to_owned()).is_some()
        }
        "gateway" => {
            let gateway = DeviceId::parse(value).map_err(|_| bad("a device id"))?;
            filter.gateway.replace(gateway).is_some()
        }
        _ => return Err((0, format!("`{name}` cannot be filtered by; {known}"))),
    };
    if twice {
        return Err((0, format!("`{name}` appears twice")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Terms<'a> = (Option<&'a str>, Option<Status>, Option<bool>);

    /// The terms, or the position of the mistake.
    fn check(text: &str, expected: Result<Terms<'_>, usize>) {
        let got = parse(text)
            .map(|f| (f.id_prefix, f.status, f.connected))
            .map_err(|e| e.position);
        let expected = expected.map(|(id, status, connected)| (id.map(str::to_owned), status, connected));
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn filters_parse_or_name_the_position() {
        check("", Ok((None, None, None)));
        check("status=disabled", Ok((None, Some(Status::Disabled), None)));
        check("connected=true and id=pump-*", Ok((Some("pump-"), None, Some(true))));
        check(
            "  id=a**  and status=enabled ",
            Ok((Some("a*"), Some(Status::Enabled), None)),
        );
        check("id=a=b*", Ok((Some("a=b"), None, None)));
        check("id=*", Ok((Some(""), None, None)));
        check("gateway=hub/1", Err(9));
        check("gateway=", Err(9));
        check("gateway=hub and gateway=hub", Err(17));
        let gateway = parse("connected=true and gateway=hub=1").expect("a filter").gateway;
        assert_eq!(gateway.as_ref().map(DeviceId::as_str), Some("hub=1"));
        check("status=off", Err(8));
        check("connected=true or status=enabled", Err(16));
        check("connected=true and", Err(19));
        check("colour=red", Err(1));
        check("and", Err(1));
        check("id=pump", Err(4));
        check("status=enabled and status=enabled", Err(20));
        check("é=1", Err(1));
        check("status=enabled and é", Err(20));
        check(&"x".repeat(600), Err(1));
    }
}
