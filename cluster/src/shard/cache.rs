//! The applied state of devices that were written lately: what the store does not hold yet, and
//! what need not be read back from it.

use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::io;

use actors::device::DeviceState;
use actors::id::DeviceKey;
use xxhash_rust::xxh3::Xxh3Default;

use super::packs::OpenPack;
use super::rows;
use crate::raft::machine::Rows;

/// About what a changed device holds beside its telemetry.
const CORE_BYTES: usize = 512;

/// One device in memory.
#[derive(Default)]
pub struct Held {
    pub state: DeviceState,
    pub pack: OpenPack,
    changed: bool,
}

/// Never iterated, and hashed with a fixed seed: no run differs from another by it.
#[allow(clippy::disallowed_types)]
type Map = std::collections::HashMap<DeviceKey, Box<Held>, BuildHasherDefault<Xxh3Default>>;

/// Two generations: when the young one is full it becomes the old one, and what was not used
/// since then is dropped. Changed devices are always in the young one, and are never dropped.
pub struct StateCache {
    young: Map,
    old: Map,
    half: usize,
    /// In the order in which they were changed first.
    changed: Vec<DeviceKey>,
    telemetry_bytes: usize,
}

impl StateCache {
    pub fn new(devices_max: usize) -> Self {
        Self {
            young: Map::default(),
            old: Map::default(),
            half: (devices_max / 2).max(1),
            changed: Vec::new(),
            telemetry_bytes: 0,
        }
    }

    pub fn get(&self, key: &DeviceKey) -> Option<&DeviceState> {
        let held = self.young.get(key).or_else(|| self.old.get(key))?;
        Some(&held.state)
    }

    /// The device, to be looked at or changed; `change` says whether it was.
    ///
    /// # Errors
    /// It had to be loaded, and could not.
    pub fn with<T>(
        &mut self,
        key: &DeviceKey,
        load: impl FnOnce() -> io::Result<DeviceState>,
        change: impl FnOnce(&mut Held) -> (T, bool),
    ) -> io::Result<T> {
        let held = match self.young.entry(key.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(match self.old.remove(key) {
                Some(held) => held,
                None => Box::new(Held {
                    state: load()?,
                    ..Held::default()
                }),
            }),
        };
        let before = held.pack.len_bytes();
        let (result, changed) = change(held);
        self.telemetry_bytes = (self.telemetry_bytes + held.pack.len_bytes()).saturating_sub(before);
        if changed && !held.changed {
            held.changed = true;
            self.changed.push(key.clone());
        }
        Ok(result)
    }

    pub fn held_bytes(&self) -> usize {
        self.telemetry_bytes + self.changed.len() * CORE_BYTES
    }

    /// Turns everything changed into rows. Only then may anything be forgotten, or a device would
    /// be read back as it was before.
    pub fn drain(&mut self, rows: &mut Rows<'_>) {
        for key in std::mem::take(&mut self.changed) {
            let held = self.young.get_mut(&key).expect("a changed device is young");
            rows.put(rows.space.device(&key), rows::encode_core(&mut held.state));
            held.pack.close(&key, rows);
            held.changed = false;
        }
        self.telemetry_bytes = 0;
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// Forgets what was not used since the last time, so that devices that fell silent leave memory.
    /// Not while some are changed and not yet turned into rows.
    pub fn rest(&mut self) {
        if self.changed.is_empty() {
            self.old = std::mem::take(&mut self.young);
        }
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.half * 2);
    }
}
