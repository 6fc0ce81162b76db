#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // faults happen in real time
//! Faults, drills, checkers, verdicts.
//!
//! Sees the product from outside, as `simulator` does: processes, sockets, the HTTP API. A checker
//! compares what a ledger says was acknowledged with what can be read back.

pub mod checker;
pub mod process;
pub mod readback;
pub mod verdict;

pub use checker::{check_device, Fact, Findings, StoredMessage, StoredTwin};
pub use readback::{read_back, ReadBack, ReadError};
pub use verdict::Verdict;
