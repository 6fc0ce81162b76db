//! The stores in memory, for tests and simulated clusters: they know what was written and what was
//! synced, and lose the difference in a crash. No threads; everything happens inside a call.

mod log;
mod shards;
mod state;

pub use log::MemoryLog;
pub use state::MemoryState;
