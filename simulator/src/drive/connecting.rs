//! Connections of a device: opened, refused, lost, given up, and tried again with full jitter.

use std::net::SocketAddr;

use super::context::{Context, Mode};
use super::device::{Device, State};
use super::errors::Fault;
use super::flight::What;
use super::framing::Framing;
use super::sending::unknown;
use super::wire::Wire;
use crate::history::NoteKind;
use crate::payloads::Chance;
use crate::protocol::{Codec, Opening, Version};
use crate::scenario::Protocol;

impl Device {
    pub fn connect(&mut self, cx: &mut Context) {
        if cx.mode != Mode::Run && self.flights.is_empty() && (cx.mode == Mode::Stop || self.due.is_empty()) {
            return self.finish(cx);
        }
        let Some(address) = self.address(cx) else {
            return self.finish(cx);
        };
        let source = cx.sources.of(self.plan.device);
        let framing = match self.plan.protocol.is_ws() {
            true => Framing::ws(Chance::fork(
                u64::from(cx.run),
                &[u64::from(self.plan.device), cx.now_us],
            )),
            false => Framing::Plain,
        };
        let version = if self.plan.protocol.is_v5() {
            Version::V5
        } else {
            Version::V311
        };
        self.codec = Codec::new(version);
        match Wire::connect(address, source, framing, &cx.registry, self.token) {
            Ok(wire) => {
                self.wire = Some(wire);
                self.enter(State::Connecting { since_us: cx.now_us }, cx);
            }
            Err(fault) => self.lost(fault, cx),
        }
    }

    /// Its own endpoint of those the fleet may use; another one after each failure.
    fn address(&self, cx: &Context) -> Option<SocketAddr> {
        let all = cx.endpoints.of(self.plan.protocol);
        let chosen = &self.fleet.spec.endpoints;
        let at = match chosen.len() {
            0 => self.endpoint % all.len().max(1),
            len => chosen[self.endpoint % len] % all.len().max(1),
        };
        all.get(at).copied()
    }

    pub fn tcp_connected(&mut self, cx: &mut Context) {
        let State::Connecting { since_us } = self.state else {
            return;
        };
        let Some(wire) = &mut self.wire else { return };
        match wire.finish_connect() {
            Ok(false) => {}
            Err(fault) => self.lost(fault, cx),
            Ok(true) => {
                if self.plan.protocol == Protocol::Http {
                    self.enter(State::Opening { since_us }, cx);
                    self.opened(false, u16::MAX, cx);
                    return;
                }
                match self.say_hello() {
                    Ok(()) => {
                        self.enter(State::Opening { since_us }, cx);
                        self.write(cx);
                    }
                    Err(fault) => self.lost(fault, cx),
                }
            }
        }
    }

    fn say_hello(&mut self) -> Result<(), Fault> {
        let spec = &self.fleet.spec;
        let named = |text: &Option<String>| text.as_ref().map(|text| text.replace("${device}", &self.plan.id));
        let (username, password) = (named(&spec.username), named(&spec.password));
        let opening = Opening {
            client_id: &self.plan.id,
            clean_start: false,
            keep_alive_secs: spec.keep_alive.0.as_secs().min(65_535) as u16,
            session_expiry_secs: u32::try_from(spec.session_expiry.0.as_secs()).unwrap_or(u32::MAX),
            username: username.as_deref(),
            password: password.as_deref(),
        };
        let wire = self.wire.as_mut().expect("a connection was just made");
        let mut out = bytes::BytesMut::new();
        self.codec.connect(&opening, &mut out)?;
        wire.out.extend_from_slice(&out);
        Ok(())
    }

    /// CONNACK was positive: from now on the device may send.
    pub fn opened(&mut self, session_present: bool, receive_maximum: u16, cx: &mut Context) {
        let State::Opening { since_us } = self.state else {
            return;
        };
        let _ = cx.tally.connect_time.record((cx.now_us - since_us).max(1));
        cx.tally.counts.connects += 1;
        if !self.is_rival {
            cx.note(self.plan.subject, NoteKind::Connected, 0);
        }
        self.enter(State::Live { since_us: cx.now_us }, cx);
        let has_twin = self.fleet.profile.twin.is_some() && !self.is_rival;
        // A report and a question need room beside a full window of telemetry.
        let reserved = if has_twin { 2 } else { 0 };
        self.window = usize::from(
            self.fleet
                .spec
                .window
                .min(receive_maximum.saturating_sub(reserved))
                .max(1),
        );
        if self.plan.protocol == Protocol::Http {
            self.window = 1;
        }
        (self.ready_us, self.written_us, self.ping_us) = (cx.now_us, cx.now_us, None);
        self.backlog = None;
        self.flights.drop_gets();
        self.resend(cx);
        if !self.is_rival && self.plan.protocol != Protocol::Http && cx.is_holdfast() {
            self.subscribe(session_present && self.was_connected, cx);
        }
        self.waiting_us = self.is_awaiting().then_some(cx.now_us);
        self.was_connected = true;
        self.machines
            .connected(&self.plan.habits, cx.scenario_now_us(), &mut self.chance);
    }

    pub fn check_opening(&mut self, since_us: u64, cx: &mut Context) {
        if cx.now_us >= since_us + cx.plan.loaded.scenario.run.connect_timeout.micros() {
            self.lost(Fault::ConnectTimeout, cx);
        }
    }

    /// The connection is gone, or never came to be. Tries again after a while.
    pub fn lost(&mut self, fault: Fault, cx: &mut Context) {
        let was_live = self.is_live();
        let is_idle = self.plan.protocol == Protocol::Http && self.flights.is_empty();
        if was_live && is_idle && matches!(fault, Fault::Closed | Fault::Reset) {
            return self.rest(cx);
        }
        self.drop_wire(cx);
        if !self.is_rival {
            let kind = if was_live {
                NoteKind::Lost
            } else {
                NoteKind::ConnectFailed
            };
            cx.note(self.plan.subject, kind, fault.code());
        }
        match was_live {
            true => cx.tally.counts.lost += 1,
            false => cx.tally.counts.connects_failed += 1,
        }
        let place = if was_live { "lost" } else { "connect" };
        cx.tally.error(format!("{place}: {fault}"));
        self.endpoint = self.endpoint.wrapping_add(1);
        let wait = self.backoff(&fault, cx);
        self.enter(
            State::BackingOff {
                until_us: cx.now_us + wait,
            },
            cx,
        );
        self.begin_backlog(cx);
    }

    /// Servers close HTTP connections on which nothing happens; the next message opens another one.
    fn rest(&mut self, cx: &mut Context) {
        self.drop_wire(cx);
        let next_us = self.due.peek().map_or(u64::MAX, |(at, ..)| cx.clock.real_us(at));
        self.enter(State::BackingOff { until_us: next_us }, cx);
    }

    /// Full jitter: any wait from nothing to the bound, which doubles, so that a fleet does not
    /// return as one. A refusal that is final for real devices waits as long as it may.
    fn backoff(&mut self, fault: &Fault, cx: &Context) -> u64 {
        let run = &cx.plan.loaded.scenario.run;
        let most = run.backoff_max.micros();
        self.failures = self.failures.saturating_add(1);
        let bound = match fault.is_final() {
            true => most,
            false => run
                .backoff
                .micros()
                .saturating_mul(1 << (self.failures - 1).min(20))
                .min(most),
        };
        (bound as f64 * self.chance.unit()) as u64
    }

    /// Gives the connection up on purpose, until a scenario time.
    pub fn leave(&mut self, until_us: u64, graceful: bool, cx: &mut Context) {
        if graceful {
            self.write_farewell();
        }
        if self.wire.is_some() {
            cx.tally.counts.left += 1;
            if !self.is_rival {
                cx.note(self.plan.subject, NoteKind::Left, 0);
            }
        }
        self.drop_wire(cx);
        if until_us != u64::MAX {
            self.excused_us = cx.clock.real_us(until_us);
            self.excuse_flights(self.excused_us.saturating_sub(cx.now_us));
        }
        self.enter(State::Away { until_us }, cx);
        self.begin_backlog(cx);
    }

    /// Nobody hears an answer in a tunnel: what is outstanding waits so much longer, by the device's
    /// own doing.
    fn excuse_flights(&mut self, absence_us: u64) {
        for flight in self.flights.iter_mut() {
            flight.intended_us += absence_us;
        }
        if let Some(report) = &mut self.twin.flight {
            report.intended_us += absence_us;
        }
    }

    /// Nothing outstanding is meant to be sent later than `now_us`.
    fn excuse_until(&mut self, now_us: u64) {
        for flight in self.flights.iter_mut() {
            flight.intended_us = flight.intended_us.min(now_us);
        }
        if let Some(report) = &mut self.twin.flight {
            report.intended_us = report.intended_us.min(now_us);
        }
    }

    pub fn return_from_away(&mut self, cx: &mut Context) {
        self.act_while_away(cx);
        if matches!(self.state, State::Away { until_us } if cx.mode != Mode::Run || cx.scenario_now_us() >= until_us) {
            // It is called back early when the run ends.
            self.excuse_until(cx.now_us);
            self.connect(cx);
        }
    }

    /// Nothing is left to do: DISCONNECT, and out.
    pub fn say_goodbye(&mut self, cx: &mut Context) {
        self.write_farewell();
        self.finish(cx);
    }

    fn write_farewell(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        if self.plan.protocol != Protocol::Http {
            let mut out = bytes::BytesMut::new();
            if self.codec.disconnect(&mut out).is_ok() {
                wire.out.extend_from_slice(&out);
            }
        }
        // Best effort: a DISCONNECT that cannot be written is not missed.
        let _ = wire.write();
    }

    /// Ends the device: what has no answer is unknown, what was due and never sent is dropped.
    pub fn finish(&mut self, cx: &mut Context) {
        if self.state == State::Done {
            return;
        }
        self.drop_wire(cx);
        let flights: Vec<_> = self.flights.drain().collect();
        for flight in flights {
            cx.states.outstanding = cx.states.outstanding.saturating_sub(1);
            if flight.what != What::Get {
                unknown(&flight, &self.subjects, cx);
            }
        }
        self.finish_report(cx);
        self.drop_unsent(cx);
        self.enter(State::Done, cx);
        self.wake_us = u64::MAX;
    }

    fn drop_wire(&mut self, cx: &mut Context) {
        if let Some(wire) = self.wire.take() {
            wire.close(&cx.registry);
        }
        (self.waiting_us, self.ping_us, self.twin.asked_us) = (None, None, None);
        self.subscribing = 0;
    }
}
