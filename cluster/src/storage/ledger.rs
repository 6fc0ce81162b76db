//! Which directory each node id was seen with, in one file that outlives the process.
//!
//! A node that lost its disk must not come back under its old id: it forgot what it voted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use actors::id::NodeId;
use actors::wire::codec;

use super::{file, StorageOpenError};
use crate::transport::PeerLedger;

const FILE: &str = "peers";
/// Node ids remembered; ids are never reused, so this bounds a cluster's life, not its size.
const NODES_MAX: usize = 10_000;

pub struct FileLedger {
    path: PathBuf,
    seen: Mutex<BTreeMap<NodeId, u128>>,
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
            path,
            seen: Mutex::new(seen),
        })
    }
}

impl PeerLedger for FileLedger {
    /// The first sight of a node waits for the disk; every later one is answered from memory.
    fn admit(&self, node: NodeId, uuid: u128) -> bool {
        let mut seen = self.seen.lock().expect("nothing panics while it holds the ledger");
        if let Some(known) = seen.get(&node) {
            return *known == uuid;
        }
        if seen.len() >= NODES_MAX {
            tracing::error!(node, "peer refused, the ledger holds {NODES_MAX} nodes");
            return false;
        }
        seen.insert(node, uuid);
        match file::replace(&self.path, &codec::encode(&*seen)) {
            Ok(()) => true,
            Err(error) => {
                // Admitting it without remembering it would let another directory in later.
                seen.remove(&node);
                tracing::error!(node, %error, "peer refused, the ledger cannot be written");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_held_to_the_directory_it_was_first_seen_with() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = FileLedger::open(dir.path()).unwrap();
        assert!(ledger.admit(1, 10));
        assert!(ledger.admit(1, 10));
        assert!(!ledger.admit(1, 11));
        let reopened = FileLedger::open(dir.path()).unwrap();
        assert!(!reopened.admit(1, 11));
        assert!(reopened.admit(1, 10));
        assert!(reopened.admit(2, 11));
    }

    #[test]
    fn a_node_that_cannot_be_remembered_is_not_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = FileLedger::open(&dir.path().join("missing")).unwrap();
        assert!(!ledger.admit(1, 10));
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        assert!(ledger.admit(1, 11));
    }

    #[test]
    fn a_damaged_ledger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        FileLedger::open(dir.path()).unwrap().admit(1, 10);
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert!(matches!(
            FileLedger::open(dir.path()),
            Err(StorageOpenError::Corrupt { .. })
        ));
    }
}
