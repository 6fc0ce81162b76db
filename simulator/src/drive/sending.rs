//! What a device sends: telemetry when it is due, reports, and again what was not acknowledged.

use super::context::{Context, Mode};
use super::device::{Device, ReportFlight, TWIN_ANSWER_US};
use super::errors::Fault;
use super::flight::{Flight, What};
use super::ingest;
use super::packet::{self, Head};
use super::subject::{with_setting, Backlog, Subject};
use crate::history::{Kind, Op, Outcome};
use crate::payloads::template::put_unsigned;
use crate::plan::cursor::Sender;
use crate::protocol::MESSAGE_ID_PROPERTY;
use crate::scenario::{Overflow, Protocol};

/// Bytes waiting for a socket beyond which nothing more is handed to it.
const PENDING_BYTES_MAX: usize = 256 * 1024;
/// Dropped messages recorded for one device when it ends; more would only repeat themselves.
const UNSENT_MAX: u32 = 100_000;

/// Records a publish that never got an answer.
pub fn unknown(flight: &Flight, subjects: &[Subject], cx: &mut Context) {
    let kind = match flight.what {
        What::Telemetry => Kind::Telemetry,
        What::Repeat => Kind::Repeat,
        What::Report | What::Get => return, // the report's own flight tells
    };
    if kind == Kind::Telemetry {
        cx.tally.counts.unknown += 1;
    }
    let mut op = op_of(flight, kind, subjects, cx.now_us);
    op.outcome = Outcome::Unknown;
    cx.record(op);
}

pub fn op_of(flight: &Flight, kind: Kind, subjects: &[Subject], now_us: u64) -> Op {
    let mut op = Op::new(subjects[usize::from(flight.subject)].number, kind, flight.n);
    op.intended_us = flight.intended_us;
    op.sent_us = flight.sent_us;
    op.done_us = now_us;
    op.sends = flight.sends;
    op.digest = flight.digest;
    op.has_id = flight.has_id;
    op
}

impl Device {
    pub fn has_room(&self) -> bool {
        let pending = self.wire.as_ref().map_or(0, |wire| wire.pending());
        self.flights.len() < self.window && pending < PENDING_BYTES_MAX
    }

    /// Sends everything that is due and finds room.
    pub fn send_due(&mut self, cx: &mut Context) {
        if cx.now_us < self.pause_until_us {
            return;
        }
        if cx.is_closed_loop() {
            return self.fill_window(cx);
        }
        self.send_while_room(cx);
        if self.keeps_no_queue() && !self.has_room() {
            self.drop_due(cx);
        }
    }

    /// Whether what finds no room is dropped.
    pub fn keeps_no_queue(&self) -> bool {
        self.fleet.spec.overflow == Overflow::Drop
    }

    fn send_while_room(&mut self, cx: &mut Context) {
        while self.has_room() {
            let Some((at_us, subject, cursor)) = self.due.peek() else {
                break;
            };
            let intended_us = cx.clock.real_us(at_us);
            if intended_us > cx.now_us {
                break;
            }
            self.due.pop();
            // In a tunnel nothing is meant to be sent; behind it everything is, at once.
            let intended_us = intended_us.max(self.excused_us.min(cx.now_us));
            let lag = cx.now_us - intended_us.max(self.ready_us).min(cx.now_us);
            let _ = cx.tally.lag.record(lag.max(1));
            self.send_one(subject, cursor, intended_us, cx);
            self.step(subject, cursor, true, cx);
        }
    }

    /// Closed loop: something is always outstanding while the curve is above 0. Labelled as such
    /// in every output, because it hides what a stalled server does to devices with a clock.
    fn fill_window(&mut self, cx: &mut Context) {
        if cx.mode != Mode::Run || cx.plan.curve.factor(cx.scenario_now_us()) <= 0.0 {
            return;
        }
        let subject = u16::from(self.plan.children > 0);
        while self.has_room()
            && self
                .subjects
                .get(usize::from(subject))
                .is_some_and(|s| !s.cursors.is_empty())
        {
            self.send_one(subject, 0, cx.now_us, cx);
            self.step(subject, 0, false, cx);
        }
    }

    /// Goes on to the next message of a stream.
    fn step(&mut self, subject: u16, cursor: u8, timed: bool, cx: &Context) {
        let Subject { id, cursors, .. } = &mut self.subjects[usize::from(subject)];
        let sender = sender(&self.fleet.spec.name, id, self.plan.at, self.plan.habits.clock_skew_ms);
        let stepped = &mut cursors[usize::from(cursor)];
        let stream = stepped.stream;
        with_setting(
            &self.fleet,
            &cx.plan.curve,
            sender,
            &self.twin.obeyed,
            stream,
            |setting| match timed {
                true => stepped.advance(setting),
                false => stepped.advance_untimed(setting),
            },
        );
        if timed {
            self.due.push(stepped.at_us, subject, cursor);
        }
    }

    fn send_one(&mut self, subject: u16, cursor: u8, intended_us: u64, cx: &mut Context) {
        let Subject { number, id, n, cursors } = &mut self.subjects[usize::from(subject)];
        *n += 1;
        let sender = sender(&self.fleet.spec.name, id, self.plan.at, self.plan.habits.clock_skew_ms);
        let pending = &cursors[usize::from(cursor)];
        let mut payload = std::mem::take(&mut cx.payload);
        payload.clear();
        let doubled = with_setting(
            &self.fleet,
            &cx.plan.curve,
            sender,
            &self.twin.obeyed,
            pending.stream,
            |setting| {
                pending.write(setting, &mut payload);
                pending.is_doubled(setting.plan)
            },
        );
        let (number, n, stream) = (*number, *n, pending.stream);
        let digest = crc32c::crc32c(&payload);
        let confirmed = self.fleet.qos > 0 || self.plan.protocol == Protocol::Http;
        let copies = if doubled && confirmed { 2 } else { 1 };
        for copy in 0..copies {
            let packet_id = if confirmed { self.flights.packet_id() } else { 0 };
            let bytes = self.compose(subject, stream, n, packet_id, &payload, cx);
            let wire = self.wire.as_mut().expect("only connected devices send");
            wire.out.extend_from_slice(&bytes);
            cx.tally.counts.payload_bytes += payload.len() as u64;
            let flight = Flight {
                packet_id,
                what: if copy == 0 { What::Telemetry } else { What::Repeat },
                subject,
                n,
                intended_us,
                sent_us: cx.now_us,
                sends: 1,
                digest,
                has_id: self.carries_id(cx),
                bytes,
            };
            match copy {
                0 => cx.tally.counts.sent += 1,
                _ => cx.tally.counts.repeats += 1,
            }
            if confirmed {
                self.flights.push(flight);
                cx.states.outstanding += 1;
            } else {
                cx.tally.counts.unconfirmed += 1;
                let mut op = Op::new(number, Kind::Telemetry, n);
                (op.intended_us, op.sent_us, op.done_us) = (intended_us, cx.now_us, cx.now_us);
                (op.outcome, op.unconfirmed, op.digest, op.has_id) = (Outcome::Unknown, true, digest, flight.has_id);
                cx.record(op);
            }
        }
        cx.payload = payload;
        self.written_us = cx.now_us;
        if confirmed {
            self.waiting_us.get_or_insert(cx.now_us);
        }
    }

    /// Whether messages of this device can be told apart by the server. Over 3.1.1 an id travels in
    /// the topic, which only Holdfast understands.
    fn carries_id(&self, cx: &Context) -> bool {
        self.fleet.message_ids && (self.plan.protocol.is_v5() || cx.is_holdfast())
    }

    /// The packet or request of one message.
    fn compose(&self, subject: u16, stream: u8, n: u64, packet_id: u16, payload: &[u8], cx: &mut Context) -> Vec<u8> {
        let id = &self.subjects[usize::from(subject)].id;
        let stream = self.fleet.streams[usize::from(stream)].name.as_str();
        cx.text.clear();
        put_unsigned(u64::from(cx.run), 1, &mut cx.text);
        cx.text.push(b'-');
        put_unsigned(n, 1, &mut cx.text);
        let mut bytes = Vec::with_capacity(payload.len() + 128);
        if self.plan.protocol == Protocol::Http {
            let message_id = std::str::from_utf8(&cx.text).unwrap_or_default();
            let host = cx.endpoints.http[self.endpoint % cx.endpoints.http.len().max(1)].to_string();
            let request = ingest::Request {
                host: &host,
                device: id,
                stream,
                token: cx.endpoints.token.as_deref(),
                message_id: self.fleet.message_ids.then_some(message_id),
            };
            ingest::request(&request, payload, &mut bytes);
            return bytes;
        }
        let v5 = self.plan.protocol.is_v5();
        let in_topic = self.fleet.message_ids && !v5 && cx.is_holdfast();
        cx.topic.clear();
        if !cx.is_holdfast() {
            let template = &cx.plan.loaded.scenario.target.topic;
            let topic = template.replace("${device}", id).replace("${stream}", stream);
            cx.topic.extend_from_slice(topic.as_bytes());
        } else {
            cx.topic.extend_from_slice(b"devices/");
            cx.topic.extend_from_slice(id.as_bytes());
            if in_topic {
                cx.topic.extend_from_slice(b"/messages/events/$.mid=");
                cx.topic.extend_from_slice(&cx.text);
            } else {
                cx.topic.extend_from_slice(b"/telemetry");
                if !stream.is_empty() {
                    cx.topic.push(b'/');
                    cx.topic.extend_from_slice(stream.as_bytes());
                }
            }
        }
        let property = [(MESSAGE_ID_PROPERTY.as_bytes(), &cx.text[..])];
        let head = Head {
            v5,
            packet_id: (packet_id != 0).then_some(packet_id),
            topic: &cx.topic,
            properties: if v5 && self.fleet.message_ids { &property } else { &[] },
        };
        packet::publish(&head, payload, &mut bytes);
        bytes
    }

    /// Everything outstanding leaves again, oldest first, marked as sent before.
    pub fn resend(&mut self, cx: &mut Context) {
        let Some(wire) = &mut self.wire else { return };
        let is_http = self.plan.protocol == Protocol::Http;
        for flight in self.flights.iter_mut() {
            if !is_http {
                packet::mark_dup(&mut flight.bytes);
            }
            wire.out.extend_from_slice(&flight.bytes);
            flight.sends = flight.sends.saturating_add(1);
            cx.tally.counts.resent += 1;
        }
    }

    /// Sends the next report when its time has come; one at a time.
    pub fn send_report(&mut self, cx: &mut Context) {
        let due = cx.clock.real_us(self.twin.report_due_us);
        let urgent = self.twin.obeyed.has_reports() || !self.twin.to_report.is_empty();
        let is_free = self.twin.flight.is_none() && !self.flights.has(What::Report);
        if !is_free || cx.mode != Mode::Run || !(urgent || cx.now_us >= due) || !cx.is_holdfast() {
            return;
        }
        self.twin.reports += 1;
        let k = self.twin.reports;
        let mut patch = self.twin.obeyed.reports();
        patch.append(&mut self.twin.to_report);
        patch.insert("sim".into(), serde_json::json!({ "run": cx.run, "k": k }));
        let payload = serde_json::to_vec(&patch).expect("a map of texts and numbers is JSON");
        let topic = format!("devices/{}/twin/reported/{}-{k}", self.plan.id, cx.run);
        self.publish(What::Report, k, topic.as_bytes(), &payload, cx);
        self.twin.flight = Some(ReportFlight {
            k,
            // As with telemetry: what fell due in a tunnel is meant to be sent behind it.
            intended_us: if urgent {
                cx.now_us
            } else {
                due.max(self.excused_us).min(cx.now_us)
            },
            sent_us: cx.now_us,
            acked_us: None,
        });
        cx.tally.counts.reports += 1;
        if cx.now_us >= due {
            let interval = self.fleet.profile.twin.as_ref().and_then(|twin| twin.report_interval);
            let step = interval.map_or(u64::MAX / 2, |interval| interval.micros());
            self.twin.report_due_us = self.twin.report_due_us.saturating_add(step).max(cx.scenario_now_us());
        }
    }

    /// Asks for the twin.
    pub fn ask_twin(&mut self, cx: &mut Context) {
        self.twin.gets += 1;
        let topic = format!("devices/{}/twin/get/g{}-{}", self.plan.id, cx.run, self.twin.gets);
        self.publish(What::Get, self.twin.gets, topic.as_bytes(), b"", cx);
        self.twin.asked_us = Some(cx.now_us);
    }

    /// A QoS 1 publish that is no telemetry.
    fn publish(&mut self, what: What, n: u64, topic: &[u8], payload: &[u8], cx: &mut Context) {
        let Some(wire) = &mut self.wire else { return };
        let packet_id = self.flights.packet_id();
        let head = Head {
            v5: self.plan.protocol.is_v5(),
            packet_id: Some(packet_id),
            topic,
            properties: &[],
        };
        let mut bytes = Vec::new();
        packet::publish(&head, payload, &mut bytes);
        wire.out.extend_from_slice(&bytes);
        self.flights.push(Flight {
            packet_id,
            what,
            subject: 0,
            n,
            intended_us: cx.now_us,
            sent_us: cx.now_us,
            sends: 1,
            digest: 0,
            has_id: false,
            bytes,
        });
        cx.states.outstanding += 1;
        self.written_us = cx.now_us;
        self.waiting_us.get_or_insert(cx.now_us);
    }

    /// Hands what is ready to the socket.
    pub fn write(&mut self, cx: &mut Context) {
        if let Some(wire) = &mut self.wire {
            if let Err(fault) = wire.write() {
                self.lost(fault, cx);
            }
        }
    }

    /// Deadlines and keep-alive of a connection that lives.
    pub fn keep_up(&mut self, cx: &mut Context) {
        let patience = cx.plan.loaded.scenario.run.ack_timeout.micros();
        let late = |since: Option<u64>| since.is_some_and(|since| cx.now_us >= since + patience);
        if late(self.waiting_us) || late(self.ping_us) {
            return self.lost(Fault::Silent, cx);
        }
        if self.plan.protocol != Protocol::Http && cx.now_us >= self.written_us + self.ping_interval_us() {
            if self.ping_us.is_none() {
                if let Some(wire) = &mut self.wire {
                    wire.out.extend_from_slice(&[0xc0, 0x00]);
                }
                self.ping_us = Some(cx.now_us);
            }
            self.written_us = cx.now_us;
        } else if self.plan.protocol == Protocol::Http {
            self.written_us = cx.now_us;
        }
        let acked = self.twin.flight.as_ref().and_then(|flight| flight.acked_us);
        if acked.is_some_and(|acked| cx.now_us >= acked + TWIN_ANSWER_US) {
            self.land_report(Outcome::Ok, 0, cx);
        }
    }

    /// From now on messages that fall due are counted against the device's queue.
    pub fn begin_backlog(&mut self, cx: &Context) {
        if self.backlog.is_none() && !self.due.is_empty() && !cx.is_closed_loop() {
            self.backlog = Some(Box::new(Backlog {
                ahead: self.subjects.iter().map(|subject| subject.cursors.clone()).collect(),
                due: self.due.clone(),
                pending: 0,
            }));
        }
    }

    /// Counts what fell due while the device is away; beyond its queue the oldest are dropped.
    pub fn age_backlog(&mut self, cx: &mut Context) {
        let now = cx.scenario_now_us();
        let Some(mut backlog) = self.backlog.take() else { return };
        while let Some((at_us, subject, cursor)) = backlog.due.peek() {
            if at_us > now {
                break;
            }
            backlog.due.pop();
            backlog.pending += 1;
            let ahead = &mut backlog.ahead[usize::from(subject)][usize::from(cursor)];
            let id = &self.subjects[usize::from(subject)].id;
            let sender = sender(&self.fleet.spec.name, id, self.plan.at, self.plan.habits.clock_skew_ms);
            let stream = ahead.stream;
            with_setting(
                &self.fleet,
                &cx.plan.curve,
                sender,
                &self.twin.obeyed,
                stream,
                |setting| ahead.advance(setting),
            );
            backlog.due.push(ahead.at_us, subject, cursor);
            if backlog.pending > self.fleet.offline_queue {
                backlog.pending -= 1;
                self.drop_oldest(cx);
            }
        }
        self.backlog = Some(backlog);
    }

    /// The oldest message that is due is never sent.
    fn drop_oldest(&mut self, cx: &mut Context) {
        let Some((at_us, subject, cursor)) = self.due.peek() else {
            return;
        };
        self.due.pop();
        let intended_us = cx.clock.real_us(at_us);
        let dropped = &mut self.subjects[usize::from(subject)];
        dropped.n += 1;
        let mut op = Op::new(dropped.number, Kind::Telemetry, dropped.n);
        (op.intended_us, op.sent_us, op.done_us) = (intended_us, intended_us, cx.now_us);
        (op.outcome, op.sends, op.has_id) = (Outcome::Dropped, 0, self.fleet.message_ids);
        cx.tally.counts.dropped += 1;
        cx.record(op);
        self.step(subject, cursor, true, cx);
    }

    /// The run is over: what is due and was never sent is dropped.
    pub fn drop_unsent(&mut self, cx: &mut Context) {
        if cx.is_closed_loop() {
            return;
        }
        self.drop_due(cx);
    }

    /// What is due by now is never sent.
    pub fn drop_due(&mut self, cx: &mut Context) {
        let now = cx.scenario_now_us();
        for _ in 0..UNSENT_MAX {
            match self.due.peek() {
                Some((at_us, ..)) if at_us <= now => self.drop_oldest(cx),
                _ => return,
            }
        }
    }
}

pub fn sender<'a>(fleet: &'a str, id: &'a str, at: u32, clock_skew_ms: i64) -> Sender<'a> {
    Sender {
        device: id,
        fleet,
        at,
        clock_skew_ms,
    }
}
