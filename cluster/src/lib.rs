//! Where devices live: shards as Raft groups, one disk, one map, node-to-node transport.
//!
//! `node` sees [`Cluster`] and the plain types of [`api`]; openraft and RocksDB stay inside.

pub mod api;
pub mod config;
pub mod storage;
pub mod transport;

pub use api::Cluster;
