//! What a subscriber wants to hear of: devices, streams, kinds.

use std::collections::BTreeSet;

use actors::id::{DeviceId, DeviceKey, ShardId, TenantId};
use cluster::api::Interest;

use super::event::Kind;

/// Devices, prefixes and streams one subscriber may name, together.
pub const NAMES_MAX: usize = 256;
/// How the default stream is called, whose name is empty.
const DEFAULT_STREAM: &str = "default";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    #[error("devices={given} is no device id and no beginning of one with * at its end: {reason}")]
    Device { given: String, reason: String },
    #[error("kinds={given} is unknown; there are {}", Kind::names())]
    Kind { given: String },
    #[error("streams={given} is no stream's name")]
    Stream { given: String },
    #[error("more than {NAMES_MAX} devices and streams are named")]
    TooMany,
}

/// An empty part lets everything through. Markers (failover, gap, missed) are always told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    tenant: TenantId,
    devices: BTreeSet<DeviceId>,
    prefixes: BTreeSet<String>,
    streams: BTreeSet<String>,
    kinds: BTreeSet<Kind>,
}

impl Filter {
    /// Everything of a tenant.
    pub fn all(tenant: TenantId) -> Self {
        Self {
            tenant,
            devices: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            streams: BTreeSet::new(),
            kinds: BTreeSet::new(),
        }
    }

    /// Adds the ids and prefixes of a comma-separated list. An id that holds commas, or ends with
    /// an asterisk, is meant by its own text as well.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn add_devices(&mut self, list: &str) -> Result<(), BadFilter> {
        for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = |reason: String| BadFilter::Device {
                given: part.to_owned(),
                reason,
            };
            match part.strip_suffix('*') {
                Some("") => drop(self.prefixes.insert(String::new())),
                Some(prefix) => {
                    DeviceId::parse(prefix).map_err(|e| bad(e.to_string()))?;
                    self.prefixes.insert(prefix.to_owned());
                }
                None => drop(
                    self.devices
                        .insert(DeviceId::parse(part).map_err(|e| bad(e.to_string()))?),
                ),
            }
        }
        if list.contains(',') {
            self.devices.extend(DeviceId::parse(list));
        }
        self.bounded()
    }

    /// Adds the names of a comma-separated list.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn add_streams(&mut self, list: &str) -> Result<(), BadFilter> {
        for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if !actors::wire::topic::is_stream_name(part) {
                return Err(BadFilter::Stream { given: part.to_owned() });
            }
            self.streams.insert(part.to_owned());
            if part == DEFAULT_STREAM {
                self.streams.insert(String::new());
            }
        }
        self.bounded()
    }

    /// # Errors
    /// Says which part is wrong.
    pub fn add_kinds(&mut self, list: &str) -> Result<(), BadFilter> {
        for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let kind = Kind::named(part).ok_or_else(|| BadFilter::Kind { given: part.to_owned() })?;
            self.kinds.insert(kind);
        }
        Ok(())
    }

    fn bounded(&self) -> Result<(), BadFilter> {
        let names = self.devices.len() + self.prefixes.len() + self.streams.len();
        (names <= NAMES_MAX).then_some(()).ok_or(BadFilter::TooMany)
    }

    pub fn wants_device(&self, key: &DeviceKey) -> bool {
        let id = key.device.as_str();
        key.tenant == self.tenant
            && (self.devices.is_empty() && self.prefixes.is_empty()
                || self.devices.contains(&key.device)
                || self.prefixes.iter().any(|prefix| id.starts_with(prefix.as_str())))
    }

    /// `stream` is there for telemetry. Who names streams wants nothing else.
    pub fn wants(&self, kind: Kind, stream: Option<&str>) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&kind))
            && (self.streams.is_empty() || stream.is_some_and(|stream| self.streams.contains(stream)))
    }

    /// The shards of the devices it names; `None`: any shard may have some.
    pub fn shards(&self, shard_of: impl Fn(&DeviceKey) -> ShardId) -> Option<BTreeSet<ShardId>> {
        if self.devices.is_empty() || !self.prefixes.is_empty() {
            return None;
        }
        let key = |device: &DeviceId| DeviceKey::new(self.tenant, device.clone());
        Some(self.devices.iter().map(|device| shard_of(&key(device))).collect())
    }

    pub fn add_to(&self, interest: &mut Interest) {
        if self.devices.is_empty() && self.prefixes.is_empty() {
            interest.add_prefix(self.tenant, String::new());
        }
        for device in &self.devices {
            interest.add_device(DeviceKey::new(self.tenant, device.clone()));
        }
        for prefix in &self.prefixes {
            interest.add_prefix(self.tenant, prefix.clone());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filter(devices: &str, streams: &str, kinds: &str) -> Result<Filter, BadFilter> {
        let mut filter = Filter::all(TenantId::DEFAULT);
        filter.add_devices(devices)?;
        filter.add_streams(streams)?;
        filter.add_kinds(kinds)?;
        Ok(filter)
    }

    fn key(id: &str) -> DeviceKey {
        DeviceKey::new(TenantId::DEFAULT, DeviceId::parse(id).unwrap())
    }

    #[test]
    fn devices_are_meant_by_id_or_beginning() {
        let wants = |list: &str, id: &str| filter(list, "", "").unwrap().wants_device(&key(id));
        assert!(wants("", "lamp-1") && wants("*", "lamp-1") && wants("lamp-1", "lamp-1"));
        assert!(wants("pump*, lamp-1", "lamp-1") && wants("pump*,lamp-1", "pump") && wants("lamp-1,pump*", "pump-7"));
        assert!(!wants("lamp-1", "lamp-12") && !wants("lamp-1", "lamp-") && !wants("pump*", "lamp-1"));
        assert!(wants("a,b", "a,b") && wants("a,b", "b") && wants("a*", "a*"));
        let foreign = DeviceKey::new(TenantId(2), DeviceId::parse("lamp-1").unwrap());
        assert!(!filter("", "", "").unwrap().wants_device(&foreign));
        for bad in ["la mp", "a/b", "a b*", "a,b/c"] {
            assert!(matches!(filter(bad, "", ""), Err(BadFilter::Device { .. })), "{bad}");
        }
    }

    #[test]
    fn kinds_and_streams_narrow() {
        let wants = |streams: &str, kinds: &str, kind, stream| filter("", streams, kinds).unwrap().wants(kind, stream);
        assert!(wants("", "", Kind::Twin, None) && wants("", "", Kind::Telemetry, Some("door")));
        assert!(wants("", "twin,telemetry", Kind::Twin, None) && !wants("", "telemetry", Kind::Twin, None));
        assert!(wants("door", "", Kind::Telemetry, Some("door")) && !wants("door", "", Kind::Telemetry, Some("")));
        assert!(!wants("door", "", Kind::Twin, None));
        assert!(
            wants("default", "", Kind::Telemetry, Some("")) && wants("default", "", Kind::Telemetry, Some("default"))
        );
        assert!(matches!(filter("", "", "telemetri"), Err(BadFilter::Kind { .. })));
        assert!(matches!(filter("", "a/b", ""), Err(BadFilter::Stream { .. })));
    }

    #[test]
    fn names_are_bounded() {
        let list = |count: usize| (0..count).map(|n| format!("d{n}")).collect::<Vec<_>>().join(",");
        // The list itself is too long for an id.
        assert!(filter(&list(NAMES_MAX), "", "").is_ok());
        assert_eq!(filter(&list(NAMES_MAX + 1), "", ""), Err(BadFilter::TooMany));
    }

    #[test]
    fn shards_are_known_when_every_device_is_named() {
        let shards = |list: &str| filter(list, "", "").unwrap().shards(|key| key.shard(16));
        assert_eq!(shards("lamp-1"), Some(BTreeSet::from([key("lamp-1").shard(16)])));
        assert_eq!(shards(""), None);
        assert_eq!(shards("lamp-1,pump*"), None);
    }
}
