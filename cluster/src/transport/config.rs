//! What a transport is told at start, and the bounds that nobody configures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actors::id::NodeId;
use actors::time::Clock;

use crate::config::Secret;
use crate::faults::Faults;

/// A handshake that takes longer is refused; also bounds how long a stranger holds a connection.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that may be in their handshake at once; more are closed unread.
pub const HANDSHAKES_MAX: usize = 256;
/// Requests of one connection that may wait for their answer. At most 2^16: an index in the correlation.
pub const PENDING_MAX: usize = 65_536;
/// Requests of one incoming connection that the handler may leave unanswered; then nothing more is read.
pub const UNANSWERED_MAX: usize = 65_536;
/// Bytes of their bodies; likewise.
pub const UNANSWERED_BYTES_MAX: usize = 64 << 20;
/// A frame is closed once it holds this much, so that a reader can begin before all is there.
pub const FRAME_BYTES_SOFT: usize = 256 << 10;
/// Deadlines are swept no more often than this.
pub const SWEEP_EVERY: Duration = Duration::from_millis(10);
/// On the Control class, a ping is sent after this long without sending anything.
pub const PING_AFTER_MS: u64 = 200;
/// On the Control class, a peer is lost after this long without hearing anything.
pub const SILENCE_MS_MAX: u64 = 3_000;
/// How often the two above are looked at.
pub const KEEP_ALIVE_TICK: Duration = Duration::from_millis(100);
/// First and longest pause between two attempts to connect.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(20);
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Sent data that the peer's kernel does not take for this long closes the connection.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Yields 16 fresh bytes, from a source the node seeds. Must never yield the same bytes twice.
pub type Nonces = Arc<dyn Fn() -> [u8; 16] + Send + Sync>;

#[derive(Clone)]
pub struct TransportConfig {
    pub cluster_id: String,
    pub node_id: NodeId,
    /// Stands for this run of this node's process.
    pub boot: u64,
    /// Stands for this node's directory: a peer known under another one is refused.
    pub node_uuid: u128,
    /// How often that directory was started, this time included.
    pub starts: u64,
    /// This node's data cannot be trusted: it takes no part in any group and says so.
    pub quarantined: bool,
    pub secret: Secret,
    pub listen: SocketAddr,
    /// The other nodes. This node itself, if named, is skipped.
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// Bytes queued per peer and class. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// Bytes of one frame. Default 16 MiB, 1 KiB..=256 MiB.
    pub frame_bytes_max: usize,
    pub connect_timeout: Duration,
    pub clock: Arc<dyn Clock>,
    /// What a drill does to the links.
    pub faults: Arc<Faults>,
    /// Nonces of handshakes, and the jitter of reconnecting.
    pub nonces: Nonces,
}

impl TransportConfig {
    pub const QUEUE_BYTES_MAX: usize = 64 << 20;
    pub const FRAME_BYTES_MAX: usize = 16 << 20;
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

    /// Refuses what no connection could work with.
    ///
    /// # Errors
    /// `InvalidInput`, naming the field.
    pub(super) fn check(&self) -> std::io::Result<()> {
        let refuse = |text: &str| Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text.to_owned()));
        if self.cluster_id.is_empty() || self.cluster_id.len() > 255 {
            return refuse("cluster_id must have 1 to 255 bytes");
        }
        if self.secret.0.is_empty() {
            return refuse("secret is empty");
        }
        if !(1 << 10..=256 << 20).contains(&self.frame_bytes_max) {
            return refuse("frame_bytes_max must be 1 KiB to 256 MiB");
        }
        if self.queue_bytes_max < self.frame_bytes_max {
            return refuse("queue_bytes_max is smaller than one frame");
        }
        Ok(())
    }
}
