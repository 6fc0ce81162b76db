#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Live events through the shipped binary: filters, slow readers, both protocols, a dead leader.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use holdfast_tests::clients::dev::{binary, Cluster};
use holdfast_tests::clients::events::Feed;
use holdfast_tests::clients::raw::{publish, subscribe, Raw};
use holdfast_tests::clients::{eventually, PATIENCE};
use serde_json::{json, Value};

fn feed(cluster: &Cluster, node: usize, query: &str) -> Feed {
    let file = cluster.file();
    Feed::open(file.nodes[node - 1].http, &file.token, query, None)
}

fn telemetry(device: &mut Raw, id: &str, stream: &str, packet_id: u16, body: &str) {
    let topic = match stream {
        "" => format!("devices/{id}/telemetry"),
        stream => format!("devices/{id}/telemetry/{stream}"),
    };
    device.send(&publish(4, topic, packet_id, false, body.as_bytes()));
    assert_eq!(device.puback(packet_id), 0);
}

/// One feed per filter on different nodes; each hears of what it asked for, and of nothing else.
#[test]
fn feeds_are_filtered_by_device_stream_and_kind() {
    let cluster = Cluster::shared(3);
    let mut all = feed(&cluster, 1, "devices=ev-*");
    let mut one = feed(&cluster, 2, "devices=ev-1&kinds=telemetry");
    let mut door = feed(&cluster, 3, "devices=ev-1,ev-2&streams=door");
    let mut twins = feed(&cluster, 1, "devices=ev-2&kinds=twin,registration");
    let mut first = Raw::connected(cluster.node(1).mqtt, 4, "ev-1");
    let mut second = Raw::connected(cluster.node(2).mqtt, 4, "ev-2");
    let mut other = Raw::connected(cluster.node(2).mqtt, 4, "other");
    telemetry(&mut other, "other", "", 1, "0");
    telemetry(&mut first, "ev-1", "", 1, r#"{"t":1.50}"#);
    telemetry(&mut first, "ev-1", "door", 2, "open");
    telemetry(&mut second, "ev-2", "window", 1, "2");
    telemetry(&mut second, "ev-2", "door", 2, "3");
    first.send(&subscribe(4, 7, "devices/ev-1/twin/desired", 1));
    first.next_packet().expect("a SUBACK");
    let patch = [("content-type", "application/merge-patch+json")];
    let body = r#"{"desired":{"lit":true}}"#;
    cluster
        .http(3)
        .send("PATCH", "/api/v1/devices/ev-2/twin", &patch, body)
        .expect(200);

    let event = one.event();
    let expected = json!({
        "kind": "telemetry", "device": "ev-1", "seq": 1, "stream": "", "body": { "t": 1.5 }, "content_type": null,
        "properties": {},
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&event[name], value, "{event}");
    }
    for name in [
        "id",
        "shard",
        "index",
        "term",
        "version",
        "time",
        "receipt",
        "enqueued_at",
    ] {
        assert!(!event[name].is_null(), "no {name} in {event}");
    }
    let stored = &cluster.http(2).telemetry("ev-1")[0];
    for name in ["seq", "enqueued_at", "receipt", "stream", "body"] {
        assert_eq!(&event[name], &stored[name], "as the read API has it");
    }
    let event = one.event();
    assert_eq!(
        (&event["stream"], &event["body_base64"]),
        (&json!("door"), &json!("b3Blbg=="))
    );

    let mut doors = [door.event(), door.event()].map(|e| format!("{} {}", e["device"], e["stream"]));
    doors.sort();
    assert_eq!(doors, [r#""ev-1" "door""#, r#""ev-2" "door""#]);

    let event = twins.event();
    assert_eq!(
        (&event["kind"], &event["change"]),
        (&json!("registration"), &json!("registered"))
    );
    let event = twins.event();
    assert_eq!(
        (&event["kind"], &event["section"], &event["body"]),
        (&json!("twin"), &json!("desired"), &json!({ "lit": true }))
    );

    // Registered, connected, two messages, subscribed; registered, connected, two messages, a twin.
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..10 {
        let event = all.event();
        let what = event["change"]
            .as_str()
            .unwrap_or_else(|| event["kind"].as_str().unwrap());
        let of = kinds.entry(event["device"].as_str().unwrap().to_owned()).or_default();
        of.push(what.to_owned());
    }
    assert_eq!(
        kinds["ev-1"],
        ["registered", "connected", "telemetry", "telemetry", "subscribed"]
    );
    assert_eq!(
        kinds["ev-2"],
        ["registered", "connected", "telemetry", "telemetry", "twin"]
    );
}

#[test]
fn bad_questions_are_refused() {
    let cluster = Cluster::shared(3);
    let http = cluster.http(1);
    for query in [
        "devices=a/b",
        "kinds=telemetri",
        "streams=a/b",
        "device=a",
        "after=x",
        "after=1-2-3-4",
    ] {
        let problem = http.get(&format!("/api/v1/events?{query}")).problem(400);
        assert!(
            problem["type"].as_str().unwrap().ends_with("bad-parameter"),
            "{problem}"
        );
    }
    cluster.http(1).without_token().get("/api/v1/events").problem(401);
}

/// What a slow reader is told and what it is told to have missed is all there was.
#[test]
fn a_slow_reader_is_told_how_many_it_missed() {
    let cluster = Cluster::shared(3);
    let mut slow = feed(&cluster, 1, "devices=flood&kinds=telemetry");
    let mut device = Raw::connected(cluster.node(2).mqtt, 4, "flood");
    let body = format!("{:?}", "x".repeat(60_000));
    // Far more than the sockets' buffers and the outbox hold together.
    const COUNT: u16 = 600;
    for packet_id in 1..=COUNT {
        telemetry(&mut device, "flood", "", packet_id, &body);
    }
    let (mut seen, mut missed, mut last) = (0, 0, 0);
    while seen + missed < u64::from(COUNT) {
        let event = slow.next();
        match event["kind"].as_str().unwrap() {
            "missed" => missed += event["count"].as_u64().unwrap(),
            "telemetry" => {
                let seq = event["seq"].as_u64().unwrap();
                assert!(seq > last, "{seq} after {last}");
                (seen, last) = (seen + 1, seq);
            }
            other => panic!("{other}"),
        }
    }
    assert!(
        missed > 0 && seen > 0 && seen + missed == u64::from(COUNT),
        "{seen} seen, {missed} missed"
    );
    // And it goes on.
    telemetry(&mut device, "flood", "", 1, "1");
    assert_eq!(slow.event()["seq"], u64::from(COUNT) + 1);
}

/// A feed that broke off goes on at another node behind what it has seen.
#[test]
fn a_feed_goes_on_at_another_node() {
    let cluster = Cluster::shared(3);
    let mut device = Raw::connected(cluster.node(1).mqtt, 4, "resume");
    let mut first = feed(&cluster, 1, "devices=resume&kinds=telemetry");
    for packet_id in 1..=5 {
        telemetry(&mut device, "resume", "", packet_id, "1");
    }
    let seqs: Vec<_> = (0..3).map(|_| first.event()["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [1, 2, 3]);
    let id = first.last_id().to_owned();
    drop(first);
    for packet_id in 6..=8 {
        telemetry(&mut device, "resume", "", packet_id, "1");
    }
    let file = cluster.file();
    let mut again = Feed::open(
        file.nodes[2].http,
        &file.token,
        "devices=resume&kinds=telemetry",
        Some(&id),
    );
    let seqs: Vec<_> = (0..5).map(|_| again.event()["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [4, 5, 6, 7, 8]);
}

#[test]
fn a_websocket_tells_the_same() {
    let cluster = Cluster::shared(3);
    let file = cluster.file();
    let mut socket = WebSocket::open(file.nodes[1].http, &file.token, "devices=ws-lamp&kinds=telemetry");
    let mut device = Raw::connected(cluster.node(1).mqtt, 4, "ws-lamp");
    telemetry(&mut device, "ws-lamp", "", 1, r#""on""#);
    telemetry(&mut device, "ws-lamp", "", 2, r#""off""#);
    let first = socket.event();
    assert_eq!(
        (&first["device"], &first["seq"], &first["body"]),
        (&json!("ws-lamp"), &json!(1), &json!("on"))
    );
    let cursor = first["cursor"].as_str().unwrap().to_owned();
    assert_eq!(socket.event()["seq"], 2);
    drop(socket);
    let query = format!("devices=ws-lamp&kinds=telemetry&after={cursor}");
    let mut again = WebSocket::open(file.nodes[2].http, &file.token, &query);
    assert_eq!(again.event()["seq"], 2);
}

#[test]
fn the_command_line_watches() {
    let cluster = Cluster::shared(3);
    let mut device = Raw::connected(cluster.node(1).mqtt, 4, "watched");
    let mut child = Command::new(binary())
        .args([
            "device",
            "watch",
            "watched",
            "--kinds",
            "telemetry",
            "--count",
            "2",
            "--output",
            "json",
            "--dir",
        ])
        .arg(cluster.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It prints nothing when it begins to watch, so something is sent until it has seen enough.
    let mut packet_id = 0;
    eventually("the watch ends by itself", || {
        packet_id += 1;
        telemetry(&mut device, "watched", "", packet_id, "1");
        child.try_wait().unwrap()
    });
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let seqs: Vec<u64> = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap())
        .collect();
    assert!(seqs.len() == 2 && seqs[1] == seqs[0] + 1, "{said}");
}

/// A WebSocket client that reads text messages; the server's are never masked.
struct WebSocket(TcpStream);

impl WebSocket {
    fn open(address: SocketAddr, token: &str, query: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET /api/v1/events?{query} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_lowercase().contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Self(stream)
    }

    fn event(&mut self) -> Value {
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).unwrap();
            let length = match head[1] {
                126 => {
                    let mut long = [0; 2];
                    self.0.read_exact(&mut long).unwrap();
                    usize::from(u16::from_be_bytes(long))
                }
                short => usize::from(short),
            };
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).unwrap();
            if head[0] == 0x81 {
                return serde_json::from_slice(&body).unwrap();
            }
        }
    }
}
