//! The catalogue: every fault a node can be asked for, with its parameters.

use actors::id::NodeId;
use serde::{Serialize, Serializer};

/// Whose traffic a link fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    All,
    One(NodeId),
}

impl Peers {
    pub fn include(self, peer: NodeId) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == peer,
        }
    }
}

impl Serialize for Peers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("*"),
            Self::One(peer) => serializer.serialize_u64(*peer),
        }
    }
}

/// Seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    In,
    Out,
    Both,
}

impl Way {
    pub fn covers(self, way: Self) -> bool {
        self == Self::Both || self == way
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskOp {
    Read,
    Write,
    Sync,
}

/// One fault. What each does is in `docs/reference/chaos-leases.md`; the names there are those here.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind")]
pub enum Fault {
    #[serde(rename = "link.drop")]
    LinkDrop { peer: Peers, direction: Way, percent: f64 },
    #[serde(rename = "link.cut")]
    LinkCut { peer: Peers },
    #[serde(rename = "link.latency")]
    LinkLatency { peer: Peers, ms: u64, jitter_ms: u64 },
    #[serde(rename = "link.duplicate")]
    LinkDuplicate { peer: Peers, percent: f64 },
    #[serde(rename = "link.reorder")]
    LinkReorder { peer: Peers, percent: f64, ms: u64 },
    #[serde(rename = "link.corrupt")]
    LinkCorrupt { peer: Peers, percent: f64 },
    #[serde(rename = "link.bandwidth")]
    LinkBandwidth { peer: Peers, bytes_per_second: u64 },
    #[serde(rename = "link.reset")]
    LinkReset { peer: Peers, percent: f64 },
    #[serde(rename = "link.half_open")]
    LinkHalfOpen { peer: Peers },
    #[serde(rename = "disk.latency")]
    DiskLatency { on: DiskOp, ms: u64, jitter_ms: u64 },
    #[serde(rename = "disk.stall")]
    DiskStall { on: DiskOp },
    #[serde(rename = "disk.full")]
    DiskFull {
        /// Also what is let through fails, as when the last block is gone.
        hard: bool,
    },
    #[serde(rename = "disk.read_only")]
    DiskReadOnly,
    #[serde(rename = "disk.eio")]
    DiskEio { on: DiskOp, percent: f64 },
    #[serde(rename = "disk.sync_fails_once")]
    DiskSyncFailsOnce,
    #[serde(rename = "clock.step")]
    ClockStep { ms: i64 },
    #[serde(rename = "clock.drift")]
    ClockDrift { ppm: i64 },
    #[serde(rename = "clock.strobe")]
    ClockStrobe { ms: i64, period_ms: u64 },
    #[serde(rename = "clock.freeze")]
    ClockFreeze,
    #[serde(rename = "cpu.hog")]
    CpuHog { threads: u64 },
    #[serde(rename = "memory.squeeze")]
    MemorySqueeze { bytes: u64 },
    #[serde(rename = "descriptors.exhaust")]
    DescriptorsExhaust { leave: u64 },
}

/// Names of all kinds that can be installed.
pub const KINDS: &[&str] = &[
    "link.drop",
    "link.cut",
    "link.latency",
    "link.duplicate",
    "link.reorder",
    "link.corrupt",
    "link.bandwidth",
    "link.reset",
    "link.half_open",
    "disk.latency",
    "disk.stall",
    "disk.full",
    "disk.read_only",
    "disk.eio",
    "disk.sync_fails_once",
    "clock.step",
    "clock.drift",
    "clock.strobe",
    "clock.freeze",
    "cpu.hog",
    "memory.squeeze",
    "descriptors.exhaust",
];

/// Which seam has to ask the table because of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Area {
    Link = 1,
    Disk = 2,
    Clock = 4,
    /// Asks nobody: threads of its own.
    Machine = 8,
    /// The monotonic clock, from the first drift on: it keeps what it gained.
    Drift = 128,
}

impl Fault {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LinkDrop { .. } => "link.drop",
            Self::LinkCut { .. } => "link.cut",
            Self::LinkLatency { .. } => "link.latency",
            Self::LinkDuplicate { .. } => "link.duplicate",
            Self::LinkReorder { .. } => "link.reorder",
            Self::LinkCorrupt { .. } => "link.corrupt",
            Self::LinkBandwidth { .. } => "link.bandwidth",
            Self::LinkReset { .. } => "link.reset",
            Self::LinkHalfOpen { .. } => "link.half_open",
            Self::DiskLatency { .. } => "disk.latency",
            Self::DiskStall { .. } => "disk.stall",
            Self::DiskFull { .. } => "disk.full",
            Self::DiskReadOnly => "disk.read_only",
            Self::DiskEio { .. } => "disk.eio",
            Self::DiskSyncFailsOnce => "disk.sync_fails_once",
            Self::ClockStep { .. } => "clock.step",
            Self::ClockDrift { .. } => "clock.drift",
            Self::ClockStrobe { .. } => "clock.strobe",
            Self::ClockFreeze => "clock.freeze",
            Self::CpuHog { .. } => "cpu.hog",
            Self::MemorySqueeze { .. } => "memory.squeeze",
            Self::DescriptorsExhaust { .. } => "descriptors.exhaust",
        }
    }

    pub fn area(&self) -> Area {
        match self.kind().split('.').next() {
            Some("link") => Area::Link,
            Some("disk") => Area::Disk,
            Some("clock") => Area::Clock,
            _ => Area::Machine,
        }
    }
}
