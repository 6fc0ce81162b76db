//! Who may connect. Development only so far: everyone on loopback.

use std::net::SocketAddr;

use actors::id::{DeviceId, TenantId};

/// What a CONNECT says about the client.
#[derive(Debug)]
pub struct Credentials<'a> {
    pub peer: SocketAddr,
    pub device: &'a DeviceId,
    pub username: Option<&'a str>,
    pub password: Option<&'a [u8]>,
}

/// `Refused` only when it is certain: real SDKs take a refusal as final and stop reconnecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted(TenantId),
    /// The credentials are wrong.
    Refused,
    /// It could not be found out; the client should come back.
    Unavailable,
}

pub trait Authenticator: Send + Sync + 'static {
    fn admit(&self, credentials: &Credentials<'_>) -> Verdict;
}

/// Development: any device from this machine, with or without credentials.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOnLoopback;

impl Authenticator for OpenOnLoopback {
    fn admit(&self, credentials: &Credentials<'_>) -> Verdict {
        if credentials.peer.ip().is_loopback() {
            Verdict::Admitted(TenantId::DEFAULT)
        } else {
            Verdict::Refused
        }
    }
}
