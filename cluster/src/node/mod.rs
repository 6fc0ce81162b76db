//! One node's cluster part, put together: stores, transport, groups, and the parts that keep
//! them going.

pub mod alarm;
pub mod disk;
pub mod failover;
pub mod flusher;
pub mod founding;
pub mod herald;
pub mod keeper;
pub mod mover;
pub mod peers;
#[cfg(feature = "planted")]
mod planted;
mod pulse;
pub mod rebuild;
pub mod replicas;
pub mod scrub;
pub mod standing;
pub mod start;
