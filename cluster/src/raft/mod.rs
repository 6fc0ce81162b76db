//! One Raft group: openraft's types, storage, network and state machine, tied to ours.
//!
//! The only module that names openraft's traits. It moves opaque payloads: what a shard or the
//! catalog does with them is behind [`machine::Apply`].

mod append;
pub mod group;
pub mod log;
pub mod machine;
pub mod membership;
pub mod network;
pub mod retire;
pub mod rpc;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod types;
