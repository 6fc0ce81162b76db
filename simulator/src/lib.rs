#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a fleet lives in real time
//! Fleets of devices seen from the outside, and a record of what they saw.
//!
//! Nothing here knows how the product works inside: it speaks MQTT to sockets and writes down
//! what was acknowledged. Of the other crates it reads only names (`actors::id`) and the public
//! texts (`actors::wire`), so that a verdict built on its ledger is worth something.

pub mod audit;
mod client;
pub mod drive;
pub mod fleet;
pub mod haul;
pub mod history;
pub mod ledger;
mod link;
pub mod payload;
pub mod payloads;
pub mod plan;
pub mod profiles;
pub mod progress;
pub mod protocol;
pub mod report;
pub mod run;
pub mod scenario;
pub mod session;

pub use fleet::{Fleet, FleetConfig, FleetError, FleetReport, Load};
pub use ledger::{Ack, DeviceLedger, Ledger, TwinAck};
pub use progress::Progress;
