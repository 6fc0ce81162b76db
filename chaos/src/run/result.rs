//! What a drill says in the end: `result.json`, from which everything else is made again.

use std::fmt;

use serde::{Deserialize, Serialize};
use simulator::audit::Findings;

use crate::check::{Holds, Ruling};
use crate::drill::Impact;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    /// The product broke a promise, or the drill's hypothesis.
    Violation,
    /// The bench broke; says nothing about the product.
    HarnessFailure,
}

impl Verdict {
    /// 0 pass, 1 violation, 75 harness failure.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Violation => 1,
            Self::HarnessFailure => 75,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Violation => "violation",
            Self::HarnessFailure => "harness failure",
        })
    }
}

/// Times are real µs since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub from_us: u64,
    pub to_us: u64,
}

/// What came of a fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultRecord {
    pub id: String,
    pub kind: String,
    pub mechanism: String,
    /// As the drill names them …
    pub on: String,
    /// … and who that was.
    pub nodes: Vec<u64>,
    pub with: serde_json::Value,
    /// When it was ordered, and when it was healed.
    pub from_us: u64,
    pub to_us: u64,
    /// `installed`, `skipped` or `indeterminate`.
    pub outcome: String,
    /// What was done, or why not.
    pub why: String,
    /// `asked`, `lease` (its time was up) or `warden` (the injector was gone).
    pub healed_by: Option<String>,
    /// What could not be undone.
    pub problem: Option<String>,
    /// Shards that its nodes led.
    pub shards: Vec<u16>,
    pub predicted: Impact,
    pub measured: Option<Measured>,
}

/// What a fault did to the cluster, from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub impact: Impact,
    /// Until somebody noticed that a leader is gone.
    pub detect_us: Option<u64>,
    /// Until every shard had a leader again.
    pub elect_us: Option<u64>,
    /// Until every shard acknowledged again.
    pub recover_us: Option<u64>,
}

/// Of the whole drill: the worst of its faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Impacts {
    pub predicted: Impact,
    pub measured: Impact,
    /// Of all figures of all faults, the share that was predicted rightly: within a quarter, or two.
    pub score: Option<f64>,
    /// What whoever wrote the drill expected.
    pub expected: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// From the order to heal everything until all was healed …
    pub heal_us: u64,
    /// … and from then until everything served again; `None`: it did not.
    pub liveness_us: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrillResult {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub notes: Vec<String>,
    pub name: String,
    pub title: String,
    pub teaches: String,
    pub seed: u64,
    pub version: String,
    pub rerun: String,
    pub began_unix_us: u64,
    pub devices: u32,
    pub nodes: Vec<u64>,
    pub shards: usize,
    pub phases: Vec<Phase>,
    pub faults: Vec<FaultRecord>,
    pub impacts: Impacts,
    pub times: Times,
    pub rulings: Vec<Ruling>,
    pub sent: u64,
    pub acknowledged: u64,
    pub findings: Option<Findings>,
}

impl DrillResult {
    /// Rulings that say no, the weightiest first as they were judged.
    pub fn broken(&self) -> impl Iterator<Item = &Ruling> {
        self.rulings.iter().filter(|ruling| ruling.holds == Holds::No)
    }
}
