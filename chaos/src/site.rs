//! The cluster under drill, as whoever breaks and mends it needs it: how to reach each node, and on
//! a local cluster where its directory is and which program starts its nodes.
//!
//! Pids change whenever a node starts, so they are read from `cluster.json` when they are needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process::{Process, ProcessError};

/// `cluster start`, `up` and `repair` have shorter deadlines of their own, but for repairs.
const COMMAND_DEADLINE: Duration = Duration::from_secs(180);
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// `holdfast` itself.
    pub program: PathBuf,
    /// Directory of a local cluster; `None`: known by address only.
    pub dir: Option<PathBuf>,
    /// Variables for nodes that are started.
    pub env: Vec<(String, String)>,
    pub token: String,
    pub nodes: Vec<SiteNode>,
    /// Where the preloaded library keeps what was synced, if the nodes run under it.
    pub mirror: Option<PathBuf>,
    /// A small file system of the drill's own, if there is one.
    pub disk: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteNode {
    pub id: u64,
    /// `ip:port`.
    pub http: String,
    pub mqtt: String,
    pub zone: String,
}

/// What is read of `cluster.json`.
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
    #[serde(default)]
    pub pid_started: Option<u64>,
    pub mqtt: String,
    pub http: String,
    #[serde(default)]
    pub zone: String,
    pub dir: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("node {node}: {source}")]
    Process {
        node: u64,
        #[source]
        source: ProcessError,
    },
    #[error("{0}")]
    Unknown(String),
    #[error("holdfast {command}: {why}")]
    Command { command: String, why: String },
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl SiteError {
    pub fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

/// # Errors
/// It is missing, or is none.
pub fn cluster_file(dir: &Path) -> Result<ClusterFile, SiteError> {
    let path = dir.join("cluster.json");
    let bytes = fs::read(&path).map_err(|error| SiteError::file(&path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| SiteError::file(&path, std::io::Error::other(error)))
}

impl Site {
    /// A local cluster, from its directory.
    ///
    /// # Errors
    /// There is none.
    pub fn local(program: &Path, dir: &Path, env: Vec<(String, String)>) -> Result<Self, SiteError> {
        let dir = std::path::absolute(dir).map_err(|error| SiteError::file(dir, error))?;
        let file = cluster_file(&dir)?;
        Ok(Self {
            program: program.to_owned(),
            env,
            token: file.token,
            nodes: file.nodes.iter().map(NodeEntry::site).collect(),
            dir: Some(dir),
            mirror: None,
            disk: None,
        })
    }

    /// # Errors
    /// It is known by address only.
    pub fn directory(&self) -> Result<&Path, SiteError> {
        let dir = self.dir.as_deref();
        dir.ok_or_else(|| {
            SiteError::Unknown("this cluster is known by address only: its processes are out of reach".into())
        })
    }

    /// As `cluster.json` has it now.
    ///
    /// # Errors
    /// There is no such node.
    pub fn entry(&self, id: u64) -> Result<NodeEntry, SiteError> {
        let file = cluster_file(self.directory()?)?;
        let found = file.nodes.into_iter().find(|node| node.id == id);
        found.ok_or_else(|| SiteError::Unknown(format!("there is no node {id}")))
    }

    /// Everybody who is in the cluster now.
    pub fn current(&self) -> Vec<SiteNode> {
        let file = self.dir.as_deref().map(cluster_file);
        match file {
            Some(Ok(file)) => file.nodes.iter().map(NodeEntry::site).collect(),
            _ => self.nodes.clone(),
        }
    }

    /// # Errors
    /// There is no such node.
    pub fn node(&self, id: u64) -> Result<SiteNode, SiteError> {
        let found = self.current().into_iter().find(|node| node.id == id);
        found.ok_or_else(|| SiteError::Unknown(format!("there is no node {id}")))
    }

    /// The process that runs a node now.
    ///
    /// # Errors
    /// None does, or it is not on this host.
    pub fn process(&self, id: u64) -> Result<Process, SiteError> {
        let entry = self.entry(id)?;
        let gone = || SiteError::Unknown(format!("node {id} does not run"));
        let process =
            Process::of(entry.pid.ok_or_else(gone)?).map_err(|source| SiteError::Process { node: id, source })?;
        let same = entry.pid_started.is_none_or(|at| at == process.started_ticks()) && process.is_alive();
        same.then_some(process).ok_or_else(gone)
    }

    /// Runs `holdfast ARGUMENTS --dir DIR`, one at a time: they hold the directory's lock.
    ///
    /// # Errors
    /// It did not end well, with what it said.
    pub fn command(&self, arguments: &[&str]) -> Result<String, SiteError> {
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.command_beside(arguments)
    }

    /// As [`Site::command`], beside whatever else runs.
    ///
    /// # Errors
    /// As [`Site::command`].
    pub fn command_beside(&self, arguments: &[&str]) -> Result<String, SiteError> {
        let dir = self.directory()?;
        let failed = |why: String| SiteError::Command {
            command: arguments.join(" "),
            why,
        };
        let log = std::env::temp_dir().join(format!(
            "holdfast-chaos-{}-{:?}.log",
            std::process::id(),
            std::thread::current().id()
        ));
        let output = File::create(&log).map_err(|error| SiteError::file(&log, error))?;
        let errors = output.try_clone().map_err(|error| SiteError::file(&log, error))?;
        let child = Command::new(&self.program)
            .args(arguments)
            .arg("--dir")
            .arg(dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn();
        let mut child = child.map_err(|error| failed(error.to_string()))?;
        let end = Instant::now() + COMMAND_DEADLINE;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < end => std::thread::sleep(POLL),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
            }
        };
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        match status {
            Some(status) if status.success() => Ok(text),
            Some(status) => Err(failed(format!("{status}\n{}", tail(&text)))),
            None => Err(failed(format!("did not end within {COMMAND_DEADLINE:?}"))),
        }
    }
}

impl NodeEntry {
    fn site(&self) -> SiteNode {
        SiteNode {
            id: self.id,
            http: self.http.clone(),
            mqtt: self.mqtt.clone(),
            zone: self.zone.clone(),
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// How a request to one node ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens: nothing was done.
    #[error("{0} does not listen")]
    Closed(String),
    #[error("status {0}: {1}")]
    Status(u16, String),
    /// It may have been done.
    #[error("no answer: {0}")]
    Unknown(String),
}

/// Requests to particular nodes, one at a time. Every thread has its own.
pub struct Http {
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    token: String,
}

impl Http {
    /// # Errors
    /// The system gives no runtime or no client.
    pub fn new(token: &str) -> Result<Self, SiteError> {
        let failed = |why: String| SiteError::Unknown(format!("no HTTP client: {why}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let client = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(2))
            .build();
        Ok(Self {
            client: client.map_err(|error| failed(error.to_string()))?,
            runtime: runtime.map_err(|error| failed(error.to_string()))?,
            token: token.to_owned(),
        })
    }

    /// One request, not tried again. `Null` when there was no body.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn call(
        &self,
        method: &str,
        node: &str,
        path: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Value, HttpError> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).map_err(|e| HttpError::Unknown(e.to_string()))?;
        let base = if node.starts_with("http") {
            node.to_owned()
        } else {
            format!("http://{node}")
        };
        let mut request = self
            .client
            .request(method, format!("{base}{path}"))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.runtime.block_on(async {
            let response = request
                .timeout(deadline)
                .send()
                .await
                .map_err(|error| match error.is_connect() {
                    true => HttpError::Closed(node.to_owned()),
                    false => HttpError::Unknown(error.to_string()),
                })?;
            let status = response.status().as_u16();
            let text = response
                .text()
                .await
                .map_err(|error| HttpError::Unknown(error.to_string()))?;
            match status {
                200..=299 => Ok(serde_json::from_str(&text).unwrap_or(Value::Null)),
                _ => Err(HttpError::Status(status, detail(&text))),
            }
        })
    }

    /// # Errors
    /// See [`HttpError`]; an answer of another shape is `Unknown`.
    pub fn get<T: DeserializeOwned>(&self, node: &str, path: &str) -> Result<T, HttpError> {
        let value = self.call("GET", node, path, None, REQUEST_DEADLINE)?;
        serde_json::from_value(value).map_err(|error| HttpError::Unknown(error.to_string()))
    }

    /// # Errors
    /// See [`HttpError`].
    pub fn post(&self, node: &str, path: &str) -> Result<Value, HttpError> {
        self.call("POST", node, path, None, REQUEST_DEADLINE)
    }

    /// Text instead of JSON, such as `/metrics`.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn text(&self, node: &str, path: &str) -> Result<String, HttpError> {
        let request = self.client.get(format!("http://{node}{path}")).bearer_auth(&self.token);
        let answer = async {
            request
                .timeout(REQUEST_DEADLINE)
                .send()
                .await?
                .error_for_status()?
                .text()
                .await
        };
        self.runtime
            .block_on(answer)
            .map_err(|error| HttpError::Unknown(error.to_string()))
    }
}

/// What a problem document says, or the beginning of anything else.
fn detail(text: &str) -> String {
    let problem: Option<Value> = serde_json::from_str(text).ok();
    let said = problem.as_ref().and_then(|problem| {
        let detail = problem.get("detail").or_else(|| problem.get("title"));
        detail?.as_str()
    });
    said.unwrap_or(text).chars().take(300).collect()
}
