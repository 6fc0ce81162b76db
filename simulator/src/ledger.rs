//! What each device saw: which messages were acknowledged, when, and with which receipt.
//!
//! Memory: 16 bytes per acknowledged message and 12 per twin report, up to `acks_max` of the
//! fleet (a device stops publishing when its share is full, so what is recorded stays complete);
//! everything else is a few numbers per device. A ledger judges nothing: checkers do.

use std::time::Duration;

use actors::wire::receipt::Receipt;

/// An acknowledged telemetry message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub n: u32,
    /// Milliseconds since the fleet started.
    pub at_ms: u32,
    /// Telemetry seq of the receipt; 0 when there was no receipt or it names no place.
    pub seq: u32,
    /// Low 32 bits of the receipt's log index; 0 without a receipt.
    pub index: u32,
}

/// An acknowledged twin report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinAck {
    pub k: u32,
    pub at_ms: u32,
    /// Version the answer named; 0 when the answer did not arrive (it is QoS 0 or the session moved).
    pub version: u32,
}

/// A publish that got a negative PUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub n: u32,
    pub code: u8,
    /// Sent more than once, so an earlier send may have been stored all the same.
    pub resent: bool,
}

#[derive(Clone, Debug, Default)]
pub struct DeviceLedger {
    pub device: String,
    pub run: u32,
    pub payload_bytes: usize,
    /// Highest telemetry number sent; all from 1 to here were sent.
    pub sent: u32,
    pub acks: Vec<Ack>,
    pub refused: Vec<Refusal>,
    /// Sent, neither acknowledged nor refused when the fleet ended: stored or not, both are right.
    pub unknown: Vec<u32>,
    pub twin_acks: Vec<TwinAck>,
    /// Twin reports sent and neither acknowledged nor refused.
    pub twin_unknown: Vec<u32>,
    /// Connections after the first.
    pub reconnects: u32,
    /// PUBACKs that overtook that of an earlier publish of the same connection.
    pub acks_out_of_order: u32,
    /// PUBACKs of what was not outstanding.
    pub acks_foreign: u32,
}

impl DeviceLedger {
    pub fn record(&mut self, n: u32, at: Duration, receipt: Option<Receipt>) {
        let (seq, index) = receipt.map_or((0, 0), |r| (clamp(r.seq), (r.index & u64::from(u32::MAX)) as u32));
        self.acks.push(Ack {
            n,
            at_ms: clamp_millis(at),
            seq,
            index,
        });
    }

    pub fn record_twin(&mut self, k: u32, at: Duration, version: u64) {
        self.twin_acks.push(TwinAck {
            k,
            at_ms: clamp_millis(at),
            version: clamp(version),
        });
    }
}

/// Everything a fleet saw, device by device.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub devices: Vec<DeviceLedger>,
}

impl Ledger {
    pub fn acknowledged(&self) -> u64 {
        self.devices.iter().map(|d| d.acks.len() as u64).sum()
    }

    pub fn unknown(&self) -> u64 {
        self.devices.iter().map(|d| d.unknown.len() as u64).sum()
    }

    pub fn reconnects(&self) -> u64 {
        self.devices.iter().map(|d| u64::from(d.reconnects)).sum()
    }
}

fn clamp(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn clamp_millis(at: Duration) -> u32 {
    u32::try_from(at.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actors::id::ShardId;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A receipt's place is kept; without one the place is 0, which claims nothing.
    #[test]
    fn acks_keep_their_receipts() {
        let mut device = DeviceLedger::default();
        let receipt = Receipt {
            shard: ShardId(3),
            term: 2,
            index: (1 << 40) + 77,
            seq: 5,
        };
        device.record(1, ms(1_500), Some(receipt));
        device.record(2, ms(1_600), None);
        assert_eq!(
            device.acks[0],
            Ack {
                n: 1,
                at_ms: 1_500,
                seq: 5,
                index: 77
            }
        );
        assert_eq!(
            device.acks[1],
            Ack {
                n: 2,
                at_ms: 1_600,
                seq: 0,
                index: 0
            }
        );
    }
}
