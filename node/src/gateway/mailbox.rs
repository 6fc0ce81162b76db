//! What reaches a connection from other threads: answers, downlinks, orders to end.
//!
//! Costs nothing while empty. Answers are bounded by what is in flight, downlinks by `deliver`,
//! orders by their being coalesced here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use actors::ports::{CallError, CallResult, Downlink};
use cluster::api::{MessagesTaken, MethodCall, MethodError, MethodReply};
use futures::task::AtomicWaker;

/// Downlinks one mailbox holds before its connection has looked at them, beside one per child.
const DOWNLINKS_MAX: usize = 64;
/// Method calls, likewise.
const CALLS_MAX: usize = super::methods::CALLS_MAX;

/// Whose session something is about: the connection's own, or that of a child it acts for.
pub type Lane = u32;
/// The connection's own.
pub const OWN: Lane = 0;

/// The answer to one attempt of one in-flight command.
#[derive(Debug)]
pub struct Answered {
    pub lane: Lane,
    pub number: u64,
    pub attempt: u32,
    pub result: CallResult,
}

/// The answer to a question for messages.
#[derive(Debug)]
pub struct Taken {
    pub lane: Lane,
    /// Of the session that asked.
    pub generation: u64,
    pub result: Result<MessagesTaken, CallError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Answer what was received, then close: use another server.
    Draining,
    /// As above, because this process ends.
    ShuttingDown,
    /// Close now; the deadline has passed.
    Now,
}

#[derive(Debug, Default)]
pub struct Notes {
    pub answers: Vec<Answered>,
    pub downlinks: Vec<Downlink>,
    pub calls: Vec<(MethodCall, MethodReply)>,
    /// Sessions whose shard has a new leader.
    pub leader_changed: Vec<Lane>,
    /// Answers to questions for messages; each session asks one at a time.
    pub taken: Vec<Taken>,
    pub stop: Option<Stop>,
    /// Commands the gate lets through.
    pub granted: usize,
    closed: bool,
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.answers.is_empty()
            && self.downlinks.is_empty()
            && self.taken.is_empty()
            && self.calls.is_empty()
            && self.leader_changed.is_empty()
            && self.stop.is_none()
            && self.granted == 0
    }
}

#[derive(Debug, Default)]
pub struct Mailbox {
    notes: Mutex<Notes>,
    children: AtomicUsize,
    waker: AtomicWaker,
}

impl Mailbox {
    pub fn answer(&self, answered: Answered) {
        self.lock().answers.push(answered);
        self.waker.wake();
    }

    /// Says whether there was room.
    pub fn deliver(&self, downlink: Downlink) -> bool {
        let mut notes = self.lock();
        if notes.downlinks.len() >= DOWNLINKS_MAX + self.children.load(Ordering::Relaxed) {
            return false;
        }
        notes.downlinks.push(downlink);
        drop(notes);
        self.waker.wake();
        true
    }

    /// The connection's turn has come. `false`: it has ended.
    pub fn grant(&self, commands: usize) -> bool {
        let mut notes = self.lock();
        if notes.closed {
            return false;
        }
        notes.granted += commands;
        drop(notes);
        self.waker.wake();
        true
    }

    /// Takes no more grants; returns those that nobody has looked at.
    pub fn close(&self) -> usize {
        let mut notes = self.lock();
        notes.closed = true;
        std::mem::take(&mut notes.granted)
    }

    /// Refuses the call when too many are there.
    pub fn invoke(&self, call: MethodCall, reply: MethodReply) {
        let mut notes = self.lock();
        if notes.calls.len() >= CALLS_MAX {
            drop(notes);
            return reply.send(Err(MethodError::Overloaded {
                what: format!("{CALLS_MAX} method calls of this device"),
            }));
        }
        notes.calls.push((call, reply));
        drop(notes);
        self.waker.wake();
    }

    pub fn messages_taken(&self, taken: Taken) {
        self.lock().taken.push(taken);
        self.waker.wake();
    }

    pub fn leader_changed(&self, lane: Lane) {
        let mut notes = self.lock();
        if !notes.leader_changed.contains(&lane) {
            notes.leader_changed.push(lane);
        }
        drop(notes);
        self.waker.wake();
    }

    /// The most urgent order counts.
    pub fn stop(&self, stop: Stop) {
        let mut notes = self.lock();
        notes.stop = notes.stop.max(Some(stop));
        drop(notes);
        self.waker.wake();
    }

    /// How many children the connection acts for.
    pub fn set_children(&self, count: usize) {
        self.children.store(count, Ordering::Relaxed);
    }

    pub fn take(&self) -> Notes {
        std::mem::take(&mut *self.lock())
    }

    /// Remembers whom to wake; says whether something is there already.
    pub fn poll(&self, waker: &Waker) -> bool {
        self.waker.register(waker);
        !self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        // Nothing panics while it holds this lock; a poisoned one is as good.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
