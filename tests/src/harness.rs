//! A local cluster of real processes for one test: started through the shipped program, watched
//! through its HTTP API, broken by signals, and gone when the test ends, however it ends.
//!
//! Knows nothing of the product's insides. Every wait is for a condition and has a deadline; what
//! goes wrong here panics with the reason, because a test without its cluster says nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chaos::process::Process;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use tempfile::TempDir;

/// `cluster up` and `cluster start` have shorter deadlines of their own.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const PORTS_PER_NODE: u16 = 10;
const PORTS_PER_CLUSTER: u16 = 100;
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// One cluster at a time in one test program: they share the machine's cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How often a matrix repeats: the variable `name` if it is set, else `soak` under `make soak`
/// (HOLDFAST_SOAK=1), else `quick`. Nothing is skipped, it only runs less often.
pub fn count(name: &str, quick: u64, soak: u64) -> u64 {
    if let Ok(text) = std::env::var(name) {
        return text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, not a number"));
    }
    match std::env::var("HOLDFAST_SOAK").as_deref() {
        Ok("1") => soak,
        _ => quick,
    }
}

/// Waits until `condition` gives a value, and fails with what it said last.
#[track_caller]
pub fn eventually<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= end => panic!("{what}: not within {deadline:?}; {why}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// As [`eventually`], for a plain yes or no.
#[track_caller]
pub fn eventually_true(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    eventually(what, deadline, || {
        condition().then_some(()).ok_or_else(|| "still false".to_owned())
    });
}

/// The program under test.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "HOLDFAST_BIN names {}, which is no file; `make build` makes it",
            path.display()
        );
        return path;
    }
    let here = std::env::current_exe().expect("a running program has a path");
    let beside = here
        .parent()
        .and_then(Path::parent)
        .expect("cargo keeps tests in target/release/deps");
    let path = beside.join("holdfast");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --release -p node`, or name the program in HOLDFAST_BIN",
        path.display()
    );
    path
}

/// What the tests read of `cluster.json`.
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
    pub peer: SocketAddr,
    pub dir: PathBuf,
    pub log: PathBuf,
}

/// `GET /api/v1/cluster`, as one node answers it.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub nodes: Vec<NodeStatus>,
    pub shards: Vec<ShardStatus>,
    pub catalog: ShardStatus,
    pub replication: u8,
    /// Replicas that are being moved.
    pub rebalance: Option<Rebalance>,
    pub moves: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Rebalance {
    pub replicas_total: u32,
    pub replicas_done: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NodeStatus {
    pub id: u64,
    pub state: String,
    pub leads: u32,
    pub fault: Option<String>,
    pub repaired: Option<String>,
    pub replicas: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ShardStatus {
    pub id: u16,
    pub leader: Option<u64>,
    pub term: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub target: Vec<u64>,
    pub applied: u64,
    pub committed: u64,
    pub fault: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct ShardDigest {
    replicas: Vec<ReplicaDigest>,
}

#[derive(Clone, Debug, Deserialize)]
struct ReplicaDigest {
    node: u64,
    applied: Option<u64>,
    digest: Option<String>,
    error: Option<String>,
}

/// What cluster to start.
#[derive(Default)]
pub struct Plan {
    pub nodes: u16,
    /// Variables for the nodes, on top of the test's own.
    pub env: Vec<(String, String)>,
}

pub struct Cluster {
    pub file: ClusterFile,
    dir: PathBuf,
    env: BTreeMap<String, String>,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    temporary: Option<TempDir>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `nodes` running nodes, every shard with a leader.
    pub fn up(nodes: u16) -> Self {
        Self::start_plan(Plan { nodes, env: Vec::new() })
    }

    pub fn start_plan(plan: Plan) -> Self {
        let mut cluster = Self::design(plan);
        let (nodes, base) = (
            cluster.file.nodes.len().to_string(),
            cluster.file.nodes[0].mqtt.port().to_string(),
        );
        cluster.command(&["cluster", "up", "--nodes", &nodes, "--base-port", &base, "--detach"]);
        cluster.reload();
        cluster
    }

    /// A cluster with a directory and ports and no process yet.
    fn design(plan: Plan) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let temporary = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .expect("a temporary directory");
        let dir = temporary
            .path()
            .canonicalize()
            .expect("it was just made")
            .join("cluster");
        let base = free_base_port(plan.nodes);
        let entry = |number: u16| {
            let at =
                |offset: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, base + PORTS_PER_NODE * (number - 1) + offset));
            let own = dir.join(format!("node-{number}"));
            NodeEntry {
                id: number.into(),
                pid: None,
                mqtt: at(0),
                http: at(1),
                peer: at(2),
                log: own.join("node.log"),
                dir: own,
            }
        };
        let file = ClusterFile {
            nodes: (1..=plan.nodes).map(entry).collect(),
            token: String::new(),
            shards: 0,
        };
        Self {
            file,
            env: plan.env.into_iter().collect(),
            http: client(Duration::from_secs(20)),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
            temporary: Some(temporary),
            dir,
            _turn: turn,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A variable for nodes that are started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    pub fn unset_env(&mut self, name: &str) {
        self.env.remove(name);
    }

    pub fn ids(&self) -> Vec<u64> {
        self.file.nodes.iter().map(|node| node.id).collect()
    }

    pub fn mqtt(&self) -> Vec<SocketAddr> {
        self.file.nodes.iter().map(|node| node.mqtt).collect()
    }

    pub fn http(&self) -> Vec<SocketAddr> {
        self.file.nodes.iter().map(|node| node.http).collect()
    }

    pub fn node(&self, id: u64) -> &NodeEntry {
        self.file
            .nodes
            .iter()
            .find(|node| node.id == id)
            .unwrap_or_else(|| panic!("there is no node {id}"))
    }

    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    pub fn process(&self, id: u64) -> Process {
        let pid = self.node(id).pid.unwrap_or_else(|| panic!("node {id} has no process"));
        Process::of(pid).unwrap_or_else(|error| panic!("node {id}: {error}\n{}", self.log_tail(id)))
    }

    /// Nodes whose process is there.
    pub fn running(&self) -> Vec<u64> {
        let runs = |node: &&NodeEntry| {
            node.pid
                .and_then(|pid| Process::of(pid).ok())
                .is_some_and(|p| p.is_alive())
        };
        self.file.nodes.iter().filter(runs).map(|node| node.id).collect()
    }

    /// Fails with the end of their logs if nodes have ended by themselves.
    #[track_caller]
    pub fn assert_all_run(&self) {
        let running = self.running();
        let ended = self.ids().into_iter().filter(|id| !running.contains(id));
        let logs: Vec<String> = ended.map(|id| self.log_tail(id)).collect();
        assert!(logs.is_empty(), "a node has ended\n{}", logs.join("\n"));
    }

    /// `kill -9`; the process is gone when this returns.
    pub fn kill(&self, id: u64) {
        self.process(id)
            .kill()
            .unwrap_or_else(|error| panic!("kill of node {id}: {error}"));
    }

    /// `kill -9` of every node that runs, all signals before any wait.
    pub fn kill_all(&self) {
        let processes: Vec<Process> = self.running().into_iter().map(|id| self.process(id)).collect();
        for process in &processes {
            process
                .signal(Signal::SIGKILL)
                .unwrap_or_else(|error| panic!("kill: {error}"));
        }
        for process in &processes {
            eventually_true("a killed process ends", Duration::from_secs(20), || !process.is_alive());
        }
    }

    pub fn pause(&self, id: u64) {
        self.process(id)
            .signal(Signal::SIGSTOP)
            .unwrap_or_else(|error| panic!("SIGSTOP of node {id}: {error}"));
    }

    pub fn resume(&self, id: u64) {
        self.process(id)
            .signal(Signal::SIGCONT)
            .unwrap_or_else(|error| panic!("SIGCONT of node {id}: {error}"));
    }

    /// Starts a node again and returns when it answers.
    pub fn start(&mut self, id: u64) {
        self.command(&["cluster", "start", &id.to_string()]);
        self.reload();
    }

    /// Starts whatever does not run and returns when every shard has a leader.
    pub fn start_all(&mut self) {
        self.command(&["cluster", "up", "--detach"]);
        self.reload();
    }

    /// As [`Self::start_all`], for a cluster that may rightly refuse.
    ///
    /// # Errors
    /// What the program said.
    pub fn try_start_all(&mut self) -> Result<(), String> {
        let started = self.try_command(&["cluster", "up", "--detach"]);
        self.reload();
        started
    }

    /// Ends a node gracefully.
    pub fn stop(&mut self, id: u64) {
        self.command(&["cluster", "stop", &id.to_string()]);
        self.reload();
    }

    /// Runs a command of the program on this cluster.
    pub fn command(&self, arguments: &[&str]) {
        if let Err(why) = self.try_command(arguments) {
            let logs: Vec<String> = self.ids().into_iter().map(|id| self.log_tail(id)).collect();
            panic!("{why}\n{}", logs.join("\n"));
        }
    }

    /// As [`Self::command`]; returns what it printed as its result.
    pub fn ask(&self, arguments: &[&str]) -> String {
        self.command(arguments);
        fs::read_to_string(self.dir.with_extension("out")).unwrap_or_default()
    }

    /// Starts a node by its configuration alone, as a supervisor would. It ends with the cluster.
    pub fn supervise(&self, config: &Path) {
        let log = config.with_file_name("node.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log);
        let log = log.expect("the node's directory can be written");
        let child = Command::new(program())
            .args(["node", "--config"])
            .arg(config)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        // Nobody waits for it: it is ended by its configuration's place.
        drop(child.unwrap_or_else(|error| panic!("holdfast node: {error}")));
    }

    /// # Errors
    /// Its exit status and output.
    pub fn try_command(&self, arguments: &[&str]) -> Result<(), String> {
        let what = format!("holdfast {}", arguments.join(" "));
        let log = self.dir.with_extension("log");
        let out = self.dir.with_extension("out");
        let output = File::create(&out).expect("the test's directory can be written");
        let errors = File::create(&log).expect("the test's directory can be written");
        let mut child = Command::new(program())
            .args(arguments)
            .env("HOLDFAST_DIR", &self.dir)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let end = Instant::now() + COMMAND_DEADLINE;
        loop {
            if let Some(status) = child.try_wait().expect("our own child can be waited for") {
                let text = [&out, &log]
                    .map(|file| fs::read_to_string(file).unwrap_or_default())
                    .concat();
                return status
                    .success()
                    .then_some(())
                    .ok_or(format!("{what}: {status}\n{text}"));
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{what}: did not end in {COMMAND_DEADLINE:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reads `cluster.json` again, because pids change.
    pub fn reload(&mut self) {
        let file = self.dir.join("cluster.json");
        if let Ok(bytes) = fs::read(&file) {
            self.file = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }

    /// # Errors
    /// The node did not answer with 2xx and the expected JSON.
    pub fn get<T: DeserializeOwned>(&self, id: u64, path: &str) -> Result<T, String> {
        let request = self
            .http
            .get(format!("http://{}{path}", self.node(id).http))
            .bearer_auth(&self.file.token);
        self.runtime
            .block_on(async { request.send().await?.error_for_status()?.json().await })
            .map_err(|error: reqwest::Error| format!("node {id}: {error}"))
    }

    /// # Errors
    /// The node did not answer with 2xx.
    pub fn post(&self, id: u64, path: &str) -> Result<(), String> {
        let request = self
            .http
            .post(format!("http://{}{path}", self.node(id).http))
            .bearer_auth(&self.file.token);
        let sent = self
            .runtime
            .block_on(async { request.send().await?.error_for_status() });
        sent.map(|_| ()).map_err(|error| format!("node {id}: {error}"))
    }

    /// The cluster as node `id` sees it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status_of(&self, id: u64) -> Result<Status, String> {
        self.get(id, "/api/v1/cluster")
    }

    /// The cluster as the first running node that answers sees it.
    ///
    /// # Errors
    /// None answers.
    pub fn status(&self) -> Result<Status, String> {
        let mut last = "no node runs".to_owned();
        for id in self.running() {
            match self.status_of(id) {
                Ok(status) => return Ok(status),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Who leads each shard, by shard id; waits until every shard is led by a running node.
    pub fn leaders(&self) -> Vec<u64> {
        eventually("every shard has a leader", Duration::from_secs(60), || {
            let (status, running) = (self.status()?, self.running());
            let leader = |shard: &ShardStatus| {
                let leader = shard.leader.filter(|id| running.contains(id));
                leader.ok_or_else(|| format!("shard {} is led by {:?}", shard.id, shard.leader))
            };
            let leaders: Vec<u64> = status.shards.iter().map(leader).collect::<Result<_, _>>()?;
            (leaders.len() == usize::from(self.file.shards))
                .then_some(leaders)
                .ok_or_else(|| format!("{} shards are listed", status.shards.len()))
        })
    }

    pub fn leader_of(&self, shard: u16) -> u64 {
        self.leaders()[usize::from(shard)]
    }

    /// The node that leads most shards.
    pub fn busiest_leader(&self) -> u64 {
        let leaders = self.leaders();
        let led = |id: &u64| leaders.iter().filter(|leader| *leader == id).count();
        self.ids().into_iter().max_by_key(led).expect("a cluster has nodes")
    }

    /// Every node of the running ones leads its share of the shards: none more than one above an
    /// even share.
    ///
    /// # Errors
    /// Who leads how many.
    pub fn leaders_are_spread(&self) -> Result<(), String> {
        let (leaders, running) = (self.status()?.shards, self.running());
        let led = |id: u64| leaders.iter().filter(|shard| shard.leader == Some(id)).count();
        let counts: BTreeMap<u64, usize> = running.iter().map(|id| (*id, led(*id))).collect();
        let share = usize::from(self.file.shards).div_ceil(running.len());
        let fair = counts.values().all(|count| *count <= share + 1) && counts.values().sum::<usize>() == leaders.len();
        fair.then_some(())
            .ok_or_else(|| format!("leaders per node: {counts:?}"))
    }

    /// All replicas of every shard have the same digest at the same index. Waits for replicas that
    /// still catch up; two different digests at one index fail at once.
    pub fn digests_agree(&self, deadline: Duration) {
        let replicas = self.file.nodes.len().min(3);
        for shard in 0..self.file.shards {
            eventually(&format!("replicas of shard {shard} agree"), deadline, || {
                let asked = *self.running().first().ok_or("no node runs")?;
                let path = format!("/api/v1/cluster/shards/{shard}/digest?timeout_ms=10000");
                let answer: ShardDigest = self.get(asked, &path)?;
                let mut found: BTreeMap<u64, BTreeMap<String, u64>> = BTreeMap::new();
                for replica in &answer.replicas {
                    match (&replica.digest, replica.applied) {
                        (Some(digest), Some(applied)) => {
                            found.entry(applied).or_default().insert(digest.clone(), replica.node);
                        }
                        _ => return Err(format!("node {} has none: {:?}", replica.node, replica.error)),
                    }
                }
                for (index, digests) in &found {
                    assert!(digests.len() == 1, "shard {shard} differs at index {index}: {answer:?}");
                }
                let complete = answer.replicas.len() == replicas && found.len() == 1;
                complete.then_some(()).ok_or_else(|| format!("{answer:?}"))
            });
        }
    }

    /// Sum of a Prometheus counter over the running nodes.
    pub fn counter(&self, id: u64, name: &str) -> f64 {
        let request = self
            .http
            .get(format!("http://{}/metrics", self.node(id).http))
            .bearer_auth(&self.file.token);
        let page = self.runtime.block_on(async { request.send().await?.text().await });
        let page = page.unwrap_or_else(|error| panic!("metrics of node {id}: {error}"));
        let value = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{'])
                .then(|| rest.rsplit(' ').next()?.parse().ok())?
        };
        page.lines().filter_map(value).sum()
    }

    /// The end of a node's log, for the message of a failing test.
    pub fn log_tail(&self, id: u64) -> String {
        let log = &self.node(id).log;
        let bytes = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "{} ends with\n{}",
            log.display(),
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
    }

    pub fn log_contains(&self, id: u64, text: &str) -> bool {
        fs::read(&self.node(id).log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Twice, for a process that was only just being started when the first look was taken.
        for _ in 0..2 {
            for process in processes_below(&self.dir) {
                if let Err(error) = process.kill() {
                    eprintln!("a node could not be ended: {error}");
                }
            }
            std::thread::sleep(POLL);
        }
        if std::thread::panicking() && std::env::var_os("HOLDFAST_KEEP").is_some() {
            if let Some(kept) = self.temporary.take() {
                eprintln!("kept for a look: {}", kept.keep().display());
            }
        }
    }
}

/// Processes started with a node's configuration below `dir`. The directory was made for this
/// cluster alone, so these are its nodes, recorded in `cluster.json` or not yet.
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

/// An HTTP client that goes straight to the node.
pub fn client(deadline: Duration) -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(deadline)
        .no_proxy()
        .build()
        .expect("an HTTP client")
}

/// A base from which every port of `nodes` nodes is free. Programs that run at the same time start
/// to look at different places.
fn free_base_port(nodes: u16) -> u16 {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let all_free = |base: u16| (0..nodes).all(|node| (0..4).all(|offset| free(base + node * PORTS_PER_NODE + offset)));
    let places = (PORTS.end - PORTS.start) / PORTS_PER_CLUSTER;
    let first = (std::process::id() % u32::from(places)) as u16;
    (0..places)
        .map(|step| PORTS.start + (first + step) % places * PORTS_PER_CLUSTER)
        .find(|base| all_free(*base))
        .unwrap_or_else(|| panic!("no free ports in {PORTS:?}"))
}
