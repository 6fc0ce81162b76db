//! How one kind of device behaves, as a file may describe it. The machines beside it carry it out.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::payloads::{Dist, Variable};
use crate::scenario::Span;

/// One kind of device. Ships as TOML; a scenario may bring its own under `[profile.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// One line for `sim profiles`.
    pub title: String,
    /// 0 or 1.
    #[serde(default = "one")]
    pub qos: u8,
    /// Whether messages carry ids, so that repetitions are stored once. Without, possible
    /// duplicates are counted apart.
    #[serde(default = "yes")]
    pub message_ids: bool,
    /// Messages kept while offline and sent in order when back; beyond, the oldest are dropped and
    /// counted. 0: what is due while offline is dropped. 0..=1000000.
    #[serde(default = "thousand")]
    pub offline_queue: u32,
    /// Variables of the payloads, by name.
    #[serde(default, rename = "var")]
    pub variables: BTreeMap<String, Variable>,
    /// What the device sends. Up to 8.
    #[serde(default)]
    pub stream: Vec<Stream>,
    /// When it is out of reach.
    #[serde(default)]
    pub connectivity: Option<Connectivity>,
    /// Its twin: what it reports and what it obeys.
    #[serde(default)]
    pub twin: Option<Twin>,
    /// Answers method calls.
    #[serde(default)]
    pub methods: Option<Methods>,
    /// Takes messages from its queue and acknowledges them.
    #[serde(default)]
    pub messages: bool,
    /// Updates its firmware when the desired property `firmware` asks for another version.
    #[serde(default)]
    pub firmware: Option<Firmware>,
    /// Speaks for children of its own.
    #[serde(default)]
    pub gateway: Option<Gateway>,
    /// What it does that no device should.
    #[serde(default)]
    pub misbehave: Option<Misbehave>,
}

/// A series of messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Empty: the stream without a name.
    #[serde(default)]
    pub name: String,
    /// Mean time between two messages. From 1ms.
    pub interval: Span,
    /// How intervals vary.
    #[serde(default)]
    pub spread: Spread,
    /// Share of the interval by which `fixed` intervals vary, or over which aligned devices
    /// scatter. 0..=1.
    #[serde(default)]
    pub jitter: f64,
    /// Intervals of single devices, in turn, instead of `interval`.
    #[serde(default)]
    pub intervals: Vec<Span>,
    /// At multiples of the interval by the scenario's clock, as meters do: at the top of the hour.
    /// Phases do not change its rate, but a drain stops it.
    #[serde(default)]
    pub align: bool,
    /// The interval depends on a variable with states.
    #[serde(default)]
    pub by: Option<ByState>,
    /// The payload: text with `${…}`.
    pub payload: String,
    /// Size to which `${pad}` fills.
    #[serde(default)]
    pub size: Option<Dist>,
    /// Every so many messages, one is published twice under its id. 0: never.
    #[serde(default)]
    pub duplicate_every: u32,
    /// Every so many messages, one changes places with the next. 0: never.
    #[serde(default)]
    pub reorder_every: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// With `jitter`.
    #[default]
    Fixed,
    /// A Poisson process.
    Exponential,
    /// Two thirds within a factor of two, a few much longer.
    Bursty,
}

/// Intervals by state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByState {
    pub variable: String,
    pub intervals: BTreeMap<String, Span>,
}

/// Times within reach and out of it, in seconds of scenario time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Connectivity {
    pub online_secs: Dist,
    pub offline_secs: Dist,
    /// With a DISCONNECT.
    #[serde(default)]
    pub graceful: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Twin {
    /// Between two reports; a report waits for the answer to the one before. From 1ms.
    #[serde(default)]
    pub report_interval: Option<Span>,
    /// Desired numbers that are taken over and reported back. `interval_secs` changes how often
    /// the device sends; others are for variables that follow.
    #[serde(default)]
    pub obey: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Methods {
    /// Seconds until it answers.
    #[serde(default)]
    pub delay_secs: Dist,
    /// Share answered with 500.
    #[serde(default)]
    pub fail_share: f64,
    /// Share never answered.
    #[serde(default)]
    pub silent_share: f64,
}

/// Seconds of each step, and the share of updates that end in each way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    #[serde(default = "factory")]
    pub factory: String,
    pub download_secs: Dist,
    pub install_secs: Dist,
    pub reboot_secs: Dist,
    /// The download breaks off.
    #[serde(default)]
    pub fail_download: f64,
    /// What came is not what was promised.
    #[serde(default)]
    pub fail_verify: f64,
    /// It cannot be installed.
    #[serde(default)]
    pub fail_install: f64,
    /// It comes back with the old version.
    #[serde(default)]
    pub fail_rollback: f64,
    /// It never comes back.
    #[serde(default)]
    pub fail_brick: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Children of each gateway. 1..=1000.
    pub children: u32,
}

/// Shares are of the fleet's devices, each drawn by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Misbehave {
    /// Drops its connection without a word, again and again …
    pub flapping: f64,
    /// … this often.
    pub flap_every: Option<Span>,
    /// Its clock is wrong …
    pub wrong_clock: f64,
    /// … by so many seconds.
    pub clock_skew_secs: Dist,
    /// Shares its id with another device, so that they throw each other out.
    pub duplicate_id: f64,
    /// Never acknowledges what it is sent.
    pub never_acks: f64,
    /// Stops reading …
    pub slow_reader: f64,
    /// … this long, as often.
    pub slow_for: Option<Span>,
    /// Sends packets that are none …
    pub malformed: f64,
    /// … this often.
    pub malformed_every: Option<Span>,
}

fn one() -> u8 {
    1
}
fn yes() -> bool {
    true
}
fn thousand() -> u32 {
    1_000
}
fn factory() -> String {
    "1.0.0".into()
}
