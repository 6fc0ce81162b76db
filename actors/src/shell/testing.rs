//! A journal and a store in memory, for tests of what stands on them.
//!
//! One [`Ledger`] plays both: what it commits, it serves. It commits when told to, in order, and
//! fails when told to; it has no thread and no timer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::device::{apply, DeviceState, Event};
use crate::id::{DeviceKey, ShardId};
use crate::ports::{CallError, Downlink, Journal, Reply, Store, Submission, Ticket};
use crate::time::{Clock, Timestamp};
use crate::wire::receipt::Receipt;

/// What a submission meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Committed and answered within `submit`.
    #[default]
    Immediate,
    /// Waits for [`Ledger::commit`] or [`Ledger::fail_pending`].
    Held,
}

/// Journal and store of one shard, in memory.
#[derive(Default)]
pub struct Ledger {
    mode: Cell<Mode>,
    next: Cell<u64>,
    settled: Cell<u64>,
    pending: RefCell<VecDeque<Submission>>,
    states: RefCell<BTreeMap<DeviceKey, DeviceState>>,
    /// Committed events in order, with their device.
    events: RefCell<Vec<(DeviceKey, Event)>>,
    downlinks: RefCell<Vec<Downlink>>,
    loads: Cell<u64>,
    misfits: Cell<u64>,
    broken_disk: Cell<bool>,
}

impl Ledger {
    pub fn set_mode(&self, mode: Mode) {
        self.mode.set(mode);
    }

    /// Commits and answers the oldest `count` pending submissions.
    pub fn commit(&self, count: usize) {
        for _ in 0..count {
            let Some(item) = self.pending.borrow_mut().pop_front() else {
                return;
            };
            self.commit_one(item);
        }
    }

    pub fn commit_all(&self) {
        self.commit(usize::MAX);
    }

    /// Loses all pending submissions, as a failed proposal does; their callers hear `Unknown`.
    pub fn fail_pending(&self) {
        let lost = std::mem::take(&mut *self.pending.borrow_mut());
        self.settled.set(self.next.get());
        drop(lost);
    }

    pub fn pending(&self) -> usize {
        self.pending.borrow().len()
    }

    /// The committed state.
    pub fn state(&self, key: &DeviceKey) -> DeviceState {
        self.states.borrow().get(key).cloned().unwrap_or_default()
    }

    pub fn events(&self) -> Vec<(DeviceKey, Event)> {
        self.events.borrow().clone()
    }

    /// Downlinks of committed submissions, in order.
    pub fn downlinks(&self) -> Vec<Downlink> {
        self.downlinks.borrow().clone()
    }

    /// How often a state was loaded.
    pub fn loads(&self) -> u64 {
        self.loads.get()
    }

    /// Submissions that did not fit the committed version and were not applied.
    pub fn misfits(&self) -> u64 {
        self.misfits.get()
    }

    /// Makes every load fail.
    pub fn break_disk(&self) {
        self.broken_disk.set(true);
    }

    fn commit_one(&self, item: Submission) {
        let index = self.settled.get() + 1;
        let written = !item.events.is_empty();
        if written && !self.apply_all(&item) {
            self.misfits.set(self.misfits.get() + 1);
            item.reply.send(Err(CallError::Unknown));
        } else {
            self.downlinks.borrow_mut().extend(item.downlinks);
            let receipt = written.then_some(Receipt {
                shard: ShardId(0),
                term: 1,
                index,
                seq: 0,
            });
            item.reply.send(match item.outcome {
                Ok(answer) => Ok(Reply { answer, receipt }),
                Err(refusal) => Err(CallError::Refused(refusal)),
            });
        }
        self.settled.set(index);
    }

    /// Says whether the item fitted the committed version.
    fn apply_all(&self, item: &Submission) -> bool {
        let mut states = self.states.borrow_mut();
        let state = states.entry(item.key.clone()).or_default();
        if state.version != item.prev_version {
            return false;
        }
        for event in &item.events {
            apply(state, event, item.at).expect("decided events fit the version they were decided for");
            self.events.borrow_mut().push((item.key.clone(), event.clone()));
        }
        true
    }
}

impl Journal for Ledger {
    fn submit(&self, item: Submission) -> Ticket {
        self.next.set(self.next.get() + 1);
        self.pending.borrow_mut().push_back(item);
        if self.mode.get() == Mode::Immediate {
            self.commit_all();
        }
        Ticket(self.next.get())
    }

    fn settled(&self) -> Ticket {
        Ticket(self.settled.get())
    }
}

impl Store for Ledger {
    fn load(&self, key: &DeviceKey) -> io::Result<DeviceState> {
        if self.broken_disk.get() {
            return Err(io::Error::other("the disk is broken on purpose"));
        }
        self.loads.set(self.loads.get() + 1);
        Ok(self.state(key))
    }
}

/// A clock that stands until it is moved.
#[derive(Default)]
pub struct StillClock(std::sync::atomic::AtomicU64);

impl StillClock {
    pub fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000).plus_millis(self.monotonic_ms())
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
