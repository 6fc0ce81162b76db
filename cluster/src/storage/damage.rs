//! What is known to be damaged in a data directory, in one small file beside the data, so that no
//! restart forgets it.
//!
//! Decides nothing about repair: it keeps the note, and sets a damaged store aside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use actors::time::Timestamp;
use actors::wire::codec;
use serde::{Deserialize, Serialize};

use super::file;

/// Name of the file.
pub const FILE: &str = "damage";
/// State stores of one directory set aside within [`WINDOW_MS`], before the disk itself is blamed.
const SET_ASIDE_MAX: usize = 3;
const WINDOW_MS: u64 = 60 * 60 * 1000;
/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 2_000;

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub reason: String,
    pub at: Timestamp,
}

impl Found {
    pub fn new(reason: impl std::fmt::Display, at: Timestamp) -> Self {
        Self {
            reason: reason.to_string().chars().take(REASON_CHARS_MAX).collect(),
            at,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Votes or entries are lost, or it cannot be known that they are not: nothing in this
    /// directory may vote again under its node id.
    pub quarantined: Option<Found>,
    /// Only applied state is damaged: it is set aside at the next start and rebuilt from peers.
    pub state: Option<Found>,
    /// When state was set aside, oldest first.
    set_aside: Vec<Timestamp>,
    /// What was last set aside, and where it lies.
    last_aside: Option<(Found, PathBuf)>,
}

impl Damage {
    /// Reads the note; there is none in a directory that is whole.
    ///
    /// # Errors
    /// The disk failed. A note that cannot be understood is itself a reason for quarantine.
    pub fn read(dir: &Path, now: Timestamp) -> io::Result<Self> {
        let unreadable = |error: &dyn std::fmt::Display| Self {
            quarantined: Some(Found::new(
                format!(
                    "the note of earlier damage, {}, is itself damaged: {error}",
                    dir.join(FILE).display()
                ),
                now,
            )),
            ..Self::default()
        };
        match file::read(&dir.join(FILE)) {
            Ok(Some(body)) => Ok(codec::decode(&body).unwrap_or_else(|error| unreadable(&error))),
            Ok(None) => Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(unreadable(&error)),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// The disk failed; the note is as it was.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        file::replace(&dir.join(FILE), &codec::encode(self))
    }

    /// Whether the disk has damaged state so often lately that rebuilding it again is pointless.
    fn is_hopeless(&self, now: Timestamp) -> bool {
        let recent = self.set_aside.iter().filter(|at| at.plus_millis(WINDOW_MS) >= now);
        recent.count() >= SET_ASIDE_MAX
    }

    /// Moves the damaged state store out of the way, for a person to look at, and says so in the
    /// note. Only the last one is kept.
    ///
    /// # Errors
    /// The disk failed; calling it again goes on where it stopped.
    pub fn set_state_aside(&mut self, dir: &Path, found: &Found, now: Timestamp) -> io::Result<Option<PathBuf>> {
        if self.is_hopeless(now) {
            let reason = format!(
                "state was damaged {SET_ASIDE_MAX} times within an hour, the disk itself must be broken; at last: {}",
                found.reason
            );
            self.quarantined = Some(Found::new(reason, now));
            self.write(dir)?;
            return Ok(None);
        }
        let aside = move_aside(dir, "state")?;
        self.set_aside.retain(|at| at.plus_millis(WINDOW_MS) >= now);
        self.set_aside.push(now);
        if let Some(to) = &aside {
            self.last_aside = Some((found.clone(), to.clone()));
        }
        self.state = None;
        self.write(dir)?;
        Ok(aside)
    }
}

impl Damage {
    /// What a person should still hear of state that was set aside and is whole again: until the
    /// damaged copy is removed.
    pub fn aftermath(&self) -> Option<String> {
        let (found, to) = self.last_aside.as_ref().filter(|(_, to)| to.exists())?;
        Some(format!(
            "applied state was damaged ({}) and was had again from other replicas and the log; the damaged copy is {}",
            found.reason,
            to.display()
        ))
    }
}

/// Renames `dir/name` to `dir/name.damaged-<n>` and removes what an earlier damage left under such
/// a name. `None`: there is nothing to move.
///
/// # Errors
/// The disk failed.
pub fn move_aside(dir: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    let from = dir.join(name);
    if fs::symlink_metadata(&from).is_err() {
        return Ok(None);
    }
    let prefix = format!("{name}.damaged-");
    let mut earlier = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        let file_name = entry.file_name();
        let number = file_name
            .to_str()
            .and_then(|n| n.strip_prefix(&prefix)?.parse::<u64>().ok());
        earlier.extend(number.map(|number| (number, entry.path())));
    }
    let next = earlier.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
    let to = dir.join(format!("{prefix}{next}"));
    fs::rename(&from, &to)?;
    file::sync_dir(dir)?;
    for (_, path) in earlier {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "an earlier damaged copy could not be removed");
        }
    }
    Ok(Some(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn a_note_outlives_the_process_and_a_damaged_note_means_the_worst() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Damage::read(dir.path(), NOW).unwrap(), Damage::default());
        let noted = Damage {
            quarantined: Some(Found::new("votes are gone", NOW)),
            ..Damage::default()
        };
        noted.write(dir.path()).unwrap();
        assert_eq!(Damage::read(dir.path(), NOW).unwrap(), noted);
        fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        let read = Damage::read(dir.path(), NOW).unwrap();
        assert!(read.quarantined.unwrap().reason.contains("itself damaged"));
    }

    #[test]
    fn damaged_state_is_kept_once_and_a_disk_that_damages_it_again_and_again_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let found = Found::new("a block", NOW);
        let mut damage = Damage::default();
        for n in 1..=SET_ASIDE_MAX {
            fs::create_dir(dir.path().join("state")).unwrap();
            let aside = damage.set_state_aside(dir.path(), &found, NOW).unwrap().unwrap();
            assert_eq!(aside, dir.path().join(format!("state.damaged-{n}")));
            assert!(!dir.path().join("state").exists());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the note and one copy");
        }
        fs::create_dir(dir.path().join("state")).unwrap();
        assert_eq!(damage.set_state_aside(dir.path(), &found, NOW).unwrap(), None);
        assert!(dir.path().join("state").exists());
        assert!(Damage::read(dir.path(), NOW).unwrap().quarantined.is_some());
        let mut later = Damage {
            set_aside: vec![NOW; SET_ASIDE_MAX],
            ..Damage::default()
        };
        let now = NOW.plus_millis(WINDOW_MS + 1);
        assert!(later.set_state_aside(dir.path(), &found, now).unwrap().is_some());
    }

    #[test]
    fn nothing_there_is_nothing_to_move() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(move_aside(dir.path(), "state").unwrap(), None);
    }
}
