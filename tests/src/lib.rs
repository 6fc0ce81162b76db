#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests run in real time
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on ends
//! What the tests share: real processes, real clients, fixtures.

// Other people's clients.
pub mod clients;

// Faults: clusters of real processes, what breaks them, and who judges.
pub mod courier;
pub mod harness;
pub mod powercut;
pub mod register;
pub mod sim;
pub mod workload;
