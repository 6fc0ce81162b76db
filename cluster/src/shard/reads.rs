//! Reads of a shard's rows: telemetry pages, device lists, receipts. The caller has made sure,
//! with a barrier, that the rows are as fresh as they must be.

use std::io;

use actors::device::{answer, Answer, Command, DeviceState, DeviceView, Status};
use actors::id::DeviceKey;
use actors::wire::codec;
use actors::wire::receipt::Receipt;

use super::{packs, rows};
use crate::api::{DevicePage, ListQuery, ReceiptState, TelemetryPage, TelemetryQuery};
use crate::raft::machine::GroupShared;
use crate::storage::keys::{self, KeyRange, Space};
use crate::storage::StateView;

/// Rows one request may look at when a filter passes over most of them.
const SCAN_ROWS_MAX: usize = 20_000;
/// Bytes of one page.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Rows after `query.after_seq` within its times, in order of seq.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn telemetry(shared: &GroupShared, key: &DeviceKey, query: &TelemetryQuery) -> io::Result<TelemetryPage> {
    let (space, view) = shared.pinned()?;
    let first = rows::load(&*view, space, key)?.telemetry.first_seq;
    let limit = query.limit.clamp(1, 1000) as usize;
    let mut page = TelemetryPage {
        rows: Vec::new(),
        next: None,
    };
    let (mut bytes, mut seen, mut last) = (0, 0, 0);
    let start = query.after_seq.saturating_add(1).max(first);
    packs::messages(&*view, space, key, start, &mut |row| {
        if page.rows.len() == limit || bytes > PAGE_BYTES_MAX || seen == SCAN_ROWS_MAX {
            page.next = Some(last);
            return false;
        }
        (seen, last) = (seen + 1, row.seq);
        let at = row.enqueued_at;
        if query.from.is_none_or(|from| at >= from) && query.to.is_none_or(|to| at < to) {
            bytes += row.telemetry.bytes();
            page.rows.push(row);
        }
        true
    })?;
    Ok(page)
}

/// Devices of one shard in the order of their ids; `next` is where to go on.
///
/// # Errors
/// As [`telemetry`].
pub fn devices(shared: &GroupShared, query: &ListQuery) -> io::Result<DevicePage> {
    let (space, view) = shared.pinned()?;
    let prefix = query.id_prefix.as_deref().unwrap_or_default();
    let KeyRange { from, to } = space.devices_of(query.tenant, query.after.as_ref(), prefix);
    let limit = query.limit.clamp(1, 1000) as usize;
    let mut page = DevicePage {
        devices: Vec::new(),
        next: None,
    };
    let mut seen = 0;
    let mut damaged = None;
    view.scan(&from, &to, &mut |row_key, value| {
        let Some(key) = keys::parse_device(row_key) else {
            damaged = Some(invalid("device key cannot be read"));
            return false;
        };
        if page.devices.len() == limit || seen == SCAN_ROWS_MAX {
            return false;
        }
        seen += 1;
        match codec::decode::<DeviceState>(value) {
            Ok(state) => {
                if let Some(view) = view_of(&key, &state).filter(|view| wanted(query, view)) {
                    page.devices.push(view);
                }
                page.next = Some(key.device);
                true
            }
            Err(error) => {
                damaged = Some(invalid(error));
                false
            }
        }
    })?;
    if let Some(error) = damaged {
        return Err(error);
    }
    if page.devices.len() < limit && seen < SCAN_ROWS_MAX {
        page.next = None;
    }
    Ok(page)
}

/// `None` for a deleted device.
fn view_of(key: &DeviceKey, state: &DeviceState) -> Option<DeviceView> {
    state.registration.as_ref()?;
    match answer(&key.device, state, state, &Command::ReadDevice, &[]) {
        Answer::Device(view) => Some(*view),
        _ => None,
    }
}

fn wanted(query: &ListQuery, view: &DeviceView) -> bool {
    let status = query.status.is_none_or(|status: Status| view.status == status);
    let connected = view.connection.as_ref().is_some_and(|c| c.connected);
    let gateway = query.gateway.is_none() || query.gateway == view.gateway;
    status && gateway && query.connected.is_none_or(|wanted| wanted == connected)
}

/// The evidence of a telemetry message that is still there.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn receipt_of(shared: &GroupShared, key: &DeviceKey, seq: u64) -> io::Result<Option<Receipt>> {
    // Most duplicates are of messages that were settled long ago.
    let settled = receipt_in(&*shared.store.view(), shared.space(), key, seq)?;
    if settled.is_some() {
        return Ok(settled);
    }
    let (space, view) = shared.pinned()?;
    receipt_in(&*view, space, key, seq)
}

fn receipt_in(view: &dyn StateView, space: Space, key: &DeviceKey, seq: u64) -> io::Result<Option<Receipt>> {
    let mut found = None;
    packs::messages(view, space, key, seq, &mut |row| {
        found = (row.seq == seq).then_some(row.receipt);
        false
    })?;
    Ok(found)
}

/// What became of an entry: its index is applied under the receipt's term, under another one, or
/// it is not known.
pub fn receipt_state(shared: &GroupShared, receipt: &Receipt) -> ReceiptState {
    shared.with_meta(|meta| {
        if receipt.index == 0 || receipt.term == 0 {
            return ReceiptState::Absent;
        }
        if receipt.index > meta.applied_index() {
            // Nothing of an older term can still be committed beyond what is applied.
            let current = meta.terms.last().map_or(0, |(term, _)| *term);
            return if receipt.term < current {
                ReceiptState::Absent
            } else {
                ReceiptState::Unknown
            };
        }
        match meta.term_at(receipt.index) {
            Some(term) if term == receipt.term => ReceiptState::Committed,
            Some(_) => ReceiptState::Absent,
            None => ReceiptState::Unknown,
        }
    })
}
