//! What time asks of devices that may be asleep: the leader looks into the due index and lets
//! each device decide.

use std::io;
use std::time::Duration;

use actors::device::Command;
use actors::id::DeviceKey;
use actors::time::Timestamp;

use super::{packs, rows};
use crate::raft::machine::GroupShared;
use crate::storage::keys::{self, DueKind, KeyRange, Space};
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
    let (space, view) = shared.pinned()?;
    let mut due = Vec::new();
    for key in due_before(space, &*view, DueKind::SessionExpiry, now)? {
        due.push((key, Command::ExpireSession));
    }
    for key in due_before(space, &*view, DueKind::Will, now)? {
        due.push((key, Command::PublishWill));
    }
    for key in due_before(space, &*view, DueKind::Messages, now)? {
        due.push((key, Command::TendMessages));
    }
    let age_ms = u64::try_from(telemetry_age_max.as_millis()).unwrap_or(u64::MAX);
    let cutoff = now.minus_millis(age_ms);
    for key in due_before(space, &*view, DueKind::Telemetry, cutoff)? {
        if let Some(command) = trim(space, &*view, &key, cutoff)? {
            due.push((key, command));
        }
    }
    Ok(due)
}

fn due_before(space: Space, view: &dyn StateView, kind: DueKind, before: Timestamp) -> io::Result<Vec<DeviceKey>> {
    let KeyRange { from, to } = space.due_until(kind, before);
    let mut found = Vec::new();
    view.scan(&from, &to, &mut |row, _| {
        found.extend(keys::parse_due(row).map(|due| due.device));
        found.len() < SWEEP_MAX
    })?;
    Ok(found)
}

/// How far a device's telemetry is older than `cutoff`.
fn trim(space: Space, view: &dyn StateView, key: &DeviceKey, cutoff: Timestamp) -> io::Result<Option<Command>> {
    let state = rows::load(view, space, key)?;
    let first = state.telemetry.first_seq;
    let (mut before_seq, mut oldest_at, mut seen) = (first, None, 0);
    packs::messages(view, space, key, first, &mut |message| {
        if message.enqueued_at < cutoff && seen < TRIM_ROWS_MAX {
            (before_seq, seen) = (message.seq + 1, seen + 1);
            return true;
        }
        oldest_at = Some(message.enqueued_at);
        false
    })?;
    Ok((before_seq > first || oldest_at != state.telemetry.oldest_at)
        .then_some(Command::TrimTelemetry { before_seq, oldest_at }))
}
