//! Whether a scenario makes sense. Returns keys and reasons; lines are found by `locate`.
//!
//! Its fleets are looked at in `fleets`, its phases in `phases`, profiles in `profiles`.

mod fleets;
mod phases;
mod profiles;

use std::net::SocketAddr;

use super::limits::{COMPRESSION_MAX, FLEETS_MAX, OPERATOR_RATE_MAX, PHASES_MAX, RATE_MAX, THREADS_MAX, WORKERS_MAX};
use super::model::{Scenario, TargetKind};
use crate::drive::sources;

pub use fleets::fleet_rate;
pub use profiles::profile_problems;

/// Key and reason.
pub type Found = (String, String);

/// Everything that is wrong, in the order of the file's tables.
pub fn problems(scenario: &Scenario) -> Vec<Found> {
    let mut check = Check::default();
    check.whole(scenario);
    check.target(scenario);
    check.run(scenario);
    for (name, profile) in &scenario.profile {
        for (key, reason) in profile_problems(profile) {
            check.refuse(format!("profile.{name}.{key}"), reason);
        }
    }
    check.fleets(scenario);
    for (at, phase) in scenario.phase.iter().enumerate() {
        check.phase(&format!("phase[{at}]"), phase);
    }
    check.found
}

#[derive(Default)]
struct Check {
    found: Vec<Found>,
}

impl Check {
    fn refuse(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.found.push((key.into(), reason.into()));
    }

    /// Refuses a number outside its range, and what is no number at all.
    fn range(&mut self, key: impl Into<String>, value: f64, low: f64, high: f64) {
        if !(low..=high).contains(&value) {
            self.refuse(key, format!("is {value}, allowed is {low}..={high}"));
        }
    }

    fn whole(&mut self, scenario: &Scenario) {
        if scenario.name.trim().is_empty() || scenario.name.len() > 128 {
            self.refuse("name", "is empty or longer than 128 bytes");
        }
        self.range("compression", scenario.compression, 1.0, COMPRESSION_MAX);
        if scenario.fleet.is_empty() || scenario.fleet.len() > FLEETS_MAX {
            self.refuse(
                "fleet",
                format!("there are {}, allowed is 1..={FLEETS_MAX}", scenario.fleet.len()),
            );
        }
        if scenario.phase.is_empty() || scenario.phase.len() > PHASES_MAX {
            self.refuse(
                "phase",
                format!("there are {}, allowed is 1..={PHASES_MAX}", scenario.phase.len()),
            );
        }
        let operator = &scenario.operator;
        for (key, rate) in [
            ("operator.desired_rate", operator.desired_rate),
            ("operator.read_rate", operator.read_rate),
            ("operator.method_rate", operator.method_rate),
        ] {
            self.range(key, rate, 0.0, OPERATOR_RATE_MAX);
        }
        self.range("operator.firmware_share", operator.firmware_share, 0.0, 1.0);
        let limits = &scenario.thresholds;
        for (key, share) in [
            ("thresholds.refused_share_max", limits.refused_share_max),
            ("thresholds.unknown_share_max", limits.unknown_share_max),
            ("thresholds.connected_share_min", limits.connected_share_min),
        ] {
            self.range(key, share.unwrap_or(0.0), 0.0, 1.0);
        }
        self.range(
            "thresholds.throughput_min",
            limits.throughput_min.unwrap_or(0.0),
            0.0,
            RATE_MAX,
        );
        self.range(
            "thresholds.memory_growth_max",
            limits.memory_growth_max.unwrap_or(0.0),
            0.0,
            1e9,
        );
        self.range(
            "audit.sample_devices",
            f64::from(scenario.audit.sample_devices),
            1.0,
            1_000.0,
        );
        if scenario.history.bytes_max.is_some_and(|bytes| bytes < 64 << 20) {
            self.refuse("history.bytes_max", format!("is below the least of {}", 64 << 20));
        }
    }

    fn target(&mut self, scenario: &Scenario) {
        let target = &scenario.target;
        for (name, list) in [("mqtt", &target.mqtt), ("ws", &target.ws), ("http", &target.http)] {
            for (at, endpoint) in list.iter().enumerate() {
                let port = endpoint.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                if port.is_none_or(|port| port == 0) {
                    self.refuse(format!("target.{name}[{at}]"), format!("{endpoint:?} is no host:port"));
                }
            }
        }
        if target.kind == TargetKind::Mqtt {
            if !target.topic.contains("${device}") {
                self.refuse(
                    "target.topic",
                    "does not name ${device}, so that devices could not be told apart",
                );
            }
            let operator = &scenario.operator;
            if operator.desired_rate + operator.read_rate + operator.method_rate + operator.firmware_share > 0.0 {
                self.refuse("operator", "needs a Holdfast; a plain broker has no twins and methods");
            }
        }
        if target.token.is_some() && target.token_env.is_some() {
            self.refuse("target.token", "and token_env exclude one another");
        }
    }

    fn run(&mut self, scenario: &Scenario) {
        let run = &scenario.run;
        self.range("run.workers", f64::from(run.workers), 1.0, f64::from(WORKERS_MAX));
        self.range("run.threads", f64::from(run.threads), 1.0, f64::from(THREADS_MAX));
        self.range("run.connect_rate", run.connect_rate, 0.1, 1_000_000.0);
        for (key, span, low, high) in [
            ("run.connect_timeout", run.connect_timeout, 0.01, 600.0),
            ("run.ack_timeout", run.ack_timeout, 0.1, 3_600.0),
            ("run.backoff", run.backoff, 0.001, 600.0),
            ("run.backoff_max", run.backoff_max, 0.001, 3_600.0),
            ("run.drain", run.drain, 0.0, 3_600.0),
            ("run.scrape_interval", run.scrape_interval, 1.0, 3_600.0),
        ] {
            self.range(key, span.as_secs_f64(), low, high);
        }
        if run.backoff > run.backoff_max {
            self.refuse("run.backoff", format!("{} is above backoff_max", run.backoff));
        }
        if let Err(reason) = sources::parse(&run.source_addresses) {
            self.refuse("run.source_addresses", reason);
        }
        if let Some(address) = &run.metrics {
            if address.parse::<SocketAddr>().is_err() {
                self.refuse("run.metrics", format!("{address:?} is no ip:port"));
            }
        }
    }
}
