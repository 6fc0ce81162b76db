//! Clusters of the shipped binary, started for one test and ended with it.
//!
//! Only processes that were started here are ended, by id and start time; directories are temporary.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use super::http::Http;

/// The program under test.
///
/// # Panics
/// When `HOLDFAST_BIN` does not name it.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("HOLDFAST_BIN").expect("HOLDFAST_BIN names the program to test; `make test` sets it");
    let path = PathBuf::from(path);
    assert!(
        path.is_file(),
        "HOLDFAST_BIN: {} is no file; run `make build`",
        path.display()
    );
    path
}

/// Runs the program to its end.
///
/// # Panics
/// When it cannot be started.
pub fn holdfast<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(binary())
        .args(args)
        .output()
        .expect("the program can be started")
}

/// Exit code, and both outputs as one text.
pub fn told(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// A base port from which `count` ports are free now.
///
/// # Panics
/// When a whole range is taken.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the range the kernel takes ports for outgoing connections from.
    const FIRST: u16 = 20_000;
    const LAST: u16 = 31_000;
    let start = (std::process::id() % 1_000) as u16 * 10;
    for _ in 0..1_000 {
        let offset = NEXT.fetch_add(count.next_multiple_of(10), Ordering::Relaxed);
        let base = FIRST + (start.wrapping_add(offset)) % (LAST - FIRST);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (base..base + count).all(free) {
            return base;
        }
    }
    panic!("no {count} free ports between {FIRST} and {LAST}");
}

/// One node as `cluster.json` describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub id: u64,
    pub pid: Option<i32>,
    pub pid_started: Option<u64>,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub peer: SocketAddr,
    pub dir: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ClusterFile {
    pub nodes: Vec<Node>,
    pub token: String,
    pub shards: u16,
    pub replication: u8,
}

/// A running local cluster in a temporary directory.
pub struct Cluster {
    dir: TempDir,
}

impl Cluster {
    /// Starts `nodes` nodes and returns when every shard has a leader.
    ///
    /// # Panics
    /// When they do not come up.
    pub fn up(nodes: u16) -> Self {
        let mut said = String::new();
        // Another program may take a port between the look and the start.
        for _ in 0..5 {
            let cluster = Self {
                dir: tempfile::Builder::new()
                    .prefix("holdfast-client-")
                    .tempdir()
                    .expect("a temporary directory"),
            };
            let base = free_ports(nodes * 10);
            let (code, text) = cluster.run(&[
                "up",
                "--nodes",
                &nodes.to_string(),
                "--base-port",
                &base.to_string(),
                "--detach",
            ]);
            match code {
                0 => return cluster,
                69 if text.contains("port") => said = text,
                _ => panic!("cluster up ended with {code}: {text}"),
            }
        }
        panic!("no free ports: {said}");
    }

    /// The cluster that the tests of one program share while any of them runs.
    pub fn shared(nodes: u16) -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::up(nodes));
        *shared = Arc::downgrade(&started);
        started
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `holdfast cluster COMMAND … --dir`.
    pub fn run(&self, args: &[&str]) -> (i32, String) {
        let mut all = vec!["cluster"];
        all.extend_from_slice(args);
        let dir = self.path().to_str().expect("temporary paths are text");
        all.extend_from_slice(&["--dir", dir]);
        told(&holdfast(&all))
    }

    /// # Panics
    /// When `cluster.json` cannot be read.
    pub fn file(&self) -> ClusterFile {
        let text = std::fs::read_to_string(self.path().join("cluster.json")).expect("cluster.json");
        serde_json::from_str(&text).expect("cluster.json as documented")
    }

    /// Node `id`, from 1.
    pub fn node(&self, id: usize) -> Node {
        self.file().nodes[id - 1].clone()
    }

    /// Talks to the HTTP API of node `id`.
    pub fn http(&self, id: usize) -> Http {
        let file = self.file();
        Http::new(file.nodes[id - 1].http, &file.token)
    }

    pub fn kill(&self, id: usize) {
        kill(&self.node(id));
    }

    /// # Panics
    /// When the node does not serve again.
    pub fn start(&self, id: usize) {
        let (code, text) = self.run(&["start", &id.to_string()]);
        assert_eq!(code, 0, "cluster start {id}: {text}");
    }

    /// Resident bytes of node `id`; 0 when it does not run.
    pub fn resident_bytes(&self, id: usize) -> u64 {
        let Some(pid) = self.node(id).pid else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    pub fn is_running(&self, id: usize) -> bool {
        is_ours(&self.node(id))
    }

    pub fn log(&self, id: usize) -> String {
        let bytes = std::fs::read(self.node(id).log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// No node's log speaks of a panic.
    ///
    /// # Panics
    /// With the line, when one does.
    pub fn assert_no_panic(&self) {
        for node in self.file().nodes {
            let log = std::fs::read(&node.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                panic!("node {}: {line}", node.id);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.path().join("cluster.json").exists() {
            return;
        }
        for node in self.file().nodes {
            if std::thread::panicking() {
                let log = std::fs::read(&node.log).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                eprintln!("--- the end of node {}'s log", node.id);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
            kill(&node);
        }
    }
}

/// Field 22 of `/proc/PID/stat`: when the process started. `None`: it does not run.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    // Fields count from 1; pid and name were 1 and 2, the state is 3.
    let started = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(started)
}

fn is_ours(node: &Node) -> bool {
    node.pid
        .is_some_and(|pid| started(pid).is_some() && started(pid) == node.pid_started)
}

/// `kill -9`, and waits until the process is gone.
fn kill(node: &Node) {
    if !is_ours(node) {
        return;
    }
    let pid = node.pid.expect("looked at above");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    while is_ours(node) {
        std::thread::sleep(Duration::from_millis(5));
    }
}
