//! What a connection holds on behalf of its session.

use std::sync::Arc;

use actors::device::CloseCause;
use actors::id::DeviceKey;

use super::closer;
use super::mailbox::Mailbox;
use super::shared::Shared;

/// What a connection holds on behalf of its session, given back however it ends: even a panic
/// leaves no ghost.
pub(super) struct SessionGuard {
    shared: Arc<Shared>,
    key: DeviceKey,
    pub(super) generation: u64,
    pub(super) mailbox: Arc<Mailbox>,
    cause: Option<CloseCause>,
    /// Of the node's budget.
    bytes: usize,
}

impl SessionGuard {
    pub(super) fn new(shared: &Arc<Shared>, key: &DeviceKey, generation: u64, mailbox: Arc<Mailbox>) -> Self {
        Self {
            shared: shared.clone(),
            key: key.clone(),
            generation,
            mailbox,
            cause: Some(CloseCause::Abrupt),
            bytes: 0,
        }
    }

    /// Takes from the node's budget; says whether there was room.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let taken = self.shared.in_flight_bytes.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    pub(super) fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.shared.in_flight_bytes.give_back(bytes);
    }

    /// How the session ends; `None` when it is no longer this connection's.
    pub(super) fn end(mut self, cause: Option<CloseCause>) {
        self.cause = cause;
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.shared.in_flight_bytes.give_back(self.bytes);
        self.shared.registry.remove(&self.key, &self.mailbox);
        if let Some(cause) = self.cause.take() {
            closer::close(&self.shared, self.key.clone(), self.generation, cause);
        }
    }
}
