//! What time asks of devices that may be asleep: the leader looks into the due index and lets
//! each device decide.

use std::io;
use std::time::Duration;

use actors::device::Command;
use actors::id::DeviceKey;
use actors::time::Timestamp;

use super::rows;
use crate::raft::machine::GroupShared;
use crate::storage::keys::{self, DueKind, KeyRange};
use crate::storage::StateView;

/// Devices looked at per kind and sweep.
const SWEEP_MAX: usize = 256;
/// Telemetry rows looked at per device and sweep.
const TRIM_ROWS_MAX: usize = 10_000;

/// Commands that are due at `now`, for the devices to decide.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn sweep(
    shared: &GroupShared,
    now: Timestamp,
    telemetry_age_max: Duration,
) -> io::Result<Vec<(DeviceKey, Command)>> {
    let view = shared.store.view();
    let mut due = Vec::new();
    for key in due_before(shared, &*view, DueKind::SessionExpiry, now)? {
        due.push((key, Command::ExpireSession));
    }
    for key in due_before(shared, &*view, DueKind::Will, now)? {
        due.push((key, Command::PublishWill));
    }
    let age_ms = u64::try_from(telemetry_age_max.as_millis()).unwrap_or(u64::MAX);
    let cutoff = now.minus_millis(age_ms);
    for key in due_before(shared, &*view, DueKind::Telemetry, cutoff)? {
        if let Some(command) = trim(shared, &*view, &key, cutoff)? {
            due.push((key, command));
        }
    }
    Ok(due)
}

fn due_before(
    shared: &GroupShared,
    view: &dyn StateView,
    kind: DueKind,
    before: Timestamp,
) -> io::Result<Vec<DeviceKey>> {
    let KeyRange { from, to } = shared.space().due_until(kind, before);
    let mut found = Vec::new();
    view.scan(&from, &to, &mut |row, _| {
        found.extend(keys::parse_due(row).map(|due| due.device));
        found.len() < SWEEP_MAX
    })?;
    Ok(found)
}

/// How far a device's telemetry is older than `cutoff`.
fn trim(shared: &GroupShared, view: &dyn StateView, key: &DeviceKey, cutoff: Timestamp) -> io::Result<Option<Command>> {
    let state = rows::load(view, shared.space(), key)?;
    let first = state.telemetry.first_seq;
    let KeyRange { from, to } = shared.space().telemetry_from(key, first);
    let (mut before_seq, mut oldest_at, mut seen) = (first, None, 0);
    let mut damaged = None;
    view.scan(&from, &to, &mut |row, value| {
        let Some(seq) = keys::parse_telemetry_seq(row) else {
            return false;
        };
        match rows::decode_telemetry(shared.shard, seq, value) {
            Ok(row) if row.enqueued_at < cutoff && seen < TRIM_ROWS_MAX => {
                (before_seq, seen) = (seq + 1, seen + 1);
                true
            }
            Ok(row) => {
                oldest_at = Some(row.enqueued_at);
                false
            }
            Err(error) => {
                damaged = Some(error);
                false
            }
        }
    })?;
    if let Some(error) = damaged {
        return Err(error);
    }
    Ok((before_seq > first || oldest_at != state.telemetry.oldest_at)
        .then_some(Command::TrimTelemetry { before_seq, oldest_at }))
}
