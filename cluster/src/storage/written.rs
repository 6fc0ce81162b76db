//! How much had certainly been written to the log, in one small file apart from it: a log that has
//! less when it is opened again has lost what it promised.
//!
//! The log's own checksums cannot show that its end is missing.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{file, sealed};

/// Name of the file.
pub const FILE: &str = "written";

/// Always as long as before, so that it can be written in place.
fn body(changes: u64) -> [u8; 8] {
    changes.to_le_bytes()
}

/// # Errors
/// The disk failed. A damaged file is as good as none: it only ever added a check.
pub fn read(dir: &Path) -> io::Result<u64> {
    match file::read(&dir.join(FILE)) {
        Ok(Some(body)) => Ok(body.try_into().map_or(0, u64::from_le_bytes)),
        Ok(None) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(0),
        Err(error) => Err(error),
    }
}

/// Notes how many changes certainly are on the disk by now, as [`super::LogStore::durable_changes`]
/// counts them.
///
/// # Errors
/// The disk failed; the former file is still there.
pub fn note(dir: &Path, changes: u64) -> io::Result<()> {
    file::replace(&dir.join(FILE), &body(changes))
}

/// As [`note`], in a moment and without waiting for the disk: what a killed process leaves. After a
/// power cut the file says this or what it said before, which is no less true.
///
/// # Errors
/// As [`note`].
pub fn note_soon(dir: &Path, changes: u64) -> io::Result<()> {
    if changes == read(dir)? {
        return Ok(());
    }
    // In place: its few bytes lie in one sector.
    match OpenOptions::new().write(true).open(dir.join(FILE)) {
        Ok(file) => file.write_all_at(&sealed::seal_raw(&body(changes)), 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => note(dir, changes),
        Err(error) => Err(error),
    }
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
    fn what_is_noted_in_place_reads_back_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        for changes in [7, u64::MAX, 1 << 40, 3] {
            note_soon(dir.path(), changes).unwrap();
            assert_eq!(read(dir.path()).unwrap(), changes);
        }
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        note_soon(dir.path(), 90).unwrap();
        assert_eq!(read(dir.path()).unwrap(), 90);
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
