//! What a node's cluster part is told at start. Checked by `node::config`, which owns the file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use actors::id::NodeId;
use actors::shell::LivePolicy;

#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Fresh entropy for this run: ids, nonces and timers derive from it.
    pub seed: [u8; 32],
    /// Names the cluster; peers and directories of another one are refused.
    pub cluster_id: String,
    /// Shared by all nodes; proves a peer in the transport's handshake.
    pub secret: Secret,
    pub node_id: NodeId,
    /// This node, as it tells of itself.
    pub me: Member,
    /// The founders, this node included; empty for a node that joined later. Once the cluster is
    /// made, the catalog says who belongs to it.
    pub members: Vec<Member>,
    /// What an empty directory is to be called; `None`: by chance.
    pub fresh_uuid: Option<u128>,
    pub data_dir: PathBuf,
    /// Fixed when the cluster is created. 1..=1024.
    pub shards: u16,
    /// Replicas per shard of a new cluster. 1..=7, at most the number of founders.
    pub replication: u8,
    /// Arbiter threads that run shards and gateways. 1..=256.
    pub workers: usize,
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// Silence after which the devices of a lost gateway are marked offline.
    pub gateway_grace: Duration,
    /// Telemetry older than this is trimmed.
    pub telemetry_age_max: Duration,
    /// What devices are judged by; may change while the node runs.
    pub policy: LivePolicy,
    /// Commands one shard may hold that are not yet answered. Beyond: `Overloaded`.
    pub shard_queue_max: usize,
    /// Idle time after which a device leaves memory.
    pub passivate_after: Duration,
    /// Active devices per shard; beyond, the longest idle are passivated at once.
    pub active_devices_max: usize,
    /// Bytes of RocksDB block cache, shared by both instances.
    pub block_cache_bytes: usize,
    /// Longest time applied state stays in memory only; the log is kept until then. 1 s..=10 min.
    pub flush_interval: Duration,
    /// From one reading of everything stored to the next. 1 min..=30 days.
    pub scrub_interval: Duration,
    /// fsync of the log. `false` exists only to show that the power-cut test catches it.
    pub unsafe_skip_log_fsync: bool,
    /// As above, for votes.
    pub unsafe_skip_vote_fsync: bool,
    /// Whether fault leases may be installed in this node; see [`crate::faults`].
    pub allow_drills: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub peer: SocketAddr,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub zone: String,
}

/// Bytes that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
