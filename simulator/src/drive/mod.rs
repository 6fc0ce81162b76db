//! Drives a plan against a server: connections, intended times, and what came of each send.
//!
//! `lane` is a thread with an event loop, `device` what it drives; `worker` holds the lanes of a
//! process. Everything a device does is bounded: its window, its queue while away, its buffers.

mod acting;
pub mod clock;
mod connecting;
pub mod context;
mod device;
pub mod endpoints;
mod errors;
mod flight;
mod framing;
pub mod ingest;
mod lane;
mod packet;
pub mod preflight;
mod receiving;
mod sending;
pub mod sources;
mod subject;
pub mod tally;
mod wire;
pub mod worker;

pub use clock::Clock;
pub use context::Mode;
pub use endpoints::Endpoints;
pub use worker::{Worker, WorkerSpec};
