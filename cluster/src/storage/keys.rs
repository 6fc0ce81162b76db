//! Keys of the state store. Byte order is the order of what they name.
//!
//! ```text
//! 'S' | shard u16 | generation u32 | kind u8 | …        integers big-endian
//!      'd'  tenant u32 | device id                            the core of a device
//!      'w'  tenant u32 | device id | 0 | section u8           a section of its twin
//!      't'  tenant u32 | device id | 0 | seq u64              a pack of its telemetry, up to this seq
//!      'q'  tenant u32 | device id                            the head of its message queue
//!      'm'  tenant u32 | device id | 0 | number u64           the content of a message
//!      'f'  tenant u32 | device id | 0 | seq u64              what became of a message
//!      'u'  what u8 | due_ms u64 | tenant u32 | device id     when something is due
//!      'x'  name                                              a group's own record (the catalog)
//!      'g'  node u64 | boot u64 | tenant u32 | device id      whose connection a gateway holds
//! 'M' | shard u16                                        the shard's own record
//! ```
//!
//! A device id never contains a 0 byte, so a 0 ends it and no device's range covers another's.
//! Knows nothing of the values.

use actors::id::{DeviceId, DeviceKey, Gateway, ShardId, TenantId};
use actors::time::Timestamp;

const SHARD: u8 = b'S';
const META: u8 = b'M';
const DEVICE: u8 = b'd';
const TWIN: u8 = b'w';
const TELEMETRY: u8 = b't';
const QUEUE: u8 = b'q';
const MESSAGE: u8 = b'm';
const FEEDBACK: u8 = b'f';
const DUE: u8 = b'u';
const GATEWAY: u8 = b'g';
const EXTRA: u8 = b'x';

/// `'S' | shard | generation | kind`
const PREFIX_LEN: usize = 8;
/// The part of a row's key that names shard and generation.
pub const GENERATION_PREFIX_LEN: usize = PREFIX_LEN - 1;

/// From (inclusive) and to (exclusive), as `StateView::scan` and `StateOp::DeleteRange` take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub from: Vec<u8>,
    pub to: Vec<u8>,
}

/// Key of the record that says which generation of a shard is valid, and more.
pub fn meta(shard: ShardId) -> Vec<u8> {
    let mut key = vec![META];
    key.extend_from_slice(&shard.0.to_be_bytes());
    key
}

/// Every generation of a shard, without its meta record.
pub fn all_generations(shard: ShardId) -> KeyRange {
    let prefix = [&[SHARD][..], &shard.0.to_be_bytes()].concat();
    prefixed(prefix)
}

/// The rows of one install generation of one shard: a received snapshot is written beside the
/// valid generation, then the meta record points to it, then the old one is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    pub shard: ShardId,
    pub generation: u32,
}

/// Why a device must be looked at. The numbers are the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DueKind {
    SessionExpiry = 1,
    Will = 2,
    /// The time is when the oldest telemetry row was enqueued.
    Telemetry = 3,
    /// A message expires, or a gateway is to be reminded of one.
    Messages = 4,
}

impl DueKind {
    pub const ALL: [DueKind; 4] = [
        DueKind::SessionExpiry,
        DueKind::Will,
        DueKind::Telemetry,
        DueKind::Messages,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Something that becomes due for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueRow {
    pub at: Timestamp,
    pub what: DueKind,
    pub device: DeviceKey,
}

impl Space {
    pub fn device(self, device: &DeviceKey) -> Vec<u8> {
        self.of_device(DEVICE, device)
    }

    pub fn twin(self, device: &DeviceKey, section: u8) -> Vec<u8> {
        let mut key = self.of_device(TWIN, device);
        key.extend_from_slice(&[0, section]);
        key
    }

    pub fn telemetry(self, device: &DeviceKey, seq: u64) -> Vec<u8> {
        self.numbered(TELEMETRY, device, seq)
    }

    pub fn message_queue(self, device: &DeviceKey) -> Vec<u8> {
        self.of_device(QUEUE, device)
    }

    pub fn message(self, device: &DeviceKey, row: u64) -> Vec<u8> {
        self.numbered(MESSAGE, device, row)
    }

    pub fn feedback(self, device: &DeviceKey, seq: u64) -> Vec<u8> {
        self.numbered(FEEDBACK, device, seq)
    }

    pub fn due(self, due: &DueRow) -> Vec<u8> {
        let mut key = self.prefix(DUE);
        key.push(due.what as u8);
        key.extend_from_slice(&due.at.0.to_be_bytes());
        push_device(&mut key, &due.device);
        key
    }

    /// A record of the group itself.
    pub fn extra(self, name: &[u8]) -> Vec<u8> {
        let mut key = self.prefix(EXTRA);
        key.extend_from_slice(name);
        key
    }

    pub fn gateway(self, gateway: Gateway, device: &DeviceKey) -> Vec<u8> {
        let mut key = self.of_gateway(gateway);
        push_device(&mut key, device);
        key
    }

    /// Every row of this generation.
    pub fn all(self) -> KeyRange {
        prefixed(self.before_kind())
    }

    /// The cores of every device, in the order of tenant and id.
    pub fn devices(self) -> KeyRange {
        prefixed(self.prefix(DEVICE))
    }

    /// The cores of a tenant's devices whose ids begin with `id_prefix`, in the order of their
    /// ids, after `after` if given. Empty (from at or past to) when `after` is beyond the prefix.
    pub fn devices_of(self, tenant: TenantId, after: Option<&DeviceId>, id_prefix: &str) -> KeyRange {
        let mut tenants = self.prefix(DEVICE);
        tenants.extend_from_slice(&tenant.0.to_be_bytes());
        let mut range = prefixed([&tenants[..], id_prefix.as_bytes()].concat());
        if let Some(after) = after {
            tenants.extend_from_slice(after.as_str().as_bytes());
            tenants.push(0);
            range.from = range.from.max(tenants);
        }
        range
    }

    /// Every section of a device's twin.
    pub fn twin_of(self, device: &DeviceKey) -> KeyRange {
        let mut prefix = self.of_device(TWIN, device);
        prefix.push(0);
        prefixed(prefix)
    }

    pub fn telemetry_of(self, device: &DeviceKey) -> KeyRange {
        let mut prefix = self.of_device(TELEMETRY, device);
        prefix.push(0);
        prefixed(prefix)
    }

    /// Telemetry from `seq` (inclusive) on.
    pub fn telemetry_from(self, device: &DeviceKey, seq: u64) -> KeyRange {
        KeyRange {
            from: self.telemetry(device, seq),
            to: self.telemetry_of(device).to,
        }
    }

    /// Telemetry below `seq`, to delete what was trimmed.
    pub fn telemetry_below(self, device: &DeviceKey, seq: u64) -> KeyRange {
        KeyRange {
            from: self.telemetry_of(device).from,
            to: self.telemetry(device, seq),
        }
    }

    /// The content of every message of a device.
    pub fn messages_of(self, device: &DeviceKey) -> KeyRange {
        let mut prefix = self.of_device(MESSAGE, device);
        prefix.push(0);
        prefixed(prefix)
    }

    pub fn feedback_of(self, device: &DeviceKey) -> KeyRange {
        let mut prefix = self.of_device(FEEDBACK, device);
        prefix.push(0);
        prefixed(prefix)
    }

    /// Feedback from `seq` (inclusive) on.
    pub fn feedback_from(self, device: &DeviceKey, seq: u64) -> KeyRange {
        KeyRange {
            from: self.feedback(device, seq),
            to: self.feedback_of(device).to,
        }
    }

    /// Everything of one kind due at `now` or earlier, earliest first.
    pub fn due_until(self, what: DueKind, now: Timestamp) -> KeyRange {
        let mut from = self.prefix(DUE);
        from.push(what as u8);
        let to = match now.0.checked_add(1) {
            Some(end) => [&from[..], &end.to_be_bytes()].concat(),
            None => prefixed(from.clone()).to,
        };
        KeyRange { from, to }
    }

    /// Everything due, earliest first.
    pub fn due_all(self) -> KeyRange {
        prefixed(self.prefix(DUE))
    }

    /// The devices whose connection this run of a gateway holds.
    pub fn gateway_of(self, gateway: Gateway) -> KeyRange {
        prefixed(self.of_gateway(gateway))
    }

    /// The devices connected through any run of any gateway.
    pub fn gateways(self) -> KeyRange {
        prefixed(self.prefix(GATEWAY))
    }

    fn before_kind(self) -> Vec<u8> {
        let mut key = Vec::with_capacity(160);
        key.push(SHARD);
        key.extend_from_slice(&self.shard.0.to_be_bytes());
        key.extend_from_slice(&self.generation.to_be_bytes());
        key
    }

    fn prefix(self, kind: u8) -> Vec<u8> {
        let mut key = self.before_kind();
        key.push(kind);
        key
    }

    fn of_device(self, kind: u8, device: &DeviceKey) -> Vec<u8> {
        let mut key = self.prefix(kind);
        push_device(&mut key, device);
        key
    }

    fn numbered(self, kind: u8, device: &DeviceKey, number: u64) -> Vec<u8> {
        let mut key = self.of_device(kind, device);
        key.push(0);
        key.extend_from_slice(&number.to_be_bytes());
        key
    }

    fn of_gateway(self, gateway: Gateway) -> Vec<u8> {
        let mut key = self.prefix(GATEWAY);
        key.extend_from_slice(&gateway.node.to_be_bytes());
        key.extend_from_slice(&gateway.boot.to_be_bytes());
        key
    }
}

/// The same row in another generation or shard; `None` if the key is not a shard's row. A snapshot
/// travels as the rows of one generation and is installed as those of another.
pub fn moved(key: &[u8], to: Space) -> Option<Vec<u8>> {
    let rest = (key.len() >= PREFIX_LEN && key[0] == SHARD).then(|| &key[PREFIX_LEN - 1..])?;
    let mut out = to.before_kind();
    out.extend_from_slice(rest);
    Some(out)
}

/// The device a core row belongs to; `None` if the key names something else.
pub fn parse_device(key: &[u8]) -> Option<DeviceKey> {
    take_device(after_kind(key, DEVICE)?)
}

/// `None` if the key names something else.
pub fn parse_due(key: &[u8]) -> Option<DueRow> {
    let (what, rest) = after_kind(key, DUE)?.split_first()?;
    let (at, rest) = take_u64(rest)?;
    Some(DueRow {
        at: Timestamp(at),
        what: DueKind::of(*what)?,
        device: take_device(rest)?,
    })
}

/// `None` if the key names something else.
pub fn parse_gateway(key: &[u8]) -> Option<(Gateway, DeviceKey)> {
    let (node, rest) = take_u64(after_kind(key, GATEWAY)?)?;
    let (boot, rest) = take_u64(rest)?;
    Some((Gateway { node, boot }, take_device(rest)?))
}

/// The device of a telemetry row; `None` if the key names something else.
pub fn parse_telemetry_device(key: &[u8]) -> Option<DeviceKey> {
    let rest = after_kind(key, TELEMETRY)?;
    take_device(rest.get(..rest.len().checked_sub(9)?)?)
}

/// The seq of a telemetry row; `None` if the key names something else.
pub fn parse_telemetry_seq(key: &[u8]) -> Option<u64> {
    trailing_number(after_kind(key, TELEMETRY)?)
}

/// The seq of a feedback row; `None` if the key names something else.
pub fn parse_feedback_seq(key: &[u8]) -> Option<u64> {
    trailing_number(after_kind(key, FEEDBACK)?)
}

fn trailing_number(rest: &[u8]) -> Option<u64> {
    let (_, number) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
    Some(take_u64(number)?.0)
}

fn after_kind(key: &[u8], kind: u8) -> Option<&[u8]> {
    let (prefix, rest) = key.split_at_checked(PREFIX_LEN)?;
    (prefix[0] == SHARD && prefix[PREFIX_LEN - 1] == kind).then_some(rest)
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u64::from_be_bytes(*head), rest))
}

fn take_device(bytes: &[u8]) -> Option<DeviceKey> {
    let (tenant, id) = bytes.split_first_chunk()?;
    let device = DeviceId::parse(std::str::from_utf8(id).ok()?).ok()?;
    Some(DeviceKey::new(TenantId(u32::from_be_bytes(*tenant)), device))
}

fn push_device(key: &mut Vec<u8>, device: &DeviceKey) {
    key.extend_from_slice(&device.tenant.0.to_be_bytes());
    key.extend_from_slice(device.device.as_str().as_bytes());
}

/// All keys that begin with `prefix`, which holds a byte below 255.
fn prefixed(prefix: Vec<u8>) -> KeyRange {
    let mut to = prefix.clone();
    while to.last() == Some(&u8::MAX) {
        to.pop();
    }
    *to.last_mut().expect("every prefix begins with a letter") += 1;
    KeyRange { from: prefix, to }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
