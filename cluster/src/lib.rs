//! Where devices live: shards as Raft groups, one disk, one map, node-to-node transport.
//!
//! `node` sees [`Cluster`] and the plain types of [`api`]; openraft and RocksDB stay inside.

pub mod admin;
pub mod api;
mod asking;
mod background;
pub mod catalog;
pub mod config;
mod disk;
pub mod faults;
mod handle;
mod live;
mod methods;
mod node;
mod raft;
mod router;
mod service;
mod shard;
mod status;
pub mod storage;
#[cfg(test)]
mod testing;
pub mod transport;

pub use handle::Cluster;
pub use router::TraceSource;
