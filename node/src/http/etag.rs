//! Conditional requests: entity tags are version numbers in quotes.

use actix_web::http::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::problem::{Kind, Problem};

/// What `If-Match` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// No such header.
    Unasked,
    /// `*`
    Any,
    Version(u64),
}

/// The header value of a version.
pub fn text(version: u64) -> String {
    format!("\"{version}\"")
}

/// # Errors
/// 400 for something that is no entity tag, 412 for one that we never give out.
pub fn if_match(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    match single(headers, &IF_MATCH)? {
        None => Ok(IfMatch::Unasked),
        Some("*") => Ok(IfMatch::Any),
        Some(tag) => version(tag).map(IfMatch::Version),
    }
}

/// Whether `If-None-Match: *` was asked.
///
/// # Errors
/// 400 for any other value: creation knows no other condition.
pub fn must_be_absent(headers: &HeaderMap) -> Result<bool, Problem> {
    match single(headers, &IF_NONE_MATCH)? {
        None => Ok(false),
        Some("*") => Ok(true),
        Some(other) => Err(Problem::new(
            Kind::BadHeader,
            format!("If-None-Match: {other} has no meaning on a write; only * is known, for \"must not exist\""),
        )),
    }
}

/// Whether the reader says it holds `version` already (304).
pub fn reader_has(headers: &HeaderMap, version: u64) -> bool {
    let ours = text(version);
    headers
        .get_all(IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/") == ours)
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Problem::new(
            Kind::BadHeader,
            format!("{name} appears twice; send it once"),
        ));
    }
    let text = value
        .to_str()
        .map_err(|_| Problem::new(Kind::BadHeader, format!("{name} holds bytes that are not ASCII")))?;
    Ok(Some(text.trim()))
}

fn version(tag: &str) -> Result<u64, Problem> {
    let strong = tag.strip_prefix("W/").unwrap_or(tag);
    let opaque = strong
        .strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .filter(|t| !t.contains('"'));
    let Some(opaque) = opaque else {
        return Err(Problem::new(
            Kind::BadHeader,
            format!("If-Match: {tag} is not one quoted entity tag; send the ETag of your last read as it came"),
        ));
    };
    // If-Match compares strongly, so a weak tag matches nothing; neither does a tag of somebody else.
    match opaque.parse() {
        Ok(version) if strong == tag => Ok(version),
        _ => Err(Problem::new(
            Kind::PreconditionFailed,
            format!("If-Match: {tag} is no entity tag of this resource; read it again and decide anew"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn check(value: &str, expected: Result<IfMatch, u16>) {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_str(value).unwrap());
        assert_eq!(if_match(&headers).map_err(|p| p.kind.status()), expected, "{value}");
    }

    #[test]
    fn if_match_takes_one_tag_or_a_star() {
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), IfMatch::Unasked);
        check("*", Ok(IfMatch::Any));
        check("\"7\"", Ok(IfMatch::Version(7)));
        check(" \"7\" ", Ok(IfMatch::Version(7)));
        check("7", Err(400));
        check("\"7\", \"8\"", Err(400));
        check("W/\"7\"", Err(412));
        check("\"abc\"", Err(412));
        check("\"-1\"", Err(412));
        check("", Err(400));
    }
}
