//! Which active device has been idle longest.
//!
//! A message does not touch this order: it only notes its time at the device. The order is
//! corrected when it is asked, so the hot path pays nothing and the answer is still exact.

use std::collections::BTreeSet;

use crate::id::DeviceKey;

/// Every active device once, under a time not later than its last use.
#[derive(Default)]
pub(super) struct IdleOrder(BTreeSet<(u64, DeviceKey)>);

/// What [`IdleOrder::longest_idle`] found.
pub(super) enum Look {
    Idle {
        key: DeviceKey,
        used_ms: u64,
    },
    /// The device had been used since; it now stands where it belongs.
    Moved {
        key: DeviceKey,
        used_ms: u64,
    },
    Nobody,
}

impl IdleOrder {
    pub(super) fn insert(&mut self, listed_ms: u64, key: DeviceKey) {
        self.0.insert((listed_ms, key));
    }

    /// `listed_ms` as it was given to `insert`, or last reported by [`Look::Moved`].
    pub(super) fn remove(&mut self, listed_ms: u64, key: &DeviceKey) {
        self.0.remove(&(listed_ms, key.clone()));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// One step towards the longest idle device: it is taken out and returned, or put right.
    pub(super) fn longest_idle(&mut self, used_ms_of: impl FnOnce(&DeviceKey) -> u64) -> Look {
        let Some((listed_ms, key)) = self.0.pop_first() else {
            return Look::Nobody;
        };
        let used_ms = used_ms_of(&key);
        if used_ms == listed_ms {
            return Look::Idle { key, used_ms };
        }
        self.0.insert((used_ms, key.clone()));
        Look::Moved { key, used_ms }
    }
}
