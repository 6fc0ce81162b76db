#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // faults happen in real time
//! Faults, drills, checkers, verdicts.
//!
//! Sees the product from outside, as `simulator` does: processes, sockets, the HTTP API. A checker
//! compares what a ledger says was acknowledged with what can be read back.

pub mod catalogue;
pub mod check;
pub mod checker;
pub mod damage;
pub mod deed;
pub mod drill;
pub mod powercut;
pub mod process;
pub mod proxy;
pub mod readback;
pub mod report;
pub mod run;
pub mod site;
pub mod verdict;
pub mod warden;

pub use checker::{check_device, Fact, Findings, StoredMessage, StoredTwin};
pub use readback::{read_back, ReadBack, ReadError};
pub use verdict::Verdict;
