#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests run in real time
//! What the tests share: real processes, real clients, fixtures.
pub mod clients;
