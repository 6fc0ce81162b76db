//! `[messages]`: what a device's queue holds, and for how long.

use std::time::Duration;

use actors::device::Policy;

use super::reader::Reader;
use super::schema::{secs, size};

const SECTION: &str = "messages";
const YEAR_SECS: u64 = 365 * 24 * 3600;

#[derive(Clone, Debug)]
pub struct Messages {
    /// Messages waiting for one device.
    pub queue_max: usize,
    pub payload_bytes_max: usize,
    /// Of a message that names none.
    pub ttl: Duration,
    pub ttl_max: Duration,
    pub deliveries_max: u16,
    /// Kept per device.
    pub dead_letters_max: usize,
    /// Records kept per device.
    pub feedback_max: usize,
}

pub(super) fn read(reader: &mut Reader<'_>) -> Messages {
    let policy = Policy::default();
    let mut count = |name, default: usize, low, high| size(reader, SECTION, name, default as u64, low, high);
    let queue_max = count("queue_max", policy.message_queue_max, 1, 1000);
    let payload_bytes_max = count("payload_bytes_max", policy.message_bytes_max, 1, 1 << 20);
    let deliveries_max = count("deliveries_max", policy.message_deliveries_max.into(), 1, 100) as u16;
    let dead_letters_max = count("dead_letters_max", policy.dead_letters_max, 0, 1000);
    let feedback_max = count("feedback_max", policy.feedback_max as usize, 1, 100_000);
    let mut time = |name, default: u32| {
        let default = secs(default.into());
        reader.duration(SECTION, name, default, secs(1)..=secs(YEAR_SECS))
    };
    let (ttl, ttl_max) = (
        time("ttl", policy.message_ttl_secs),
        time("ttl_max", policy.message_ttl_secs_max),
    );
    if ttl > ttl_max {
        reader.refuse(
            SECTION,
            "ttl",
            "is longer than messages.ttl_max, which bounds every message",
        );
    }
    Messages {
        queue_max,
        payload_bytes_max,
        ttl,
        ttl_max,
        deliveries_max,
        dead_letters_max,
        feedback_max,
    }
}

impl Messages {
    /// Puts these bounds into a policy.
    pub(super) fn bound(&self, policy: Policy) -> Policy {
        let secs = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        Policy {
            message_queue_max: self.queue_max,
            message_bytes_max: self.payload_bytes_max,
            message_ttl_secs: secs(self.ttl),
            message_ttl_secs_max: secs(self.ttl_max),
            message_deliveries_max: self.deliveries_max,
            dead_letters_max: self.dead_letters_max,
            feedback_max: self.feedback_max as u64,
            ..policy
        }
    }
}
