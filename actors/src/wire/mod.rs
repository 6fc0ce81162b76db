//! Bytes and public texts: the codec envelope, receipts, topics. Shared with the simulator.

pub mod codec;
pub mod receipt;
pub mod topic;
