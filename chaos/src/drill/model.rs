//! What a drill file may say. One type per table; every key has a default or is required.
//!
//! The workload is a scenario of the simulator without its name, seed, target and phases, which
//! the drill supplies. Ranges are checked in `check`.

use serde::{Deserialize, Serialize};
use simulator::scenario::Span;

/// Load, faults over time, and what must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    pub name: String,
    pub title: String,
    /// What it teaches, in a sentence or two.
    #[serde(default)]
    pub teaches: String,
    /// Same seed, same faults at the same times, same load.
    #[serde(default = "one")]
    pub seed: u64,
    #[serde(default)]
    pub cluster: ClusterWish,
    pub workload: toml::Table,
    #[serde(default)]
    pub phases: Phases,
    #[serde(default)]
    pub fault: Vec<FaultAt>,
    #[serde(default)]
    pub nemesis: Option<Nemesis>,
    #[serde(default)]
    pub thresholds: Thresholds,
    #[serde(default)]
    pub abort: Option<Abort>,
    #[serde(default)]
    pub checks: Checks,
    #[serde(default)]
    pub expect: Expect,
}

/// The cluster that `chaos run` starts where it is given none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterWish {
    /// 1..=9.
    pub nodes: u16,
    /// 1..=256.
    pub shards: u16,
    /// Its nodes run under the library that knows what was synced: for power cuts. Slower.
    pub power: bool,
    /// A small file system of its own, in MiB, where root can mount one: for full disks. 256..=16384.
    pub disk_mib: Option<u64>,
    /// Variables for the nodes: `HOLDFAST_SECTION_KEY`.
    pub env: std::collections::BTreeMap<String, String>,
}

impl Default for ClusterWish {
    fn default() -> Self {
        Self {
            nodes: 3,
            shards: 16,
            power: false,
            disk_mib: None,
            env: Default::default(),
        }
    }
}

/// How long each phase lasts. Their order is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Phases {
    /// Devices connect. 1s..=1h.
    pub ramp: Span,
    /// The hypothesis is tested before anything is broken. 1s..=1h.
    pub steady: Span,
    /// 1s..=24h.
    pub faults: Span,
    /// Within this after the last heal everything serves again. 1s..=1h.
    pub settle: Span,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            ramp: Span::secs(5),
            steady: Span::secs(8),
            faults: Span::secs(30),
            settle: Span::secs(90),
        }
    }
}

/// A fault at a fixed time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAt {
    /// As in `holdfast chaos list`.
    pub kind: String,
    /// `busiest`, `idlest`, `random`, `all`, `minority`, `catalog`, `node:N`, `shard:N`, `zone:NAME`.
    #[serde(default = "random")]
    pub on: String,
    /// From the beginning of the phase of faults.
    pub at: Span,
    #[serde(rename = "for", default = "five")]
    pub length: Span,
    /// Times in all. 1..=1000.
    #[serde(default = "once")]
    pub repeat: u32,
    /// From one to the next.
    #[serde(default = "ten")]
    pub every: Span,
    #[serde(default)]
    pub with: toml::Table,
}

/// Faults by chance, from the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nemesis {
    /// Mean time from one fault to the next. 100ms..=1h.
    pub mean_between: Span,
    /// Mean length of a fault, at least a second. 1s..=1h.
    #[serde(default = "five")]
    pub mean_length: Span,
    /// How many at the same time, at most. 1..=16.
    #[serde(default = "once")]
    pub at_once: u32,
    pub fault: Vec<Choice>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    pub kind: String,
    #[serde(default = "random")]
    pub on: String,
    /// How likely, beside the others. Above 0.
    #[serde(default = "unit")]
    pub weight: f64,
    #[serde(default)]
    pub with: toml::Table,
}

/// The hypothesis, before, during and after the faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Broken: no verdict, because the cluster was not well before anything was done to it.
    pub before: Hypothesis,
    pub during: Hypothesis,
    /// Measured in the last seconds of the phase of liveness.
    pub after: Hypothesis,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hypothesis {
    /// Share of the messages intended then that were acknowledged within two seconds.
    pub availability_min: Option<f64>,
    /// Latency of acknowledged telemetry from its intended time.
    pub latency_p99_max: Option<Span>,
    /// Share of the devices that is connected at the end of the phase.
    pub connected_share_min: Option<f64>,
}

/// When everything is healed at once and the drill ends early.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// Acknowledgements, as a share of what was acknowledged in the steady phase …
    pub throughput_share_min: f64,
    /// … below it for this long. 1s..=1h.
    pub within: Span,
}

/// Which invariants are judged, and their bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Invariants that this drill does not judge, by name.
    pub without: Vec<String>,
    /// Resident memory of any node, MiB.
    pub memory_mib_max: u64,
    /// A shard that no fault touched is never without an acknowledgement for longer.
    pub unaffected_gap_max: Span,
    /// No request of the operator's takes longer. The nodes' own deadline is 10 s.
    pub request_max: Span,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            without: Vec::new(),
            memory_mib_max: 2_048,
            unaffected_gap_max: Span::secs(10),
            request_max: Span::secs(20),
        }
    }
}

/// What whoever wrote the drill expects; told beside what is predicted and measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Whether a majority of every shard's replicas is whole throughout.
    pub majority_survives: Option<bool>,
    pub text: String,
}

fn one() -> u64 {
    1
}
fn once() -> u32 {
    1
}
fn unit() -> f64 {
    1.0
}
fn random() -> String {
    "random".into()
}
fn five() -> Span {
    Span::secs(5)
}
fn ten() -> Span {
    Span::secs(10)
}
