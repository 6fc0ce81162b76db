#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Method calls through the shipped binary: from any node to a device on any node, at most once.

use std::sync::Arc;
use std::thread::JoinHandle;

use holdfast_tests::clients::dev::{holdfast, told, Cluster};
use holdfast_tests::clients::eventually;
use holdfast_tests::clients::http::Answer;
use holdfast_tests::clients::raw::{packet, publish, subscribe, text, Raw};
use serde_json::{json, Value};

/// A connected device that listens for its methods.
struct Device {
    raw: Raw,
    version: u8,
    id: String,
}

/// A call as the device got it.
#[derive(Debug)]
struct Call {
    name: String,
    rid: String,
    payload: Value,
    /// Response topic and correlation data, in MQTT 5.
    answer_to: Option<(String, Vec<u8>)>,
}

impl Device {
    fn connect(cluster: &Cluster, node: usize, version: u8, id: &str) -> Self {
        let raw = Raw::connected(cluster.node(node).mqtt, version, id);
        Self {
            raw,
            version,
            id: id.to_owned(),
        }
    }

    fn listening(cluster: &Cluster, node: usize, version: u8, id: &str) -> Self {
        let mut device = Self::connect(cluster, node, version, id);
        let filter = format!("devices/{id}/methods/#");
        device.raw.send(&subscribe(version, 9, filter, 0));
        let (first, body) = device.raw.next_packet().expect("a SUBACK");
        assert_eq!((first, body.last()), (0x90, Some(&0)), "{body:?}");
        device
    }

    fn call(&mut self) -> Call {
        let (first, body) = self.raw.next_packet().expect("a call");
        assert_eq!(first, 0x30, "a PUBLISH with QoS 0: {body:?}");
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
        let mut rest = &body[2 + length..];
        let mut answer_to = None;
        if self.version == 5 {
            let length = usize::from(rest[0]);
            assert!(length < 128, "short properties");
            let properties = &rest[1..=length];
            answer_to = Some((
                String::from_utf8(property(properties, 0x08)).unwrap(),
                property(properties, 0x09),
            ));
            rest = &rest[1 + length..];
        }
        let parts: Vec<&str> = topic.split('/').collect();
        assert_eq!(
            (parts[0], parts[1], parts[2], parts.len()),
            ("devices", &*self.id, "methods", 5),
            "{topic}"
        );
        Call {
            name: parts[3].to_owned(),
            rid: parts[4].to_owned(),
            payload: serde_json::from_slice(rest).unwrap(),
            answer_to,
        }
    }

    /// Answers with QoS 1 and waits for the PUBACK, so that the node has seen it.
    fn answer(&mut self, rid: &str, body: &str) {
        let topic = format!("devices/{}/methods/res/{rid}", self.id);
        self.raw.send(&publish(self.version, topic, 3, false, body.as_bytes()));
        assert_eq!(self.raw.puback(3), 0);
    }

    /// Answers with correlation data in MQTT 5, QoS 0.
    fn answer_correlated(&mut self, topic: &str, correlation: &[u8], body: &str) {
        let properties = [&[0x09][..], &text(correlation)].concat();
        let mut bytes = text(topic);
        bytes.push(u8::try_from(properties.len()).unwrap());
        bytes.extend(properties);
        bytes.extend_from_slice(body.as_bytes());
        self.raw.send(&packet(0x30, &bytes));
    }
}

/// A text or binary property of a publish that holds only such.
fn property(mut properties: &[u8], wanted: u8) -> Vec<u8> {
    while let [id, high, low, rest @ ..] = properties {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *id == wanted {
            return rest[..length].to_vec();
        }
        properties = &rest[length..];
    }
    panic!("no property {wanted:#x}");
}

fn invoke(cluster: &Cluster, node: usize, device: &str, name: &str, body: &Value) -> Answer {
    let path = format!("/api/v1/devices/{device}/methods/{name}");
    cluster.http(node).send("POST", &path, &[], body.to_string())
}

/// Calls from a thread of its own, because the device has to answer meanwhile.
fn calling(cluster: &Arc<Cluster>, node: usize, device: &str, body: Value) -> JoinHandle<Answer> {
    let (cluster, device) = (cluster.clone(), device.to_owned());
    std::thread::spawn(move || invoke(&cluster, node, &device, "blink", &body))
}

fn ignored(cluster: &Cluster, node: usize) -> f64 {
    cluster.http(node).metric("holdfast_mqtt_method_answers_ignored_total")
}

/// The problem's name.
fn problem(answer: &Answer, status: u16) -> String {
    let problem = answer.problem(status);
    problem["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
}

#[test]
fn a_device_on_any_node_answers_a_call_to_any_node() {
    let cluster = Cluster::shared(3);
    for (at, version) in [(1, 4), (2, 5), (3, 4)] {
        let id = format!("any-{at}");
        let mut device = Device::listening(&cluster, at, version, &id);
        for from in 1..=3 {
            let asked = json!({ "payload": { "from": from, "f": 1.5 }, "timeout_ms": 20_000 });
            let caller = calling(&cluster, from, &id, asked);
            let call = device.call();
            assert_eq!(
                (call.name.as_str(), &call.payload),
                ("blink", &json!({ "from": from, "f": 1.5 }))
            );
            device.answer(&call.rid, &format!(r#"{{"status":201,"payload":["done",{from}]}}"#));
            let answer = caller.join().unwrap().expect(200).json();
            assert_eq!(answer, json!({ "status": 201, "payload": ["done", from] }));
        }
    }
}

/// MQTT 5: the response topic leads back, and so does the correlation data alone.
#[test]
fn correlation_data_answers_a_call() {
    let cluster = Cluster::shared(3);
    let mut device = Device::listening(&cluster, 1, 5, "correlated");
    for own_topic in [true, false] {
        let caller = calling(&cluster, 2, "correlated", json!({}));
        let call = device.call();
        assert_eq!(call.payload, Value::Null);
        let (topic, correlation) = call.answer_to.unwrap();
        assert_eq!(topic, format!("devices/correlated/methods/res/{}", call.rid));
        let before = ignored(&cluster, 1);
        device.answer_correlated(&topic, b"another", r#"{"status":500}"#);
        eventually("an answer to nothing is counted", || {
            (ignored(&cluster, 1) > before).then_some(())
        });
        let to = if own_topic {
            topic.as_str()
        } else {
            "devices/correlated/methods/res/mine"
        };
        device.answer_correlated(to, &correlation, r#"{"status":200,"payload":7}"#);
        assert_eq!(
            caller.join().unwrap().expect(200).json(),
            json!({ "status": 200, "payload": 7 })
        );
    }
}

/// Each way not to be sent says so, and none is "unknown".
#[test]
fn what_cannot_be_delivered_is_told_before_anything_is_sent() {
    let cluster = Cluster::shared(3);
    let http = cluster.http(1);
    assert_eq!(
        problem(&invoke(&cluster, 1, "nobody", "blink", &json!({})), 404),
        "device-not-found"
    );
    http.send("PUT", "/api/v1/devices/away", &[], "{}").expect(201);
    assert_eq!(
        problem(&invoke(&cluster, 2, "away", "blink", &json!({})), 404),
        "not-connected"
    );
    let mut deaf = Device::connect(&cluster, 1, 4, "away");
    for from in [1, 3] {
        let answer = invoke(&cluster, from, "away", "blink", &json!({}));
        assert_eq!(problem(&answer, 404), "not-subscribed");
    }
    deaf.raw.send(&subscribe(4, 1, "devices/away/methods/reboot/+", 0));
    deaf.raw.next_packet().expect("a SUBACK");
    assert_eq!(
        problem(&invoke(&cluster, 2, "away", "blink", &json!({})), 404),
        "not-subscribed"
    );
    http.send(
        "PATCH",
        "/api/v1/devices/away",
        &[("content-type", "application/merge-patch+json")],
        r#"{"status":"disabled"}"#,
    )
    .expect(200);
    assert_eq!(
        problem(&invoke(&cluster, 2, "away", "blink", &json!({})), 409),
        "device-disabled"
    );
}

/// Sent once; unanswered it is unknown, and what comes later, or answers nothing, is counted.
#[test]
fn a_call_is_sent_once_and_answered_once() {
    let cluster = Cluster::shared(3);
    let mut device = Device::listening(&cluster, 2, 4, "slow");
    let caller = calling(&cluster, 1, "slow", json!({ "timeout_ms": 400 }));
    let first = device.call();
    assert_eq!(problem(&caller.join().unwrap(), 504), "unknown");
    let before = ignored(&cluster, 2);
    device.answer(&first.rid, r#"{"status":200}"#);
    assert_eq!(ignored(&cluster, 2), before + 1.0, "a late answer");

    // The next packet is the next call: the first was not sent again.
    let caller = calling(&cluster, 3, "slow", json!({ "payload": 2 }));
    let second = device.call();
    assert_eq!(second.payload, json!(2));
    assert_ne!(second.rid, first.rid);
    device.answer("17-1", r#"{"status":200,"payload":"of another session"}"#);
    device.answer(&first.rid, r#"{"status":200,"payload":"of another call"}"#);
    device.answer(&second.rid, r#"{"status":200,"payload":"right"}"#);
    device.answer(&second.rid, r#"{"status":200,"payload":"twice"}"#);
    assert_eq!(caller.join().unwrap().expect(200).json()["payload"], "right");
    assert_eq!(ignored(&cluster, 2), before + 4.0);

    for bad in ["no json", r#"{"payload":1}"#, "[]", ""] {
        let caller = calling(&cluster, 1, "slow", json!({}));
        let call = device.call();
        device.answer(&call.rid, bad);
        assert_eq!(problem(&caller.join().unwrap(), 502), "bad-answer", "{bad:?}");
    }
}

/// A session that ends takes its calls with it; the next one does not answer them.
#[test]
fn a_takeover_ends_calls_as_unknown() {
    let cluster = Cluster::shared(3);
    let mut old = Device::listening(&cluster, 1, 4, "taken");
    let caller = calling(&cluster, 2, "taken", json!({ "timeout_ms": 60_000 }));
    let call = old.call();
    let mut new = Device::listening(&cluster, 3, 4, "taken");
    assert_eq!(problem(&caller.join().unwrap(), 504), "unknown");
    let before = ignored(&cluster, 3);
    new.answer(&call.rid, r#"{"status":200}"#);
    assert_eq!(ignored(&cluster, 3), before + 1.0);
    let caller = calling(&cluster, 2, "taken", json!({}));
    let call = new.call();
    new.answer(&call.rid, r#"{"status":200}"#);
    caller.join().unwrap().expect(200);
}

#[test]
fn one_device_has_a_bounded_number_of_calls() {
    let cluster = Cluster::shared(3);
    let mut device = Device::listening(&cluster, 1, 4, "busy");
    let callers: Vec<_> = (0..16)
        .map(|at| calling(&cluster, at % 3 + 1, "busy", json!({})))
        .collect();
    let calls: Vec<_> = callers.iter().map(|_| device.call()).collect();
    let refused = invoke(&cluster, 2, "busy", "blink", &json!({}));
    assert_eq!(problem(&refused, 429), "overloaded");
    assert!(!refused.header("retry-after").is_empty());
    for call in calls {
        device.answer(&call.rid, r#"{"status":200}"#);
    }
    for caller in callers {
        caller.join().unwrap().expect(200);
    }
}

#[test]
fn the_command_line_calls_a_method() {
    let cluster = Cluster::shared(3);
    let mut device = Device::listening(&cluster, 2, 5, "cli-lamp");
    let dir = cluster.path().to_str().unwrap().to_owned();
    let run = |more: &[&str]| {
        let all = [&["device", "invoke", "cli-lamp", "blink", "--dir", &dir][..], more].concat();
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        std::thread::spawn(move || told(&holdfast(&all)))
    };
    let caller = run(&["--payload", r#"{"n":3}"#, "--timeout", "20s", "--output", "json"]);
    let call = device.call();
    assert_eq!(call.payload, json!({ "n": 3 }));
    device.answer(&call.rid, r#"{"status":200,"payload":{"ok":true}}"#);
    let (code, said) = caller.join().unwrap();
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        serde_json::from_str::<Value>(&said).unwrap(),
        json!({ "status": 200, "payload": { "ok": true } })
    );
    drop(device);
    let (code, said) = run(&["--timeout", "1s"]).join().unwrap();
    assert!(code == 69 && said.contains("not connected"), "{code}: {said}");
    let (code, _) = run(&["--timeout", "301s"]).join().unwrap();
    assert_eq!(code, 64);
}

/// The node that holds the connection dies with a call on its way: unknown, and told at once
/// rather than at the timeout. The device comes back elsewhere and is called there.
#[test]
fn the_death_of_the_devices_node_ends_its_calls() {
    let cluster = Arc::new(Cluster::up(3));
    let mut device = Device::listening(&cluster, 2, 4, "lost");
    let caller = calling(&cluster, 1, "lost", json!({ "timeout_ms": 300_000 }));
    device.call();
    cluster.kill(2);
    assert_eq!(problem(&caller.join().unwrap(), 504), "unknown");
    let mut device = eventually("the device connects elsewhere", || {
        std::panic::catch_unwind(|| Device::listening(&cluster, 3, 4, "lost")).ok()
    });
    let caller = calling(&cluster, 1, "lost", json!({ "timeout_ms": 30_000 }));
    let call = device.call();
    device.answer(&call.rid, r#"{"status":200}"#);
    caller.join().unwrap().expect(200);
}
