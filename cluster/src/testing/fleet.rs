//! Devices that decide commands against their own latest state, as a leader's actors do.

use std::collections::BTreeMap;

use actors::device::{apply, decide, Command, DeviceState, Origin, Policy, Precondition, Status, Telemetry};
use actors::id::{DeviceId, DeviceKey, TenantId};
use actors::time::Timestamp;
use bytes::Bytes;

use crate::shard::batch::{Builder, Item};

pub fn device(name: &str) -> DeviceKey {
    DeviceKey::new(TenantId::DEFAULT, DeviceId::parse(name).unwrap())
}

pub fn register() -> Command {
    Command::PutDevice {
        status: Status::Enabled,
        condition: Precondition::None,
        gateway: None,
    }
}

pub fn telemetry(body: Vec<u8>) -> Command {
    Command::RecordTelemetry {
        origin: Origin::Operator,
        telemetry: Telemetry {
            body,
            ..Telemetry::default()
        },
    }
}

#[derive(Default)]
pub struct Fleet {
    pub policy: Policy,
    pub states: BTreeMap<DeviceKey, DeviceState>,
    pub now: Timestamp,
}

impl Fleet {
    /// What the command does; `None` when it is refused or changes nothing.
    pub fn decide(&mut self, key: &DeviceKey, command: &Command) -> Option<Item> {
        let state = self.states.entry(key.clone()).or_default();
        let events = decide(key, state, command, &self.policy, self.now).ok()?;
        let prev_version = state.version;
        for event in &events {
            apply(state, event, self.now).unwrap();
        }
        (!events.is_empty()).then(|| Item {
            key: key.clone(),
            prev_version,
            at: self.now,
            events,
        })
    }

    /// One telemetry row of a device that is registered by its first.
    pub fn report(&mut self, name: &str, body: Vec<u8>) -> Bytes {
        self.now = self.now.plus_millis(1);
        let key = device(name);
        let mut items = Vec::new();
        if !self.states.contains_key(&key) {
            items.extend(self.decide(&key, &register()));
        }
        items.extend(self.decide(&key, &telemetry(body)));
        payload(&items)
    }
}

pub fn payload(items: &[Item]) -> Bytes {
    let mut builder = Builder::default();
    for item in items {
        builder.push(&item.key, item.prev_version, item.at, &item.events);
    }
    builder.take()
}
