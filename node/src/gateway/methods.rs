//! Method calls on one connection: down to the device, and its answers back to who called.
//!
//! A call is sent at most once, with QoS 0, and lives no longer than the connection. What waits
//! for room in the write buffer was certainly not sent; what is in it may have been. Request ids
//! carry the session's generation, so that an answer of an earlier session meets no call of this
//! one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use actors::id::DeviceId;
use actors::wire::topic;
use cluster::api::{MethodAnswer, MethodCall, MethodError, MethodReply, MethodResult, METHOD_BYTES_MAX};
use rmqtt_codec::types::Publish;
use rmqtt_codec::v5::{PublishAckReason, PublishProperties};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::downlink::granted;
use super::inflight::{After, Outcome};
use super::metrics;
use super::proto::Outgoing;

/// Calls of one connection that are not answered.
pub(super) const CALLS_MAX: usize = 16;

/// The calls of one connection. Takes no memory before the first.
#[derive(Debug, Default)]
pub(super) struct Methods(Option<Box<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    waiting: VecDeque<Call>,
    sent: Vec<Call>,
    /// Calls sent so far: the last part of the last request id.
    count: u64,
}

#[derive(Debug)]
struct Call {
    /// The connection's own device, or a child of it.
    device: DeviceId,
    generation: u64,
    /// Empty until it is sent.
    rid: String,
    name: String,
    payload: String,
    reply: MethodReply,
    until: Instant,
}

/// What a device answers, as JSON.
#[derive(Deserialize)]
struct Told<'a> {
    status: i32,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl Methods {
    pub(super) fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|calls| !calls.waiting.is_empty())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let calls = self.0.as_ref()?;
        calls.waiting.iter().chain(&calls.sent).map(|call| call.until).min()
    }

    fn take_in(&mut self, call: MethodCall, reply: MethodReply, now: Instant) {
        let calls = self.0.get_or_insert_default();
        if calls.waiting.len() + calls.sent.len() >= CALLS_MAX {
            return reply.send(Err(MethodError::Overloaded {
                what: format!("{CALLS_MAX} method calls of this device"),
            }));
        }
        calls.waiting.push_back(Call {
            device: call.key.device,
            generation: call.generation,
            rid: String::new(),
            name: call.name,
            payload: call.payload,
            reply,
            until: now + Duration::from_millis(call.timeout_ms),
        });
    }

    /// Ends what has waited long enough.
    fn expire(&mut self, now: Instant) {
        let Some(calls) = &mut self.0 else { return };
        let late = |call: &Call| call.until <= now;
        while let Some(at) = calls.waiting.iter().position(late) {
            let call = calls.waiting.remove(at).expect("it was found there");
            call.reply.send(Err(MethodError::NotDelivered {
                reason: "the device did not read its connection in time, so the call was not sent".into(),
            }));
        }
        while let Some(at) = calls.sent.iter().position(late) {
            calls.sent.swap_remove(at).reply.send(Err(MethodError::Unknown));
        }
        if calls.waiting.is_empty() && calls.sent.is_empty() && calls.sent.capacity() > CALLS_MAX {
            calls.sent.shrink_to_fit();
        }
    }

    /// Ends the calls of sessions that are not this connection's any more.
    fn keep_live(&mut self, is_live: impl Fn(&DeviceId, u64) -> bool) {
        if let Some(calls) = &mut self.0 {
            calls.waiting.retain(|call| is_live(&call.device, call.generation));
            calls.sent.retain(|call| is_live(&call.device, call.generation));
        }
    }

    fn next_to_send(&mut self) -> Option<Call> {
        let calls = self.0.as_mut()?;
        let mut call = calls.waiting.pop_front()?;
        calls.count += 1;
        call.rid = format!("{}-{}", call.generation, calls.count);
        Some(call)
    }

    fn sent(&mut self, mut call: Call) {
        call.reply.sent();
        call.payload = String::new();
        self.0.get_or_insert_default().sent.push(call);
    }

    /// Takes out the call that is answered.
    fn answered(&mut self, device: &DeviceId, rid: &str) -> Option<MethodReply> {
        let calls = self.0.as_mut()?;
        let is_meant = |call: &Call| call.rid == rid && call.device == *device;
        let at = calls.sent.iter().position(is_meant)?;
        Some(calls.sent.swap_remove(at).reply)
    }

    /// Why nobody waits for an answer: it is late, or answers nothing this session was asked.
    fn ignored(&self, generation: Option<u64>, rid: &str) -> &'static str {
        let count = self.0.as_ref().map_or(0, |calls| calls.count);
        let number = rid.split_once('-').and_then(|(session, number)| {
            let own = session.parse().ok() == generation;
            own.then(|| number.parse::<u64>().ok()).flatten()
        });
        match number {
            Some(number) if (1..=count).contains(&number) => "late",
            _ => "unknown",
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn take_call(&mut self, call: MethodCall, reply: MethodReply) {
        // Dropped unsent, it tells the caller to look for the device elsewhere.
        let device = &call.key.device;
        if self.generation_of(device) != Some(call.generation) || self.ending.is_some() || self.is_mute() {
            return;
        }
        let topic = topic::method_call(device, &call.name, "0");
        if granted(self.subscriptions_to(&topic), &topic).is_none() {
            return reply.send(Err(MethodError::NotSubscribed));
        }
        self.methods.take_in(call, reply, self.now);
    }

    /// Writes the calls that fit the write buffer, and ends those that are late.
    pub(super) fn send_calls(&mut self) {
        if self.methods.0.is_none() {
            return;
        }
        self.methods.expire(self.now);
        let mut methods = std::mem::take(&mut self.methods);
        methods.keep_live(|device, generation| self.generation_of(device) == Some(generation));
        while !self.is_mute() && self.socket.output.len() < self.shared.limits.write_buffer_bytes_max {
            let Some(call) = methods.next_to_send() else {
                break;
            };
            match self.send_call(&call) {
                Ok(()) => methods.sent(call),
                Err(error) => call.reply.send(Err(error)),
            }
        }
        self.methods = methods;
    }

    fn send_call(&mut self, call: &Call) -> Result<(), MethodError> {
        let topic = topic::method_call(&call.device, &call.name, &call.rid);
        let grant = granted(self.subscriptions_to(&topic), &topic).ok_or(MethodError::NotSubscribed)?;
        let properties = PublishProperties {
            response_topic: Some(topic::method_response(&call.device, &call.rid).into()),
            correlation_data: Some(call.rid.clone().into_bytes().into()),
            content_type: Some("application/json".into()),
            ..PublishProperties::default()
        };
        let outgoing = Outgoing {
            topic,
            payload: call.payload.clone().into_bytes(),
            at_least_once: false,
            properties: grant.properties(Some(Box::new(properties))),
        };
        if self.protocol.publish(&mut self.socket.output, outgoing, None) {
            metrics::downlink("method");
            return Ok(());
        }
        metrics::downlink_dropped("packet_too_large");
        Err(MethodError::NotDelivered {
            reason: "the call is larger than the packets the device takes".into(),
        })
    }

    /// The device answers a call. It is acknowledged in its turn, whatever comes of it.
    pub(super) fn on_method_response(&mut self, publish: &Publish, device: &DeviceId, rid: &str) {
        if let Some(packet_id) = publish.packet_id {
            let after = After::PubAck { packet_id };
            self.inflight
                .push_local(after, Outcome::Local(PublishAckReason::Success), self.now);
        }
        let correlation = publish.properties.as_ref().and_then(|p| p.correlation_data.as_ref());
        // The correlation data names the call where it is given.
        let rid = match correlation {
            Some(data) => std::str::from_utf8(data).unwrap_or_default(),
            None => rid,
        };
        match self.methods.answered(device, rid) {
            Some(reply) => reply.send(read_answer(&publish.payload)),
            None => {
                let why = self.methods.ignored(self.generation_of(device), rid);
                metrics::method_answer_ignored(why);
                tracing::debug!(%device, rid, why, "method answer ignored");
            }
        }
    }
}

fn read_answer(payload: &[u8]) -> MethodResult {
    let bad = |reason: String| MethodError::BadAnswer { reason };
    if payload.len() > METHOD_BYTES_MAX {
        return Err(bad(format!(
            "the device's answer has {} bytes, at most {METHOD_BYTES_MAX} are allowed",
            payload.len()
        )));
    }
    if payload.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("the device's answer is no JSON object".into()));
    }
    let told: Told<'_> =
        serde_json::from_slice(payload).map_err(|error| bad(format!("the device's answer cannot be read: {error}")))?;
    Ok(MethodAnswer {
        status: told.status,
        payload: told.payload.map_or("null", RawValue::get).to_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `answer -> what the caller learns`
    fn check(row: &str) {
        let (given, expected) = row.rsplit_once(" -> ").unwrap();
        let got = match read_answer(given.as_bytes()) {
            Ok(answer) => format!("{} {}", answer.status, answer.payload),
            Err(MethodError::BadAnswer { .. }) => "bad".to_owned(),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(got, expected, "{given}");
    }

    #[test]
    fn answers_have_a_status_and_perhaps_a_payload() {
        check(r#"{"status":200,"payload":{"a":1.50}} -> 200 {"a":1.50}"#);
        check(r#" {"payload":[1],"status":-7} -> -7 [1]"#);
        check(r#"{"status":200} -> 200 null"#);
        check(r#"{"status":200,"payload":null} -> 200 null"#);
        check(r#"{"status":200,"more":1,"payload":"x"} -> 200 "x""#);
        check(r#"{"payload":1} -> bad"#);
        check(r#"{"status":"200"} -> bad"#);
        check(r#"{"status":200.5} -> bad"#);
        check(r#"{"status":99999999999} -> bad"#);
        check(r#"[200,1] -> bad"#);
        check(r#"{"status":200,"payload":{} -> bad"#);
        check(" -> bad");
        let large = format!(r#"{{"status":200,"payload":"{}"}}"#, "x".repeat(METHOD_BYTES_MAX));
        assert!(read_answer(large.as_bytes()).is_err());
    }

    fn call() -> MethodCall {
        MethodCall {
            gateway: actors::id::Gateway { node: 1, boot: 1 },
            key: actors::id::DeviceKey::new(
                actors::id::TenantId::DEFAULT,
                actors::id::DeviceId::parse("lamp").unwrap(),
            ),
            generation: 3,
            name: "blink".into(),
            payload: "1".into(),
            timeout_ms: 100,
            trace: None,
        }
    }

    fn reply() -> (MethodReply, std::sync::mpsc::Receiver<MethodResult>) {
        let (tx, rx) = std::sync::mpsc::channel();
        (MethodReply::new(move |result| drop(tx.send(result))), rx)
    }

    /// What was not sent in time certainly was not; what was sent may have been carried out. An
    /// answer that comes later meets nobody.
    #[test]
    fn time_ends_a_call_by_what_is_known_of_it() {
        let now = Instant::now();
        let mut methods = Methods::default();
        let ((first, first_told), (second, second_told)) = (reply(), reply());
        methods.take_in(call(), first, now);
        methods.take_in(call(), second, now);
        let sent = methods.next_to_send().unwrap();
        assert_eq!(sent.rid, "3-1");
        methods.sent(sent);
        methods.expire(now + Duration::from_millis(99));
        assert!(first_told.try_recv().is_err() && second_told.try_recv().is_err());
        methods.expire(now + Duration::from_millis(100));
        assert_eq!(first_told.recv().unwrap(), Err(MethodError::Unknown));
        assert!(matches!(
            second_told.recv().unwrap(),
            Err(MethodError::NotDelivered { .. })
        ));
        assert!(methods.answered(&call().key.device, "3-1").is_none());
        assert_eq!(methods.ignored(Some(3), "3-1"), "late");
        for other in ["3-2", "3-0", "2-1", "3", "", "x-1"] {
            assert_eq!(methods.ignored(Some(3), other), "unknown", "{other}");
        }
    }

    #[test]
    fn one_connection_holds_a_bounded_number_of_calls() {
        let now = Instant::now();
        let mut methods = Methods::default();
        let mut told = Vec::new();
        for _ in 0..=CALLS_MAX {
            let (reply, rx) = reply();
            methods.take_in(call(), reply, now);
            told.push(rx);
        }
        let last = told.pop().unwrap().recv().unwrap();
        assert!(matches!(last, Err(MethodError::Overloaded { .. })));
        assert!(told.iter().all(|rx| rx.try_recv().is_err()));
        drop(methods);
        assert!(told.iter().all(|rx| rx.recv().unwrap() == Err(MethodError::NotHere)));
    }
}
