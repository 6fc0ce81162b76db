//! The actors that keep devices: one actix actor per active device, the host of a shard's actors,
//! and (`house`) the ractor supervision of the long-lived parts.
//!
//! Callers hold a [`ShardHost`] or a [`HouseHandle`] and see no mailbox. Nothing here knows Raft,
//! a disk or a socket: events go to a `Journal`, state comes from a `Store`.

mod admission;
mod device_actor;
mod downlink;
mod host;
pub mod house;
mod idle;
mod live_policy;
mod local_part;
mod spawn;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use device_actor::{Decide, Rules};
pub use host::{HostCounts, HostLimits, HostParts, ShardHost};
pub use house::{Escalated, House, HouseHandle, Part, PartError, Restart, StopSignal};
pub use live_policy::LivePolicy;
pub use local_part::run_on;
pub use spawn::{on_this_local_set, DeviceTask, Spawn};
