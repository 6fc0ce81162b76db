//! One shard: its devices' events as a replicated log, and who serves them while it is led here.
//!
//! `apply` keeps the rows on every replica; `journal`, `store` and `runtime` serve the devices on
//! the replica that leads.

pub mod apply;
pub mod batch;
mod cache;
pub mod due;
pub mod journal;
pub mod messages;
pub mod pace;
pub mod packs;
pub mod presence;
pub mod reads;
pub mod rows;
pub mod runtime;
pub mod stages;

#[cfg(test)]
mod tests;
