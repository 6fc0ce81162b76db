//! What a scenario file may say. One type per table; every key has a default or is required.
//!
//! Times are *scenario time*: with `compression = 60`, an hour of it passes in a minute. Only the
//! deadlines under `[run]` are real time. Ranges are checked in `check`, because serde cannot say
//! which limit a number breaks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::span::Span;
use crate::profiles::Profile;

/// A fleet and its load over time, and what must hold in the end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Shown in every report.
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// Same seed and scenario: same devices, payloads and intended times.
    #[serde(default = "one")]
    pub seed: u64,
    /// How much faster scenario time passes than real time. 1..=100000.
    #[serde(default = "unit")]
    pub compression: f64,
    #[serde(default)]
    pub target: Target,
    #[serde(default)]
    pub run: Run,
    /// Profiles of your own, or changed ones, by name; `sim profiles` lists those that ship.
    #[serde(default)]
    pub profile: BTreeMap<String, Profile>,
    #[serde(default)]
    pub fleet: Vec<Fleet>,
    #[serde(default)]
    pub phase: Vec<Phase>,
    #[serde(default)]
    pub operator: Operator,
    #[serde(default)]
    pub thresholds: Thresholds,
    #[serde(default)]
    pub audit: Audit,
    #[serde(default)]
    pub history: HistoryKeep,
}

/// What the fleet talks to.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `holdfast`, or `mqtt` for any broker: telemetry only, no audit.
    #[serde(default)]
    pub kind: TargetKind,
    /// Path of a `cluster.json`; fills the lists and the token below where they are empty.
    #[serde(default)]
    pub cluster: Option<String>,
    /// MQTT over TCP, `host:port`.
    #[serde(default)]
    pub mqtt: Vec<String>,
    /// MQTT over WebSocket, `host:port`.
    #[serde(default)]
    pub ws: Vec<String>,
    /// HTTP API, `host:port`: ingest, operator and audit.
    #[serde(default)]
    pub http: Vec<String>,
    /// The operator's bearer token. Better: `token_env`.
    #[serde(default)]
    pub token: Option<String>,
    /// Name of the environment variable that holds the token.
    #[serde(default)]
    pub token_env: Option<String>,
    /// Topic of telemetry where `kind` is `mqtt`; `${device}` and `${stream}` are replaced.
    #[serde(default = "broker_topic")]
    pub topic: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    #[default]
    Holdfast,
    Mqtt,
}

/// How the fleet is driven. These times are real time.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// `open`: every send has its intended time. `closed`: each device keeps its window full,
    /// which hides stalls and is labelled as such.
    #[serde(rename = "loop")]
    pub mode: LoopMode,
    /// Processes that share the fleet. 1..=64.
    pub workers: u16,
    /// Threads of each process. 1..=64.
    pub threads: u16,
    /// Connections opened a second, over all workers, outside ramps and storms.
    pub connect_rate: f64,
    /// TCP connect, CONNECT and CONNACK together.
    pub connect_timeout: Span,
    /// Silence on something awaited, after which a connection is given up and the rest sent again.
    pub ack_timeout: Span,
    /// Full-jitter back-off: each wait is a random part of this, doubled per failure …
    pub backoff: Span,
    /// … up to this.
    pub backoff_max: Span,
    /// How long unanswered operations may take after the last phase.
    pub drain: Span,
    /// Source addresses to connect from, in turn: addresses, or ranges such as `127.0.1.0/24`.
    pub source_addresses: Vec<String>,
    /// Serves `/metrics` of the simulator here, e.g. `127.0.0.1:9464`.
    pub metrics: Option<String>,
    /// How often `/metrics` of every node is read.
    pub scrape_interval: Span,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LoopMode {
    #[default]
    Open,
    Closed,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            mode: LoopMode::Open,
            workers: 1,
            threads: 1,
            connect_rate: 500.0,
            connect_timeout: Span::secs(5),
            ack_timeout: Span::secs(10),
            backoff: Span::millis(100),
            backoff_max: Span::secs(10),
            drain: Span::secs(20),
            source_addresses: Vec::new(),
            metrics: None,
            scrape_interval: Span::secs(5),
        }
    }
}

/// Many devices of one profile.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    pub name: String,
    pub profile: String,
    /// 1..=1000000 over all fleets.
    pub count: u32,
    /// Device ids; `${n}` is the number, `${n:5}` padded with zeros. Default: the fleet's name.
    #[serde(default)]
    pub id: Option<String>,
    /// The first number.
    #[serde(default = "one_u32")]
    pub first: u32,
    /// How they speak, with weights: `{ mqtt5 = 3, mqtt311 = 1, http = 1 }`.
    #[serde(default = "mqtt5_only")]
    pub protocols: BTreeMap<Protocol, u32>,
    /// Places in the target's lists that these devices use; default all. A device begins at its
    /// own and goes round when it fails.
    #[serde(default)]
    pub endpoints: Vec<usize>,
    /// `${device}` is replaced.
    #[serde(default)]
    pub username: Option<String>,
    #[serde(default)]
    pub password: Option<String>,
    /// Messages a second over the whole fleet at factor 1; instead of the profile's intervals.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Between two messages of a device; instead of the profile's.
    #[serde(default)]
    pub interval: Option<Span>,
    /// Payloads are padded to this. Instead of the profile's size. 0..=262144.
    #[serde(default)]
    pub payload_bytes: Option<u32>,
    /// 0 or 1; instead of the profile's.
    #[serde(default)]
    pub qos: Option<u8>,
    /// Unacknowledged publishes of a device. 1..=1024, and what the server allows.
    #[serde(default = "window")]
    pub window: u16,
    /// What becomes of a message that falls due while the window is full.
    #[serde(default)]
    pub overflow: Overflow,
    /// Whether messages carry ids, so that repetitions are stored once. Instead of the profile's.
    #[serde(default)]
    pub message_ids: Option<bool>,
    /// Messages kept while offline; beyond, the oldest are dropped and counted. Instead of the profile's.
    #[serde(default)]
    pub offline_queue: Option<u32>,
    /// 2s..=18h.
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
    #[serde(default = "session_expiry")]
    pub session_expiry: Span,
    /// CSV of a recorded trace: `device,time,payload`; instead of the profile's streams. Relative
    /// to the scenario file.
    #[serde(default)]
    pub replay: Option<Replay>,
}

/// A device's way with more than the server takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// It is sent as soon as there is room, and its latency counts from when it was due. After a
    /// refusal the device pauses.
    #[default]
    Wait,
    /// It is dropped and counted, as by a device that keeps no queue; refusals change nothing. For
    /// load beyond what a server takes.
    Drop,
}

/// A recorded trace and how fast it is played.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    pub file: String,
    /// 2 plays twice as fast. 0.001..=100000.
    #[serde(default = "unit")]
    pub speed: f64,
    /// Begin again at the end.
    #[serde(default)]
    pub repeat: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Mqtt5,
    Mqtt311,
    Mqtt5Ws,
    Mqtt311Ws,
    Http,
}

impl Protocol {
    pub const ALL: [Protocol; 5] = [Self::Mqtt5, Self::Mqtt311, Self::Mqtt5Ws, Self::Mqtt311Ws, Self::Http];

    pub fn name(self) -> &'static str {
        match self {
            Self::Mqtt5 => "mqtt5",
            Self::Mqtt311 => "mqtt311",
            Self::Mqtt5Ws => "mqtt5-ws",
            Self::Mqtt311Ws => "mqtt311-ws",
            Self::Http => "http",
        }
    }

    pub fn is_ws(self) -> bool {
        matches!(self, Self::Mqtt5Ws | Self::Mqtt311Ws)
    }

    pub fn is_v5(self) -> bool {
        matches!(self, Self::Mqtt5 | Self::Mqtt5Ws)
    }
}

/// A stretch of the run. Factors multiply the rate of every fleet that is not aligned to a clock.
/// Which of the optional keys belong to which kind is said beside them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub kind: PhaseWord,
    pub duration: Span,
    /// Shown in reports; default: the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// ramp: factor at the beginning (0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<f64>,
    /// ramp: factor at the end (1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<f64>,
    /// steady, reconnect-storm: factor throughout (1); burst: within a burst (required).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// burst: how long each lasts (required).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<Span>,
    /// burst: from one to the next (required).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// diurnal: the lowest factor (0.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// diurnal: the highest factor (1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// diurnal: from peak to peak (24h).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    /// diurnal: when the first peak is, from the beginning of the phase (18h).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<Span>,
    /// reconnect-storm: share of the devices that lose their connections (1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// reconnect-storm: within which time they lose them (0s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseWord {
    /// The factor goes evenly from one value to another; devices that are not connected yet
    /// connect evenly over it.
    Ramp,
    Steady,
    /// `factor` for `length`, every `every`; 1 between.
    Burst,
    /// A day's curve between `low` and `high`.
    Diurnal,
    /// A share of the devices loses its connections without a farewell.
    ReconnectStorm,
    /// Nothing new is sent.
    Drain,
}

impl PhaseWord {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ramp => "ramp",
            Self::Steady => "steady",
            Self::Burst => "burst",
            Self::Diurnal => "diurnal",
            Self::ReconnectStorm => "reconnect-storm",
            Self::Drain => "drain",
        }
    }
}

impl Phase {
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.name())
    }
}

/// What an operator does meanwhile over HTTP, a second, over all fleets that obey.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Operator {
    /// Changes of desired properties.
    pub desired_rate: f64,
    /// Reads of twins, at any node.
    pub read_rate: f64,
    /// Method calls.
    pub method_rate: f64,
    /// Devices whose desired `firmware` is changed, once each, spread over the run. Share, 0..=1.
    pub firmware_share: f64,
}

/// What decides pass or fail; what is left out is not judged.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Latency of acknowledged telemetry from its intended time.
    pub latency_p50: Option<Span>,
    pub latency_p99: Option<Span>,
    pub latency_p999: Option<Span>,
    pub latency_max: Option<Span>,
    /// Acknowledged messages a second, mean over the phases that send.
    pub throughput_min: Option<f64>,
    /// Share of telemetry that was refused.
    pub refused_share_max: Option<f64>,
    /// Share of telemetry without an answer when the run ended.
    pub unknown_share_max: Option<f64>,
    /// Share of devices that were connected when sending ended.
    pub connected_share_min: Option<f64>,
    /// Connections lost that no phase or profile asked for.
    pub disconnects_max: Option<u64>,
    /// The 99th percentile of the generator's own delay.
    pub send_lag_p99: Option<Span>,
    /// Growth of resident memory of any node, MiB an hour, where the confidence allows a verdict.
    pub memory_growth_max: Option<f64>,
}

/// Reading the cluster back.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    pub enabled: bool,
    /// Samples during the run; `0s`: none.
    pub sample_interval: Span,
    /// Devices per sample. 1..=1000.
    pub sample_devices: u32,
    /// For one request over all nodes.
    pub read_deadline: Span,
    /// How long a desired change may take to reach a connected device.
    pub desired_deadline: Span,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            enabled: true,
            sample_interval: Span::secs(0),
            sample_devices: 20,
            read_deadline: Span::secs(30),
            desired_deadline: Span::secs(10),
        }
    }
}

/// What is kept of the history while the run goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryKeep {
    /// Bytes on disk, e.g. `10000000000`; beyond, the oldest segments are deleted and not audited.
    /// Default: everything is kept.
    pub bytes_max: Option<u64>,
}

fn one() -> u64 {
    1
}
fn one_u32() -> u32 {
    1
}
fn unit() -> f64 {
    1.0
}
fn window() -> u16 {
    16
}
fn keep_alive() -> Span {
    Span::secs(60)
}
fn session_expiry() -> Span {
    Span::secs(3_600)
}
fn broker_topic() -> String {
    "devices/${device}/telemetry".into()
}
fn mqtt5_only() -> BTreeMap<Protocol, u32> {
    BTreeMap::from([(Protocol::Mqtt5, 1)])
}
