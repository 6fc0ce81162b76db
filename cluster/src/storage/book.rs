//! What a node must know before it has a catalog: who it will be, and where the others are.
//!
//! One file beside the stores, replaced as a whole. It is a copy: the catalog is right.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use actors::id::NodeId;
use actors::wire::codec;
use serde::{Deserialize, Serialize};

use super::file;

pub const FILE: &str = "nodes";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Of a directory that is to join: asked for again with the same, a node gets the same id.
    pub joining_as: Option<u128>,
    /// The id and the number of shards it was told.
    pub admitted: Option<(NodeId, u16)>,
    /// Where peers were when last heard of; empty: nothing is known yet.
    pub peers: BTreeMap<NodeId, SocketAddr>,
}

impl Book {
    /// An empty one if there is none.
    ///
    /// # Errors
    /// `InvalidData` when the file is damaged.
    pub fn read(dir: &Path) -> io::Result<Self> {
        match file::read(&dir.join(FILE))? {
            Some(body) => codec::decode(&body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string())),
            None => Ok(Self::default()),
        }
    }

    /// # Errors
    /// The disk refuses.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        file::replace(&dir.join(FILE), &codec::encode(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_reads_back_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Book::read(dir.path()).unwrap(), Book::default());
        let book = Book {
            joining_as: Some(7),
            admitted: Some((4, 16)),
            peers: BTreeMap::from([(1, "127.0.0.1:7400".parse().unwrap())]),
        };
        book.write(dir.path()).unwrap();
        assert_eq!(Book::read(dir.path()).unwrap(), book);
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert_eq!(Book::read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
