//! Commands on their way, in the order they came: ordinals, go-back-N, answers in order.
//!
//! Pure: no socket, no clock, no task. A command with an ordinal is sent again, with the same
//! ordinal, until there is an answer to it: the device accepts the next ordinal, acknowledges
//! older ones again and refuses later ones, so that sending again is safe even when the outcome of
//! the first attempt is unknown. Reads carry no ordinal; they are sent again with what precedes
//! them, so that a client reads its own writes.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use actors::device::{Command, Fence, Refusal, Subscription};
use actors::ports::{CallError, CallResult};
use rmqtt_codec::v5::{PublishAckReason, SubscribeAckReason};

use super::acting::{Gather, Part};
use super::reasons::{self, End};
use super::response::ResponseTo;

/// What to tell the client once the answer is there.
#[derive(Debug)]
pub enum After {
    /// In a child's lane: what comes of it is told under this number of the connection.
    Elsewhere {
        number: u64,
    },
    /// A SUBACK or UNSUBACK of filters of several devices.
    Gather(Box<Gather>),
    Part(Box<Part>),
    /// The own session shall remember which children have subscriptions.
    Mark(Vec<Subscription>),
    /// The own session need not remember this child's mark any more.
    Unmark(String),
    /// A QoS 0 publish.
    Nothing,
    PubAck {
        packet_id: NonZeroU16,
    },
    SubAck {
        packet_id: NonZeroU16,
        /// One per filter; the granted ones are taken back if the device refuses.
        status: Vec<SubscribeAckReason>,
        granted: Vec<Subscription>,
    },
    UnsubAck {
        packet_id: NonZeroU16,
        /// One per filter; `None` is not a filter this device could have.
        filters: Vec<Option<String>>,
    },
    TwinRead {
        to: ResponseTo,
        /// Bytes set aside for the answer.
        promised: usize,
        /// Set where the request is acknowledged only now.
        packet_id: Option<NonZeroU16>,
    },
    TwinReported {
        to: ResponseTo,
        packet_id: Option<NonZeroU16>,
    },
}

impl After {
    fn publish_id(&self) -> Option<NonZeroU16> {
        match self {
            After::PubAck { packet_id } => Some(*packet_id),
            After::TwinReported { packet_id, .. } | After::TwinRead { packet_id, .. } => *packet_id,
            _ => None,
        }
    }
}

/// What came of an entry.
#[derive(Debug)]
pub enum Outcome {
    /// Decided here, without asking the device.
    Local(PublishAckReason),
    /// A twin request that was refused here: status and why.
    LocalTwin(u16, String),
    /// `Ok`, or a refusal of a read.
    Device(CallResult),
}

#[derive(Debug)]
enum State {
    Waiting,
    /// Sent at this time, and not answered.
    Submitted(Instant),
    Done(Outcome),
}

#[derive(Debug)]
struct Entry {
    /// `None` for what is decided here.
    command: Option<Command>,
    /// 0 for reads.
    ordinal: u64,
    state: State,
    after: After,
    /// Tells a repeated publish from another one with the same packet id.
    digest: u64,
    bytes: usize,
    since: Instant,
}

/// An entry whose turn has come.
#[derive(Debug)]
pub struct Finished {
    pub after: After,
    pub outcome: Outcome,
    pub since: Instant,
    /// To be given back to the node's budget.
    pub bytes: usize,
}

/// A command to submit now.
#[derive(Debug)]
pub struct Due {
    pub number: u64,
    pub attempt: u32,
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    pub min: Duration,
    pub max: Duration,
}

/// What was sent until then may have gone to a leader that answers nobody.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    sent_until: Instant,
    due: Instant,
}

/// How long a former leader may still answer: longer than a commit usually takes.
const FORMER_LEADER_GRACE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct InFlight {
    generation: u64,
    entries: VecDeque<Entry>,
    unacknowledged: usize,
    /// Number of the front entry; numbers are never reused.
    first: u64,
    next_ordinal: u64,
    /// Raised by going back; answers to earlier attempts are ignored.
    attempt: u32,
    /// Entries before this offset were submitted in this attempt.
    cursor: usize,
    resend_at: Option<Instant>,
    pause: Pause,
    next_pause: Duration,
    overloaded: bool,
    /// After going back, one command goes ahead of the others: what cannot be carried out yet is
    /// not sent a windowful at a time.
    probing: bool,
    suspicion: Option<Suspicion>,
    /// Number of the last entry that was ever submitted.
    sent: u64,
}

impl InFlight {
    pub fn new(generation: u64, pause: Pause) -> Self {
        Self {
            generation,
            entries: VecDeque::new(),
            unacknowledged: 0,
            first: 1,
            next_ordinal: 1,
            attempt: 1,
            cursor: 0,
            resend_at: None,
            pause,
            next_pause: pause.min,
            overloaded: false,
            probing: false,
            suspicion: None,
            sent: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// QoS 1 publishes without PUBACK.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// The digest of the publish that holds this packet id.
    pub fn publish_with(&self, packet_id: NonZeroU16) -> Option<u64> {
        self.entries
            .iter()
            .find(|e| e.after.publish_id() == Some(packet_id))
            .map(|e| e.digest)
    }

    /// Takes a command of the session; it gets the next ordinal.
    pub fn push(
        &mut self,
        after: After,
        digest: u64,
        bytes: usize,
        now: Instant,
        command: impl FnOnce(Fence) -> Command,
    ) {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        let fence = Fence {
            generation: self.generation,
            ordinal,
        };
        self.append(Entry {
            command: Some(command(fence)),
            ordinal,
            state: State::Waiting,
            after,
            digest,
            bytes,
            since: now,
        });
    }

    /// Takes a read: no ordinal.
    pub fn push_read(&mut self, after: After, command: Command, now: Instant) {
        self.append(Entry {
            command: Some(command),
            ordinal: 0,
            state: State::Waiting,
            after,
            digest: 0,
            bytes: 0,
            since: now,
        });
    }

    /// Takes an answer that only waits for its turn.
    pub fn push_local(&mut self, after: After, outcome: Outcome, now: Instant) {
        self.append(Entry {
            command: None,
            ordinal: 0,
            state: State::Done(outcome),
            after,
            digest: 0,
            bytes: 0,
            since: now,
        });
    }

    fn append(&mut self, entry: Entry) {
        self.unacknowledged += usize::from(entry.after.publish_id().is_some());
        self.entries.push_back(entry);
    }

    /// The next command to submit, if any may be submitted now.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        self.act_on_suspicion(now);
        if self.resend_at.is_some_and(|at| now < at) {
            return None;
        }
        self.resend_at = None;
        if self.probing && self.entries.iter().any(|e| matches!(e.state, State::Submitted(_))) {
            return None;
        }
        while let Some(entry) = self.entries.get_mut(self.cursor) {
            let number = self.first + self.cursor as u64;
            self.cursor += 1;
            if !matches!(entry.state, State::Waiting) {
                continue;
            }
            let Some(command) = entry.command.clone() else {
                continue;
            };
            entry.state = State::Submitted(now);
            self.sent = self.sent.max(number);
            return Some(Due {
                number,
                attempt: self.attempt,
                command,
            });
        }
        None
    }

    /// Takes the answer to one attempt.
    ///
    /// # Errors
    /// The connection has to end.
    pub fn answered(&mut self, number: u64, attempt: u32, result: CallResult, now: Instant) -> Result<(), End> {
        let Some(offset) = number.checked_sub(self.first).and_then(|o| usize::try_from(o).ok()) else {
            return Ok(());
        };
        if attempt != self.attempt || offset >= self.entries.len() {
            return Ok(());
        }
        let error = match result {
            Ok(_) => {
                self.probing = false;
                self.entries[offset].state = State::Done(Outcome::Device(result));
                return Ok(());
            }
            Err(error) => error,
        };
        let ordinal = self.entries[offset].ordinal;
        match &error {
            CallError::Refused(Refusal::OrdinalGap { expected, .. }) if ordinal != 0 => {
                let from = self.entries.iter().position(|e| e.ordinal == *expected);
                // The device lacks what it once acknowledged, or something not sent yet.
                let from = from.filter(|from| *from <= offset).ok_or(End::Broken("ordinal_lost"))?;
                self.go_back(from, &error, now);
                Ok(())
            }
            CallError::Refused(refusal) => {
                if let Some(end) = reasons::ends_session(refusal) {
                    return Err(end);
                }
                if ordinal != 0 {
                    // Its ordinal was not consumed, so that all later ones would be gaps.
                    return Err(End::Broken("refused_without_ordinal"));
                }
                self.probing = false;
                self.entries[offset].state = State::Done(Outcome::Device(Err(error)));
                Ok(())
            }
            CallError::NotLeader { .. } | CallError::Overloaded { .. } | CallError::Unknown => {
                self.go_back(offset, &error, now);
                Ok(())
            }
        }
    }

    /// The shard has a new leader: what waits may go at once. What was sent to the former one and
    /// stays unanswered is sent again shortly: it may be stopped rather than dead, and answer
    /// nobody.
    pub fn leader_changed(&mut self, now: Instant) {
        self.resend_at = None;
        self.suspicion = Some(Suspicion {
            sent_until: now,
            due: now + FORMER_LEADER_GRACE,
        });
    }

    fn act_on_suspicion(&mut self, now: Instant) {
        let Some(suspicion) = self.suspicion.filter(|s| s.due <= now) else {
            return;
        };
        self.suspicion = None;
        let stuck = |e: &Entry| matches!(e.state, State::Submitted(at) if at <= suspicion.sent_until);
        if let Some(from) = self.entries.iter().position(stuck) {
            self.go_back(from, &CallError::Unknown, now);
            self.resend_at = None;
        }
    }

    fn go_back(&mut self, from: usize, error: &CallError, now: Instant) {
        super::metrics::resend(reasons::retry_label(error));
        self.overloaded = matches!(error, CallError::Overloaded { .. });
        self.attempt = self.attempt.wrapping_add(1);
        self.probing = true;
        for (offset, entry) in self.entries.iter_mut().enumerate() {
            if offset == from || matches!(entry.state, State::Submitted(_)) {
                entry.state = State::Waiting;
            }
        }
        let waiting = self.entries.iter().position(|e| matches!(e.state, State::Waiting));
        self.cursor = waiting.unwrap_or(self.entries.len());
        // A read that overtook a lost write did not see it.
        let later = self.entries.iter_mut().skip(self.cursor);
        for read in later.filter(|e| e.ordinal == 0 && e.command.is_some()) {
            read.state = State::Waiting;
        }
        self.resend_at = Some(now + self.next_pause);
        self.next_pause = (self.next_pause * 2).min(self.pause.max);
    }

    pub fn has_finished(&self) -> bool {
        self.entries.front().is_some_and(|e| matches!(e.state, State::Done(_)))
    }

    /// The front entry, once it is answered.
    pub fn pop_finished(&mut self) -> Option<Finished> {
        if !self.has_finished() {
            return None;
        }
        let entry = self.entries.pop_front()?;
        self.unacknowledged -= usize::from(entry.after.publish_id().is_some());
        self.first += 1;
        self.cursor = self.cursor.saturating_sub(1);
        if entry.command.is_some() {
            self.next_pause = self.pause.min;
        }
        let State::Done(outcome) = entry.state else {
            return None;
        };
        Some(Finished {
            after: entry.after,
            outcome,
            since: entry.since,
            bytes: entry.bytes,
        })
    }

    /// When to send again.
    pub fn resend_at(&self) -> Option<Instant> {
        let suspected = self.suspicion.map(|s| s.due);
        [self.resend_at, suspected].into_iter().flatten().min()
    }

    /// Since when the oldest entry waits for its answer.
    pub fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|e| e.since)
    }

    /// What to say when the oldest has waited too long.
    pub fn unanswered(&self) -> End {
        End::Unanswered {
            overloaded: self.overloaded,
        }
    }
}

mod elsewhere;
#[cfg(test)]
mod tests;
