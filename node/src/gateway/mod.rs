//! How devices reach us: the MQTT gateway.
//!
//! The gateway holds the socket and what is in flight; everything that outlives a connection
//! (subscriptions, expiry, will, presence) is the device's replicated state. It knows nothing of
//! Raft or disks: commands leave through [`port::Devices`], answers and downlinks come back into
//! a connection's mailbox.

mod acting;
mod alias;
mod auth;
mod children;
mod closer;
mod connect;
mod connection;
mod downlink;
pub mod gate;
mod handshake;
mod inflight;
mod limits;
mod listener;
mod mailbox;
mod messages;
mod methods;
pub mod metrics;
pub mod port;
mod proto;
mod publish;
mod reasons;
mod registry;
mod response;
mod session;
mod shared;
mod socket;
mod stream;
mod subscribe;
mod twin;
mod upgrade;
mod waiting;
mod websocket;

pub use auth::{Authenticator, Credentials, OpenOnLoopback, Verdict};
pub use gate::Gates;
pub use limits::Limits;
pub use listener::{Gateway, GatewayConfig};
pub use registry::Registry;
