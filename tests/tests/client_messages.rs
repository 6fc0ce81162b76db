#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Messages to devices through the shipped program: queued over HTTP at one node, delivered over
//! MQTT by another, settled by PUBACK, and never gone without a word.

use std::sync::Arc;

use holdfast_tests::clients::dev::{holdfast, told, Cluster};
use holdfast_tests::clients::eventually;
use holdfast_tests::clients::http::{Answer, Http};
use holdfast_tests::clients::mailbox::{Delivery, Login, Mailbox};
use serde_json::{json, Value};

/// A device of one test, and the ways to it.
struct Inbox {
    cluster: Arc<Cluster>,
    http: Http,
    id: String,
}

impl Inbox {
    fn new(id: &str) -> Self {
        let cluster = Cluster::shared(3);
        let http = cluster.http(1);
        http.send("PUT", &format!("/api/v1/devices/{id}"), &[], "").expect(201);
        Self {
            cluster,
            http,
            id: id.to_owned(),
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v1/devices/{}/messages{rest}", self.id)
    }

    fn post(&self, body: Value) -> Answer {
        self.http.send("POST", &self.path(""), &[], body.to_string())
    }

    /// Queues messages under these ids, with themselves as payload.
    fn queue(&self, ids: &[&str]) {
        for id in ids {
            self.post(json!({"payload": id, "message_id": id})).expect(201);
        }
    }

    fn items(&self, list: &str) -> Vec<Value> {
        let page = self.http.get(&self.path(list)).expect(200).json();
        page["items"].as_array().unwrap().clone()
    }

    fn connect(&self, node: usize, login: Login) -> Mailbox {
        Mailbox::open(self.cluster.node(node).mqtt, &self.id, login)
    }

    fn subscribed(&self, node: usize, login: Login) -> Mailbox {
        Mailbox::subscribed(self.cluster.node(node).mqtt, &self.id, login)
    }

    /// Waits until the device's feedback says this, as `id outcome deliveries`.
    fn feedback_says(&self, expected: &[&str]) {
        eventually(&format!("feedback {expected:?}"), || {
            let said: Vec<String> = self.items("/feedback").iter().map(feedback).collect();
            (said == expected).then_some(())
        });
    }
}

fn feedback(item: &Value) -> String {
    let text = |name: &str| item[name].as_str().unwrap_or("?").to_owned();
    format!("{} {} {}", text("message_id"), text("outcome"), item["delivery_count"])
}

fn ids(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["id"].as_str().unwrap()).collect()
}

fn take(mailbox: &mut Mailbox, count: usize) -> Vec<Delivery> {
    (0..count)
        .map(|_| mailbox.take().expect("a message, and not the end"))
        .collect()
}

fn names(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.message_id.as_str()).collect()
}

#[test]
fn queued_messages_wait_for_the_device_and_come_in_order() {
    let inbox = Inbox::new("waits");
    let stored = inbox.post(json!({
        "payload": {"open": true}, "message_id": "first", "ttl_secs": 600,
        "properties": {"urgent": "yes"}, "content_type": "application/vnd.door+json",
    }));
    let stored = stored.expect(201);
    assert_eq!(stored.header("location"), inbox.path("/first"));
    let receipt = stored.header("x-holdfast-receipt");
    assert!(!receipt.is_empty());
    let state = inbox
        .http
        .get(&format!("/api/v1/receipts/{receipt}"))
        .expect(200)
        .json();
    assert_eq!(state["state"], "committed");
    let body = stored.json();
    assert!(body["expires_at"].as_str() > body["enqueued_at"].as_str());
    inbox.queue(&["second", "third"]);
    let waiting = inbox.items("");
    assert_eq!(ids(&waiting), ["first", "second", "third"]);
    assert_eq!(waiting[0]["state"], "queued");
    assert_eq!(waiting[0]["delivery_count"], 0);
    assert_eq!(waiting[0]["payload"], json!({"open": true}));
    assert_eq!(waiting[0]["properties"], json!({"urgent": "yes"}));

    // The queue is the device's: a clean session gets it as well, once it subscribes.
    let mut mailbox = inbox.connect(
        2,
        Login {
            clean: true,
            ..Login::RESUMED
        },
    );
    assert!(mailbox.is_quiet());
    mailbox.subscribe("devices/waits/#", 1);
    let came = take(&mut mailbox, 3);
    assert_eq!(names(&came), ["first", "second", "third"]);
    assert!(came.iter().all(|delivery| !delivery.dup));
    assert_eq!(came[0].payload, br#"{"open":true}"#);
    for property in ["application/vnd.door+json", "urgent", "yes"] {
        let text = String::from_utf8_lossy(&came[0].properties).into_owned();
        assert!(text.contains(property), "{property} is missing in {text:?}");
    }
    // Message Expiry Interval: at most what was asked for.
    let at = came[0]
        .properties
        .iter()
        .position(|byte| *byte == 0x02)
        .expect("an expiry");
    let secs = u32::from_be_bytes(came[0].properties[at + 1..at + 5].try_into().unwrap());
    assert!((1..=600).contains(&secs), "{secs}");
    assert_eq!(inbox.items("")[1]["state"], "delivering");

    for delivery in &came {
        mailbox.acknowledge(delivery);
    }
    inbox.feedback_says(&["first completed 1", "second completed 1", "third completed 1"]);
    assert!(inbox.items("").is_empty());
    // And while it is connected, at once.
    inbox.queue(&["live"]);
    let live = take(&mut mailbox, 1);
    assert_eq!(names(&live), ["live"]);
    mailbox.acknowledge(&live[0]);
    eventually("it is settled", || inbox.items("").is_empty().then_some(()));
    inbox.http.get(&inbox.path("/live")).problem(404);
}

/// MQTT: in one session what was not acknowledged comes again with DUP and its packet id; in a
/// new session as if for the first time.
#[test]
fn unacknowledged_messages_come_again_at_another_node() {
    let inbox = Inbox::new("again");
    let mut mailbox = inbox.subscribed(1, Login::RESUMED);
    inbox.queue(&["a", "b"]);
    let first = take(&mut mailbox, 2);
    mailbox.acknowledge(&first[0]);
    inbox.feedback_says(&["a completed 1"]);

    let mut resumed = inbox.connect(2, Login::RESUMED);
    assert!(resumed.session_present);
    let again = take(&mut resumed, 1);
    assert_eq!((again[0].dup, again[0].packet_id), (true, first[1].packet_id));
    assert_eq!(names(&again), ["b"]);
    // Left without an answer once more, and then a session of its own.
    resumed.leave();
    let mut anew = inbox.subscribed(3, Login::CLEAN);
    let fresh = take(&mut anew, 1);
    assert_eq!((names(&fresh), fresh[0].dup), (vec!["b"], false));
    anew.acknowledge(&fresh[0]);
    // The answer counts though the device leaves with it.
    anew.leave();
    inbox.feedback_says(&["a completed 1", "b completed 3"]);
}

#[test]
fn an_expired_message_is_a_dead_letter_and_can_be_replayed() {
    let inbox = Inbox::new("expires");
    inbox
        .post(json!({"payload": 1, "message_id": "short", "ttl_secs": 1}))
        .expect(201);
    inbox.queue(&["long"]);
    inbox.feedback_says(&["short expired 0"]);
    let dead = inbox.items("/dead");
    assert_eq!(ids(&dead), ["short"]);
    assert_eq!(
        (&dead[0]["reason"], &dead[0]["state"]),
        (&json!("expired"), &json!("dead"))
    );
    assert_eq!(dead[0]["payload"], 1);
    inbox
        .http
        .send("POST", &inbox.path("/dead/nonsense/replay"), &[], "")
        .problem(404);
    let replay = inbox.path("/dead/short/replay");
    let replayed = inbox.http.send("POST", &replay, &[], r#"{"ttl_secs":500}"#).expect(201);
    assert!(!replayed.header("x-holdfast-receipt").is_empty());
    // Asked for twice, done once.
    inbox.http.send("POST", &replay, &[], "").expect(200);
    assert_eq!(ids(&inbox.items("")), ["long", "short"]);
    assert!(inbox.items("/dead").is_empty());
    let mut mailbox = inbox.subscribed(3, Login::CLEAN);
    let came = take(&mut mailbox, 2);
    assert_eq!(names(&came), ["long", "short"]);
    came.iter().for_each(|delivery| mailbox.acknowledge(delivery));
    inbox.feedback_says(&["short expired 0", "long completed 1", "short completed 1"]);
}

#[test]
fn a_full_queue_refuses_and_a_purge_makes_room() {
    let inbox = Inbox::new("full");
    for number in 0..50 {
        inbox
            .post(json!({"payload": number, "message_id": format!("m{number}")}))
            .expect(201);
    }
    let refused = inbox.post(json!({"payload": 50}));
    let problem = refused.problem(429);
    assert_eq!(problem["type"], "urn:holdfast:problem:message-queue-full");
    assert!(!refused.header("retry-after").is_empty());
    // Page by page.
    let page = inbox.http.get(&inbox.path("?limit=20")).expect(200).json();
    assert_eq!(page["items"].as_array().unwrap().len(), 20);
    let rest = inbox.items(&format!("?limit=100&cursor={}", page["next"]));
    assert_eq!((rest.len(), ids(&rest)[0]), (30, "m20"));

    let one = inbox
        .http
        .send("DELETE", &inbox.path("/m7"), &[], "")
        .expect(200)
        .json();
    assert_eq!(one, json!({"purged": 1}));
    inbox.http.send("DELETE", &inbox.path("/m7"), &[], "").problem(404);
    inbox.post(json!({"payload": "fits"})).expect(201);
    let all = inbox.http.send("DELETE", &inbox.path(""), &[], "").expect(200).json();
    assert_eq!(all, json!({"purged": 50}));
    assert!(inbox.items("").is_empty());
    // Fifty-one died, fifty are kept: the oldest gave way.
    let dead = inbox.items("/dead");
    assert_eq!(dead.len(), 50);
    assert!(dead
        .iter()
        .all(|letter| letter["reason"] == "purged" && letter["id"] != "m7"));
    let dropped = inbox
        .http
        .send("DELETE", &inbox.path("/dead"), &[], "")
        .expect(200)
        .json();
    assert_eq!(dropped, json!({"dropped": 50}));
    assert!(inbox.items("/dead").is_empty());
    assert_eq!(inbox.items("/feedback?after_seq=50").len(), 1);
}

/// A device that acknowledges nothing: a bounded window, and an end after ten deliveries.
#[test]
fn a_device_that_never_answers_gets_no_more_than_its_window_and_an_end() {
    let inbox = Inbox::new("mute");
    inbox.queue(&["a", "b", "c"]);
    let login = Login {
        receive_maximum: 2,
        ..Login::RESUMED
    };
    for round in 1..=10 {
        let mut mailbox = if round == 1 {
            inbox.subscribed(1, login)
        } else {
            inbox.connect(1 + round % 3, login)
        };
        assert_eq!(names(&take(&mut mailbox, 2)), ["a", "b"]);
        assert!(mailbox.is_quiet(), "the window of two is full");
        mailbox.leave();
    }
    let mut mailbox = inbox.connect(2, login);
    let came = take(&mut mailbox, 1);
    assert_eq!(names(&came), ["c"]);
    mailbox.acknowledge(&came[0]);
    inbox.feedback_says(&["a max-deliveries 10", "b max-deliveries 10", "c completed 1"]);
    assert_eq!(ids(&inbox.items("/dead")), ["a", "b"]);
}

#[test]
fn a_rejected_message_is_a_dead_letter() {
    let inbox = Inbox::new("rejects");
    let mut mailbox = inbox.subscribed(1, Login::RESUMED);
    inbox.queue(&["bad", "good"]);
    let came = take(&mut mailbox, 2);
    mailbox.reject(&came[0], 0x99);
    inbox.feedback_says(&["bad rejected 1"]);
    mailbox.acknowledge(&came[1]);
    inbox.feedback_says(&["bad rejected 1", "good completed 1"]);
    assert_eq!(inbox.items("/dead")[0]["reason"], "rejected");
}

#[test]
fn a_message_sent_twice_is_queued_once() {
    let inbox = Inbox::new("twice");
    let body = json!({"payload": 1, "message_id": "x"});
    inbox.post(body.clone()).expect(201);
    let again = inbox.post(body).expect(200).json();
    assert_eq!(again["repeated"], true);
    let other = inbox.post(json!({"payload": 2, "message_id": "x"}));
    assert_eq!(other.problem(409)["type"], "urn:holdfast:problem:message-id-taken");
    for status in [201, 200] {
        let sent = inbox.http.send(
            "POST",
            &inbox.path(""),
            &[("Idempotency-Key", "retry/1")],
            r#"{"payload":3}"#,
        );
        sent.expect(status);
    }
    assert_eq!(inbox.items("").len(), 2);
    // Settled, it is still known.
    let mut mailbox = inbox.subscribed(2, Login::CLEAN);
    for delivery in take(&mut mailbox, 2) {
        mailbox.acknowledge(&delivery);
    }
    eventually("both are settled", || inbox.items("").is_empty().then_some(()));
    let late = inbox.post(json!({"payload": 1, "message_id": "x"})).expect(200).json();
    assert_eq!((&late["state"], &late["repeated"]), (&json!("ended"), &json!(true)));
}

/// QoS 0: nothing to wait for, so sending settles.
#[test]
fn a_subscription_at_qos_0_settles_by_sending() {
    let inbox = Inbox::new("qos0");
    inbox.queue(&["a"]);
    let mut mailbox = inbox.connect(2, Login::CLEAN);
    mailbox.subscribe("devices/qos0/messages/a", 0);
    let came = take(&mut mailbox, 1);
    assert_eq!((names(&came), came[0].packet_id), (vec!["a"], 0));
    inbox.feedback_says(&["a completed 1"]);
    // What it did not subscribe to waits.
    inbox.queue(&["b"]);
    assert!(mailbox.is_quiet());
    assert_eq!(inbox.items("")[0]["delivery_count"], 0);
    mailbox.subscribe("devices/qos0/messages/+", 1);
    assert_eq!(names(&take(&mut mailbox, 1)), ["b"]);
}

#[test]
fn bad_messages_are_refused_with_a_reason() {
    let inbox = Inbox::new("badly");
    let long = "x".repeat(129);
    let rows = [
        (json!({}), 400, "invalid-body"),
        (json!({"payload": 1, "payload_base64": ""}), 400, "invalid-body"),
        (json!({"payload_base64": "?"}), 400, "invalid-body"),
        (json!({"payload": 1, "when": "now"}), 400, "unknown-field"),
        (json!({"payload": 1, "ttl_secs": 0}), 400, "message-invalid"),
        (json!({"payload": 1, "ttl_secs": 172_801}), 400, "message-invalid"),
        (json!({"payload": 1, "message_id": "a/b"}), 400, "message-invalid"),
        (json!({"payload": 1, "message_id": long}), 400, "message-invalid"),
        (json!({"payload": 1, "message_id": "dead"}), 400, "message-invalid"),
        (json!({"payload": "x".repeat(65_536)}), 413, "too-large"),
        (json!({"payload": 1, "properties": {"a": 1}}), 400, "invalid-body"),
        (json!([1]), 400, "invalid-body"),
    ];
    for (body, status, name) in rows {
        let problem = inbox.post(body.clone()).problem(status);
        assert_eq!(problem["type"], format!("urn:holdfast:problem:{name}"), "{body}");
    }
    assert!(inbox.items("").is_empty());
    let nobody = "/api/v1/devices/nobody/messages";
    for (method, path) in [
        ("GET", nobody.to_owned()),
        ("DELETE", nobody.to_owned()),
        ("GET", format!("{nobody}/feedback")),
    ] {
        inbox.http.send(method, &path, &[], "").problem(404);
    }
    inbox.http.send("POST", nobody, &[], r#"{"payload":1}"#).problem(404);
    inbox
        .http
        .send("PATCH", "/api/v1/devices/badly", &[], r#"{"status":"disabled"}"#)
        .expect(200);
    inbox.post(json!({"payload": 1})).problem(409);
}

#[test]
fn the_command_line_sends_and_looks_after_messages() {
    let inbox = Inbox::new("cli");
    let dir = inbox.cluster.path().to_str().unwrap().to_owned();
    let run = |args: &[&str]| {
        let all: Vec<&str> = [&["device"], args, &["--dir", &dir]].concat();
        let (code, text) = told(&holdfast(&all));
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    };
    run(&[
        "send",
        "cli",
        "--payload",
        r#"{"blink": 3}"#,
        "--message-id",
        "one",
        "--ttl",
        "10m",
        "--property",
        "a=b",
    ]);
    run(&["send", "cli", "--payload", "plain words", "--message-id", "two"]);
    assert_eq!(inbox.items("")[0]["payload"], json!({"blink": 3}));
    let listed = run(&["messages", "cli"]);
    assert!(listed.contains("one") && listed.contains("queued"), "{listed}");
    assert!(run(&["messages", "cli", "purge", "one"]).contains("1 purged"));
    assert!(run(&["messages", "cli", "dead"]).contains("purged"));
    run(&["messages", "cli", "replay", "--all"]);
    assert_eq!(ids(&inbox.items("")), ["two", "one"]);
    assert!(run(&["messages", "cli", "feedback", "--output", "json"]).contains("purged"));
    let (code, text) = told(&holdfast(&["device", "messages", "cli", "purge", "--dir", &dir]));
    assert_eq!(code, 64, "{text}");
}
