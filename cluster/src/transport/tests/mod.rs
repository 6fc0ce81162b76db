//! Promises of the transport, on real sockets of the loopback interface.

mod bad_input;
pub mod harness;
mod peers;
mod proxy;
mod traffic;
