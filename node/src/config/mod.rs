//! One node's configuration: a TOML file, overridden by `HOLDFAST_SECTION_KEY` variables.
//!
//! Decides what is acceptable before anything starts: unknown keys, bad ranges and contradictions
//! are refused with file, line and key. `deploy/config/node.toml` documents every key; a test keeps
//! that file and this code together. Opens no socket and creates no directory.

mod check;
pub mod duration;
mod members;
mod messages;
mod reader;
mod schema;
mod security;
pub mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actors::device::Policy;
use actors::id::NodeId;
use actors::shell::LivePolicy;
use cluster::config::{ClusterConfig, Member, Secret};

use crate::observe::logs::LogFormat;

pub use reader::{KnownKey, Place, Problem, ENV_PREFIX};
pub use settings::{Change, Setting};

/// Largest configuration file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything one node is told, checked.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where it was read from; relative paths in it start at this file's directory.
    pub file: PathBuf,
    pub node: Node,
    pub cluster: ClusterSection,
    pub listen: Listen,
    pub limits: Limits,
    pub retention: Retention,
    pub messages: messages::Messages,
    pub raft: Raft,
    pub storage: Storage,
    pub security: Security,
    pub log: Log,
    pub devices: Devices,
    pub chaos: Chaos,
    /// Every key with its value and where that came from; secrets are not in it.
    pub settings: Vec<Setting>,
}

#[derive(Clone, Debug)]
pub struct Node {
    /// `None`: a node that joins is given one.
    pub id: Option<NodeId>,
    pub data_dir: PathBuf,
    pub zone: String,
    /// Arbiter threads that run shards and gateways.
    pub workers: usize,
    /// How long a graceful stop may take.
    pub stop_deadline: Duration,
}

#[derive(Clone, Debug)]
pub struct ClusterSection {
    pub id: String,
    pub secret: Secret,
    /// The founders; empty for a node that joins.
    pub members: Vec<Member>,
    /// HTTP addresses of nodes that may let this one in.
    pub join: Vec<SocketAddr>,
    /// What vouches for it; `None`: the operator's token.
    pub join_token: Option<Secret>,
    pub shards: u16,
    pub replication: u8,
}

#[derive(Clone, Debug)]
pub struct Listen {
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub peer: SocketAddr,
    /// MQTT over WebSocket, if it is spoken.
    pub ws: Option<SocketAddr>,
    /// Whose pages may open a WebSocket, beside those of this machine.
    pub ws_origins: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// MQTT connections of this node; beyond, CONNECT is answered with "server busy".
    pub connections_max: usize,
    /// Time from accept to a complete CONNECT.
    pub connect_timeout: Duration,
    /// Largest MQTT packet taken, in bytes.
    pub packet_bytes_max: usize,
    /// Unacknowledged publishes one session may hold.
    pub receive_maximum: u16,
    /// Children that one connection of a gateway device acts for.
    pub gateway_children_max: usize,
    /// Bytes of publishes one node may hold unanswered before it stops reading.
    pub inflight_bytes_max: usize,
    /// Bytes all MQTT connections may buffer; beyond, those with most are closed.
    pub buffer_bytes_max: usize,
    /// How long a client may not read what it must, before it is closed.
    pub slow_reader_timeout: Duration,
    /// Resident memory; shortly before it, idle devices leave memory, and telemetry is refused.
    pub memory_bytes_max: u64,
    /// Largest HTTP request body, in bytes.
    pub http_body_bytes_max: usize,
    /// Bytes of large HTTP answers that clients have not read.
    pub http_answer_bytes_max: usize,
    /// HTTP connections of this node.
    pub http_connections_max: usize,
    pub event_subscribers_max: usize,
    /// Time one HTTP request may take before its outcome is called unknown.
    pub http_request_deadline: Duration,
    pub shard_queue_max: usize,
    pub active_devices_max: usize,
    pub passivate_after: Duration,
    pub gateway_grace: Duration,
    pub session_expiry_max: Duration,
    pub tags_bytes_max: usize,
    pub section_bytes_max: usize,
    pub twin_depth_max: usize,
    pub message_ids_max: usize,
    pub packet_ids_max: usize,
    pub subscriptions_max: usize,
}

#[derive(Clone, Debug)]
pub struct Retention {
    pub telemetry_age: Duration,
    pub telemetry_count: u64,
}

#[derive(Clone, Debug)]
pub struct Raft {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

#[derive(Clone, Debug)]
pub struct Storage {
    pub block_cache_bytes: usize,
    /// Longest time applied state stays in memory only.
    pub flush_interval: Duration,
    pub scrub_interval: Duration,
    pub unsafe_skip_log_fsync: bool,
    pub unsafe_skip_vote_fsync: bool,
}

/// Who may come in. `development` is the only mode yet: loopback, devices without credentials,
/// operators with one bearer token.
#[derive(Clone, Debug)]
pub struct Security {
    pub mode: String,
    pub operator_token: Secret,
}

#[derive(Clone, Debug)]
pub struct Log {
    /// A `tracing` filter such as `info,cluster=debug`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Debug)]
pub struct Devices {
    pub auto_register: bool,
}

/// What drills may do to this node.
#[derive(Clone, Debug)]
pub struct Chaos {
    pub allow_drills: bool,
}

/// Why a configuration is refused (exit 65, or 74 when the file cannot be read).
#[derive(Debug)]
pub enum ConfigError {
    Unreadable {
        file: PathBuf,
        source: std::io::Error,
    },
    /// At least one.
    Refused(Vec<Problem>),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, source } => write!(f, "cannot read {}: {source}", file.display()),
            Self::Refused(problems) => {
                let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads and checks `file`, overridden by this process's environment.
///
/// # Errors
/// The file cannot be read, or something in it is refused; every problem found is listed.
pub fn load(file: &Path) -> Result<NodeConfig, ConfigError> {
    load_with(file, &[])
}

/// As [`load`], with variables on top of the environment's.
///
/// # Errors
/// As [`load`].
pub fn load_with(file: &Path, variables: &[(&str, &str)]) -> Result<NodeConfig, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let size = std::fs::metadata(file).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        let reason = format!("has {size} bytes, at most {FILE_BYTES_MAX} are allowed");
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, reason)));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let mut environment = environment();
    environment.extend(
        variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    parse(file, &text, environment).map(|(config, _)| config)
}

/// As [`load`], from text and variables given by the caller; also returns the keys that exist.
///
/// # Errors
/// As [`load`]; reads no file but the ones that `secret_file` and `operator_token_file` name.
pub fn parse(
    file: &Path,
    text: &str,
    environment: BTreeMap<String, String>,
) -> Result<(NodeConfig, Vec<KnownKey>), ConfigError> {
    let allow_unsafe = environment
        .get("HOLDFAST_ALLOW_UNSAFE")
        .is_some_and(|value| value == "1");
    let mut reader =
        reader::Reader::new(file, text, environment).map_err(|problem| ConfigError::Refused(vec![problem]))?;
    let mut config = schema::read(&mut reader, file);
    check::contradictions(&mut reader, &config, allow_unsafe);
    let (known, problems) = reader.finish();
    if problems.is_empty() {
        config.settings = settings::of(&known, file);
        Ok((config, known))
    } else {
        Err(ConfigError::Refused(problems))
    }
}

/// The variables that may override keys. Values that are not text are not ours.
fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os()
        .filter_map(text)
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .collect()
}

/// Which node this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub id: NodeId,
    pub shards: u16,
    /// What an empty directory is to be called; `None`: by chance.
    pub fresh_uuid: Option<u128>,
}

impl NodeConfig {
    /// What others are told of an address: a founder may listen on all of them.
    fn announced(&self, listened: SocketAddr, of: impl Fn(&Member) -> SocketAddr) -> SocketAddr {
        let me = self
            .cluster
            .members
            .iter()
            .find(|member| Some(member.id) == self.node.id);
        me.map_or(listened, of)
    }

    pub fn policy(&self) -> Policy {
        Policy {
            auto_register: self.devices.auto_register,
            telemetry_count_max: self.retention.telemetry_count,
            tags_bytes_max: self.limits.tags_bytes_max,
            section_bytes_max: self.limits.section_bytes_max,
            twin_depth_max: self.limits.twin_depth_max,
            message_ids_max: self.limits.message_ids_max,
            packet_ids_max: self.limits.packet_ids_max,
            subscriptions_max: self.limits.subscriptions_max,
            session_expiry_secs_max: u32::try_from(self.limits.session_expiry_max.as_secs()).unwrap_or(u32::MAX),
            ..self.messages.bound(Policy::default())
        }
    }

    /// `who` is known from the file, the data directory, or the cluster that let this node in.
    pub fn cluster_config(&self, who: Who) -> ClusterConfig {
        ClusterConfig {
            seed: rand::random(),
            cluster_id: self.cluster.id.clone(),
            secret: self.cluster.secret.clone(),
            node_id: who.id,
            me: Member {
                id: who.id,
                peer: self.announced(self.listen.peer, |member| member.peer),
                mqtt: self.announced(self.listen.mqtt, |member| member.mqtt),
                http: self.announced(self.listen.http, |member| member.http),
                zone: self.node.zone.clone(),
            },
            fresh_uuid: who.fresh_uuid,
            members: self.cluster.members.clone(),
            data_dir: self.node.data_dir.clone(),
            shards: who.shards,
            replication: self.cluster.replication,
            workers: self.node.workers,
            heartbeat: self.raft.heartbeat,
            election_min: self.raft.election_min,
            election_max: self.raft.election_max,
            gateway_grace: self.limits.gateway_grace,
            telemetry_age_max: self.retention.telemetry_age,
            policy: LivePolicy::new(self.policy()),
            shard_queue_max: self.limits.shard_queue_max,
            passivate_after: self.limits.passivate_after,
            active_devices_max: self.limits.active_devices_max,
            block_cache_bytes: self.storage.block_cache_bytes,
            flush_interval: self.storage.flush_interval,
            scrub_interval: self.storage.scrub_interval,
            unsafe_skip_log_fsync: self.storage.unsafe_skip_log_fsync,
            unsafe_skip_vote_fsync: self.storage.unsafe_skip_vote_fsync,
            allow_drills: self.chaos.allow_drills,
        }
    }
}
