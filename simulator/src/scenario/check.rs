//! Whether a scenario makes sense. Returns keys and reasons; lines are found by `locate`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use actors::id::DeviceId;

use super::limits::{
    CHILDREN_MAX, COMPRESSION_MAX, DEVICES_MAX, FACTOR_MAX, FLEETS_MAX, OFFLINE_QUEUE_MAX, OPERATOR_RATE_MAX,
    PAYLOAD_BYTES_MAX, PHASES_MAX, RATE_MAX, STREAMS_MAX, THREADS_MAX, VARIABLES_MAX, WINDOW_MAX, WORKERS_MAX,
};
use super::model::{Fleet, Phase, PhaseWord, Protocol, Scenario, TargetKind};
use crate::drive::sources;
use crate::payloads::Template;
use crate::plan::names;
use crate::profiles::{self, Profile};

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

    fn fleets(&mut self, scenario: &Scenario) {
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

    fn phase(&mut self, key: &str, phase: &Phase) {
        self.range(
            format!("{key}.duration"),
            phase.duration.as_secs_f64(),
            0.001,
            315_360_000.0,
        );
        let spans = [
            ("length", phase.length),
            ("every", phase.every),
            ("period", phase.period),
        ];
        for (name, span) in spans {
            if span.is_some_and(|span| span.0.is_zero()) {
                self.refuse(format!("{key}.{name}"), "is zero");
            }
        }
        let factors = [
            ("from", phase.from, FACTOR_MAX),
            ("to", phase.to, FACTOR_MAX),
            ("factor", phase.factor, FACTOR_MAX),
            ("low", phase.low, FACTOR_MAX),
            ("high", phase.high, FACTOR_MAX),
            ("share", phase.share, 1.0),
        ];
        for (name, value, high) in factors {
            self.range(format!("{key}.{name}"), value.unwrap_or(0.0), 0.0, high);
        }
        let given = [
            ("from", phase.from.is_some()),
            ("to", phase.to.is_some()),
            ("factor", phase.factor.is_some()),
            ("length", phase.length.is_some()),
            ("every", phase.every.is_some()),
            ("low", phase.low.is_some()),
            ("high", phase.high.is_some()),
            ("period", phase.period.is_some()),
            ("peak", phase.peak.is_some()),
            ("share", phase.share.is_some()),
            ("over", phase.over.is_some()),
        ];
        let (allowed, required): (&[&str], &[&str]) = match phase.kind {
            PhaseWord::Ramp => (&["from", "to"], &[]),
            PhaseWord::Steady => (&["factor"], &[]),
            PhaseWord::Burst => (&["factor", "length", "every"], &["factor", "length", "every"]),
            PhaseWord::Diurnal => (&["low", "high", "period", "peak"], &[]),
            PhaseWord::ReconnectStorm => (&["share", "over", "factor"], &[]),
            PhaseWord::Drain => (&[], &[]),
        };
        for (name, is_given) in given {
            if is_given && !allowed.contains(&name) {
                self.refuse(
                    format!("{key}.{name}"),
                    format!("does not belong to a phase of kind {}", phase.kind.name()),
                );
            }
            if !is_given && required.contains(&name) {
                self.refuse(
                    format!("{key}.{name}"),
                    format!("is missing; a {} needs it", phase.kind.name()),
                );
            }
        }
        if phase.length > phase.every && phase.every.is_some() {
            self.refuse(format!("{key}.length"), "is above every");
        }
        if phase.low > phase.high && phase.high.is_some() {
            self.refuse(format!("{key}.low"), "is above high");
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

/// What is wrong in a profile, with keys below it.
pub fn profile_problems(profile: &Profile) -> Vec<Found> {
    let mut check = Check::default();
    if profile.qos > 1 {
        check.refuse("qos", "is neither 0 nor 1");
    }
    check.range(
        "offline_queue",
        f64::from(profile.offline_queue),
        0.0,
        f64::from(OFFLINE_QUEUE_MAX),
    );
    if profile.stream.len() > STREAMS_MAX {
        check.refuse(
            "stream",
            format!("there are {}, allowed is 0..={STREAMS_MAX}", profile.stream.len()),
        );
    }
    if profile.variables.len() > VARIABLES_MAX {
        check.refuse(
            "var",
            format!("there are {}, allowed is 0..={VARIABLES_MAX}", profile.variables.len()),
        );
    }
    for (name, variable) in &profile.variables {
        for (key, reason) in variable.problems() {
            check.refuse(format!("var.{name}.{key}"), reason);
        }
    }
    check.streams(profile);
    check.machines(profile);
    check.found
}

impl Check {
    fn streams(&mut self, profile: &Profile) {
        for (at, stream) in profile.stream.iter().enumerate() {
            let key = format!("stream[{at}]");
            self.range(
                format!("{key}.interval"),
                stream.interval.as_secs_f64(),
                0.0001,
                31_536_000.0,
            );
            self.range(format!("{key}.jitter"), stream.jitter, 0.0, 1.0);
            if let Err(error) = Template::parse(&stream.payload, &profile.variables) {
                self.refuse(format!("{key}.payload"), error.to_string());
            }
            if let Some(reason) = stream.size.as_ref().and_then(|size| size.problem()) {
                self.refuse(format!("{key}.size"), reason);
            }
            if stream.intervals.iter().any(|interval| interval.as_secs_f64() < 0.0001) {
                self.refuse(format!("{key}.intervals"), "holds one below 100us");
            }
            if !stream.name.is_empty() && DeviceId::parse(&stream.name).is_err() || stream.name.len() > 64 {
                self.refuse(
                    format!("{key}.name"),
                    "is no stream name: up to 64 characters of device ids",
                );
            }
            let Some(by) = &stream.by else { continue };
            let Some(variable) = profile.variables.get(&by.variable) else {
                self.refuse(
                    format!("{key}.by.variable"),
                    format!("{:?} is no variable", by.variable),
                );
                continue;
            };
            for state in by.intervals.keys() {
                if !variable.texts().contains(state) {
                    self.refuse(
                        format!("{key}.by.intervals.{state}"),
                        format!("is no state of {:?}", by.variable),
                    );
                }
            }
            if by.intervals.values().any(|interval| interval.as_secs_f64() < 0.0001) {
                self.refuse(format!("{key}.by.intervals"), "holds one below 100us");
            }
        }
    }

    fn machines(&mut self, profile: &Profile) {
        if let Some(connectivity) = &profile.connectivity {
            for (key, dist) in [
                ("connectivity.online_secs", &connectivity.online_secs),
                ("connectivity.offline_secs", &connectivity.offline_secs),
            ] {
                match dist.problem() {
                    Some(reason) => self.refuse(key, reason),
                    None if dist.mean() <= 0.0 => self.refuse(key, "has a mean that is not above 0"),
                    None => {}
                }
            }
        }
        if let Some(interval) = profile.twin.as_ref().and_then(|twin| twin.report_interval) {
            self.range("twin.report_interval", interval.as_secs_f64(), 0.1, 31_536_000.0);
        }
        if let Some(methods) = &profile.methods {
            self.range("methods.fail_share", methods.fail_share, 0.0, 1.0);
            self.range("methods.silent_share", methods.silent_share, 0.0, 1.0);
            if let Some(reason) = methods.delay_secs.problem() {
                self.refuse("methods.delay_secs", reason);
            }
        }
        if let Some(firmware) = &profile.firmware {
            let shares = [
                firmware.fail_download,
                firmware.fail_verify,
                firmware.fail_install,
                firmware.fail_rollback,
                firmware.fail_brick,
            ];
            if shares.iter().any(|share| !(0.0..=1.0).contains(share)) || shares.iter().sum::<f64>() > 1.0 {
                self.refuse(
                    "firmware.fail_download",
                    "and its like are shares of 0..=1, together at most 1",
                );
            }
            if profile.twin.is_none() {
                self.refuse("firmware", "needs [twin], where versions are desired and reported");
            }
        }
        if let Some(gateway) = &profile.gateway {
            self.range(
                "gateway.children",
                f64::from(gateway.children),
                1.0,
                f64::from(CHILDREN_MAX),
            );
        }
        if let Some(bad) = &profile.misbehave {
            for (key, share, needs) in [
                ("flapping", bad.flapping, Some(bad.flap_every)),
                ("wrong_clock", bad.wrong_clock, None),
                ("duplicate_id", bad.duplicate_id, None),
                ("never_acks", bad.never_acks, None),
                ("slow_reader", bad.slow_reader, Some(bad.slow_for)),
                ("malformed", bad.malformed, Some(bad.malformed_every)),
            ] {
                self.range(format!("misbehave.{key}"), share, 0.0, 1.0);
                if share > 0.0 && needs.is_some_and(|span| span.is_none_or(|span| span.as_secs_f64() < 0.01)) {
                    self.refuse(format!("misbehave.{key}"), "needs its time, of at least 10ms");
                }
            }
        }
    }
}
