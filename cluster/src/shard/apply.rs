//! Applies a shard's log to its devices, the same way on every replica.

use std::io;
use std::sync::Arc;

use actors::device::{apply, DeviceState, Event, Section};
use actors::id::DeviceKey;
use bytes::Bytes;

use super::batch::{self, Item};
use super::cache::{Held, StateCache};
use super::messages;
use super::packs::{self, OpenPack};
use super::rows::{self, Indexed};
use crate::raft::machine::{Apply, GroupShared, Position, Rows, Telling};
use crate::raft::types::Applied;
use crate::storage::keys::KeyRange;
use crate::storage::StateStore;

/// Devices whose applied state one shard keeps decoded.
pub const CACHED_DEVICES_MAX: usize = 8192;

/// How an item met its device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    Fits,
    /// Another version than expected, or a quarantined device: nothing changed.
    Misfit,
    /// It did not fit half-way, and the device is quarantined now.
    Torn,
}

pub struct ShardApply {
    store: Arc<dyn StateStore>,
    cache: StateCache,
}

impl ShardApply {
    pub fn new(shared: &GroupShared) -> Self {
        Self {
            store: shared.store.clone(),
            cache: StateCache::new(CACHED_DEVICES_MAX),
        }
    }

    fn apply_item(&mut self, at: Position, item: &Item, rows: &mut Rows<'_>) -> io::Result<Fit> {
        let (store, space) = (&*self.store, rows.space);
        self.cache.with(
            &item.key,
            || rows::load(store, space, &item.key),
            |held| match change(held, at, item, rows) {
                Fit::Misfit => (Fit::Misfit, false),
                fit => (fit, true),
            },
        )
    }
}

fn change(held: &mut Held, at: Position, item: &Item, rows: &mut Rows<'_>) -> Fit {
    if held.state.quarantined || held.state.version != item.prev_version {
        metrics::counter!("holdfast_apply_mismatch_total").increment(1);
        return Fit::Misfit;
    }
    let before = Indexed::of(&held.state);
    let mut fit = Fit::Fits;
    let mut queue_changed = false;
    for event in &item.events {
        let first_seq = held.state.telemetry.first_seq;
        let effect = messages::effect(&held.state, event);
        if let Err(reason) = apply(&mut held.state, event, item.at) {
            // Every replica sees the same event and the same state, and does the same.
            tracing::error!(device = %item.key, index = at.index, %reason, "device quarantined");
            metrics::counter!("holdfast_devices_quarantined_total").increment(1);
            held.state.quarantined = true;
            fit = Fit::Torn;
            break;
        }
        project(at, item, event, first_seq, &mut held.pack, rows);
        #[cfg(feature = "planted")]
        again(at, item, event, held, rows);
        if let Some(effect) = effect {
            effect.write((item.at, at), &item.key, rows);
            queue_changed = true;
        }
    }
    if queue_changed {
        messages::write_head(&held.state, &item.key, rows);
    }
    before.update(&Indexed::of(&held.state), &item.key, rows);
    fit
}

/// The same message once more, as the next one.
#[cfg(feature = "planted")]
fn again(at: Position, item: &Item, event: &Event, held: &mut Held, rows: &mut Rows<'_>) {
    use actors::planted::{is, Planted};
    let Event::TelemetryRecorded(recorded) = event else {
        return;
    };
    if !at.index.is_multiple_of(64) || !is(Planted::ApplyTwice) {
        return;
    }
    let mut twice = recorded.clone();
    (twice.seq, twice.ordinal, twice.will) = (recorded.seq + 1, 0, false);
    let twice = Event::TelemetryRecorded(twice);
    let first_seq = held.state.telemetry.first_seq;
    if apply(&mut held.state, &twice, item.at).is_ok() {
        project(at, item, &twice, first_seq, &mut held.pack, rows);
    }
}

/// What an event writes besides the device's core row.
fn project(at: Position, item: &Item, event: &Event, first_seq: u64, pack: &mut OpenPack, rows: &mut Rows<'_>) {
    let (space, key) = (rows.space, &item.key);
    match event {
        Event::TelemetryRecorded(recorded) => {
            let place = (recorded.seq, item.at, at, recorded.will);
            pack.push(key, place, &recorded.telemetry, rows);
        }
        Event::TelemetryTrimmed { before_seq, .. } => {
            pack.forget_below(*before_seq);
            let from = space.telemetry(key, first_seq);
            rows.delete_range(KeyRange {
                from,
                to: space.telemetry(key, *before_seq),
            });
        }
        Event::TwinSectionChanged(change) => {
            rows.put(space.twin(key, change.section as u8), change.json.as_bytes().to_vec())
        }
        Event::DeviceDeleted => {
            *pack = OpenPack::default();
            rows.delete_range(space.telemetry_of(key));
            for section in Section::ALL {
                rows.delete(space.twin(key, section as u8));
            }
        }
        _ => {}
    }
}

impl Apply for ShardApply {
    fn apply(&mut self, at: Position, payload: &Bytes, rows: &mut Rows<'_>) -> io::Result<Applied> {
        let mut applied = Applied::default();
        for (position, item) in (0u32..).zip(batch::items(payload)) {
            let fit = match item {
                Ok(item) => self.apply_item(at, &item, rows)?,
                Err(error) => {
                    // Past the log's checksums, so every replica skips the same bytes.
                    tracing::error!(index = at.index, %error, "rest of a batch cannot be read");
                    Fit::Misfit
                }
            };
            match fit {
                Fit::Fits => {}
                Fit::Misfit => applied.misfits.push(position),
                Fit::Torn => applied.torn.push(position),
            }
        }
        Ok(applied)
    }

    fn held_bytes(&self) -> usize {
        self.cache.held_bytes()
    }

    fn drain(&mut self, rows: &mut Rows<'_>) {
        self.cache.drain(rows);
    }

    fn rest(&mut self) {
        self.cache.rest();
    }

    fn device(&self, key: &DeviceKey) -> Option<DeviceState> {
        self.cache.get(key).cloned()
    }

    fn telling(&self) -> Telling {
        packs::tell
    }

    fn replaced(&mut self, _generation: u32) -> io::Result<()> {
        self.cache.clear();
        Ok(())
    }
}
