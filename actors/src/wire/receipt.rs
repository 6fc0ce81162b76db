//! Evidence of an acknowledged write, as text `shard-term-index-seq`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::ShardId;

/// Where an acknowledged write stands in its shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Receipt {
    pub shard: ShardId,
    pub term: u64,
    pub index: u64,
    /// The telemetry seq; 0 for other writes.
    pub seq: u64,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.shard.0, self.term, self.index, self.seq)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a receipt reads shard-term-index-seq, four decimal numbers")]
pub struct BadReceipt;

impl FromStr for Receipt {
    type Err = BadReceipt;

    fn from_str(text: &str) -> Result<Self, BadReceipt> {
        let mut parts = text.split('-');
        let mut next = || {
            let part = parts.next().ok_or(BadReceipt)?;
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(BadReceipt);
            }
            part.parse::<u64>().map_err(|_| BadReceipt)
        };
        let shard = u16::try_from(next()?).map_err(|_| BadReceipt)?;
        let receipt = Receipt {
            shard: ShardId(shard),
            term: next()?,
            index: next()?,
            seq: next()?,
        };
        match parts.next() {
            None => Ok(receipt),
            Some(_) => Err(BadReceipt),
        }
    }
}
