//! cli
pub mod bench;
pub mod demo;
mod local;
