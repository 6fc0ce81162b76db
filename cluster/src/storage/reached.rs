//! How far each group's log had certainly come, in one small file apart from the log.
//!
//! [`super::written`] counts changes, and sees when the last ones are missing. It cannot see when
//! earlier ones are: a manifest that lost its end names no longer all tables, and RocksDB opens what
//! is left of the log without a word.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use actors::id::ShardId;
use actors::wire::codec;
use serde::{Deserialize, Serialize};

use super::file;

/// Name of the file.
pub const FILE: &str = "reached";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The latest term this replica promised anything in.
    pub term: u64,
    /// Term and index of its last entry, purged or not.
    pub last_term: u64,
    pub last: u64,
    /// Up to here it knew its entries to be committed.
    pub committed: u64,
}

impl Reached {
    /// Whether a log that had come to `known` cannot be what is left now.
    fn lacks(&self, known: &Self) -> bool {
        let promise = self.term < known.term;
        // What is committed is never removed, only purged.
        let committed = self.last < known.committed;
        // An entry of that very term is removed under a later one only. Of an earlier leader's entries
        // the leader of the term may have cut some since.
        let own = self.term == known.term
            && known.last_term == known.term
            && (self.last_term, self.last) < (known.last_term, known.last);
        promise || committed || own
    }
}

pub type AllReached = BTreeMap<ShardId, Reached>;

/// # Errors
/// The disk failed. A damaged file is as good as none: it only ever added a check.
pub fn read(dir: &Path) -> io::Result<AllReached> {
    match file::read(&dir.join(FILE)) {
        Ok(Some(body)) => Ok(codec::decode(&body).unwrap_or_default()),
        Ok(None) => Ok(AllReached::new()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(AllReached::new()),
        Err(error) => Err(error),
    }
}

/// Notes what certainly is on the disk by now; what else the file says stays.
///
/// # Errors
/// The disk failed; the former file is still there.
pub fn note(dir: &Path, reached: &AllReached) -> io::Result<()> {
    if reached.is_empty() {
        return Ok(());
    }
    let mut all = read(dir)?;
    all.extend(reached);
    file::replace(&dir.join(FILE), &codec::encode(&all))
}

/// The first group that is behind what was noted, and by what.
///
/// # Errors
/// As [`read`], or the log cannot be read.
pub fn lost(dir: &Path, now: impl Fn(ShardId) -> io::Result<Reached>) -> io::Result<Option<String>> {
    for (shard, known) in read(dir)? {
        let found = now(shard)?;
        if found.lacks(&known) {
            return Ok(Some(format!(
                "the log of shard {shard} ends at entry {} of term {}, promised in term {}; it had reached entry {} of \
                 term {}, promised in term {}: a part of it was lost, or an older copy was put back",
                found.last, found.last_term, found.term, known.last, known.last_term, known.term
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u64, last_term: u64, last: u64, committed: u64) -> Reached {
        Reached {
            term,
            last_term,
            last,
            committed,
        }
    }

    #[test]
    fn a_log_that_went_back_is_noticed_and_one_that_a_later_leader_cut_is_not() {
        let own = at(4, 4, 90, 80);
        let inherited = at(5, 4, 90, 80);
        for (known, found, lost) in [
            (own, at(4, 4, 90, 80), false),
            (own, at(4, 4, 95, 0), false),
            (own, at(4, 4, 89, 80), true),
            (own, at(3, 3, 900, 80), true),
            (own, at(5, 3, 85, 80), false),
            (own, at(5, 5, 85, 80), false),
            (own, at(5, 3, 79, 0), true),
            (own, at(0, 0, 0, 0), true),
            (inherited, at(5, 4, 85, 80), false),
            (inherited, at(5, 5, 86, 80), false),
            (inherited, at(5, 0, 0, 0), true),
        ] {
            assert_eq!(found.lacks(&known), lost, "{found:?} after {known:?}");
        }
    }

    #[test]
    fn what_is_noted_reads_back_and_a_damaged_file_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
        let first = AllReached::from([(ShardId(0), at(1, 1, 2, 2))]);
        note(dir.path(), &first).unwrap();
        assert_eq!(read(dir.path()).unwrap(), first);
        note(dir.path(), &AllReached::from([(ShardId(1), at(3, 3, 4, 4))])).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 2);
        let told = lost(dir.path(), |_| Ok(at(1, 1, 2, 2))).unwrap().unwrap();
        assert!(told.contains("shard 1"), "{told}");
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
    }
}
