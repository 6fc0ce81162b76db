//! A directory with a local cluster: `cluster.json`, two secrets, and one directory per node.
//!
//! `cluster.json` is what tools outside rely on; fields are added, never changed. It is replaced
//! atomically and readable by its owner only. Nothing here starts or signals a process.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::{rngs::OsRng, TryRngCore};
use serde::{Deserialize, Serialize};

use crate::cli::failure::{Exit, Failure};

/// Ports of one node: MQTT +0, HTTP +1, peers +2, MQTT over WebSocket +3, the rest reserved.
pub const PORTS_PER_NODE: u16 = 10;
pub const DEFAULT_BASE_PORT: u16 = 18830;
pub const NODES_MAX: u16 = 64;

const FILE: &str = "cluster.json";
const FILE_NEW: &str = ".cluster.json.new";
const LOCK: &str = "cluster.lock";
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    pub nodes: Vec<NodeEntry>,
    /// The operator's bearer token.
    pub token: String,
    pub shards: u16,
    pub replication: u8,
    pub cluster_id: String,
    /// Its nodes are started so that they take fault leases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_drills: bool,
}

/// What makes a node take fault leases.
pub const ALLOW_DRILLS: (&str, &str) = ("HOLDFAST_CHAOS_ALLOW_DRILLS", "true");

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    pub id: u64,
    /// `null` when it was not started or was stopped.
    pub pid: Option<u32>,
    /// The process's start in clock ticks since boot: a pid alone may be somebody else's by now.
    #[serde(default)]
    pub pid_started: Option<u64>,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub peer: SocketAddr,
    pub ws: SocketAddr,
    pub zone: String,
    pub dir: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
    /// It joined a cluster that was there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
}

impl NodeEntry {
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }
}

/// What a new local cluster looks like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub nodes: u16,
    pub base_port: u16,
    pub shards: u16,
}

/// An opened cluster directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Absolute.
    pub path: PathBuf,
    pub file: ClusterFile,
}

/// Held while processes are started or `cluster.json` is changed; released on drop.
pub struct DirectoryLock(#[allow(dead_code)] File);

impl Directory {
    /// # Errors
    /// There is none (69), it cannot be read (74), or its file is damaged (65).
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let path = absolute(path)?;
        match read_file(&path)? {
            Some(file) => Ok(Self { path, file }),
            None => Err(
                Failure::new(Exit::Unavailable, format!("there is no cluster in {}", path.display()))
                    .because(format!("it holds no {FILE}"))
                    .advise("name the directory with --dir or HOLDFAST_DIR, or make one with `holdfast cluster up`"),
            ),
        }
    }

    /// `None` when the directory is missing or empty, so that a cluster may be made there.
    ///
    /// # Errors
    /// As [`Self::open`]; a directory that holds something else is refused (65).
    pub fn find(path: &Path) -> Result<Option<Self>, Failure> {
        let path = absolute(path)?;
        if let Some(file) = read_file(&path)? {
            return Ok(Some(Self { path, file }));
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::disk(format!("cannot look into {}", path.display()), &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| Failure::disk(format!("cannot look into {}", path.display()), &e))?;
            let name = entry.file_name();
            if name != LOCK && name != FILE_NEW {
                return Err(
                    Failure::new(Exit::BadInput, format!("{} is no cluster directory", path.display()))
                        .because(format!("it holds {:?} but no {FILE}", name.to_string_lossy()))
                        .advise("name an empty or a new directory with --dir"),
                );
            }
        }
        Ok(None)
    }

    /// A new cluster, on paper: nothing is written until [`Self::save`], so that a plan whose
    /// ports are taken leaves nothing behind.
    ///
    /// # Errors
    /// The path cannot be resolved, or the system gives no random bytes.
    pub fn design(path: &Path, plan: Plan) -> Result<Self, Failure> {
        let path = absolute(path)?;
        Ok(Self {
            file: ClusterFile {
                nodes: (1..=plan.nodes).map(|i| entry(&path, plan.base_port, i)).collect(),
                token: random_hex(24)?,
                shards: plan.shards,
                replication: replication(plan.nodes),
                cluster_id: random_hex(12)?,
                allow_drills: false,
            },
            path,
        })
    }

    /// Takes the lock, making the directory if need be.
    ///
    /// # Errors
    /// Another command works on this cluster (69), or the disk refuses (74).
    pub fn lock(path: &Path) -> Result<DirectoryLock, Failure> {
        let path = absolute(path)?;
        make_directory(&path)?;
        let file = path.join(LOCK);
        let opened = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&file);
        let opened = opened.map_err(|e| Failure::disk(format!("cannot open {}", file.display()), &e))?;
        match opened.try_lock() {
            Ok(()) => Ok(DirectoryLock(opened)),
            Err(fs::TryLockError::WouldBlock) => Err(Failure::new(
                Exit::Unavailable,
                format!("{} is being worked on", path.display()),
            )
            .because("another holdfast command holds its lock")
            .advise("wait until that command has ended, then try again")),
            Err(fs::TryLockError::Error(e)) => Err(Failure::disk(format!("cannot lock {}", file.display()), &e)),
        }
    }

    /// Replaces `cluster.json` atomically; readable by its owner only.
    ///
    /// # Errors
    /// The disk refuses (74).
    pub fn save(&self) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(&self.file).expect("plain data becomes JSON");
        replace(&self.path.join(FILE), &self.path.join(FILE_NEW), text.as_bytes())
    }

    /// Writes the secrets and every node's file that is not there yet. What is there stays, so
    /// that an operator may edit it.
    ///
    /// # Errors
    /// The disk refuses (74), or a secret of an existing cluster is gone (65).
    pub fn write_node_files(&self) -> Result<(), Failure> {
        let started_before = self.file.nodes.iter().any(|node| node.data_dir().exists());
        let secret = self.path.join("secret");
        if !secret.exists() {
            if started_before {
                let what = format!("{} is gone", secret.display());
                return Err(Failure::new(Exit::BadInput, what)
                    .because("the nodes of this cluster know each other by it")
                    .advise("restore the file, or make a new cluster in another directory"));
            }
            write_private(&secret, random_hex(32)?.as_bytes())?;
        }
        write_private(&self.path.join("token"), self.file.token.as_bytes())?;
        for node in &self.file.nodes {
            make_directory(&node.dir)?;
            if !node.config.exists() {
                write_private(&node.config, self.node_toml(node).as_bytes())?;
            }
        }
        Ok(())
    }

    pub fn node(&self, id: u64) -> Result<&NodeEntry, Failure> {
        self.file.nodes.iter().find(|node| node.id == id).ok_or_else(|| {
            let known: Vec<String> = self.file.nodes.iter().map(|node| node.id.to_string()).collect();
            Failure::new(Exit::Usage, format!("there is no node {id} in {}", self.path.display()))
                .advise(format!("name one of {}", known.join(", ")))
        })
    }

    /// Records which process runs a node (`None`: none does).
    ///
    /// # Errors
    /// The disk refuses (74).
    pub fn record_process(&mut self, id: u64, process: Option<(u32, u64)>) -> Result<(), Failure> {
        for node in self.file.nodes.iter_mut().filter(|node| node.id == id) {
            node.pid = process.map(|(pid, _)| pid);
            node.pid_started = process.map(|(_, started)| started);
        }
        self.save()
    }

    /// Node 1 has it, whether it is still there or not.
    pub fn base_port(&self) -> u16 {
        let from = |node: &NodeEntry| {
            let before = u16::try_from(node.id.checked_sub(1)?)
                .ok()?
                .checked_mul(PORTS_PER_NODE)?;
            node.mqtt.port().checked_sub(before)
        };
        self.file.nodes.first().and_then(from).unwrap_or(DEFAULT_BASE_PORT)
    }

    /// A node that is to join, on paper.
    ///
    /// # Errors
    /// There are no ports for it (65).
    pub fn newcomer(&self, id: u64, zone: Option<&str>) -> Result<NodeEntry, Failure> {
        let number = u16::try_from(id).ok().filter(|number| {
            let last = u32::from(self.base_port()) + u32::from(PORTS_PER_NODE) * u32::from(*number);
            last <= u32::from(u16::MAX)
        });
        let Some(number) = number else {
            return Err(
                Failure::new(Exit::BadInput, format!("there are no ports for node {id}"))
                    .because(format!("its ports begin at {} + 10 x {}", self.base_port(), id - 1))
                    .advise("a local cluster cannot replace that many nodes; make a new one on another --base-port"),
            );
        };
        let mut new = entry(&self.path, self.base_port(), number);
        new.zone = zone.map_or(new.zone, str::to_owned);
        new.joined = true;
        Ok(new)
    }

    fn joining_toml(&self, node: &NodeEntry) -> String {
        let others = self.file.nodes.iter().filter(|other| other.id != node.id);
        let join: Vec<String> = others.map(|other| format!("\"{}\"", other.http)).collect();
        format!(
            "# Written by `holdfast cluster add`; edit what you like, it is not written again.\n\
             # Every key is explained in deploy/config/node.toml.\n\n\
             [node]\nid = {}\ndata_dir = \"data\"\nzone = \"{}\"\n\n\
             [cluster]\nid = \"{}\"\nsecret_file = \"../secret\"\njoin = [{}]\n\n\
             [listen]\nmqtt = \"{}\"\nhttp = \"{}\"\npeer = \"{}\"\nws = \"{}\"\n\n\
             [security]\nmode = \"development\"\noperator_token_file = \"../token\"\n\n\
             [devices]\nauto_register = true\n",
            node.id,
            node.zone,
            self.file.cluster_id,
            join.join(", "),
            node.mqtt,
            node.http,
            node.peer,
            node.ws,
        )
    }

    fn node_toml(&self, node: &NodeEntry) -> String {
        if node.joined {
            return self.joining_toml(node);
        }
        let founders = self.file.nodes.iter().filter(|node| !node.joined);
        let members: Vec<String> = founders.map(member_toml).collect();
        format!(
            "# Written by `holdfast cluster up`; edit what you like, `cluster up` leaves it alone.\n\
             # Every key is explained in deploy/config/node.toml.\n\n\
             [node]\nid = {}\ndata_dir = \"data\"\nzone = \"{}\"\nworkers = {}\n\n\
             [cluster]\nid = \"{}\"\nsecret_file = \"../secret\"\nshards = {}\nreplication = {}\nmembers = [\n{}\n]\n\n\
             [listen]\nmqtt = \"{}\"\nhttp = \"{}\"\npeer = \"{}\"\nws = \"{}\"\n\n\
             [security]\nmode = \"development\"\noperator_token_file = \"../token\"\n\n\
             [devices]\nauto_register = true\n",
            node.id,
            node.zone,
            workers(self.file.nodes.len()),
            self.file.cluster_id,
            self.file.shards,
            self.file.replication,
            members.join("\n"),
            node.mqtt,
            node.http,
            node.peer,
            node.ws,
        )
    }
}

/// The nodes of a local cluster share one machine. More threads than cores cost CPU per message:
/// each waits for the others, and batches get smaller.
fn workers(nodes: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / nodes.max(1)).clamp(1, 256)
}

fn member_toml(node: &NodeEntry) -> String {
    format!(
        "  {{ id = {}, peer = \"{}\", mqtt = \"{}\", http = \"{}\", zone = \"{}\" }},",
        node.id, node.peer, node.mqtt, node.http, node.zone
    )
}

fn entry(path: &Path, base_port: u16, number: u16) -> NodeEntry {
    let port = base_port + PORTS_PER_NODE * (number - 1);
    let at = |offset: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port + offset));
    let dir = path.join(format!("node-{number}"));
    NodeEntry {
        id: u64::from(number),
        pid: None,
        pid_started: None,
        mqtt: at(0),
        http: at(1),
        peer: at(2),
        ws: at(3),
        zone: format!("zone-{number}"),
        config: dir.join("node.toml"),
        log: dir.join("node.log"),
        dir,
        joined: false,
    }
}

/// Three, or the largest odd number of nodes there is below: an even number of replicas survives
/// no more failures than one fewer.
pub fn replication(nodes: u16) -> u8 {
    if nodes >= 3 {
        3
    } else {
        1
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::disk(format!("cannot resolve {}", path.display()), &e))
}

fn read_file(path: &Path) -> Result<Option<ClusterFile>, Failure> {
    let file = path.join(FILE);
    let mut text = String::new();
    match File::open(&file) {
        Ok(opened) => opened.take(FILE_BYTES_MAX).read_to_string(&mut text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    }
    .map_err(|e| Failure::disk(format!("cannot read {}", file.display()), &e))?;
    let damaged = |reason: String| {
        Failure::new(Exit::BadInput, format!("{} describes no cluster", file.display()))
            .because(reason)
            .advise("restore the file, or make a new cluster in another directory")
    };
    let read: ClusterFile = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if read.nodes.is_empty() {
        return Err(damaged("it names no node".to_owned()));
    }
    Ok(Some(read))
}

pub fn make_directory(path: &Path) -> Result<(), Failure> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Failure::disk(
            format!("cannot make the directory {}", path.display()),
            &error,
        )),
        Ok(()) => Ok(()),
    }
}

pub(super) fn write_private(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    replace(file, Path::new(&new), bytes)
}

/// Writes beside, syncs, then renames: a reader sees the old file or the new one.
fn replace(file: &Path, new: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || {
        let mut opened = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(new)?;
        opened.write_all(bytes)?;
        opened.sync_all()?;
        fs::rename(new, file)
    };
    write().map_err(|e| Failure::disk(format!("cannot write {}", file.display()), &e))
}

/// `bytes` random bytes as hexadecimal text.
fn random_hex(bytes: usize) -> Result<String, Failure> {
    let mut buffer = vec![0; bytes];
    OsRng
        .try_fill_bytes(&mut buffer)
        .map_err(|error| Failure::new(Exit::Internal, "the system gives no random bytes").because(error))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}
