//! In which directory, and in which of its runs, each node id was seen; in one file that outlives
//! the process.
//!
//! A node that lost its disk, or was given an older copy of it, must not come back under its old
//! id: it forgot what it voted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use actors::id::NodeId;
use actors::wire::codec;

use super::{file, StorageOpenError};
use serde::{Deserialize, Serialize};

use crate::transport::{Admission, PeerLedger, Run};

const FILE: &str = "peers";
/// Node ids remembered; ids are never reused, so this bounds a cluster's life, not its size.
const NODES_MAX: usize = 10_000;

pub struct FileLedger {
    /// `None`: what is seen is forgotten with the process.
    path: Option<PathBuf>,
    seen: Mutex<BTreeMap<NodeId, Seen>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    uuid: u128,
    starts: u64,
    boot: u64,
}

impl FileLedger {
    /// Reads the ledger in `dir`, or begins one.
    ///
    /// # Errors
    /// `Corrupt` when the file is damaged, `Disk` when it cannot be read.
    pub fn open(dir: &Path) -> Result<Self, StorageOpenError> {
        let path = dir.join(FILE);
        let corrupt = |reason: String| StorageOpenError::Corrupt {
            dir: path.clone(),
            reason,
        };
        let body = file::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => corrupt(source.to_string()),
            _ => StorageOpenError::Disk {
                dir: path.clone(),
                source,
            },
        })?;
        let seen = match body {
            Some(body) => codec::decode(&body).map_err(|error| corrupt(error.to_string()))?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            path: Some(path),
            seen: Mutex::new(seen),
        })
    }

    /// For a process that may not write to its directory.
    pub fn forgetful() -> Self {
        Self {
            path: None,
            seen: Mutex::default(),
        }
    }
}

impl FileLedger {
    /// Whether any other node was ever met: a directory that met none is alone in the world.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// What the catalog knows of nodes that this file does not.
    pub fn learn(&self, nodes: impl Iterator<Item = (NodeId, u128)>) {
        let mut seen = self.lock();
        let before = seen.len();
        for (node, uuid) in nodes {
            if seen.len() < NODES_MAX {
                // Any run of that directory may be the first that is met.
                seen.entry(node).or_insert(Seen {
                    uuid,
                    starts: 0,
                    boot: 0,
                });
            }
        }
        if seen.len() > before {
            if let Err(error) = self.save(&seen) {
                tracing::warn!(%error, "what the catalog knows of peers could not be written down");
            }
        }
    }

    fn save(&self, seen: &BTreeMap<NodeId, Seen>) -> io::Result<()> {
        match &self.path {
            Some(path) => file::replace(path, &codec::encode(seen)),
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Seen>> {
        self.seen.lock().expect("nothing panics while it holds the ledger")
    }
}

fn judge(known: &Seen, run: Run) -> Admission {
    if known.uuid != run.uuid {
        Admission::OtherDirectory
    } else if run.starts > known.starts || (run.starts == known.starts && run.boot == known.boot) {
        Admission::Admitted
    } else {
        Admission::OlderCopy
    }
}

impl PeerLedger for FileLedger {
    /// The first sight of each run waits for the disk; every later one is answered from memory.
    fn admit(&self, node: NodeId, run: Run) -> Admission {
        let mut seen = self.lock();
        let known = seen.get(&node).copied();
        if let Some(known) = known {
            let verdict = judge(&known, run);
            if verdict != Admission::Admitted || run.starts == known.starts {
                return verdict;
            }
        } else if seen.len() >= NODES_MAX {
            tracing::error!(node, "peer refused, the ledger holds {NODES_MAX} nodes");
            return Admission::OtherDirectory;
        }
        let Run { uuid, starts, boot } = run;
        seen.insert(node, Seen { uuid, starts, boot });
        match self.save(&seen) {
            Ok(()) => Admission::Admitted,
            // A later run of a known directory: an older copy of it is found out a little later.
            Err(error) if known.is_some() => {
                tracing::error!(node, %error, "the ledger cannot be written");
                Admission::Admitted
            }
            Err(error) => {
                // Admitting it without remembering it would let another directory in later.
                seen.remove(&node);
                tracing::error!(node, %error, "peer refused, the ledger cannot be written");
                Admission::OtherDirectory
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Admission::{Admitted, OlderCopy, OtherDirectory};

    fn run(uuid: u128, starts: u64, boot: u64) -> Run {
        Run { uuid, starts, boot }
    }

    #[test]
    fn a_node_is_held_to_the_directory_it_was_first_seen_with() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = FileLedger::open(dir.path()).unwrap();
        assert!(ledger.is_empty());
        assert_eq!(ledger.admit(1, run(10, 1, 1)), Admitted);
        assert_eq!(ledger.admit(1, run(10, 1, 1)), Admitted);
        assert_eq!(ledger.admit(1, run(11, 1, 2)), OtherDirectory);
        let reopened = FileLedger::open(dir.path()).unwrap();
        assert_eq!(reopened.admit(1, run(11, 9, 2)), OtherDirectory);
        assert_eq!(reopened.admit(1, run(10, 2, 3)), Admitted);
        assert_eq!(reopened.admit(2, run(11, 1, 4)), Admitted);
        assert!(!reopened.is_empty());
    }

    /// A copy taken before the second run comes back as another second run, or as the first.
    #[test]
    fn an_older_copy_of_a_directory_is_told_from_its_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = FileLedger::open(dir.path()).unwrap();
        assert_eq!(ledger.admit(1, run(10, 1, 100)), Admitted);
        assert_eq!(ledger.admit(1, run(10, 2, 200)), Admitted);
        let reopened = FileLedger::open(dir.path()).unwrap();
        assert_eq!(reopened.admit(1, run(10, 2, 300)), OlderCopy);
        assert_eq!(reopened.admit(1, run(10, 1, 400)), OlderCopy);
        assert_eq!(reopened.admit(1, run(10, 3, 500)), Admitted);
    }

    #[test]
    fn what_the_catalog_knows_closes_the_gaps_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = FileLedger::open(dir.path()).unwrap();
        assert_eq!(ledger.admit(1, run(10, 5, 1)), Admitted);
        ledger.learn([(1, 99), (2, 20)].into_iter());
        let reopened = FileLedger::open(dir.path()).unwrap();
        assert_eq!(reopened.admit(1, run(10, 6, 2)), Admitted);
        assert_eq!(reopened.admit(2, run(21, 1, 3)), OtherDirectory);
        assert_eq!(reopened.admit(2, run(20, 1, 4)), Admitted);
    }

    #[test]
    fn a_node_that_cannot_be_remembered_is_not_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = FileLedger::open(&dir.path().join("missing")).unwrap();
        assert_eq!(ledger.admit(1, run(10, 1, 1)), OtherDirectory);
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        assert_eq!(ledger.admit(1, run(11, 1, 1)), Admitted);
    }

    #[test]
    fn a_damaged_ledger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        FileLedger::open(dir.path()).unwrap().admit(1, run(10, 1, 1));
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert!(matches!(
            FileLedger::open(dir.path()),
            Err(StorageOpenError::Corrupt { .. })
        ));
    }
}
