//! Whose directory this is: one file says which cluster, node and incarnation wrote it, one lock
//! keeps a second process out.
//!
//! A directory of somebody else is never touched. Knows nothing of what the stores hold.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use actors::id::NodeId;
use actors::time::Timestamp;
use actors::wire::codec;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::file;

const FILE: &str = "identity";
const LOCK: &str = "lock";
/// Format of everything below the directory.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub cluster_id: String,
    pub node_id: NodeId,
    /// Stands for this directory: a node that lost its disk comes back under another one.
    pub node_uuid: u128,
    pub shards: u16,
    pub created_at: Timestamp,
    initialised: bool,
    /// How often the directory was started. Peers remember it, so that an older copy is noticed.
    pub starts: u64,
}

/// What the configuration says, and what a new directory is given.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub cluster_id: String,
    pub node_id: NodeId,
    pub shards: u16,
    /// Used only for a new directory.
    pub fresh_uuid: u128,
    pub now: Timestamp,
}

/// Whether the stores have yet to be created: true until [`Identity::mark_initialised`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh(pub bool);

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{dir} belongs to cluster {found:?}, the configuration names {wanted:?}", dir = dir.display())]
    OtherCluster {
        dir: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("{dir} belongs to node {found}, the configuration names node {wanted}", dir = dir.display())]
    OtherNode {
        dir: PathBuf,
        found: NodeId,
        wanted: NodeId,
    },
    #[error(
        "{dir} was created for {found} shards, the configuration says {wanted}; the number never changes",
        dir = dir.display()
    )]
    OtherShards { dir: PathBuf, found: u16, wanted: u16 },
    #[error("{file} is damaged ({reason}): rebuild this replica under a new node id", file = file.display())]
    Corrupt { file: PathBuf, reason: String },
    #[error(
        "{dir} was written by a newer version (format {found}, this program knows up to {FORMAT})",
        dir = dir.display()
    )]
    Newer { dir: PathBuf, found: u32 },
    #[error("{dir} holds {entry:?} but no identity file: it is not a data directory, or lost its identity", dir = dir.display())]
    Unowned { dir: PathBuf, entry: String },
    #[error("{dir} is in use by {}", holder(.pid), dir = dir.display())]
    InUse { dir: PathBuf, pid: Option<u32> },
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Disk {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or("another process".into(), |pid| format!("process {pid}"))
}

impl Identity {
    /// Reads whose directory this is, or makes it ours when it is empty or missing. The caller
    /// holds its [`DirLock`].
    ///
    /// # Errors
    /// Nothing was changed unless it is `Disk`; each variant says what to mend.
    pub fn open_or_create(dir: &Path, wanted: &Wanted) -> Result<(Self, Fresh), IdentityError> {
        create_dir(dir)?;
        let path = dir.join(FILE);
        match file::read(&path) {
            Ok(Some(body)) => {
                let found = Self::decode(dir, &body)?;
                found.check(dir, wanted)?;
                let fresh = Fresh(!found.initialised);
                Ok((found, fresh))
            }
            Ok(None) => {
                refuse_unowned(dir)?;
                let new = Self {
                    cluster_id: wanted.cluster_id.clone(),
                    node_id: wanted.node_id,
                    node_uuid: wanted.fresh_uuid,
                    shards: wanted.shards,
                    created_at: wanted.now,
                    initialised: false,
                    starts: 0,
                };
                new.save(dir)?;
                sync_parent(dir)?;
                Ok((new, Fresh(true)))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(corrupt(dir, &error)),
            Err(source) => Err(disk("read", &path, source)),
        }
    }

    /// Whose directory this is, if it is anybody's. Changes nothing.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>, IdentityError> {
        match file::read(&dir.join(FILE)) {
            Ok(Some(body)) => Self::decode(dir, &body).map(Some),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(corrupt(dir, &error)),
            Err(source) => Err(disk("read", &dir.join(FILE), source)),
        }
    }

    /// Notes that the stores exist: from now on a missing one is a loss, not a beginning. Call it
    /// after they were opened and before anything is promised.
    ///
    /// # Errors
    /// `Disk`; the directory then still counts as fresh.
    pub fn mark_initialised(&mut self, dir: &Path) -> Result<(), IdentityError> {
        if self.initialised {
            return Ok(());
        }
        let marked = Self {
            initialised: true,
            ..self.clone()
        };
        marked.save(dir)?;
        *self = marked;
        Ok(())
    }

    /// Counts one more start, durably; call it before a peer hears of this run.
    ///
    /// # Errors
    /// `Disk`; this run must not begin.
    pub fn count_start(&mut self, dir: &Path) -> Result<(), IdentityError> {
        let counted = Self {
            starts: self.starts + 1,
            ..self.clone()
        };
        counted.save(dir)?;
        *self = counted;
        Ok(())
    }

    fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let mut body = FORMAT.to_le_bytes().to_vec();
        body.extend_from_slice(&codec::encode(self));
        let path = dir.join(FILE);
        file::replace(&path, &body).map_err(|source| disk("write", &path, source))
    }

    fn decode(dir: &Path, body: &[u8]) -> Result<Self, IdentityError> {
        let (format, body) = body
            .split_first_chunk()
            .ok_or_else(|| corrupt(dir, &"it is too short"))?;
        match u32::from_le_bytes(*format) {
            FORMAT => codec::decode(body).map_err(|error| corrupt(dir, &error)),
            found if found > FORMAT => Err(IdentityError::Newer {
                dir: dir.to_owned(),
                found,
            }),
            found => Err(corrupt(dir, &format!("format {found}"))),
        }
    }

    fn check(&self, dir: &Path, wanted: &Wanted) -> Result<(), IdentityError> {
        let dir = dir.to_owned();
        if self.cluster_id != wanted.cluster_id {
            return Err(IdentityError::OtherCluster {
                dir,
                found: self.cluster_id.clone(),
                wanted: wanted.cluster_id.clone(),
            });
        }
        if self.node_id != wanted.node_id {
            return Err(IdentityError::OtherNode {
                dir,
                found: self.node_id,
                wanted: wanted.node_id,
            });
        }
        if self.shards != wanted.shards {
            return Err(IdentityError::OtherShards {
                dir,
                found: self.shards,
                wanted: wanted.shards,
            });
        }
        Ok(())
    }
}

/// Keeps other processes out of a directory for as long as it lives; the kernel lets go of it when
/// the process dies, however it dies.
#[derive(Debug)]
pub struct DirLock {
    _file: Flock<File>,
}

impl DirLock {
    /// Creates the directory if it is missing and takes its lock.
    ///
    /// # Errors
    /// `InUse` names the process that holds it, as far as it is known.
    pub fn acquire(dir: &Path) -> Result<Self, IdentityError> {
        create_dir(dir)?;
        let path = dir.join(LOCK);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false);
        let file = open.open(&path).map_err(|source| disk("open", &path, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                write_pid(&mut file).map_err(|source| disk("write", &path, source))?;
                Ok(Self { _file: file })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                // The name of the holder is a courtesy; without it the message is still true.
                let _ = file.take(20).read_to_string(&mut text);
                Err(IdentityError::InUse {
                    dir: dir.to_owned(),
                    pid: text.trim().parse().ok(),
                })
            }
            Err((_, errno)) => Err(disk("lock", &path, errno.into())),
        }
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn create_dir(dir: &Path) -> Result<(), IdentityError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|source| disk("create", dir, source))?;
    sync_parent(dir)
}

/// The directory's own name must survive a power cut, whoever made it.
fn sync_parent(dir: &Path) -> Result<(), IdentityError> {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            file::sync_dir(parent).map_err(|source| disk("sync", parent, source))
        }
        _ => Ok(()),
    }
}

/// Configuration and logs may lie beside the data; anything else is somebody's.
fn refuse_unowned(dir: &Path) -> Result<(), IdentityError> {
    let entries = dir.read_dir().map_err(|source| disk("read", dir, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| disk("read", dir, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let harmless = name == LOCK
            || name == super::book::FILE
            || [".tmp", ".toml", ".log", ".pid"].iter().any(|end| name.ends_with(end));
        if !(is_file && harmless) {
            return Err(IdentityError::Unowned {
                dir: dir.to_owned(),
                entry: name,
            });
        }
    }
    Ok(())
}

fn corrupt(dir: &Path, reason: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::Corrupt {
        file: dir.join(FILE),
        reason: reason.to_string(),
    }
}

fn disk(what: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Disk {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            cluster_id: "reef".into(),
            node_id: 1,
            shards: 16,
            fresh_uuid: 77,
            now: Timestamp(5),
        }
    }

    fn created() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        Identity::open_or_create(dir.path(), &wanted()).unwrap();
        dir
    }

    fn error(dir: &Path, wanted: &Wanted) -> IdentityError {
        Identity::open_or_create(dir, wanted).unwrap_err()
    }

    #[test]
    fn a_directory_keeps_its_identity() {
        let dir = created();
        let later = Wanted {
            fresh_uuid: 99,
            now: Timestamp(6),
            ..wanted()
        };
        let (mut identity, fresh) = Identity::open_or_create(dir.path(), &later).unwrap();
        assert_eq!(
            (identity.node_uuid, identity.created_at, fresh),
            (77, Timestamp(5), Fresh(true))
        );
        identity.mark_initialised(dir.path()).unwrap();
        let (again, fresh) = Identity::open_or_create(dir.path(), &later).unwrap();
        assert_eq!((again, fresh), (identity, Fresh(false)));
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = created();
        let cluster = Wanted {
            cluster_id: "atoll".into(),
            ..wanted()
        };
        assert!(matches!(
            error(dir.path(), &cluster),
            IdentityError::OtherCluster { .. }
        ));
        let node = Wanted { node_id: 2, ..wanted() };
        assert!(matches!(
            error(dir.path(), &node),
            IdentityError::OtherNode { found: 1, .. }
        ));
        let shards = Wanted { shards: 8, ..wanted() };
        assert!(matches!(
            error(dir.path(), &shards),
            IdentityError::OtherShards { found: 16, .. }
        ));
    }

    #[test]
    fn a_damaged_or_newer_identity_is_refused() {
        let dir = created();
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 4;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(error(dir.path(), &wanted()), IdentityError::Corrupt { .. }));
        fs::write(&path, b"").unwrap();
        assert!(matches!(error(dir.path(), &wanted()), IdentityError::Corrupt { .. }));
        file::replace(&path, &(FORMAT + 1).to_le_bytes()).unwrap();
        assert!(matches!(
            error(dir.path(), &wanted()),
            IdentityError::Newer { found: 2, .. }
        ));
    }

    #[test]
    fn data_without_identity_is_refused() {
        for (name, is_dir, refused) in [
            ("log", true, true),
            ("photo.jpg", false, true),
            ("node.toml", false, false),
            ("node.log", false, false),
            ("identity.tmp", false, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            if is_dir {
                fs::create_dir(&path).unwrap();
            } else {
                fs::write(&path, b"x").unwrap();
            }
            let outcome = Identity::open_or_create(dir.path(), &wanted());
            assert_eq!(matches!(outcome, Err(IdentityError::Unowned { .. })), refused, "{name}");
            assert_eq!(outcome.is_ok(), !refused, "{name}");
        }
    }

    #[test]
    fn a_second_start_is_refused_and_told_who_runs() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        let refusal = DirLock::acquire(dir.path()).unwrap_err();
        let pid = std::process::id();
        assert!(
            refusal.to_string().ends_with(&format!("in use by process {pid}")),
            "{refusal}"
        );
        drop(lock);
        DirLock::acquire(dir.path()).unwrap();
    }
}
