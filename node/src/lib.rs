//! How the world reaches the devices: gateways, the operator API, configuration, the CLI.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // sockets live in real time

pub mod cli;
pub mod config;
pub mod gateway;
pub mod http;
mod live;
pub mod observe;
pub mod serve;
