//! What happened, in numbers, and a log that a hostile peer cannot flood.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use actors::time::Clock;

use super::handshake::Refusal;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since start, each only growing.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct TransportCounters {
            $($(#[$doc])* pub $name: u64,)*
            /// Handshakes refused by this node, by reason, in the order of [`Refusal::ALL`].
            pub refused: [u64; Refusal::COUNT],
            /// Handshakes of this node that a peer refused, likewise.
            pub refused_by_peer: [u64; Refusal::COUNT],
            /// Of these, by peers that had proven themselves before: what they say counts.
            pub disowned: [u64; Refusal::COUNT],
        }

        #[derive(Default)]
        pub(super) struct Counters {
            $(pub $name: AtomicU64,)*
            pub refused: [AtomicU64; Refusal::COUNT],
            pub refused_by_peer: [AtomicU64; Refusal::COUNT],
            pub disowned: [AtomicU64; Refusal::COUNT],
        }

        impl Counters {
            pub fn snapshot(&self) -> TransportCounters {
                TransportCounters {
                    $($name: self.$name.load(Relaxed),)*
                    refused: std::array::from_fn(|i| self.refused[i].load(Relaxed)),
                    refused_by_peer: std::array::from_fn(|i| self.refused_by_peer[i].load(Relaxed)),
                    disowned: std::array::from_fn(|i| self.disowned[i].load(Relaxed)),
                }
            }
        }
    };
}

counters! {
    /// Connections whose handshake succeeded, dialed and accepted.
    connections,
    /// Connections that ended, for any reason.
    disconnections,
    /// Handshakes that did not finish in time.
    handshakes_timed_out,
    /// Handshakes that ended with the stream.
    handshakes_broken,
    /// Connections closed unread because too many were in their handshake.
    handshakes_crowded_out,
    /// Frames whose checksum failed: altered, replayed, reordered or of another connection.
    frames_bad_checksum,
    /// Frames longer than allowed.
    frames_oversized,
    /// Streams that ended inside a frame.
    frames_truncated,
    /// Frames with a good checksum whose messages make no sense.
    frames_malformed,
    frames_sent,
    frames_received,
    bytes_sent,
    bytes_received,
    messages_received,
    /// Bodies refused at sending because no frame could hold them.
    bodies_oversized,
    /// Messages refused because the queue, or the table of pending requests, was full.
    queue_refusals,
    /// Requests whose deadline passed.
    deadlines_passed,
    /// Answers to no pending request: late, or never asked for.
    answers_unknown,
    /// Requests the handler dropped without an answer, or whose answer found no room.
    answers_missing,
    /// Times an incoming connection was not read because too much of it was unanswered.
    reads_paused,
    /// Control connections closed because nothing was heard.
    silences,
}

impl TransportCounters {
    pub fn refused_for(&self, reason: Refusal) -> u64 {
        self.refused[reason.index()]
    }

    pub fn refused_by_peer_for(&self, reason: Refusal) -> u64 {
        self.refused_by_peer[reason.index()]
    }

    pub fn disowned_for(&self, reason: Refusal) -> u64 {
        self.disowned[reason.index()]
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}

/// Lets one line per topic and second through, and says how many it held back.
pub(super) struct Quiet {
    clock: Arc<dyn Clock>,
    /// Topics are few and fixed: (topic, last let through, held back since).
    topics: Mutex<Vec<(&'static str, u64, u64)>>,
}

impl Quiet {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            topics: Mutex::default(),
        }
    }

    /// `Some(held back)` when a line of this topic may be written now.
    pub fn speak(&self, topic: &'static str) -> Option<u64> {
        let now = self.clock.monotonic_ms();
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = topics.iter_mut().find(|(name, ..)| *name == topic) else {
            topics.push((topic, now, 0));
            return Some(0);
        };
        if now.saturating_sub(entry.1) < 1_000 {
            entry.2 += 1;
            return None;
        }
        entry.1 = now;
        Some(std::mem::take(&mut entry.2))
    }
}
