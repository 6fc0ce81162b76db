//! Promises of the transport, on real sockets of the loopback interface.

mod bad_input;
mod faults;
pub mod harness;
mod peers;
mod proxy;
mod traffic;
