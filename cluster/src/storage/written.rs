//! How much had certainly been written to the log, in one small file apart from it: a log that has
//! less when it is opened again has lost what it promised.
//!
//! The log's own checksums cannot show that its end is missing.

use std::io;
use std::path::Path;

use actors::wire::codec;
use serde::{Deserialize, Serialize};

use super::file;

/// Name of the file.
pub const FILE: &str = "written";

#[derive(Serialize, Deserialize)]
struct Written {
    /// As [`super::LogStore::durable_changes`] counts them.
    changes: u64,
}

/// # Errors
/// The disk failed. A damaged file is as good as none: it only ever added a check.
pub fn read(dir: &Path) -> io::Result<u64> {
    match file::read(&dir.join(FILE)) {
        Ok(Some(body)) => Ok(codec::decode(&body).map_or(0, |written: Written| written.changes)),
        Ok(None) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(0),
        Err(error) => Err(error),
    }
}

/// Notes how many changes certainly are on the disk by now.
///
/// # Errors
/// The disk failed; the former file is still there.
pub fn note(dir: &Path, changes: u64) -> io::Result<()> {
    if changes == read(dir)? {
        return Ok(());
    }
    file::replace(&dir.join(FILE), &codec::encode(&Written { changes }))
}

/// What a log that was just opened has lost, if anything.
///
/// # Errors
/// As [`read`].
pub fn lost(dir: &Path, found: u64) -> io::Result<Option<String>> {
    let known = read(dir)?;
    Ok((found < known).then(|| {
        format!(
            "the log ends after {found} changes, and {known} had certainly been written: its end was lost, or an \
             older copy was put back"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_with_less_than_was_noted_has_lost_something() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lost(dir.path(), 0).unwrap(), None, "nothing was noted yet");
        note(dir.path(), 90).unwrap();
        for (found, is_lost) in [(90, false), (91, false), (89, true), (0, true)] {
            assert_eq!(lost(dir.path(), found).unwrap().is_some(), is_lost, "{found}");
        }
        note(dir.path(), 95).unwrap();
        assert!(lost(dir.path(), 94).unwrap().is_some());
    }

    #[test]
    fn a_damaged_file_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        note(dir.path(), 90).unwrap();
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert_eq!(read(dir.path()).unwrap(), 0);
        note(dir.path(), 91).unwrap();
        assert_eq!(read(dir.path()).unwrap(), 91);
    }
}
