//! Secrets: given in the file, or in a file of their own. Never printed.

use std::path::Path;

use cluster::config::Secret;

use super::reader::Reader;
use super::{schema, Security};

/// Shortest secret or token, in bytes.
pub const SECRET_BYTES_MIN: usize = 16;
/// Longest secret or token, in bytes.
pub const SECRET_BYTES_MAX: usize = 4096;

pub fn read(reader: &mut Reader<'_>, directory: &Path) -> Security {
    let mode = reader.text_or("security", "mode", "development");
    if mode != "development" {
        let reason = format!("{mode:?} is unknown, \"development\" is the only mode there is");
        reader.refuse("security", "mode", reason);
    }
    let operator_token = secret(reader, "security", "operator_token", "operator_token_file", directory);
    if operator_token.0.iter().any(|byte| !byte.is_ascii_graphic()) {
        // It travels in an HTTP header.
        reader.refuse(
            "security",
            "operator_token",
            "may hold printable ASCII characters without spaces only",
        );
    }
    Security { mode, operator_token }
}

/// As [`secret`]; `None` when neither key is there.
pub fn optional_secret(
    reader: &mut Reader<'_>,
    section: &'static str,
    inline: &'static str,
    by_file: &'static str,
    directory: &Path,
) -> Option<Secret> {
    let given = reader.optional_text(section, inline).is_some() || reader.optional_text(section, by_file).is_some();
    given.then(|| secret(reader, section, inline, by_file, directory))
}

/// Reads the secret that is named either by `inline` or by the path in `by_file`.
pub fn secret(
    reader: &mut Reader<'_>,
    section: &'static str,
    inline: &'static str,
    by_file: &'static str,
    directory: &Path,
) -> Secret {
    let given = reader.optional_text(section, inline);
    let path = reader.optional_text(section, by_file);
    let (key, bytes) = match (given, path) {
        (Some(_), Some(_)) => {
            reader.refuse(section, by_file, format!("contradicts {inline}: give one of them"));
            return Secret(Vec::new());
        }
        (Some(text), None) => (inline, text.into_bytes()),
        (None, Some(path)) => {
            let path = schema::resolve(directory, &path);
            match read_small(&path) {
                Ok(bytes) => (by_file, bytes),
                Err(error) => {
                    reader.refuse(section, by_file, format!("cannot read {}: {error}", path.display()));
                    return Secret(Vec::new());
                }
            }
        }
        (None, None) => {
            reader.refuse(
                section,
                inline,
                format!("is missing: give it, or name a file with {by_file}"),
            );
            return Secret(Vec::new());
        }
    };
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
        let reason = format!(
            "has {} bytes, {SECRET_BYTES_MIN}..={SECRET_BYTES_MAX} are allowed",
            bytes.len()
        );
        reader.refuse(section, key, reason);
    }
    Secret(bytes)
}

/// A file's content without the newline that editors leave at its end.
fn read_small(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let limit = SECRET_BYTES_MAX as u64 + 2;
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    bytes.truncate(bytes.trim_ascii_end().len());
    Ok(bytes)
}
