//! JSON merge patch, canonical form, bounds.
//!
//! Canonical: keys sorted, no spaces, no `null` members. Sizes are counted on that text.

use serde_json::{Map, Value};

use super::{Policy, Refusal, Section, SectionWrite, WriteMode};

type Object = Map<String, Value>;

/// A text may be this many times longer than its canonical form is allowed to be: spaces, escapes.
const RAW_FACTOR: usize = 4;

/// The checks of a write that need no device: size, depth, that it is an object with lawful keys.
/// A gateway makes them before it asks the device; the device makes them again.
///
/// # Errors
/// `SectionTooLarge`, `SectionTooDeep` or `SectionInvalid`.
pub fn check_section_write(write: &SectionWrite, policy: &Policy) -> Result<(), Refusal> {
    parse_write(write, policy).map(drop)
}

/// The section's canonical text after `write`.
pub(super) fn written(current: Option<&str>, write: &SectionWrite, policy: &Policy) -> Result<String, Refusal> {
    let section = write.section;
    let patch = parse_write(write, policy)?;
    let mut object = match (write.mode, current) {
        (WriteMode::Merge, Some(json)) => parse_object(section, json)?,
        _ => Object::new(),
    };
    merge(&mut object, patch);
    let json = Value::Object(object).to_string();
    check_size(section, json.len(), bytes_max(section, policy))?;
    Ok(json)
}

/// What a device is told of a change of `desired`: the patch with `"$version"`.
pub fn desired_patch_json(write: &SectionWrite, version: u64) -> String {
    let mut patch = parse_object(write.section, &write.json).unwrap_or_default();
    patch.insert("$version".to_owned(), version.into());
    Value::Object(patch).to_string()
}

fn parse_write(write: &SectionWrite, policy: &Policy) -> Result<Object, Refusal> {
    let section = write.section;
    let max = bytes_max(section, policy);
    check_size(section, write.json.len(), max.saturating_mul(RAW_FACTOR))?;
    // Before parsing, so that no recursion depends on the input.
    if depth(&write.json) > policy.twin_depth_max {
        return Err(Refusal::SectionTooDeep {
            section,
            max: policy.twin_depth_max as u64,
        });
    }
    let object = parse_object(section, &write.json)?;
    check_keys(section, &object)?;
    if let Some(key) = object.keys().find(|key| key.starts_with('$')) {
        let shown: String = key.chars().take(32).collect();
        return Err(invalid(
            section,
            format!("{shown:?}: names that start with $ are reserved"),
        ));
    }
    if write.json.len() > max {
        check_size(section, Value::Object(object.clone()).to_string().len(), max)?;
    }
    Ok(object)
}

fn parse_object(section: Section, json: &str) -> Result<Object, Refusal> {
    serde_json::from_str(json).map_err(|error| {
        let reason = match error.classify() {
            serde_json::error::Category::Data => "not a JSON object".to_owned(),
            _ => format!("not JSON: {error}"),
        };
        invalid(section, reason)
    })
}

fn check_keys(section: Section, object: &Object) -> Result<(), Refusal> {
    for (key, value) in object {
        if key.is_empty() || key.chars().any(char::is_control) {
            return Err(invalid(
                section,
                "a name is empty or holds a control character".to_owned(),
            ));
        }
        check_values(section, value)?;
    }
    Ok(())
}

fn check_values(section: Section, value: &Value) -> Result<(), Refusal> {
    match value {
        Value::Object(object) => check_keys(section, object),
        Value::Array(items) => items.iter().try_for_each(|item| check_values(section, item)),
        _ => Ok(()),
    }
}

/// RFC 7396 on objects.
fn merge(target: &mut Object, patch: Object) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(inner) => {
                let slot = target.entry(key).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Object::new());
                }
                if let Value::Object(object) = slot {
                    merge(object, inner);
                }
            }
            other => {
                target.insert(key, other);
            }
        }
    }
}

/// The deepest nesting of objects and arrays; exact for JSON, harmless for anything else.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn bytes_max(section: Section, policy: &Policy) -> usize {
    match section {
        Section::Tags => policy.tags_bytes_max,
        Section::Desired | Section::Reported => policy.section_bytes_max,
    }
}

fn check_size(section: Section, bytes: usize, max: usize) -> Result<(), Refusal> {
    if bytes <= max {
        return Ok(());
    }
    Err(Refusal::SectionTooLarge {
        section,
        bytes: bytes as u64,
        max: max as u64,
    })
}

fn invalid(section: Section, reason: String) -> Refusal {
    Refusal::SectionInvalid { section, reason }
}
