//! How far each group's log had certainly come, in one small file apart from the log: a log that
//! is shorter when it is opened again has lost what it promised.
//!
//! The log's own checksums cannot show that its end is missing.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use actors::id::ShardId;
use actors::wire::codec;
use serde::{Deserialize, Serialize};

use super::file;

const FILE: &str = "positions";

/// The latest term this replica promised anything in, and its last entry. Entries are only ever
/// removed under a later term, so as a pair they never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reached {
    pub term: u64,
    pub last: u64,
}

pub type Positions = BTreeMap<ShardId, Reached>;

/// # Errors
/// The disk failed. A damaged file is as good as none: it only ever added a check.
pub fn read(dir: &Path) -> io::Result<Positions> {
    match file::read(&dir.join(FILE)) {
        Ok(Some(body)) => Ok(codec::decode(&body).unwrap_or_default()),
        Ok(None) => Ok(Positions::new()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Positions::new()),
        Err(error) => Err(error),
    }
}

/// Notes what certainly is on the disk by now; what else the file says stays.
///
/// # Errors
/// The disk failed; the former file is still there.
pub fn note(dir: &Path, positions: &Positions) -> io::Result<()> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut all = read(dir)?;
    all.extend(positions);
    file::replace(&dir.join(FILE), &codec::encode(&all))
}

/// The first group that is behind what was written down, and by what.
pub fn behind(known: &Positions, now: impl Fn(ShardId) -> io::Result<Reached>) -> io::Result<Option<String>> {
    for (shard, known) in known {
        let found = now(*shard)?;
        if found < *known {
            return Ok(Some(format!(
                "the log of shard {shard} ends at entry {} of term {}, and had reached entry {} of term {}: its end \
                 was lost, or an older copy was put back",
                found.last, found.term, known.last, known.term
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_went_back_is_noticed_and_one_that_a_later_leader_cut_is_not() {
        let known = Positions::from([(ShardId(3), Reached { term: 4, last: 90 })]);
        for (term, last, lost) in [
            (4, 90, false),
            (4, 91, false),
            (5, 10, false),
            (4, 89, true),
            (3, 900, true),
            (0, 0, true),
        ] {
            let found = behind(&known, |_| Ok(Reached { term, last })).unwrap();
            assert_eq!(found.is_some(), lost, "{term} {last}");
        }
    }

    #[test]
    fn positions_are_read_back_and_a_damaged_file_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
        let positions = Positions::from([(ShardId(0), Reached { term: 1, last: 2 })]);
        note(dir.path(), &positions).unwrap();
        assert_eq!(read(dir.path()).unwrap(), positions);
        let later = Positions::from([(ShardId(1), Reached { term: 3, last: 4 })]);
        note(dir.path(), &later).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 2);
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
    }
}
