//! Cuts the power of a local cluster: after it, a node's directory holds what it had fsynced. The
//! library that is preloaded, and the cut itself, are those of the drills (`chaos::powercut`).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub use chaos::powercut::{Counted, Taken, Unsynced};

use crate::harness::{self, Cluster};

pub struct PowerCut {
    files: TempDir,
    env: Vec<(String, String)>,
    /// The data directory itself stays, whether or not its parent was ever synced.
    data_stays: bool,
}

const HOLD_AT: u64 = 5 * 8;

impl PowerCut {
    /// Compiles the shim.
    pub fn prepare() -> Self {
        let files = tempfile::Builder::new()
            .prefix("holdfast-power-")
            .tempdir()
            .expect("a temporary directory");
        let env = chaos::powercut::prepare(files.path()).unwrap_or_else(|error| panic!("{error}"));
        Self {
            files,
            env,
            data_stays: true,
        }
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
        self.env.clone()
    }

    /// A running cluster whose power can be cut.
    pub fn cluster(&self, nodes: u16, env: &[(&str, &str)]) -> Cluster {
        let more = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = self.env().into_iter().chain(more).collect();
        Cluster::start_plan(harness::Plan { nodes, env })
    }

    fn mirror(&self, node: u64) -> PathBuf {
        chaos::powercut::mirror(self.files.path(), node)
    }

    /// What the shim of a node has seen so far.
    pub fn counted(&self, node: u64) -> Counted {
        let counted = chaos::powercut::counted(&self.mirror(node));
        counted.unwrap_or_else(|error| panic!("node {node} does not run under the shim: {error}"))
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
            taken.add(self.cut_node(id, &cluster.node(id).dir, unsynced));
        }
        taken
    }

    fn cut_node(&self, id: u64, dir: &Path, unsynced: Unsynced) -> Taken {
        let cut = chaos::powercut::cut(id, &self.mirror(id), dir, unsynced, self.data_stays);
        cut.unwrap_or_else(|error| panic!("{error}"))
    }
}
