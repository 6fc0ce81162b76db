//! What the machines of a profile do to the connection: tunnels, storms, reboots, bad manners.

use std::collections::VecDeque;
use std::num::NonZeroU16;

use super::context::{Context, FleetContext, Mode};
use super::device::{Device, Machines, State};
use super::packet::{self, Head};
use crate::payloads::Chance;
use crate::plan::roster::DevicePlan;
use crate::profiles::citizen::{self, Habits};
use crate::profiles::outage::Outages;
use crate::profiles::updating::{Act, Updater};

impl Machines {
    /// `from_us`: when the device connects first. Storms before are over, outages are stepped over.
    pub fn new(
        plan: &DevicePlan,
        fleet: &FleetContext,
        is_rival: bool,
        from_us: u64,
        chance: &mut Chance,
        cx: &Context,
    ) -> Self {
        let profile = &fleet.profile;
        let outages = profile.connectivity.as_ref().filter(|_| !is_rival);
        let storms = if is_rival {
            Vec::new()
        } else {
            let mut storms = cx.plan.roster.storms(&cx.plan.loaded, &cx.plan.curve, plan.device);
            storms.retain(|at| *at >= from_us);
            storms
        };
        let mut outages = outages.map(|connectivity| Outages::begin(connectivity, chance));
        if let Some(first) = &mut outages {
            // Counted from when the device connects.
            first.begins_us += plan.connect_us;
            first.ends_us += plan.connect_us;
        }
        Self {
            outages,
            storms: VecDeque::from(storms),
            updater: profile.firmware.as_ref().filter(|_| !is_rival).map(Updater::new),
            answers: VecDeque::new(),
            flap_us: u64::MAX,
            malformed_us: u64::MAX,
            slow_us: u64::MAX,
        }
    }

    /// A connection begins; its bad manners count from here.
    pub fn connected(&mut self, habits: &Habits, now_us: u64, chance: &mut Chance) {
        let mut next = |mean: Option<u64>| {
            mean.map_or(u64::MAX, |mean| {
                now_us + 1_000 + (mean as f64 * chance.exponential()) as u64
            })
        };
        self.flap_us = next(habits.flap_us);
        self.malformed_us = next(habits.malformed_us);
        self.slow_us = habits.slow_us.map_or(u64::MAX, |long| now_us + long);
        self.answers.clear();
    }

    /// When the first of them wants something. Scenario µs.
    pub fn next_us(&self) -> u64 {
        let outage = self.outages.as_ref().map_or(u64::MAX, |outages| outages.begins_us);
        let storm = self.storms.front().copied().unwrap_or(u64::MAX);
        let update = self.updater.as_ref().map_or(u64::MAX, Updater::due_us);
        let answer = self.answers.iter().map(|answer| answer.at_us).min().unwrap_or(u64::MAX);
        [
            outage,
            storm,
            update,
            answer,
            self.flap_us,
            self.malformed_us,
            self.slow_us,
        ]
        .into_iter()
        .min()
        .unwrap_or(u64::MAX)
    }
}

impl Device {
    /// Does what is due; `false` when the connection is no more.
    pub fn act(&mut self, cx: &mut Context) -> bool {
        let now = cx.scenario_now_us();
        if self.machines.next_us() > now || cx.mode != Mode::Run {
            return true;
        }
        self.update_firmware(cx);
        self.answer_calls(now, cx);
        if let Some(until_us) = self.outage(now) {
            let graceful = self
                .fleet
                .profile
                .connectivity
                .as_ref()
                .is_some_and(|plan| plan.graceful);
            self.leave(until_us, graceful, cx);
        } else if self.machines.storms.front().is_some_and(|at| *at <= now) {
            while self.machines.storms.front().is_some_and(|at| *at <= now) {
                self.machines.storms.pop_front();
            }
            self.leave(now, false, cx);
        } else if self.machines.flap_us <= now {
            self.leave(now + 1, false, cx);
        } else {
            self.misbehave(now, cx);
        }
        self.is_live()
    }

    /// The end of an outage that has begun. Those that passed while the device was away anyway are
    /// stepped over.
    fn outage(&mut self, now: u64) -> Option<u64> {
        let (outages, plan) = (
            self.machines.outages.as_mut()?,
            self.fleet.profile.connectivity.as_ref()?,
        );
        let mut until = None;
        while outages.begins_us <= now {
            if outages.ends_us > now {
                until = Some(outages.ends_us);
            }
            outages.next(plan, &mut self.chance);
        }
        until
    }

    fn misbehave(&mut self, now: u64, cx: &mut Context) {
        if self.machines.malformed_us <= now {
            self.machines.malformed_us = u64::MAX;
            let garbage = citizen::garbage(&mut self.chance);
            if let Some(wire) = &mut self.wire {
                wire.out.extend_from_slice(garbage);
            }
            cx.tally.counts.malformed += 1;
        }
        if self.machines.slow_us <= now {
            let long = self.plan.habits.slow_us.unwrap_or(u64::MAX / 2);
            self.machines.slow_us = now.saturating_add(long.max(1));
            if let Some(wire) = &mut self.wire {
                wire.is_deaf = !wire.is_deaf;
                if !wire.is_deaf {
                    self.read(cx);
                }
            }
        }
    }

    fn answer_calls(&mut self, now: u64, cx: &mut Context) {
        let mut at = 0;
        while at < self.machines.answers.len() {
            if self.machines.answers[at].at_us > now {
                at += 1;
                continue;
            }
            let Some(answer) = self.machines.answers.remove(at) else {
                break;
            };
            let topic = format!("devices/{}/methods/res/{}", self.plan.id, answer.rid);
            let head = Head {
                v5: self.plan.protocol.is_v5(),
                packet_id: None,
                topic: topic.as_bytes(),
                properties: &[],
            };
            if let Some(wire) = &mut self.wire {
                packet::publish(&head, &answer.payload, &mut wire.out);
                self.written_us = cx.now_us;
            }
        }
    }

    pub fn firmware_told(&mut self, version: &str, cx: &mut Context) {
        let Some(plan) = &self.fleet.profile.firmware else {
            return;
        };
        let Some(updater) = &mut self.machines.updater else {
            return;
        };
        if let Some(act) = updater.told(version, plan, cx.scenario_now_us(), &mut self.chance) {
            self.carry_out(act, cx);
        }
    }

    fn update_firmware(&mut self, cx: &mut Context) {
        let now = cx.scenario_now_us();
        let Some(plan) = &self.fleet.profile.firmware else {
            return;
        };
        let Some(updater) = &mut self.machines.updater else {
            return;
        };
        for act in updater.due(plan, now, &mut self.chance) {
            self.carry_out(act, cx);
        }
    }

    /// What the updater does while the device is away: it comes back from its reboot.
    pub fn act_while_away(&mut self, cx: &mut Context) {
        self.update_firmware(cx);
    }

    fn carry_out(&mut self, act: Act, cx: &mut Context) {
        match act {
            Act::Report(mut patch) => self.twin.to_report.append(&mut patch),
            Act::Away(until_us) if !matches!(self.state, State::Away { .. }) => self.leave(until_us, true, cx),
            Act::Away(_) => {}
        }
    }

    /// Asks for everything the profile lives by; a server that kept the session knows already.
    pub fn subscribe(&mut self, is_known: bool, cx: &mut Context) {
        let profile = &self.fleet.profile;
        let has_twin = profile.twin.is_some();
        if !is_known {
            let id = &self.plan.id;
            let filters = [
                (has_twin, format!("devices/{id}/twin/res/#")),
                (has_twin, format!("devices/{id}/twin/desired")),
                (profile.methods.is_some(), format!("devices/{id}/methods/+/+")),
                (profile.messages, format!("devices/{id}/messages/+")),
            ];
            let mut out = bytes::BytesMut::new();
            for (_, filter) in filters.iter().filter(|(wanted, _)| *wanted) {
                let packet_id = NonZeroU16::new(self.flights.packet_id()).expect("packet ids are not 0");
                match self.codec.subscribe(packet_id, filter, &mut out) {
                    Ok(()) => self.subscribing += 1,
                    Err(_) => cx.tally.error("subscription that cannot be written".into()),
                }
            }
            if let Some(wire) = &mut self.wire {
                wire.out.extend_from_slice(&out);
            }
        }
        if self.subscribing == 0 {
            self.catch_up(cx);
        }
    }

    /// A SUBACK came.
    pub fn subscribed(&mut self, cx: &mut Context) {
        self.subscribing = self.subscribing.saturating_sub(1);
        if self.subscribing == 0 {
            self.waiting_us = self.is_awaiting().then_some(cx.now_us);
            self.catch_up(cx);
        }
    }

    /// What changed while it was away reaches a device by asking. It asks when its subscriptions
    /// are in force: a change between the answer and an earlier SUBACK would reach nobody.
    fn catch_up(&mut self, cx: &mut Context) {
        let profile = &self.fleet.profile;
        let obeys = profile.twin.as_ref().is_some_and(|twin| !twin.obey.is_empty());
        if profile.twin.is_some() && (obeys || profile.firmware.is_some()) {
            self.ask_twin(cx);
        }
    }
}
