//! From a request's body to a fault that makes sense, or the key that does not.

use std::ops::RangeInclusive;

use actors::id::NodeId;
use serde_json::{Map, Value};

use super::kind::{DiskOp, Fault, Peers, Way};
use super::table::TTL_MS;
use super::KINDS;

const MS_MAX: u64 = 60_000;
/// A year: enough for every expiry there is, and far from where milliseconds end.
const STEP_MS_MAX: i64 = 365 * 86_400_000;
const DRIFT_PPM_MAX: i64 = 500_000;

/// What of a body is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct BadFault {
    /// Such as `fault.percent`.
    pub key: String,
    pub reason: String,
}

/// What somebody wants to be installed.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub fault: Fault,
    pub ttl_ms: u64,
    /// For what the fault decides by chance; `None`: from the lease's id.
    pub seed: Option<u64>,
}

impl Wanted {
    /// # Errors
    /// The first key that is missing, unknown, of another type or out of range.
    pub fn parse(body: &Value) -> Result<Self, BadFault> {
        let body = body.as_object().ok_or_else(|| bad("", "the body is no JSON object"))?;
        let mut body = Fields::new("", body);
        let ttl_ms = body.number("ttl_ms", TTL_MS)?;
        let fault = body.get("fault").ok_or_else(|| bad("fault", "is missing"))?;
        let fault = fault.as_object().ok_or_else(|| bad("fault", "is no object"))?;
        body.no_others()?;
        let mut fields = Fields::new("fault.", fault);
        let seed = fields.optional_number("seed", 0..=u64::MAX)?;
        let fault = fault_of(&mut fields)?;
        fields.no_others()?;
        Ok(Self { fault, ttl_ms, seed })
    }
}

fn fault_of(fields: &mut Fields<'_>) -> Result<Fault, BadFault> {
    Ok(match fields.text("kind")? {
        "link.drop" => Fault::LinkDrop {
            peer: fields.peer()?,
            direction: fields.way()?,
            percent: fields.percent()?,
        },
        "link.cut" => Fault::LinkCut { peer: fields.peer()? },
        "link.latency" => Fault::LinkLatency {
            peer: fields.peer()?,
            ms: fields.number("ms", 0..=MS_MAX)?,
            jitter_ms: fields.optional_number("jitter_ms", 0..=MS_MAX)?.unwrap_or(0),
        },
        "link.duplicate" => Fault::LinkDuplicate {
            peer: fields.peer()?,
            percent: fields.percent()?,
        },
        "link.reorder" => Fault::LinkReorder {
            peer: fields.peer()?,
            percent: fields.percent()?,
            ms: fields.number("ms", 1..=MS_MAX)?,
        },
        "link.corrupt" => Fault::LinkCorrupt {
            peer: fields.peer()?,
            percent: fields.percent()?,
        },
        "link.bandwidth" => Fault::LinkBandwidth {
            peer: fields.peer()?,
            bytes_per_second: fields.number("bytes_per_second", 1_000..=10_000_000_000)?,
        },
        "link.reset" => Fault::LinkReset {
            peer: fields.peer()?,
            percent: fields.percent()?,
        },
        "link.half_open" => Fault::LinkHalfOpen { peer: fields.peer()? },
        "disk.latency" => Fault::DiskLatency {
            on: fields.disk_op(&[DiskOp::Write, DiskOp::Sync])?,
            ms: fields.number("ms", 0..=MS_MAX)?,
            jitter_ms: fields.optional_number("jitter_ms", 0..=MS_MAX)?.unwrap_or(0),
        },
        "disk.stall" => Fault::DiskStall {
            on: fields.disk_op(&[DiskOp::Write, DiskOp::Sync])?,
        },
        "disk.full" => Fault::DiskFull {
            hard: fields.flag("hard")?,
        },
        "disk.read_only" => Fault::DiskReadOnly,
        "disk.eio" => Fault::DiskEio {
            on: fields.disk_op(&[DiskOp::Read, DiskOp::Write, DiskOp::Sync])?,
            percent: fields.percent()?,
        },
        "disk.sync_fails_once" => Fault::DiskSyncFailsOnce,
        "disk.sync_lies" => return Err(bad("fault.kind", SYNC_LIES)),
        "clock.step" => Fault::ClockStep {
            ms: fields.signed("ms", -STEP_MS_MAX..=STEP_MS_MAX)?,
        },
        "clock.drift" => Fault::ClockDrift {
            ppm: fields.signed("ppm", -DRIFT_PPM_MAX..=DRIFT_PPM_MAX)?,
        },
        "clock.strobe" => Fault::ClockStrobe {
            ms: fields.signed("ms", -STEP_MS_MAX..=STEP_MS_MAX)?,
            period_ms: fields.number("period_ms", 1..=MS_MAX)?,
        },
        "clock.freeze" => Fault::ClockFreeze,
        "cpu.hog" => Fault::CpuHog {
            threads: fields.number("threads", 1..=64)?,
        },
        "memory.squeeze" => Fault::MemorySqueeze {
            bytes: fields.number("bytes", 1..=1 << 40)?,
        },
        "descriptors.exhaust" => Fault::DescriptorsExhaust {
            leave: fields.number("leave", 0..=1_000_000)?,
        },
        other => {
            let reason = format!("{other:?} is unknown; known are {}", KINDS.join(", "));
            return Err(bad("fault.kind", reason));
        }
    })
}

/// Why no process can do this to itself.
const SYNC_LIES: &str = "disk.sync_lies cannot be done inside a node: what was written and not synced outlives the \
                         process in the kernel's memory, so that a kill -9 would lose nothing and prove nothing; use \
                         the preloaded library, which forgets what was not synced";

fn bad(key: impl Into<String>, reason: impl Into<String>) -> BadFault {
    BadFault {
        key: key.into(),
        reason: reason.into(),
    }
}

/// The members of an object; remembers which were asked for.
struct Fields<'a> {
    prefix: &'static str,
    object: &'a Map<String, Value>,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn new(prefix: &'static str, object: &'a Map<String, Value>) -> Self {
        Self {
            prefix,
            object,
            asked: Vec::new(),
        }
    }

    fn bad(&self, key: &str, reason: impl Into<String>) -> BadFault {
        bad(format!("{}{key}", self.prefix), reason)
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.object.get(key)
    }

    fn need(&mut self, key: &'static str) -> Result<&'a Value, BadFault> {
        self.get(key).ok_or_else(|| self.bad(key, "is missing"))
    }

    fn text(&mut self, key: &'static str) -> Result<&'a str, BadFault> {
        let value = self.need(key)?;
        value.as_str().ok_or_else(|| self.bad(key, "is no text"))
    }

    fn optional_number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, BadFault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.bad(key, format!("{value} is no whole number in {range:?}"))),
        }
    }

    fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<u64, BadFault> {
        let number = self.optional_number(key, range)?;
        number.ok_or_else(|| self.bad(key, "is missing"))
    }

    fn signed(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Result<i64, BadFault> {
        let value = self.need(key)?;
        match value.as_i64() {
            Some(number) if range.contains(&number) && number != 0 => Ok(number),
            _ => Err(self.bad(key, format!("{value} is no whole number in {range:?} other than 0"))),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, BadFault> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value
            .as_bool()
            .ok_or_else(|| self.bad(key, format!("{value} is neither true nor false")))
    }

    /// More than 0, at most 100; without it, always.
    fn percent(&mut self) -> Result<f64, BadFault> {
        let Some(value) = self.get("percent") else {
            return Ok(100.0);
        };
        match value.as_f64() {
            Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
            _ => Err(self.bad("percent", format!("{value} is no number above 0, at most 100"))),
        }
    }

    fn peer(&mut self) -> Result<Peers, BadFault> {
        let value = self.need("peer")?;
        let one = match value {
            Value::String(text) if text == "*" => return Ok(Peers::All),
            Value::String(text) => text.parse::<NodeId>().ok(),
            other => other.as_u64(),
        };
        one.map(Peers::One)
            .ok_or_else(|| self.bad("peer", format!("{value} is neither a node's id nor \"*\"")))
    }

    fn way(&mut self) -> Result<Way, BadFault> {
        let Some(value) = self.get("direction") else {
            return Ok(Way::Both);
        };
        Ok(match value.as_str() {
            Some("in") => Way::In,
            Some("out") => Way::Out,
            Some("both") => Way::Both,
            _ => return Err(self.bad("direction", format!("{value} is none of \"in\", \"out\", \"both\""))),
        })
    }

    fn disk_op(&mut self, allowed: &[DiskOp]) -> Result<DiskOp, BadFault> {
        let value = self.need("on")?;
        let name = |op: DiskOp| match op {
            DiskOp::Read => "read",
            DiskOp::Write => "write",
            DiskOp::Sync => "sync",
        };
        let named = allowed.iter().copied().find(|op| value.as_str() == Some(name(*op)));
        named.ok_or_else(|| {
            let names: Vec<&str> = allowed.iter().map(|op| name(*op)).collect();
            self.bad("on", format!("{value} is none of {}", names.join(", ")))
        })
    }

    fn no_others(&self) -> Result<(), BadFault> {
        match self.object.keys().find(|key| !self.asked.contains(&key.as_str())) {
            Some(key) => Err(self.bad(key, format!("is unknown here; known are {}", self.asked.join(", ")))),
            None => Ok(()),
        }
    }
}
