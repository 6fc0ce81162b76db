//! Cuts the power of nodes: after it, a node's directory holds what it had fsynced.
//!
//! A shim (`powercut/shim.c`, compiled with `cc` when it is needed) is preloaded into the nodes and
//! keeps a mirror of what is durable. The cut replaces each data directory by its mirror. Two kinds
//! of disk are played: one that loses everything unsynced, and one that keeps an arbitrary part of
//! what was appended to a file (a torn write). Not played: unsynced overwrites inside a file and
//! unsynced names that survive by luck.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use simulator::payloads::Chance;

const SOURCE: &str = include_str!("../powercut/shim.c");
/// The object that stands for the directory around `data`.
const PARENT: u64 = 1;

/// What happens to bytes that were appended and not synced.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced {
    Lost,
    /// Each file keeps a part of them, of random length.
    Torn {
        seed: u64,
    },
}

/// What a cut took, over all nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Bytes at the ends of files.
    pub bytes: u64,
    /// Files and directories whose name was not durable.
    pub names_lost: u64,
    /// Removals and renames that were not durable.
    pub names_returned: u64,
}

/// What the shim of one node has counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    pub writes: u64,
    pub file_syncs: u64,
    pub dir_syncs: u64,
    pub bytes: u64,
    /// Calls that the shim cannot follow; a mirror with any is not to be trusted.
    pub problems: u64,
    pub held: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error("cc cannot be run ({0}); install gcc: apt-get install -y gcc libc6-dev")]
    NoCompiler(io::Error),
    #[error("the preloaded library does not compile:\n{0}")]
    Compile(String),
    #[error("node {node}: {why}")]
    Mirror { node: u64, why: String },
    #[error("{0}")]
    Disk(#[from] io::Error),
}

/// Compiles the shim into `dir` and returns the variables that put a node under it; its mirrors
/// are below `dir/mirror`.
///
/// # Errors
/// There is no compiler, or the disk refuses.
pub fn prepare(dir: &Path) -> Result<Vec<(String, String)>, CutError> {
    let (source, library, mirrors) = (dir.join("shim.c"), dir.join("shim.so"), dir.join("mirror"));
    fs::write(&source, SOURCE)?;
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-Wall", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .args(["-ldl", "-lpthread"])
        .output()
        .map_err(CutError::NoCompiler)?;
    if !output.status.success() {
        return Err(CutError::Compile(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::create_dir(&mirrors)?;
    Ok(vec![
        ("LD_PRELOAD".to_owned(), library.display().to_string()),
        ("POWERCUT_MIRROR".to_owned(), mirrors.display().to_string()),
    ])
}

/// Where the mirror of a node is, below what [`prepare`] was given.
pub fn mirror(dir: &Path, node: u64) -> PathBuf {
    dir.join("mirror").join(format!("node-{node}"))
}

/// # Errors
/// The node does not run under the shim.
pub fn counted(mirror: &Path) -> io::Result<Counted> {
    let mut page = [0u8; 7 * 8];
    File::open(mirror.join("control"))?.read_exact_at(&mut page, 0)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&page[at * 8..at * 8 + 8]);
        u64::from_ne_bytes(bytes)
    };
    Ok(Counted {
        writes: number(0),
        file_syncs: number(1),
        dir_syncs: number(2),
        bytes: number(3),
        problems: number(4),
        held: number(6),
    })
}

/// Cuts the power of one node, which must not run. `dir` holds its `data`; `data_stays`: whether
/// the name of `data` itself counts as durable in any case.
///
/// # Errors
/// The mirror cannot be trusted, or the disk refuses; then nothing says what the directory holds.
pub fn cut(node: u64, mirror: &Path, dir: &Path, unsynced: Unsynced, data_stays: bool) -> Result<Taken, CutError> {
    let broken = |why: String| CutError::Mirror { node, why };
    let counted = counted(mirror).map_err(|error| broken(format!("it does not run under the library: {error}")))?;
    if counted.problems > 0 {
        let problems = fs::read_to_string(mirror.join("problems")).unwrap_or_default();
        return Err(broken(format!("the library could not follow it: {problems}")));
    }
    let data = dir.join("data");
    let present = files_by_object(mirror, &data);
    let of_data = present
        .iter()
        .find(|(_, path)| **path == data)
        .map(|(object, _)| *object);
    let mut rebuilt = Rebuilt {
        present,
        chance: match unsynced {
            Unsynced::Lost => None,
            Unsynced::Torn { seed } => Some(Chance::new(seed ^ node)),
        },
        mirror: mirror.to_owned(),
        taken: Taken::default(),
    };
    let new = dir.join("data.after-cut");
    fs::create_dir(&new)?;
    rebuilt.directory(PARENT, &new)?;
    if data_stays && !new.join("data").exists() {
        let object = of_data.ok_or_else(|| broken("it has no data directory".into()))?;
        rebuilt.present.remove(&object);
        fs::create_dir(new.join("data"))?;
        rebuilt.directory(object, &new.join("data"))?;
    }
    rebuilt.taken.names_lost += rebuilt.present.len() as u64;
    fs::remove_dir_all(&data)?;
    if new.join("data").exists() {
        fs::rename(new.join("data"), &data)?;
    }
    fs::remove_dir(&new)?;
    // The next process finds no mirror and takes what is there as durable.
    fs::remove_dir_all(mirror)?;
    Ok(rebuilt.taken)
}

impl Taken {
    pub fn add(&mut self, other: Taken) {
        self.bytes += other.bytes;
        self.names_lost += other.names_lost;
        self.names_returned += other.names_returned;
    }
}

struct Rebuilt {
    mirror: PathBuf,
    /// What was there before the cut and not yet looked at.
    present: BTreeMap<u64, PathBuf>,
    chance: Option<Chance>,
    taken: Taken,
}

impl Rebuilt {
    /// Writes the durable content of directory `object` into `to`.
    fn directory(&mut self, object: u64, to: &Path) -> io::Result<()> {
        let listing = fs::read_to_string(self.mirror.join("dirs").join(object.to_string())).unwrap_or_default();
        for line in listing.lines() {
            let mut parts = line.splitn(3, ' ');
            let (kind, object, name) = (parts.next(), parts.next(), parts.next());
            let (Some(kind), Some(object), Some(name)) = (kind, object.and_then(|o| o.parse().ok()), name) else {
                return Err(io::Error::other(format!("the mirror is damaged: {line:?}")));
            };
            let before = self.present.remove(&object);
            let had = before.as_ref().and_then(|path| path.file_name());
            if had.is_none_or(|now| now != name) {
                self.taken.names_returned += 1;
            }
            let path = to.join(name);
            if kind == "d" {
                fs::create_dir(&path)?;
                self.directory(object, &path)?;
            } else {
                self.file(object, before.as_deref(), &path)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, object: u64, before: Option<&Path>, to: &Path) -> io::Result<()> {
        let durable = self.mirror.join("objects").join(object.to_string());
        let mut bytes = fs::read(&durable).unwrap_or_default();
        let written = before.and_then(|path| fs::read(path).ok());
        if let Some(written) = written.filter(|written| written.len() > bytes.len()) {
            let unsynced = written.len() - bytes.len();
            let kept = self
                .chance
                .as_mut()
                .map_or(0, |chance| chance.below(unsynced as u64 + 1) as usize);
            bytes.extend_from_slice(&written[bytes.len()..][..kept]);
            self.taken.bytes += (unsynced - kept) as u64;
        }
        fs::write(to, bytes)
    }
}

/// Everything below `data`, by the object that stands for it.
fn files_by_object(mirror: &Path, data: &Path) -> BTreeMap<u64, PathBuf> {
    let map = fs::read_to_string(mirror.join("map")).unwrap_or_default();
    let numbers = |line: &str| -> Option<(u64, u64)> {
        let (inode, object) = line.split_once(' ')?;
        Some((inode.parse().ok()?, object.parse().ok()?))
    };
    let objects: BTreeMap<u64, u64> = map.lines().filter_map(numbers).collect();
    let mut found = BTreeMap::new();
    let mut waiting = vec![data.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(about) = fs::symlink_metadata(&path) else {
            continue;
        };
        if let Some(object) = objects.get(&about.ino()) {
            found.insert(*object, path.clone());
        }
        if about.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        }
    }
    found
}
