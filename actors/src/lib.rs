//! What a device is, and the actor that keeps it.
//!
//! `device` holds the rules as pure functions, `shell` the actix actors that run them, `ports`
//! what they need from below. No disk, no socket and no Raft is named here, and no clock is read.

pub mod device;
pub mod id;
#[cfg(feature = "planted")]
pub mod planted;
pub mod ports;
pub mod shell;
pub mod time;
pub mod wire;
