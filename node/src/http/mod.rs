//! The operator edge: devices, twins, telemetry and the cluster over HTTP and JSON.
//!
//! [`serve`] starts it on worker threads of its own. What it asks of the cluster goes through
//! [`port::Backend`]; what goes wrong becomes a problem document in [`problem`], and only there.

mod around;
mod auth;
mod body;
mod cluster;
pub mod config;
mod context;
mod cursor;
mod devices;
mod etag;
mod events;
mod filter;
mod ingest;
mod leases;
mod live;
mod membership;
mod messages;
mod methods;
mod node;
pub mod openapi;
pub mod port;
mod probes;
pub mod problem;
mod respond;
mod room;
mod routes;
mod server;
pub(crate) mod stamp;
mod telemetry;
mod twin;

#[cfg(test)]
pub(crate) mod tests;

pub use config::{BadHttpConfig, HttpConfig, Token};
pub use server::{serve, HttpServer};
pub(crate) use telemetry::TelemetryItem;
