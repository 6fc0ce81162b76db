//! Counts the commands of a shard that are not answered yet, and refuses beyond a bound.
//!
//! The count follows the reply port, so it comes down however a command ends: answered by the
//! journal, refused on the way, or dropped by a panic.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::ports::{CallError, ReplyTo};

pub(super) struct Admission {
    outstanding: Arc<AtomicUsize>,
    max: usize,
}

impl Admission {
    pub(super) fn new(max: usize) -> Self {
        Self {
            outstanding: Arc::default(),
            max,
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// The reply port to carry on with, or `None` when the shard holds enough already; then
    /// `reply` has been told so.
    pub(super) fn admit(&self, reply: ReplyTo) -> Option<ReplyTo> {
        // Only this thread adds, so nothing can slip in between the look and the step.
        if self.outstanding() >= self.max {
            refuse(reply, "commands of this shard");
            return None;
        }
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let outstanding = Arc::clone(&self.outstanding);
        Some(ReplyTo::new(move |result| {
            outstanding.fetch_sub(1, Ordering::Relaxed);
            reply.send(result);
        }))
    }
}

pub(super) fn refuse(reply: ReplyTo, what: &str) {
    reply.send(Err(CallError::Overloaded { what: what.to_owned() }));
}
