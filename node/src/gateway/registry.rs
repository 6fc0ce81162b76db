//! The live connections of this node, by device: where downlinks go.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actors::id::DeviceKey;
use actors::ports::Downlink;
use cluster::api::{DownlinkSink, MethodCall, MethodReply};

use super::mailbox::{Lane, Mailbox, Stop};
use super::metrics;

const STRIPES: usize = 64;

/// A connection that is still opening its session: its generation is not known yet, so that it
/// is shown every note for its device and keeps those of its own generation.
const OPENING: u64 = 0;

struct Live {
    generation: u64,
    lane: Lane,
    mailbox: Arc<Mailbox>,
}

/// Created before the cluster, which delivers into it; filled by the gateway.
pub struct Registry {
    stripes: Vec<Mutex<HashMap<DeviceKey, Vec<Live>>>>,
    hasher: std::hash::RandomState,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: std::hash::RandomState::new(),
        }
    }
}

impl Registry {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn opening(&self, key: &DeviceKey, mailbox: &Arc<Mailbox>, lane: Lane) {
        let live = Live {
            lane,
            generation: OPENING,
            mailbox: mailbox.clone(),
        };
        self.stripe(key).entry(key.clone()).or_default().push(live);
    }

    pub(super) fn opened(&self, key: &DeviceKey, mailbox: &Arc<Mailbox>, generation: u64) {
        let mut stripe = self.stripe(key);
        let found = stripe
            .get_mut(key)
            .and_then(|all| all.iter_mut().find(|l| Arc::ptr_eq(&l.mailbox, mailbox)));
        if let Some(live) = found {
            live.generation = generation;
        }
    }

    pub(super) fn remove(&self, key: &DeviceKey, mailbox: &Arc<Mailbox>) {
        let mut stripe = self.stripe(key);
        if let Some(all) = stripe.get_mut(key) {
            all.retain(|live| !Arc::ptr_eq(&live.mailbox, mailbox));
            if all.is_empty() {
                stripe.remove(key);
            }
        }
    }

    /// Whether a connection has this session, or is opening one for the device right now.
    pub(super) fn holds(&self, key: &DeviceKey, generation: u64) -> bool {
        let stripe = self.stripe(key);
        let mut all = stripe.get(key).into_iter().flatten();
        all.any(|live| live.generation == generation || live.generation == OPENING)
    }

    pub(super) fn leader_changed(&self, mut changed: impl FnMut(&DeviceKey) -> bool) {
        for stripe in &self.stripes {
            for (key, all) in lock(stripe).iter() {
                if changed(key) {
                    all.iter().for_each(|live| live.mailbox.leader_changed(live.lane));
                }
            }
        }
    }

    pub(super) fn stop(&self, stop: Stop) {
        for stripe in &self.stripes {
            lock(stripe).values().flatten().for_each(|live| live.mailbox.stop(stop));
        }
    }

    /// Connections whose device is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stripes
            .iter()
            .map(|s| lock(s).values().map(Vec::len).sum::<usize>())
            .sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn stripe(&self, key: &DeviceKey) -> MutexGuard<'_, HashMap<DeviceKey, Vec<Live>>> {
        let at = usize::try_from(self.hasher.hash_one(key) % STRIPES as u64).expect("a small remainder");
        lock(&self.stripes[at])
    }
}

impl DownlinkSink for Registry {
    fn deliver(&self, note: Downlink) {
        let stripe = self.stripe(&note.key);
        for live in stripe.get(&note.key).into_iter().flatten() {
            let meant = live.generation == note.generation || live.generation == OPENING;
            if meant && !live.mailbox.deliver(note.clone()) {
                metrics::downlink_dropped("mailbox_full");
            }
        }
    }

    /// Only to the connection of this very session; nobody else may answer.
    fn invoke(&self, call: MethodCall, reply: MethodReply) {
        let mailbox = {
            let stripe = self.stripe(&call.key);
            let mut all = stripe.get(&call.key).into_iter().flatten();
            let live = all.find(|live| live.generation == call.generation);
            live.map(|live| live.mailbox.clone())
        };
        if let Some(mailbox) = mailbox {
            mailbox.invoke(call, reply);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds this lock; a poisoned one is as good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
