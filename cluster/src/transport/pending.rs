//! Requests of one connection that wait for their answer, findable by correlation and by deadline.
//!
//! A correlation is `number << 16 | slot`: the slot finds the entry at once, the ever growing
//! number tells it from those that used the slot before. No clock and no lock here.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::config::PENDING_MAX;
use super::SendError;

/// Told the outcome of a request, once.
pub type Done = Box<dyn FnOnce(Result<Bytes, SendError>) + Send>;

const SLOT_BITS: u32 = 16;

struct Entry {
    correlation: u64,
    deadline_ms: u64,
    done: Done,
}

#[derive(Default)]
pub struct Pending {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    by_deadline: BTreeSet<(u64, u64)>,
    last_number: u64,
}

/// The number of a request within its connection's life, from 1.
pub fn number_of(correlation: u64) -> u64 {
    correlation >> SLOT_BITS
}

impl Pending {
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= PENDING_MAX
    }

    /// The number of the newest request, 0 before the first.
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Returns the request's correlation. The caller has checked that there is room.
    pub fn insert(&mut self, deadline_ms: u64, done: Done) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.last_number += 1;
        let correlation = self.last_number << SLOT_BITS | slot as u64;
        self.slots[slot] = Some(Entry {
            correlation,
            deadline_ms,
            done,
        });
        self.by_deadline.insert((deadline_ms, correlation));
        correlation
    }

    /// The request that is answered by this; `None` when it is over, or never was.
    pub fn take(&mut self, correlation: u64) -> Option<Done> {
        let slot = (correlation & ((1 << SLOT_BITS) - 1)) as usize;
        let place = self.slots.get_mut(slot)?;
        if place.as_ref()?.correlation != correlation {
            return None;
        }
        let entry = place.take()?;
        self.free.push(slot);
        self.by_deadline.remove(&(entry.deadline_ms, correlation));
        Some(entry.done)
    }

    /// When the next request expires, if any waits.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.by_deadline.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Takes out all whose deadline is not after `now_ms`.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Done> {
        let mut expired = Vec::new();
        while let Some(&(deadline_ms, correlation)) = self.by_deadline.first() {
            if deadline_ms > now_ms {
                break;
            }
            expired.extend(self.take(correlation));
        }
        expired
    }

    /// Takes out all, oldest first, with their numbers.
    pub fn drain(&mut self) -> Vec<(u64, Done)> {
        self.free.clear();
        self.by_deadline.clear();
        let mut all: Vec<_> = self
            .slots
            .drain(..)
            .flatten()
            .map(|entry| (number_of(entry.correlation), entry.done))
            .collect();
        all.sort_by_key(|(number, _)| *number);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;

    use super::*;

    fn done(calls: &Arc<AtomicUsize>) -> Done {
        let calls = calls.clone();
        Box::new(move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        })
    }

    #[test]
    fn a_correlation_is_never_reused_though_its_slot_is() {
        let calls = Arc::default();
        let mut pending = Pending::default();
        let first = pending.insert(10, done(&calls));
        assert!(pending.take(first).is_some());
        let second = pending.insert(10, done(&calls));
        assert_ne!(first, second);
        assert!(
            pending.take(first).is_none(),
            "a late answer must not complete a newer request"
        );
        assert!(pending.take(second).is_some());
        assert!(pending.take(u64::MAX).is_none());
    }

    #[test]
    fn only_passed_deadlines_expire() {
        let calls = Arc::default();
        let mut pending = Pending::default();
        let late = pending.insert(20, done(&calls));
        pending.insert(10, done(&calls));
        assert_eq!(pending.next_deadline_ms(), Some(10));
        assert_eq!(pending.expire(10).len(), 1);
        assert_eq!(pending.next_deadline_ms(), Some(20));
        assert!(pending.take(late).is_some());
        assert_eq!(pending.next_deadline_ms(), None);
    }

    #[test]
    fn the_table_is_bounded_and_drains_oldest_first() {
        let calls = Arc::default();
        let mut pending = Pending::default();
        while !pending.is_full() {
            pending.insert(1, done(&calls));
        }
        let numbers: Vec<u64> = pending.drain().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers.len(), PENDING_MAX);
        assert!(numbers.is_sorted());
        assert!(!pending.is_full());
    }
}
