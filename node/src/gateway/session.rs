//! What a connection holds on behalf of its session.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::device::CloseCause;
use actors::id::{DeviceKey, ShardId};

use super::closer;
use super::gate::Gate;
use super::mailbox::Mailbox;
use super::shared::Shared;

/// What every connection may buffer, however many there are.
const SHARE_MIN: usize = 20 * 1024;

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
    /// Bytes in this connection's own buffers.
    buffered: usize,
    /// Bytes of answers on their way to it, for which there is room.
    promised: usize,
    shard: ShardId,
    /// Commands that went through the gate and are not answered.
    inside: usize,
    /// Commands that may still go through in this turn.
    granted: usize,
    queued: bool,
    /// Answered in this turn: how many, and their latency all together.
    answered: (usize, Duration),
    /// The connection is another device's, and goes on without this session.
    is_child: bool,
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
            buffered: 0,
            promised: 0,
            shard: shared.devices.shard_of(key),
            inside: 0,
            granted: 0,
            queued: false,
            answered: (0, Duration::ZERO),
            is_child: false,
        }
    }

    /// The session is that of a child, over the connection of its gateway.
    pub(super) fn of_child(mut self) -> Self {
        self.is_child = true;
        self
    }

    /// Notes what the connection's buffers hold. `false`: all of the node's hold too much, and this
    /// one more than its share.
    pub(super) fn buffer(&mut self, bytes: usize) -> bool {
        if bytes == self.buffered {
            return true;
        }
        let shared = &self.shared;
        let before = match bytes.checked_sub(self.buffered) {
            Some(more) => shared.buffered.fetch_add(more, Ordering::Relaxed),
            None => shared.buffered.fetch_sub(self.buffered - bytes, Ordering::Relaxed),
        };
        let grew = bytes > self.buffered;
        self.buffered = bytes;
        !(grew && before > self.shared.limits.buffer_bytes_max && self.exceeds_share())
    }

    fn exceeds_share(&self) -> bool {
        let share = self.shared.limits.buffer_bytes_max / self.shared.connections.used().max(1);
        self.buffered > share.max(SHARE_MIN)
    }

    /// Whether room is short, and this connection takes more of it than its share.
    pub(super) fn is_in_the_way(&self) -> bool {
        let max = self.shared.limits.buffer_bytes_max;
        self.shared.buffered.load(Ordering::Relaxed) > max - max / 8 && self.exceeds_share()
    }

    /// Sets room aside for an answer, out of what the connections may buffer; says whether there
    /// was enough.
    pub(super) fn promise(&mut self, bytes: usize) -> bool {
        let max = self.shared.limits.buffer_bytes_max;
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        let buffered = &self.shared.buffered;
        let there = buffered
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok();
        self.promised += if there { bytes } else { 0 };
        there
    }

    /// An answer is here, or will not come: undoes [`Self::promise`].
    pub(super) fn keep_promise(&mut self, bytes: usize) {
        self.promised -= bytes;
        self.shared.buffered.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of answers on their way.
    pub(super) fn promised(&self) -> usize {
        self.promised
    }

    pub(super) fn gate(&self) -> &Gate {
        self.shared.gates.of(self.shard)
    }

    /// Takes a place at the gate and bytes of the node's budget for a command.
    pub(super) fn take(&mut self, bytes: usize) -> Room {
        if self.granted > 0 {
            self.granted -= 1;
        } else if !self.gate().enter() {
            return Room::Queue;
        }
        if !self.shared.in_flight_bytes.take(bytes) {
            self.gate().leave(1);
            return Room::None;
        }
        self.inside += 1;
        self.bytes += bytes;
        Room::Taken
    }

    /// The answer to a command that took its place and bytes has come.
    pub(super) fn give_back(&mut self, bytes: usize, latency: Duration) {
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        self.shared.in_flight_bytes.give_back(bytes);
        self.inside -= 1;
        self.answered.0 += 1;
        self.answered.1 += latency;
    }

    /// Takes from the node's budget for something on its way down; says whether there was room.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        let held = self.shared.in_flight_bytes.take(bytes);
        if held {
            self.bytes += bytes;
        }
        held
    }

    /// As [`Self::hold`], for something that may turn out smaller. No single one takes more than
    /// half of the budget, or it might never get it; says how much it took.
    pub(super) fn hold_up_to(&mut self, bytes: usize) -> Option<usize> {
        let bytes = bytes.min(self.shared.in_flight_bytes.max() / 2);
        self.hold(bytes).then_some(bytes)
    }

    /// Undoes [`Self::hold`].
    pub(super) fn let_go(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.shared.in_flight_bytes.give_back(bytes);
    }

    /// Stands in the gate's queue from now on, if it does not yet.
    pub(super) fn queue(&mut self) {
        if !self.queued {
            self.queued = true;
            self.gate().wait(self.mailbox.clone());
        }
    }

    pub(super) fn is_queued(&self) -> bool {
        self.queued
    }

    pub(super) fn granted(&mut self, commands: usize) {
        if commands > 0 {
            self.queued = false;
            self.granted += commands;
        }
    }

    /// The turn ends: the gate learns what was answered, and gets back what was not used.
    pub(super) fn settle(&mut self, now: Instant) {
        let (commands, latency) = std::mem::take(&mut self.answered);
        if commands > 0 {
            self.gate().answered(commands, latency, now);
        }
        let unused = std::mem::take(&mut self.granted);
        if unused > 0 {
            self.gate().leave(unused);
        }
    }

    /// How the session ends; `None` when it is no longer this connection's.
    pub(super) fn end(mut self, cause: Option<CloseCause>) {
        self.cause = cause;
    }
}

/// Whether a command may be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Taken,
    /// The shard has enough on its way; wait for a turn.
    Queue,
    /// The node holds as many bytes as it may.
    None,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.shared.in_flight_bytes.give_back(self.bytes);
        self.shared
            .buffered
            .fetch_sub(self.buffered + self.promised, Ordering::Relaxed);
        // A child's session may end while its gateway's connection goes on.
        let unseen = if self.is_child { 0 } else { self.mailbox.close() };
        let left = self.inside + self.answered.0 + self.granted + unseen;
        if left > 0 {
            self.gate().leave(left);
        }
        self.shared.registry.remove(&self.key, &self.mailbox);
        if let Some(cause) = self.cause.take() {
            closer::close(&self.shared, self.key.clone(), self.generation, cause);
        }
    }
}
