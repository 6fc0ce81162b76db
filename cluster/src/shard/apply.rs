//! Applies a shard's log to its rows, the same way on every replica.

use std::io;
use std::sync::Arc;

use actors::device::{apply, DeviceState, Event, Section};
use actors::id::DeviceKey;
use bytes::Bytes;

use super::batch::{self, Item};
use super::cache::StateCache;
use super::rows::{self, Indexed};
use crate::raft::machine::{Apply, GroupShared, Position, Rows};
use crate::raft::types::Applied;
use crate::storage::keys::{KeyRange, Space};

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
    shared: Arc<GroupShared>,
    cache: StateCache,
}

impl ShardApply {
    pub fn new(shared: Arc<GroupShared>) -> Self {
        Self {
            shared,
            cache: StateCache::new(CACHED_DEVICES_MAX),
        }
    }

    fn take(&mut self, key: &DeviceKey, space: Space) -> io::Result<DeviceState> {
        match self.cache.take(key) {
            Some(state) => Ok(state),
            None => rows::load(&*self.shared.store, space, key),
        }
    }

    fn apply_item(&mut self, at: Position, item: &Item, rows: &mut Rows<'_>) -> io::Result<Fit> {
        let mut state = self.take(&item.key, rows.space)?;
        if state.quarantined || state.version != item.prev_version {
            self.cache.put(item.key.clone(), state);
            metrics::counter!("holdfast_apply_mismatch_total").increment(1);
            return Ok(Fit::Misfit);
        }
        let before = Indexed::of(&state);
        let mut fit = Fit::Fits;
        for event in &item.events {
            let first_seq = state.telemetry.first_seq;
            if let Err(reason) = apply(&mut state, event, item.at) {
                // Every replica sees the same event and the same state, and does the same.
                tracing::error!(device = %item.key, index = at.index, %reason, "device quarantined");
                metrics::counter!("holdfast_devices_quarantined_total").increment(1);
                state.quarantined = true;
                fit = Fit::Torn;
                break;
            }
            project(at, item, event, first_seq, rows);
        }
        before.update(&Indexed::of(&state), &item.key, rows);
        rows.put(rows.space.device(&item.key), rows::encode_core(&mut state));
        self.cache.put(item.key.clone(), state);
        Ok(fit)
    }
}

/// The rows an event writes besides the device's core row.
fn project(at: Position, item: &Item, event: &Event, first_seq: u64, rows: &mut Rows<'_>) {
    let (space, key) = (rows.space, &item.key);
    match event {
        Event::TelemetryRecorded(recorded) => rows.put(
            space.telemetry(key, recorded.seq),
            rows::encode_telemetry(item.at, at, recorded.will, &recorded.telemetry),
        ),
        Event::TelemetryTrimmed { before_seq, .. } => {
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

    fn written(&mut self) {
        self.cache.written();
    }

    fn replaced(&mut self, _generation: u32) -> io::Result<()> {
        self.cache.clear();
        Ok(())
    }
}
