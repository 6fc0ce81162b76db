#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! G3, G4 and G5 over real sockets on three nodes: stored once, linearizable, one owner.

use holdfast_tests::clients::dev::Cluster;
use holdfast_tests::clients::raw::{publish, publish_with, Raw};
use serde_json::{json, Value};

fn bodies(cluster: &Cluster, node: usize, device: &str) -> Vec<Value> {
    cluster
        .http(node)
        .telemetry(device)
        .iter()
        .map(|row| row["body"].clone())
        .collect()
}

/// G3: a message id is acknowledged again and stored once, through every node, and over HTTP too.
#[test]
fn retry_with_the_same_message_id_is_stored_once() {
    let cluster = Cluster::shared(3);
    let topic = "devices/retry/telemetry";
    for node in [1, 2, 3, 1, 2] {
        let mut raw = Raw::connected(cluster.node(node).mqtt, 5, "retry");
        raw.send(&publish_with(topic, 1, &[("message-id", "m-1")], b"\"one\""));
        assert_eq!(raw.puback(1), 0);
        raw.send(&publish_with(topic, 2, &[("$.mid", "m-2")], b"\"two\""));
        assert_eq!(raw.puback(2), 0);
    }
    let http = cluster.http(3);
    let again = http
        .send(
            "POST",
            "/api/v1/devices/retry/telemetry",
            &[("Idempotency-Key", "m-1")],
            "\"one\"",
        )
        .expect(200);
    assert_eq!(again.json()["repeated"], true);
    assert_eq!(bodies(&cluster, 2, "retry"), [json!("one"), json!("two")]);
}

/// G3: without an id, DUP resends are told from first sends, at another node and after a kill.
#[test]
fn dup_resend_after_the_kill_of_the_gateway_is_stored_once() {
    let cluster = Cluster::up(3);
    let topic = "devices/dup/telemetry";
    for version in [4, 5] {
        let before = bodies_or_none(&cluster, 1).len();
        let mut raw = Raw::connected(cluster.node(3).mqtt, version, "dup");
        for packet_id in 1..=10 {
            raw.send(&publish(
                version,
                topic,
                packet_id,
                false,
                packet_id.to_string().as_bytes(),
            ));
            assert_eq!(raw.puback(packet_id), 0);
        }
        cluster.kill(3);
        // As if none of the PUBACKs had arrived.
        let mut raw = Raw::connected(cluster.node(1).mqtt, version, "dup");
        for packet_id in 1..=10 {
            raw.send(&publish(
                version,
                topic,
                packet_id,
                true,
                packet_id.to_string().as_bytes(),
            ));
            assert_eq!(raw.puback(packet_id), 0);
        }
        assert_eq!(bodies(&cluster, 2, "dup").len(), before + 10, "resends are stored once");
        // A first send with a used packet id and the same payload is another message.
        raw.send(&publish(version, topic, 5, false, b"5"));
        assert_eq!(raw.puback(5), 0);
        // So is a DUP that differs from what was stored under its packet id.
        raw.send(&publish(version, topic, 6, true, b"\"other\""));
        assert_eq!(raw.puback(6), 0);
        let rows = bodies(&cluster, 2, "dup");
        assert_eq!(rows[before..].len(), 12);
        assert_eq!(rows[before + 10..], [json!(5), json!("other")]);
        cluster.start(3);
    }
    let rows = cluster.http(3).telemetry("dup");
    let seqs: Vec<_> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=24).collect::<Vec<_>>(), "seq is gap-free");
}

fn bodies_or_none(cluster: &Cluster, node: usize) -> Vec<Value> {
    match cluster.http(node).get("/api/v1/devices/dup").status {
        404 => Vec::new(),
        _ => bodies(cluster, node, "dup"),
    }
}

/// G4: of two writers with the same condition, at different nodes and at once, exactly one wins,
/// every time; and whoever reads next, anywhere, sees it.
#[test]
fn one_of_two_conditional_writers_wins() {
    let cluster = Cluster::shared(3);
    cluster
        .http(1)
        .send("PUT", "/api/v1/devices/contended", &[], "{}")
        .expect(201);
    let twin = "/api/v1/devices/contended/twin";
    for round in 0..30 {
        let reader = cluster.http(round % 3 + 1);
        let etag = reader.get(twin).expect(200).header("etag");
        let start = std::sync::Barrier::new(2);
        let write = |node: usize| {
            let http = cluster.http(node);
            let body = json!({"desired": {"writer": node, "round": round}}).to_string();
            start.wait();
            http.send("PATCH", twin, &[("If-Match", &etag)], body)
        };
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| write(1));
            let two = scope.spawn(|| write(2));
            (one.join().unwrap(), two.join().unwrap())
        });
        let winner = match (one.status, two.status) {
            (200, 412) => 1,
            (412, 200) => 2,
            both => panic!("round {round}: {both:?}"),
        };
        for node in [1, 2, 3] {
            let desired = cluster.http(node).get(twin).expect(200).json()["desired"].clone();
            assert_eq!(desired, json!({"writer": winner, "round": round}));
        }
    }
}

/// G5: the newer connection takes over, at whichever node; the older one is told, and nothing that
/// it sends afterwards is acknowledged or stored.
#[test]
fn older_connection_is_closed_and_its_later_publish_refused() {
    let cluster = Cluster::shared(3);
    let topic = "devices/moved/telemetry";
    let mut older = Raw::connected(cluster.node(1).mqtt, 5, "moved");
    older.send(&publish(5, topic, 1, false, b"1"));
    assert_eq!(older.puback(1), 0);
    for node in [2, 3, 1, 1] {
        let mut newer = Raw::connected(cluster.node(node).mqtt, 5, "moved");
        // The server may not have noticed yet; the session's generation decides.
        older.send(&publish(5, topic, 2, false, b"\"stale\""));
        assert_eq!(older.goodbye(), 0x8e, "session taken over");
        newer.send(&publish(5, topic, 3, false, b"\"fresh\""));
        assert_eq!(newer.puback(3), 0);
        let shown = cluster.http(2).get("/api/v1/devices/moved").json();
        assert_eq!(shown["connection"]["node"], node);
        older = newer;
    }
    let rows = bodies(&cluster, 3, "moved");
    assert_eq!(
        rows,
        [json!(1), json!("fresh"), json!("fresh"), json!("fresh"), json!("fresh")]
    );
    cluster.assert_no_panic();
}

/// A connected device that is disabled loses its session, with the reason, and cannot come back.
#[test]
fn disabled_device_is_sent_away() {
    let cluster = Cluster::shared(3);
    let mut raw = Raw::connected(cluster.node(1).mqtt, 5, "sent-away");
    cluster
        .http(2)
        .send("PATCH", "/api/v1/devices/sent-away", &[], r#"{"status":"disabled"}"#)
        .expect(200);
    raw.send(&publish(5, "devices/sent-away/telemetry", 1, false, b"1"));
    assert_eq!(raw.goodbye(), 0x87);
    for node in [1, 2, 3] {
        let mut raw = Raw::open(cluster.node(node).mqtt);
        raw.send(&holdfast_tests::clients::raw::connect(5, "sent-away", 60));
        assert_eq!(raw.next_packet().unwrap().1[1], 0x87);
    }
    assert!(bodies(&cluster, 3, "sent-away").is_empty());
}
