//! The applied state of devices that were written lately, so that applying an event does not
//! read it back from the store each time.

use std::hash::BuildHasherDefault;

use actors::device::DeviceState;
use actors::id::DeviceKey;
use xxhash_rust::xxh3::Xxh3Default;

/// Never iterated, and hashed with a fixed seed: no run differs from another by it.
#[allow(clippy::disallowed_types)]
type Map = std::collections::HashMap<DeviceKey, DeviceState, BuildHasherDefault<Xxh3Default>>;

/// Two generations: when the young one is full it becomes the old one, and what was not used
/// since then is dropped. Beyond twice its half it holds only what one write changes.
pub struct StateCache {
    young: Map,
    old: Map,
    half: usize,
}

impl StateCache {
    pub fn new(devices_max: usize) -> Self {
        Self {
            young: Map::default(),
            old: Map::default(),
            half: (devices_max / 2).max(1),
        }
    }

    /// Takes a state out to be changed; put it back with [`Self::put`].
    pub fn take(&mut self, key: &DeviceKey) -> Option<DeviceState> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    pub fn put(&mut self, key: DeviceKey, state: DeviceState) {
        self.young.insert(key, state);
    }

    /// Everything put so far is in the store: only now may anything be forgotten, or a device that
    /// was changed earlier in the same write would be read back as it was before.
    pub fn written(&mut self) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
    }

    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}
