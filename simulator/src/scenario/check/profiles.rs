//! Profiles: variables, streams, and the machines beside them.

use actors::id::DeviceId;

use super::{Check, Found};
use crate::payloads::Template;
use crate::profiles::Profile;
use crate::scenario::limits::{CHILDREN_MAX, OFFLINE_QUEUE_MAX, STREAMS_MAX, VARIABLES_MAX};

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
            self.range("twin.report_interval", interval.as_secs_f64(), 0.001, 31_536_000.0);
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
