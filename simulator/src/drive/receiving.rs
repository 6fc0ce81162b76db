//! What a device receives: acknowledgements, answers about its twin, desired properties, calls.

use bytestring::ByteString;
use serde_json::{Map, Value};

use super::context::{Context, Mode};
use super::device::{Device, State};
use super::errors::Fault;
use super::flight::What;
use super::ingest;
use super::sending::op_of;
use crate::history::{Kind, Op, Outcome, Place};
use crate::profiles::answering;
use crate::protocol::{Incoming, Outcome as Answered};
use crate::scenario::Protocol;

/// Pause after a refused publish: the server asked for less. Unit: µs.
const REFUSED_PAUSE_US: u64 = 50_000;

impl Device {
    pub fn read(&mut self, cx: &mut Context) {
        let Some(wire) = &mut self.wire else { return };
        let mut scratch = std::mem::take(&mut cx.scratch);
        let ended = wire.read(&mut scratch);
        cx.scratch = scratch;
        // What came before the end still counts.
        let taken = self.take_packets(cx);
        if let Err(fault) = taken.and(ended) {
            if self.wire.is_some() {
                self.lost(fault, cx);
            }
        }
    }

    fn take_packets(&mut self, cx: &mut Context) -> Result<(), Fault> {
        if self.plan.protocol == Protocol::Http {
            return self.take_answers(cx);
        }
        loop {
            let Some(wire) = &mut self.wire else { return Ok(()) };
            let Some(incoming) = self.codec.read(&mut wire.input)? else {
                wire.tidy();
                return Ok(());
            };
            self.ping_us = None;
            self.take(incoming, cx)?;
        }
    }

    fn take(&mut self, incoming: Incoming, cx: &mut Context) -> Result<(), Fault> {
        match incoming {
            Incoming::Acknowledged { packet_id, outcome } => self.acknowledged(packet_id.get(), outcome, cx),
            Incoming::Connected {
                session_present,
                receive_maximum,
            } => {
                if !matches!(self.state, State::Opening { .. }) {
                    return Err(unexpected("CONNACK"));
                }
                self.opened(session_present, receive_maximum, cx);
            }
            Incoming::ConnectRefused { code, is_final } => return Err(Fault::ConnectRefused { code, is_final }),
            Incoming::Message {
                topic,
                payload,
                packet_id,
            } => {
                if let (Some(id), false) = (packet_id, self.plan.habits.never_acks) {
                    let mut out = bytes::BytesMut::new();
                    self.codec.acknowledge(id, &mut out)?;
                    if let Some(wire) = &mut self.wire {
                        wire.out.extend_from_slice(&out);
                    }
                }
                self.message(&topic, &payload, cx);
            }
            Incoming::Disconnected { code } => return Err(Fault::Disconnected(code)),
            Incoming::Subscribed { refused } => {
                if refused {
                    cx.tally.error("subscription refused".into());
                }
                self.subscribed(cx);
            }
            Incoming::Other => {}
        }
        Ok(())
    }

    fn take_answers(&mut self, cx: &mut Context) -> Result<(), Fault> {
        loop {
            let Some(wire) = &mut self.wire else { return Ok(()) };
            if wire.input.is_empty() {
                return Ok(());
            }
            let Some(answer) = ingest::answer(&mut wire.input)? else {
                return Ok(());
            };
            let outcome = match answer.status {
                200..=299 => Outcome::Ok,
                // It may have been committed: the same request again, with the same key.
                500 | 502 | 504 => return Err(Fault::Status(answer.status)),
                status => Outcome::Refused(status),
            };
            match self.flights.settle_oldest() {
                Some(flight) => self.settled(flight, true, outcome, answer.seq, answer.place, cx),
                None => cx.tally.counts.acks_foreign += 1,
            }
            if answer.closes {
                return Err(Fault::Closed);
            }
        }
    }

    fn acknowledged(&mut self, packet_id: u16, answered: Answered, cx: &mut Context) {
        let Some((flight, oldest)) = self.flights.settle(packet_id) else {
            cx.tally.counts.acks_foreign += 1;
            return;
        };
        let (outcome, seq, place) = match answered {
            Answered::Stored(receipt) => {
                let place = receipt.map(|receipt| Place {
                    shard: receipt.shard.0,
                    term: receipt.term,
                    index: receipt.index,
                });
                (Outcome::Ok, receipt.map_or(0, |receipt| receipt.seq), place)
            }
            Answered::Refused(code) => (Outcome::Refused(u16::from(code)), 0, None),
        };
        self.settled(flight, oldest, outcome, seq, place, cx);
    }

    fn settled(
        &mut self,
        flight: super::flight::Flight,
        oldest: bool,
        outcome: Outcome,
        seq: u64,
        place: Option<Place>,
        cx: &mut Context,
    ) {
        if self.flights.len() + 1 >= self.window {
            self.ready_us = cx.now_us;
            // What fell due before this answer found no room.
            if self.keeps_no_queue() && cx.mode == Mode::Run {
                self.drop_due(cx);
            }
        }
        cx.states.outstanding = cx.states.outstanding.saturating_sub(1);
        self.failures = 0;
        self.waiting_us = self.is_awaiting().then_some(cx.now_us);
        cx.tally.counts.acks_disordered += u64::from(!oldest);
        if let Outcome::Refused(code) = outcome {
            cx.tally.error(format!("publish refused: {code:#04x} ({code})"));
            if !self.keeps_no_queue() {
                self.pause_until_us = cx.now_us + REFUSED_PAUSE_US;
                self.ready_us = self.pause_until_us;
            }
        }
        match flight.what {
            What::Telemetry => {
                match outcome {
                    Outcome::Ok => {
                        cx.tally.counts.acked += 1;
                        let latency = cx.now_us.saturating_sub(flight.intended_us);
                        cx.tally.latency.saturating_record(latency.max(1));
                    }
                    _ => cx.tally.counts.refused += 1,
                }
                let mut op = op_of(&flight, Kind::Telemetry, &self.subjects, cx.now_us);
                (op.outcome, op.version, op.place, op.disordered) = (outcome, seq, place, !oldest);
                cx.record(op);
            }
            What::Repeat => {
                cx.tally.counts.repeats_acked += u64::from(outcome == Outcome::Ok);
                let mut op = op_of(&flight, Kind::Repeat, &self.subjects, cx.now_us);
                (op.outcome, op.version, op.place, op.disordered) = (outcome, seq, place, !oldest);
                cx.record(op);
            }
            What::Report => match outcome {
                Outcome::Ok => {
                    if let Some(report) = self.twin.flight.as_mut().filter(|report| report.k == flight.n) {
                        report.acked_us = Some(cx.now_us);
                    }
                }
                _ => self.land_report(outcome, 0, cx),
            },
            What::Get => {}
        }
    }

    /// Records the report under way with what became of it.
    pub fn land_report(&mut self, outcome: Outcome, version: u64, cx: &mut Context) {
        let Some(report) = self.twin.flight.take() else { return };
        let mut op = Op::new(self.plan.subject, Kind::Report, report.k);
        (op.intended_us, op.sent_us, op.done_us) = (report.intended_us, report.sent_us, cx.now_us);
        (op.outcome, op.version) = (outcome, version);
        let latency = op.latency_us();
        match outcome {
            Outcome::Ok => {
                cx.tally.counts.reports_acked += 1;
                cx.tally.report_latency.saturating_record(latency.max(1));
            }
            Outcome::Refused(_) => cx.tally.counts.reports_refused += 1,
            Outcome::Unknown | Outcome::Dropped => cx.tally.counts.reports_unknown += 1,
        }
        cx.record(op);
    }

    /// The device ends; an acknowledged report is one, even without its answer.
    pub fn finish_report(&mut self, cx: &mut Context) {
        let acked = self
            .twin
            .flight
            .as_ref()
            .is_some_and(|report| report.acked_us.is_some());
        let outcome = if acked { Outcome::Ok } else { Outcome::Unknown };
        self.land_report(outcome, 0, cx);
    }

    fn message(&mut self, topic: &ByteString, payload: &[u8], cx: &mut Context) {
        if self.is_rival {
            return;
        }
        let Some(below) = topic
            .strip_prefix("devices/")
            .and_then(|rest| rest.strip_prefix(&*self.plan.id))
        else {
            return;
        };
        if let Some(rid) = below.strip_prefix("/twin/res/") {
            return self.twin_answered(rid, payload, cx);
        }
        if below == "/twin/desired" {
            return self.desired(payload, cx);
        }
        if let Some((_, rid)) = answering::call(&self.plan.id, topic) {
            return self.called(rid, payload, cx);
        }
        if below.starts_with("/messages/") {
            cx.tally.counts.messages += 1;
            let mut op = Op::new(self.plan.subject, Kind::Message, cx.tally.counts.messages);
            (op.intended_us, op.sent_us, op.done_us) = (cx.now_us, cx.now_us, cx.now_us);
            op.digest = crc32c::crc32c(payload);
            cx.record(op);
        }
    }

    fn twin_answered(&mut self, rid: &str, payload: &[u8], cx: &mut Context) {
        let Ok(answer) = serde_json::from_slice::<Map<String, Value>>(payload) else {
            cx.tally.error("twin answer that is no JSON".into());
            return;
        };
        let status = answer.get("status").and_then(Value::as_u64).unwrap_or(0);
        if rid.starts_with('g') {
            let asked = self.twin.asked_us.take().unwrap_or(cx.now_us);
            if status == 200 {
                self.read_twin(asked, &answer, cx);
            }
            return;
        }
        let expected = self
            .twin
            .flight
            .as_ref()
            .map(|report| format!("{}-{}", cx.run, report.k));
        if expected.as_deref() != Some(rid) {
            return; // of a report that was recorded without its answer
        }
        let version = answer.get("version").and_then(Value::as_u64).unwrap_or(0);
        match status {
            200..=299 => self.land_report(Outcome::Ok, version, cx),
            status => self.land_report(Outcome::Refused(status as u16), 0, cx),
        }
    }

    fn read_twin(&mut self, asked_us: u64, answer: &Map<String, Value>, cx: &mut Context) {
        let version = |section: &str| {
            let versions = answer.get("versions").and_then(Value::as_object);
            versions
                .and_then(|versions| versions.get(section))
                .and_then(Value::as_u64)
                .unwrap_or(0)
        };
        cx.tally.counts.twin_reads += 1;
        let mut op = Op::new(self.plan.subject, Kind::DeviceRead, self.twin.gets);
        (op.intended_us, op.sent_us, op.done_us) = (asked_us, asked_us, cx.now_us);
        (op.version, op.other) = (version("desired"), version("reported"));
        cx.record(op);
        if let Some(desired) = answer.get("desired").and_then(Value::as_object) {
            self.told(desired, version("desired"), cx);
        }
    }

    fn desired(&mut self, payload: &[u8], cx: &mut Context) {
        let Ok(patch) = serde_json::from_slice::<Map<String, Value>>(payload) else {
            cx.tally.error("desired patch that is no JSON".into());
            return;
        };
        let version = patch.get("$version").and_then(Value::as_u64).unwrap_or(0);
        self.told(&patch, version, cx);
    }

    /// The device learns of desired properties, by a patch or by asking.
    fn told(&mut self, desired: &Map<String, Value>, version: u64, cx: &mut Context) {
        let Some(twin) = &self.fleet.profile.twin else { return };
        let told = self.twin.obeyed.take(twin, desired, version, cx.run);
        cx.tally.counts.desired_seen += 1;
        let mut op = Op::new(self.plan.subject, Kind::DesiredSeen, told.mark.unwrap_or(0));
        (op.intended_us, op.sent_us, op.done_us, op.version) = (cx.now_us, cx.now_us, cx.now_us, version);
        cx.record(op);
        if let Some(secs) = self.twin.obeyed.number("interval_secs") {
            if (0.001..=31_536_000.0).contains(&secs) {
                let cursors = self.subjects.iter_mut().flat_map(|subject| &mut subject.cursors);
                cursors.for_each(|cursor| cursor.set_interval(secs * 1e6));
            }
        }
        if let Some(version) = told.firmware {
            self.firmware_told(&version, cx);
        }
    }

    fn called(&mut self, rid: &str, payload: &[u8], cx: &mut Context) {
        let Some(methods) = &self.fleet.profile.methods else {
            return;
        };
        cx.tally.counts.method_calls += 1;
        let answer = answering::answer(methods, rid, payload, cx.scenario_now_us(), &mut self.chance);
        // More than the server allows to wait cannot be there; the bound is against a server that
        // forgets its own.
        if self.machines.answers.len() < 64 {
            self.machines.answers.extend(answer);
        }
    }
}

fn unexpected(what: &str) -> Fault {
    Fault::Protocol(crate::protocol::ProtocolError::Unreadable(format!("unexpected {what}")))
}
