//! Drives a plan against a server: connections, intended times, and what came of each send.

pub mod sources;
