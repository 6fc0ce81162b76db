//! Names: tenants, devices, shards, nodes. Parsing one is where a bad name is refused.

use std::fmt;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An organisation; the first component of every key. The catalog maps names to numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantId(pub u32);

impl TenantId {
    /// The tenant named `default`, which every cluster has.
    pub const DEFAULT: TenantId = TenantId(1);
}

/// Longest device id, in bytes (all allowed characters are ASCII).
pub const DEVICE_ID_LEN_MAX: usize = 128;

/// Which bytes a device id may hold.
const ALLOWED: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 128u8 {
        allowed[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._:=@,;!()'$*%";
    let mut i = 0;
    while i < others.len() {
        allowed[others[i] as usize] = true;
        i += 1;
    }
    allowed
};

/// A device's name: 1–128 characters of `A–Z a–z 0–9 - . _ : = @ , ; ! ( ) ' $ * %`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDeviceId {
    #[error("device id is empty")]
    Empty,
    #[error("device id has {0} bytes, at most {DEVICE_ID_LEN_MAX} are allowed")]
    TooLong(usize),
    #[error("device id holds {0:?}; allowed are letters, digits and - . _ : = @ , ; ! ( ) ' $ * %")]
    Character(char),
}

impl DeviceId {
    /// # Errors
    /// Says which rule the name breaks; nothing is normalised.
    pub fn parse(text: &str) -> Result<Self, BadDeviceId> {
        if text.is_empty() {
            return Err(BadDeviceId::Empty);
        }
        if text.len() > DEVICE_ID_LEN_MAX {
            return Err(BadDeviceId::TooLong(text.len()));
        }
        if text.bytes().all(|byte| ALLOWED[usize::from(byte)]) {
            return Ok(Self(text.into()));
        }
        let allowed = |c: &char| c.is_ascii() && ALLOWED[*c as usize];
        let bad = text.chars().find(|c| !allowed(c)).expect("a byte was not allowed");
        Err(BadDeviceId::Character(bad))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As a string. By hand, because it is done for every message and a `String` in between costs.
impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ParsesId)
    }
}

struct ParsesId;

impl Visitor<'_> for ParsesId {
    type Value = DeviceId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device id")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<DeviceId, E> {
        DeviceId::parse(text).map_err(E::custom)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device within its tenant: the key of everything a device owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceKey {
    pub tenant: TenantId,
    pub device: DeviceId,
}

impl DeviceKey {
    pub fn new(tenant: TenantId, device: DeviceId) -> Self {
        Self { tenant, device }
    }

    /// The shard this device lives in, for ever: the shard count of a cluster never changes.
    pub fn shard(&self, shard_count: u16) -> ShardId {
        // In one piece: the hasher that takes pieces sets up half a kilobyte first.
        let device = self.device.as_str().as_bytes();
        let mut key = [0; 4 + DEVICE_ID_LEN_MAX];
        key[..4].copy_from_slice(&self.tenant.0.to_be_bytes());
        key[4..4 + device.len()].copy_from_slice(device);
        let hash = xxhash_rust::xxh3::xxh3_64(&key[..4 + device.len()]);
        let slot = hash % u64::from(shard_count.max(1));
        ShardId(u16::try_from(slot).expect("a remainder of a u16 fits a u16"))
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant.0, self.device)
    }
}

/// A fixed set of devices. `CATALOG` is the group that knows nodes, tenants and placement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    pub const CATALOG: ShardId = ShardId(u16::MAX);
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::CATALOG {
            f.write_str("catalog")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// A member of the cluster, from 1; never reused.
pub type NodeId = u64;

/// Which run of which node holds a connection. A restarted process has another `boot`, so its
/// former connections are known to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gateway {
    pub node: NodeId,
    pub boot: u64,
}
