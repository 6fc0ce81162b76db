//! A local cluster for one command (`demo`, `bench`): real processes in a directory that goes away.
//!
//! Works through the same commands and files that people use (`holdfast cluster up|start`,
//! `cluster.json`, the HTTP API), so that it tests those as well. Dropping the cluster kills its
//! processes, recognised by the configuration file they were started with, and removes the
//! directory. All waits are bounded and end early when the user interrupts.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chaos::process::Process;
use serde::Deserialize;
use tempfile::TempDir;

const FIRST_PORT: u16 = 18830;
const PORTS_PER_NODE: u16 = 10;
/// Bases that are tried before giving up; one cluster of up to nine nodes fits between two.
const BASES_TRIED: u16 = 50;
const PORTS_BETWEEN_BASES: u16 = 100;
/// `cluster up` and `cluster start` have shorter deadlines of their own.
const COMMAND_DEADLINE: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(20);

/// Why a command cannot say anything about the product.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Failed(String),
}

impl HarnessError {
    pub fn new(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {why}"))
    }
}

/// Set when the user wants the command to end.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Follows SIGINT and SIGTERM from now on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The signals cannot be followed.
    pub fn follow() -> Result<Self, HarnessError> {
        use tokio::signal::unix::{signal, SignalKind};
        let watch = |kind| signal(kind).map_err(|e| HarnessError::new("signals cannot be followed", e));
        let (mut int, mut term) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
        let interrupt = Self::default();
        let flag = interrupt.0.clone();
        tokio::spawn(async move {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            flag.store(true, Ordering::Relaxed);
        });
        Ok(interrupt)
    }

    /// # Errors
    /// The user interrupted.
    pub fn check(&self) -> Result<(), HarnessError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(HarnessError::Interrupted),
            false => Ok(()),
        }
    }

    /// Sleeps, and returns early with an error when the user interrupts.
    ///
    /// # Errors
    /// The user interrupted.
    pub fn sleep(&self, time: Duration) -> Result<(), HarnessError> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => std::thread::sleep(left.min(Duration::from_millis(50))),
            }
        }
    }
}

/// What this command reads of `cluster.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ClusterFile {
    pub nodes: Vec<NodeEntry>,
    pub token: String,
    pub shards: u16,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NodeEntry {
    pub id: u64,
    pub pid: Option<u32>,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
}

#[derive(Debug, Deserialize)]
struct Status {
    shards: Vec<ShardStatus>,
}

#[derive(Debug, Deserialize)]
struct ShardStatus {
    id: u16,
    leader: Option<u64>,
    term: u64,
}

pub struct LocalCluster {
    pub file: ClusterFile,
    dir: PathBuf,
    /// `None`: the directory is kept.
    _temporary: Option<TempDir>,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    env: Vec<(&'static str, String)>,
    interrupt: Interrupt,
}

/// What cluster to start.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub nodes: u16,
    /// Leave the directory behind.
    pub keep: bool,
    /// Where to make the directory; `None`: where temporary files belong.
    pub parent: Option<PathBuf>,
    /// Variables for the nodes, on top of this program's own.
    pub env: Vec<(&'static str, String)>,
}

impl LocalCluster {
    /// Starts the processes and waits until every shard has a leader.
    ///
    /// # Errors
    /// No free ports, no directory, or the nodes did not start; nothing is left behind.
    pub fn up(plan: Plan, interrupt: &Interrupt) -> Result<Self, HarnessError> {
        // The nodes' command lines hold absolute paths, by which they are recognised in the end.
        let parent = std::path::absolute(plan.parent.unwrap_or_else(std::env::temp_dir))
            .map_err(|e| HarnessError::new("the directory for the cluster", e))?;
        let nodes = plan.nodes;
        let temporary = tempfile::Builder::new()
            .prefix("holdfast-")
            .tempdir_in(&parent)
            .map_err(|e| HarnessError::new(format!("no temporary directory in {}", parent.display()), e))?;
        let (dir, temporary) = match plan.keep {
            true => (temporary.keep(), None),
            false => (temporary.path().to_owned(), Some(temporary)),
        };
        let base = free_base_port(nodes)?;
        let mut cluster = Self {
            file: ClusterFile {
                nodes: Vec::new(),
                token: String::new(),
                shards: 0,
            },
            dir: dir.join("cluster"),
            _temporary: temporary,
            http: client()?,
            runtime: runtime()?,
            env: plan.env,
            interrupt: interrupt.clone(),
        };
        let (nodes, base) = (nodes.to_string(), base.to_string());
        cluster.command(&["cluster", "up", "--nodes", &nodes, "--base-port", &base, "--detach"])?;
        cluster.reload()?;
        Ok(cluster)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn mqtt(&self) -> Vec<SocketAddr> {
        self.file.nodes.iter().map(|node| node.mqtt).collect()
    }

    pub fn http(&self) -> Vec<SocketAddr> {
        self.file.nodes.iter().map(|node| node.http).collect()
    }

    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.http
    }

    /// # Errors
    /// The node does not run.
    pub fn process(&self, id: u64) -> Result<Process, HarnessError> {
        let node = self.node(id)?;
        let pid = node
            .pid
            .ok_or_else(|| HarnessError::Failed(format!("node {id} has no process")))?;
        Process::of(pid).map_err(|e| HarnessError::new(format!("node {id}"), e))
    }

    /// # Errors
    /// A node does not run.
    pub fn processes(&self) -> Result<Vec<Process>, HarnessError> {
        self.file.nodes.iter().map(|node| self.process(node.id)).collect()
    }

    /// Starts node `id` again and returns when it serves.
    ///
    /// # Errors
    /// It did not start in time.
    pub fn start(&mut self, id: u64) -> Result<(), HarnessError> {
        self.command(&["cluster", "start", &id.to_string()])?;
        self.reload()
    }

    /// Starts every node that does not run, and returns when every shard has a leader.
    ///
    /// # Errors
    /// They did not start in time.
    pub fn start_all(&mut self) -> Result<(), HarnessError> {
        self.command(&["cluster", "up", "--detach"])?;
        self.reload()
    }

    /// A closure that starts node `id`, for a thread of its own; [`Self::reload`] afterwards.
    pub fn starter(&self, id: u64) -> impl FnOnce() -> Result<(), HarnessError> + Send + 'static {
        let (dir, env, interrupt) = (self.dir.clone(), self.env.clone(), self.interrupt.clone());
        move || command(&dir, &["cluster", "start", &id.to_string()], &env, &interrupt)
    }

    /// The leader of each shard as a node that answers sees it; 0 where there is none.
    ///
    /// # Errors
    /// No node answers.
    pub fn leaders(&self) -> Result<Vec<u64>, HarnessError> {
        let mut last = String::new();
        for node in self
            .file
            .nodes
            .iter()
            .filter(|node| node.pid.and_then(|pid| Process::of(pid).ok()).is_some())
        {
            match self.get::<Status>(node, "/api/v1/cluster") {
                Ok(status) => {
                    let mut leaders = vec![0; usize::from(self.file.shards)];
                    for shard in status.shards {
                        if let Some(place) = leaders.get_mut(usize::from(shard.id)) {
                            *place = shard.leader.unwrap_or(0);
                        }
                    }
                    return Ok(leaders);
                }
                Err(error) => last = error,
            }
        }
        Err(HarnessError::new("no node tells who leads", last))
    }

    /// The sum of all shards' terms: it grows with every election.
    ///
    /// # Errors
    /// No node answers.
    pub fn terms(&self) -> Result<u64, HarnessError> {
        let mut last = String::new();
        for node in &self.file.nodes {
            match self.get::<Status>(node, "/api/v1/cluster") {
                Ok(status) => return Ok(status.shards.iter().map(|shard| shard.term).sum()),
                Err(error) => last = error,
            }
        }
        Err(HarnessError::new("no node tells of its terms", last))
    }

    /// The node that leads most shards, and how many.
    ///
    /// # Errors
    /// As [`Self::leaders`], or nothing is led.
    pub fn busiest_leader(&self) -> Result<(u64, usize), HarnessError> {
        let leaders = self.leaders()?;
        let count = |id: u64| leaders.iter().filter(|leader| **leader == id).count();
        let most = self
            .file
            .nodes
            .iter()
            .map(|node| (node.id, count(node.id)))
            .max_by_key(|(_, count)| *count);
        most.filter(|(_, count)| *count > 0)
            .ok_or_else(|| HarnessError::Failed("no shard has a leader".into()))
    }

    /// Sum of a Prometheus counter over all nodes; `None` when no node has it.
    pub fn counter(&self, name: &str) -> Option<f64> {
        let text = |node: &NodeEntry| {
            let request = self
                .http
                .get(format!("http://{}/metrics", node.http))
                .bearer_auth(&self.file.token);
            self.runtime.block_on(async { request.send().await?.text().await }).ok()
        };
        let values: Vec<f64> = self
            .file
            .nodes
            .iter()
            .filter_map(text)
            .flat_map(|text| counter_values(&text, name))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Resident memory of all nodes together, in bytes.
    ///
    /// # Errors
    /// A node does not run.
    pub fn resident_bytes(&self) -> Result<u64, HarnessError> {
        Ok(self.processes()?.iter().filter_map(Process::resident_bytes).sum())
    }

    /// Reads `cluster.json` again, because pids change.
    ///
    /// # Errors
    /// It is missing or cannot be read.
    pub fn reload(&mut self) -> Result<(), HarnessError> {
        let file = self.dir.join("cluster.json");
        let bytes = fs::read(&file).map_err(|e| HarnessError::new(file.display(), e))?;
        self.file = serde_json::from_slice(&bytes).map_err(|e| HarnessError::new(file.display(), e))?;
        Ok(())
    }

    fn node(&self, id: u64) -> Result<&NodeEntry, HarnessError> {
        let found = self.file.nodes.iter().find(|node| node.id == id);
        found.ok_or_else(|| HarnessError::Failed(format!("there is no node {id}")))
    }

    fn get<T: serde::de::DeserializeOwned>(&self, node: &NodeEntry, path: &str) -> Result<T, String> {
        let request = self
            .http
            .get(format!("http://{}{path}", node.http))
            .bearer_auth(&self.file.token);
        self.runtime
            .block_on(async { request.send().await?.error_for_status()?.json().await })
            .map_err(|e| e.to_string())
    }

    fn command(&self, arguments: &[&str]) -> Result<(), HarnessError> {
        command(&self.dir, arguments, &self.env, &self.interrupt)
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        // Twice, for a process that was only just being started when the first look was taken.
        for _ in 0..2 {
            for process in processes_below(&self.dir) {
                if let Err(error) = process.kill() {
                    tracing::warn!(%error, "a node could not be ended");
                }
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Processes whose command line names a node's configuration file below `dir`. The directory was
/// made for this cluster alone, so these are its nodes, recorded in `cluster.json` or not yet.
fn processes_below(dir: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let below = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .filter_map(|word| std::str::from_utf8(word).ok())
            .any(|word| word.ends_with("node.toml") && Path::new(word).starts_with(dir))
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Process::of(pid).ok().filter(|_| below(pid)))
        .collect()
}

/// Runs this program with `arguments` on the cluster in `dir`.
fn command(
    dir: &Path,
    arguments: &[&str],
    env: &[(&'static str, String)],
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    let what = || format!("holdfast {}", arguments.join(" "));
    let program = std::env::current_exe().map_err(|e| HarnessError::new("this program cannot be found", e))?;
    let log = dir.with_extension("log");
    let output = File::create(&log).map_err(|e| HarnessError::new(log.display(), e))?;
    let errors = output.try_clone().map_err(|e| HarnessError::new(log.display(), e))?;
    let child = Command::new(program)
        .args(arguments)
        .arg("--dir")
        .arg(dir)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    let mut child = child.map_err(|e| HarnessError::new(what(), e))?;
    let ended = wait(&mut child, COMMAND_DEADLINE, interrupt);
    if ended.is_err() {
        // It is our child and not reaped, so its pid is still its own.
        let _ = child.kill();
        let _ = child.wait();
    }
    match ended? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(HarnessError::new(what(), format!("{status}\n{}", tail(&log)))),
        None => Err(HarnessError::new(what(), "did not end in time")),
    }
}

/// Waits for a child; `None` after the deadline, when it is killed.
fn wait(
    child: &mut Child,
    deadline: Duration,
    interrupt: &Interrupt,
) -> Result<Option<std::process::ExitStatus>, HarnessError> {
    let end = Instant::now() + deadline;
    while Instant::now() < end {
        interrupt.check()?;
        if let Some(status) = child
            .try_wait()
            .map_err(|e| HarnessError::new("waiting for a command", e))?
        {
            return Ok(Some(status));
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(None)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn client() -> Result<reqwest::Client, HarnessError> {
    let built = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .no_proxy()
        .build();
    built.map_err(|e| HarnessError::new("no HTTP client", e))
}

fn runtime() -> Result<tokio::runtime::Runtime, HarnessError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|e| HarnessError::new("no runtime", e))
}

/// The first base port from which all ports of `nodes` nodes are free.
pub fn free_base_port(nodes: u16) -> Result<u16, HarnessError> {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let all_free = |base: &u16| (0..nodes).all(|node| (0..4).all(|offset| free(base + node * PORTS_PER_NODE + offset)));
    let bases = (0..BASES_TRIED).map(|attempt| FIRST_PORT + attempt * PORTS_BETWEEN_BASES.max(nodes * PORTS_PER_NODE));
    bases
        .take_while(|base| u32::from(*base) + u32::from(nodes * PORTS_PER_NODE) <= 32_000)
        .find(|base| all_free(base))
        .ok_or_else(|| HarnessError::Failed(format!("no free ports between {FIRST_PORT} and 32000")))
}

/// All series of one counter in a Prometheus page, whatever their labels.
fn counter_values(page: &str, name: &str) -> Vec<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{'])
            .then(|| rest.rsplit(' ').next()?.parse().ok())?
    };
    page.lines().filter_map(value).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A name that is only the beginning of another one's does not count.
    #[test]
    fn counters_are_summed_over_labels() {
        let page = "# TYPE a_total counter\na_total{x=\"1 2\"} 3\na_total{x=\"2\"} 4.5\na_total_more 100\na_total 1\n";
        assert_eq!(counter_values(page, "a_total"), [3.0, 4.5, 1.0]);
    }

    /// Taken ports are passed over.
    #[test]
    fn base_port_is_free() {
        let base = free_base_port(3).unwrap();
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, base + 21)).unwrap();
        assert_ne!(free_base_port(3).unwrap(), base);
    }
}
