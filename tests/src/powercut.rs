//! Cuts the power of a local cluster: after it, a node's directory holds what it had fsynced.
//!
//! A shim (`powercut/shim.c`, compiled here with `cc`) is preloaded into the nodes and keeps a
//! mirror of what is durable. The cut replaces each data directory by its mirror. Two kinds of
//! disk are played: one that loses everything unsynced, and one that keeps an arbitrary part of
//! what was appended to a file (a torn write). Not played: unsynced overwrites inside a file and
//! unsynced names that survive by luck.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::harness::{self, Cluster};

/// The object that stands for the directory around `data`.
const PARENT: u64 = 1;

pub struct PowerCut {
    files: TempDir,
    /// The data directory itself stays, whether or not its parent was ever synced.
    data_stays: bool,
}

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
    pub problems: u64,
    pub held: u64,
}

const HOLD_AT: u64 = 5 * 8;

impl PowerCut {
    /// Compiles the shim.
    pub fn prepare() -> Self {
        let files = tempfile::Builder::new()
            .prefix("holdfast-power-")
            .tempdir()
            .expect("a temporary directory");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/powercut/shim.c");
        let output = Command::new("cc")
            .args(["-std=gnu11", "-O2", "-Wall", "-shared", "-fPIC", "-o"])
            .arg(files.path().join("shim.so"))
            .arg(source)
            .args(["-ldl", "-lpthread"])
            .output()
            .unwrap_or_else(|error| {
                panic!("cc cannot be run ({error}); install gcc: apt-get install -y gcc libc6-dev")
            });
        assert!(
            output.status.success(),
            "the shim does not compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let prepared = Self {
            files,
            data_stays: true,
        };
        fs::create_dir(prepared.mirrors()).expect("the directory is new");
        prepared
    }

    /// From now on the name of the data directory counts like any other: it is gone unless the
    /// directory that holds it was synced.
    #[must_use]
    pub fn data_must_be_synced_too(mut self) -> Self {
        self.data_stays = false;
        self
    }

    /// Variables that put a node under the shim.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: PathBuf| {
            path.to_str()
                .expect("temporary directories have plain names")
                .to_owned()
        };
        vec![
            ("LD_PRELOAD".to_owned(), text(self.files.path().join("shim.so"))),
            ("POWERCUT_MIRROR".to_owned(), text(self.mirrors())),
        ]
    }

    /// A running cluster whose power can be cut.
    pub fn cluster(&self, nodes: u16, env: &[(&str, &str)]) -> Cluster {
        let more = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = self.env().into_iter().chain(more).collect();
        Cluster::start_plan(harness::Plan { nodes, env })
    }

    fn mirrors(&self) -> PathBuf {
        self.files.path().join("mirror")
    }

    fn mirror(&self, node: u64) -> PathBuf {
        self.mirrors().join(format!("node-{node}"))
    }

    /// What the shim of a node has seen so far.
    pub fn counted(&self, node: u64) -> Counted {
        let mut page = [0u8; 7 * 8];
        let control = File::open(self.mirror(node).join("control"));
        let read = control.and_then(|file| file.read_exact_at(&mut page, 0));
        read.unwrap_or_else(|error| panic!("node {node} does not run under the shim: {error}"));
        let number = |at: usize| u64::from_ne_bytes(page[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        Counted {
            writes: number(0),
            file_syncs: number(1),
            dir_syncs: number(2),
            bytes: number(3),
            problems: number(4),
            held: number(6),
        }
    }

    /// Lets no sync of a node begin until it is allowed again: a disk that has become very slow.
    pub fn hold_syncs(&self, node: u64, hold: bool) {
        let control = OpenOptions::new().write(true).open(self.mirror(node).join("control"));
        let written = control.and_then(|file| file.write_all_at(&u64::from(hold).to_ne_bytes(), HOLD_AT));
        written.unwrap_or_else(|error| panic!("node {node} does not run under the shim: {error}"));
    }

    /// The shim saw this node write and sync, and nothing that it cannot follow.
    pub fn assert_followed(&self, node: u64) {
        let counted = self.counted(node);
        let problems = fs::read_to_string(self.mirror(node).join("problems")).unwrap_or_default();
        assert_eq!(counted.problems, 0, "node {node}: {problems}");
        let worked = counted.writes > 0 && counted.file_syncs > 0 && counted.dir_syncs > 0 && counted.bytes > 0;
        assert!(worked, "the shim of node {node} saw too little: {counted:?}");
    }

    /// Cuts the power of every node. None may run.
    pub fn cut(&self, cluster: &Cluster, unsynced: Unsynced) -> Taken {
        assert!(cluster.running().is_empty(), "the power goes for all nodes at once");
        let mut taken = Taken::default();
        for id in cluster.ids() {
            self.assert_followed(id);
            self.cut_node(id, &cluster.node(id).dir, unsynced, &mut taken);
        }
        taken
    }

    fn cut_node(&self, id: u64, dir: &Path, unsynced: Unsynced, taken: &mut Taken) {
        let mirror = self.mirror(id);
        let present = files_by_object(&mirror, &dir.join("data"));
        let of_data = present
            .iter()
            .find(|(_, path)| **path == dir.join("data"))
            .map(|(object, _)| *object);
        let mut rebuilt = Rebuilt {
            present,
            random: match unsynced {
                Unsynced::Lost => None,
                Unsynced::Torn { seed } => Some(SmallRng::seed_from_u64(seed ^ id)),
            },
            mirror: mirror.clone(),
            taken,
        };
        let new = dir.join("data.after-cut");
        fs::create_dir(&new).expect("no cut is under way");
        rebuilt.directory(PARENT, &new);
        if self.data_stays && !new.join("data").exists() {
            let object = of_data.expect("a node that ran has a data directory");
            rebuilt.present.remove(&object);
            fs::create_dir(new.join("data")).expect("it is not there");
            rebuilt.directory(object, &new.join("data"));
        }
        rebuilt.count_lost();
        fs::remove_dir_all(dir.join("data")).expect("a node that ran has a data directory");
        if new.join("data").exists() {
            fs::rename(new.join("data"), dir.join("data")).expect("within one directory");
        }
        fs::remove_dir(&new).expect("nothing else is below it");
        // The next process finds no mirror and takes what is there as durable.
        fs::remove_dir_all(&mirror).expect("the mirror is ours");
    }
}

struct Rebuilt<'a> {
    mirror: PathBuf,
    /// What was there before the cut and not yet looked at.
    present: BTreeMap<u64, PathBuf>,
    random: Option<SmallRng>,
    taken: &'a mut Taken,
}

impl Rebuilt<'_> {
    /// Writes the durable content of directory `object` into `to`.
    fn directory(&mut self, object: u64, to: &Path) {
        let listing = fs::read_to_string(self.mirror.join("dirs").join(object.to_string())).unwrap_or_default();
        for line in listing.lines() {
            let mut parts = line.splitn(3, ' ');
            let (kind, object, name) = (parts.next(), parts.next(), parts.next());
            let (Some(kind), Some(object), Some(name)) = (kind, object.and_then(|o| o.parse().ok()), name) else {
                panic!("the mirror is damaged: {line:?}");
            };
            let before = self.present.remove(&object);
            if before
                .as_ref()
                .and_then(|path| path.file_name())
                .is_none_or(|now| now != name)
            {
                self.taken.names_returned += 1;
            }
            let path = to.join(name);
            if kind == "d" {
                fs::create_dir(&path).expect("names differ within a directory");
                self.directory(object, &path);
            } else {
                self.file(object, before.as_deref(), &path);
            }
        }
    }

    fn file(&mut self, object: u64, before: Option<&Path>, to: &Path) {
        let durable = self.mirror.join("objects").join(object.to_string());
        let mut bytes = fs::read(&durable).unwrap_or_default();
        if let Some(written) = before
            .and_then(|path| fs::read(path).ok())
            .filter(|w| w.len() > bytes.len())
        {
            let unsynced = written.len() - bytes.len();
            let kept = self
                .random
                .as_mut()
                .map_or(0, |random| random.random_range(0..=unsynced));
            bytes.extend_from_slice(&written[bytes.len()..][..kept]);
            self.taken.bytes += (unsynced - kept) as u64;
        }
        fs::write(to, bytes).expect("the test's directory can be written");
    }

    fn count_lost(&mut self) {
        self.taken.names_lost += self.present.len() as u64;
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
