//! Fleets: who is in them, how they speak, and whether they are too many in all.

use std::collections::BTreeSet;

use actors::id::DeviceId;

use super::Check;
use crate::plan::names;
use crate::profiles::{self, Profile};
use crate::scenario::limits::{DEVICES_MAX, OFFLINE_QUEUE_MAX, PAYLOAD_BYTES_MAX, RATE_MAX, WINDOW_MAX};
use crate::scenario::{Fleet, Protocol, Scenario, TargetKind};

impl Check {
    pub fn fleets(&mut self, scenario: &Scenario) {
        let (mut names, mut devices, mut rate) = (BTreeSet::new(), 0u64, 0.0);
        let shipped = profiles::shipped();
        for (at, fleet) in scenario.fleet.iter().enumerate() {
            let key = format!("fleet[{at}]");
            if !names.insert(fleet.name.as_str()) {
                self.refuse(format!("{key}.name"), format!("{:?} is taken", fleet.name));
            }
            if fleet.name.is_empty() || fleet.name.len() > 64 {
                self.refuse(format!("{key}.name"), "is empty or longer than 64 bytes");
            }
            let profile = scenario
                .profile
                .get(&fleet.profile)
                .or_else(|| shipped.get(&fleet.profile));
            let Some(profile) = profile else {
                let known: Vec<&str> = scenario
                    .profile
                    .keys()
                    .map(String::as_str)
                    .chain(profiles::NAMES)
                    .collect();
                let reason = format!("{:?} is no profile; there are {}", fleet.profile, known.join(", "));
                self.refuse(format!("{key}.profile"), reason);
                continue;
            };
            let children = profile.gateway.as_ref().map_or(0, |gateway| gateway.children);
            devices += u64::from(fleet.count) * (1 + u64::from(children));
            if devices > DEVICES_MAX || fleet.count == 0 {
                let reason = format!("makes {devices} devices in all, allowed is 1..={DEVICES_MAX}");
                self.refuse(format!("{key}.count"), reason);
                devices = devices.min(DEVICES_MAX);
            }
            self.fleet(&key, fleet, profile, scenario);
            rate += fleet_rate(fleet, profile) * scenario.compression;
            if rate > RATE_MAX {
                let reason = format!("makes {rate:.0} messages a second in all, allowed is up to {RATE_MAX}");
                self.refuse(format!("{key}.rate"), reason);
                rate = 0.0;
            }
        }
    }

    fn fleet(&mut self, key: &str, fleet: &Fleet, profile: &Profile, scenario: &Scenario) {
        self.identity(key, fleet);
        if let Some(rate) = fleet.rate {
            if rate <= 0.0 || !rate.is_finite() {
                self.refuse(format!("{key}.rate"), format!("is {rate}, has to be above 0"));
            }
            if fleet.interval.is_some() {
                self.refuse(format!("{key}.rate"), "and interval exclude one another");
            }
        }
        if let Some(interval) = fleet.interval {
            self.range(format!("{key}.interval"), interval.as_secs_f64(), 0.0001, 31_536_000.0);
        }
        let qos = fleet.qos.unwrap_or(0);
        self.range(format!("{key}.qos"), f64::from(qos), 0.0, 1.0);
        self.range(
            format!("{key}.window"),
            f64::from(fleet.window),
            1.0,
            f64::from(WINDOW_MAX),
        );
        let payload = fleet.payload_bytes.unwrap_or(0);
        self.range(
            format!("{key}.payload_bytes"),
            f64::from(payload),
            0.0,
            f64::from(PAYLOAD_BYTES_MAX),
        );
        let queue = fleet.offline_queue.unwrap_or(0);
        self.range(
            format!("{key}.offline_queue"),
            f64::from(queue),
            0.0,
            f64::from(OFFLINE_QUEUE_MAX),
        );
        self.range(
            format!("{key}.keep_alive"),
            fleet.keep_alive.as_secs_f64(),
            2.0,
            65_535.0,
        );
        self.range(
            format!("{key}.session_expiry"),
            fleet.session_expiry.as_secs_f64(),
            0.0,
            4e9,
        );
        if let Some(replay) = &fleet.replay {
            self.range(format!("{key}.replay.speed"), replay.speed, 0.001, 100_000.0);
        }
        self.protocols(key, fleet, profile, scenario);
    }

    fn identity(&mut self, key: &str, fleet: &Fleet) {
        let pattern = names::pattern(fleet);
        let last = fleet.first.saturating_add(fleet.count.saturating_sub(1));
        if !pattern.contains("${n") {
            self.refuse(
                format!("{key}.id"),
                "does not name ${n}, so that all devices would have one id",
            );
            return;
        }
        for number in [fleet.first, last] {
            // Room for the suffix of a gateway's children.
            let id = names::device(fleet, number) + "-c1000";
            if let Err(error) = DeviceId::parse(&id) {
                self.refuse(format!("{key}.id"), format!("{id:?} is no device id: {error}"));
                return;
            }
        }
    }

    fn protocols(&mut self, key: &str, fleet: &Fleet, profile: &Profile, scenario: &Scenario) {
        let key = format!("{key}.protocols");
        if fleet.protocols.values().all(|weight| *weight == 0) {
            self.refuse(key.clone(), "has no weight above 0");
        }
        let has = |protocol| fleet.protocols.get(&protocol).is_some_and(|weight| *weight > 0);
        if has(Protocol::Http) {
            if scenario.target.kind == TargetKind::Mqtt {
                self.refuse(
                    format!("{key}.http"),
                    "needs a Holdfast; a plain broker has no HTTP ingest",
                );
            }
            let needs_mqtt = profile.gateway.is_some() || profile.twin.is_some() || profile.methods.is_some();
            if needs_mqtt || profile.firmware.is_some() || profile.misbehave.is_some() {
                let reason = format!(
                    "profile {:?} needs a connection that the server can talk on",
                    fleet.profile
                );
                self.refuse(format!("{key}.http"), reason);
            }
        }
        for at in &fleet.endpoints {
            if *at >= 1_000 {
                self.refuse(
                    key.replace("protocols", "endpoints"),
                    format!("{at} is no place in a list of endpoints"),
                );
            }
        }
    }
}

/// Messages a second of scenario time at factor 1.
pub fn fleet_rate(fleet: &Fleet, profile: &Profile) -> f64 {
    if let Some(rate) = fleet.rate {
        return rate;
    }
    let subjects = f64::from(fleet.count) * f64::from(profile.gateway.as_ref().map_or(1, |gateway| gateway.children));
    let per_second = |interval: f64| if interval > 0.0 { 1.0 / interval } else { 0.0 };
    match fleet.interval {
        Some(interval) => subjects * per_second(interval.as_secs_f64()) * profile.stream.len().min(1) as f64,
        None => {
            let streams = profile.stream.iter();
            subjects
                * streams
                    .map(|stream| per_second(stream.interval.as_secs_f64()))
                    .sum::<f64>()
        }
    }
}
