#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Bad MQTT input over real sockets on the shipped binary.
//!
//! After each kind of abuse a good client is served, memory is bounded and no log speaks of a panic.

use std::sync::Arc;

use holdfast_tests::clients::dev::Cluster;
use holdfast_tests::clients::eventually;
use holdfast_tests::clients::raw::{connect, packet, publish, publish_with, subscribe, text, Raw};

/// What a node of no load may grow by under all of this. Far above what the bounds allow one
/// client, far below what the input would take if it were kept.
const GROWTH_BYTES_MAX: u64 = 192 << 20;

/// A node under abuse; what must hold afterwards is checked at the end.
struct Abused {
    cluster: Arc<Cluster>,
    resident_before: u64,
    name: &'static str,
}

impl Abused {
    fn new(name: &'static str) -> Self {
        let cluster = Cluster::shared(1);
        let resident_before = cluster.resident_bytes(1);
        Self {
            cluster,
            resident_before,
            name,
        }
    }

    fn open(&self) -> Raw {
        Raw::open(self.cluster.node(1).mqtt)
    }

    fn connected(&self, version: u8, id: &str) -> Raw {
        Raw::connected(self.cluster.node(1).mqtt, version, id)
    }

    fn topic(&self) -> String {
        format!("devices/{}/telemetry", self.name)
    }

    fn good_client_is_served(self) {
        for version in [4, 5] {
            let id = format!("{}-good-{version}", self.name);
            let mut good = self.connected(version, &id);
            good.send(&publish(version, format!("devices/{id}/telemetry"), 1, false, b"{}"));
            assert_eq!(good.puback(1), 0);
        }
        let grown = self.cluster.resident_bytes(1).saturating_sub(self.resident_before);
        assert!(
            grown < GROWTH_BYTES_MAX,
            "{}: {grown} bytes more are resident",
            self.name
        );
        self.cluster.assert_no_panic();
        assert!(self.cluster.is_running(1));
    }
}

/// A name, what is sent, and the exact answer where there is one.
type FirstPacket = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// What is not a CONNECT, or a bad one: closed without a word, or with a CONNACK that says why.
#[test]
fn bad_first_packets_are_closed_or_told_why() {
    let abused = Abused::new("first");
    let id = |bytes: &[u8]| {
        let mut body = text("MQTT");
        body.extend([4, 2, 0, 60]);
        body.extend(text(bytes));
        packet(0x10, &body)
    };
    let level = |level: u8| {
        let mut body = text("MQTT");
        body.extend([level, 2, 0, 60]);
        body.extend(text("x"));
        packet(0x10, &body)
    };
    let will = |topic: &str| {
        let mut body = text("MQTT");
        body.extend([5, 0x06, 0, 60, 0]);
        body.extend(text("willing"));
        body.push(0);
        body.extend(text(topic));
        body.extend(text("gone"));
        packet(0x10, &body)
    };
    let connack3 = |code: u8| Some(vec![0x20, 2, 0, code]);
    let rows: Vec<FirstPacket> = vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), None),
        ("TLS hello", vec![0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0], None),
        ("zeros", vec![0; 64], None),
        ("PINGREQ first", packet(0xc0, &[]), None),
        (
            "PUBLISH first",
            publish(4, "devices/first/telemetry", 1, false, b"1"),
            None,
        ),
        ("SUBSCRIBE first", subscribe(4, 1, "devices/first/#", 0), None),
        ("CONNECT with flags in its type", vec![0x1f, 0], None),
        (
            "not MQTT",
            packet(0x10, &[text("NOPE"), vec![4, 2, 0, 60, 0, 1, b'x']].concat()),
            None,
        ),
        ("empty CONNECT", packet(0x10, &[]), None),
        ("length of five bytes", vec![0x10, 0xff, 0xff, 0xff, 0xff, 0x01], None),
        (
            "256 MiB before anything is known",
            vec![0x10, 0xff, 0xff, 0xff, 0x7f],
            None,
        ),
        ("level 6", level(6), Some(vec![0x20, 3, 0, 0x84, 0])),
        ("level 3", level(3), connack3(1)),
        ("slash in the id", id(b"a/b"), connack3(2)),
        ("wildcard in the id", id(b"a+"), connack3(2)),
        ("no id", id(b""), None),
        ("id of 129", id(&[b'a'; 129]), connack3(2)),
    ];
    for (name, bytes, expected) in rows {
        let mut raw = abused.open();
        raw.send(&bytes);
        let said = raw.until_closed();
        if let Some(expected) = expected {
            assert_eq!(said, expected, "{name}");
        } else {
            let accepted = said.len() >= 4 && said[0] == 0x20 && said[3] == 0;
            assert!(!accepted, "{name}: {said:?}");
        }
    }
    // MQTT 5 has its own codes.
    for (name, bytes, code) in [
        ("bad id", connect(5, "a b", 60), 0x85),
        ("will on a foreign topic", will("devices/other/telemetry"), 0x90),
        ("will on a wildcard", will("devices/willing/#"), 0x90),
    ] {
        let mut raw = abused.open();
        raw.send(&bytes);
        let (first, body) = raw.next_packet().unwrap_or_else(|| panic!("{name}: a CONNACK"));
        assert_eq!((first, body[1]), (0x20, code), "{name}");
        assert!(raw.until_closed().is_empty(), "{name}");
    }
    abused.good_client_is_served();
}

/// 256 MiB announced before authentication: refused from the header, whatever follows.
#[test]
fn huge_connect_is_refused_before_it_is_read() {
    let abused = Abused::new("huge");
    let mut sockets: Vec<_> = (0..32).map(|_| abused.open()).collect();
    for raw in &mut sockets {
        raw.send(&[&[0x10, 0xff, 0xff, 0xff, 0x7f][..], &text("MQTT"), &[5, 2, 0, 60]].concat());
        raw.send(&vec![0; 64 * 1024]);
    }
    for raw in &mut sockets {
        let said = raw.until_closed();
        assert!(said.is_empty() || said[3] == 0x95, "{said:?}");
    }
    abused.good_client_is_served();
}

/// One bad packet on a live MQTT 5 connection, and the reason its DISCONNECT gives.
#[test]
fn violations_end_the_connection_with_their_reason() {
    let abused = Abused::new("violation");
    let topic = abused.topic();
    let mut alias = text(&topic);
    alias.extend([0, 1, 3, 0x23, 0, 17]);
    let mut no_alias = text(&topic);
    no_alias.extend([0, 1, 3, 0x23, 0, 0]);
    let mut unknown_alias = text("");
    unknown_alias.extend([0, 1, 3, 0x23, 0, 2]);
    let mut identified = vec![0, 1, 2, 0x0b, 0];
    identified.extend(text("devices/violation/#"));
    identified.push(0);
    let mut qos2 = text(&topic);
    qos2.extend([0, 1, 0]);
    let rows: Vec<(&str, Vec<u8>, u8)> = vec![
        ("second CONNECT", connect(5, "violation", 60), 0x82),
        ("CONNACK from a client", packet(0x20, &[0, 0, 0]), 0x82),
        ("SUBACK from a client", packet(0x90, &[0, 1, 0, 0]), 0x82),
        ("UNSUBACK from a client", packet(0xb0, &[0, 1, 0, 0]), 0x82),
        ("PINGRESP from a client", packet(0xd0, &[]), 0x82),
        ("packet type 0", packet(0x00, &[]), 0x81),
        ("QoS 2", packet(0x34, &qos2), 0x9b),
        ("QoS 3", packet(0x36, &qos2), 0x81),
        ("topic alias", packet(0x32, &alias), 0x94),
        (
            "wildcard in a publish",
            publish(5, "devices/violation/+", 1, false, b""),
            0x90,
        ),
        ("empty topic", publish(5, "", 1, false, b""), 0x90),
        (
            "U+0000 in a topic",
            publish(5, "devices/violation/telemetry/a\0b", 1, false, b""),
            0x90,
        ),
        (
            "invalid UTF-8 in a topic",
            publish(5, b"devices/\xff/telemetry", 1, false, b""),
            0x81,
        ),
        ("packet id 0", publish(5, &topic, 0, false, b""), 0x81),
        ("too large", vec![0x32, 0xff, 0xff, 0xff, 0x7f], 0x95),
        ("length of five bytes", vec![0x32, 0xff, 0xff, 0xff, 0xff, 0x01], 0x81),
        ("SUBSCRIBE without filters", packet(0x82, &[0, 1, 0]), 0x82),
        (
            "SUBSCRIBE with wrong flags",
            packet(0x80, &[0, 1, 0, 0, 1, b'a', 0]),
            0x81,
        ),
        ("subscription identifier 0", packet(0x82, &identified), 0x81),
        ("topic alias 0", packet(0x32, &no_alias), 0x94),
        (
            "topic alias that stands for nothing",
            packet(0x32, &unknown_alias),
            0x82,
        ),
        ("PINGREQ with a body", packet(0xc0, &[1]), 0x81),
        ("AUTH", packet(0xf0, &[0x18, 0]), 0x82),
    ];
    for (name, bytes, code) in rows {
        let mut raw = abused.connected(5, "violation");
        raw.send(&bytes);
        let said = raw.goodbye();
        println!("{name}: {said:#x}");
        assert_eq!(format!("{said:#x}"), format!("{code:#x}"), "{name}");
        assert!(raw.until_closed().is_empty(), "{name}");
    }
    abused.good_client_is_served();
}

/// 3.1.1 has no words for it: the connection is closed, and nothing was acknowledged.
#[test]
fn violations_close_a_311_connection() {
    let abused = Abused::new("violation3");
    let topic = abused.topic();
    for (name, bytes) in [
        ("second CONNECT", connect(4, "violation3", 60)),
        ("foreign topic", publish(4, "devices/other/telemetry", 1, false, b"")),
        ("unknown topic", publish(4, "somewhere", 1, false, b"")),
        ("wildcard", publish(4, "devices/violation3/#", 1, false, b"")),
        ("U+0000", publish(4, "devices/violation3/telemetry/\0", 1, false, b"")),
        (
            "invalid UTF-8",
            publish(4, b"devices/\xc0\x80/telemetry", 1, false, b""),
        ),
        ("QoS 2", packet(0x34, &[text(&topic), vec![0, 1]].concat())),
        ("too large", vec![0x32, 0xff, 0xff, 0xff, 0x7f]),
    ] {
        let mut raw = abused.connected(4, "violation3");
        raw.send(&bytes);
        assert!(raw.until_closed().is_empty(), "{name}");
    }
    abused.good_client_is_served();
}

/// A foreign or unknown topic is refused in its PUBACK, in turn, and the connection stays.
#[test]
fn foreign_topics_are_refused_and_the_connection_stays() {
    let abused = Abused::new("foreign");
    let mut raw = abused.connected(5, "foreign");
    for (packet_id, topic, code) in [
        (1, "devices/foreign/telemetry", 0),
        (2, "devices/other/telemetry", 0x87),
        (3, "devices/other/twin/reported/1", 0x87),
        (4, "devices/foreign/nothing", 0x90),
        (5, "elsewhere", 0x90),
        (6, "$SYS/x", 0x90),
        (7, "devices/foreign/telemetry/a/b", 0x90),
        (8, "devices/foreign/telemetry", 0),
    ] {
        raw.send(&publish(5, topic, packet_id, false, b"{}"));
        assert_eq!(raw.puback(packet_id), code, "{topic}");
    }
    let rows = abused.cluster.http(1).telemetry("foreign");
    assert_eq!(rows.len(), 2, "only what was acknowledged is stored");
    abused.good_client_is_served();
}

/// A packet id that is in use: the same packet is answered, another one is an offence or is
/// stored as a message of its own once the first was answered. Nothing is lost, nothing crashes.
#[test]
fn packet_id_reuse_never_loses_a_message() {
    let abused = Abused::new("reuse");
    let mut raw = abused.connected(5, "reuse");
    let batch = [
        publish(5, abused.topic(), 7, false, b"\"a\""),
        publish(5, abused.topic(), 7, false, b"\"b\""),
    ];
    raw.send(&batch.concat());
    let mut acknowledged = 0;
    let code = loop {
        match raw.next_packet() {
            Some((0x40, body)) => {
                assert_eq!(body[..2], [0, 7]);
                acknowledged += 1;
            }
            Some((0xe0, body)) => break body[0],
            other => panic!("{other:?}"),
        }
        if acknowledged == 2 {
            break 0;
        }
    };
    assert!(code == 0 || code == 0x82, "{code:#x}");
    let rows = abused.cluster.http(1).telemetry("reuse").len();
    assert!(rows >= acknowledged, "{rows} rows, {acknowledged} acknowledged");
    abused.good_client_is_served();
}

/// 10,000 user properties are an offence, 65 too; 64 are fine.
#[test]
fn user_properties_are_bounded() {
    let abused = Abused::new("properties");
    for (count, fine) in [(64, true), (65, false), (10_000, false)] {
        let mut raw = abused.connected(5, "properties");
        let properties = vec![("n", "v"); count];
        raw.send(&publish_with(&abused.topic(), 1, &properties, b"1"));
        if fine {
            assert_eq!(raw.puback(1), 0);
        } else {
            assert_eq!(raw.goodbye(), 0x83, "{count}");
        }
    }
    abused.good_client_is_served();
}

/// More unacknowledged publishes than the announced receive maximum: disconnected with 0x93, or
/// served as fast as they come.
#[test]
fn receive_maximum_holds() {
    let abused = Abused::new("window");
    let mut raw = abused.connected(5, "window");
    let burst: Vec<u8> = (1..=2000u16)
        .flat_map(|id| publish(5, abused.topic(), id, false, &[b'1'; 100]))
        .collect();
    raw.send(&burst);
    let mut acknowledged = 0;
    while acknowledged < 2000 {
        match raw.next_packet() {
            Some((0x40, body)) => {
                acknowledged += 1;
                assert_eq!(body[..2], u16::try_from(acknowledged).unwrap().to_be_bytes());
            }
            Some((0xe0, body)) => {
                assert_eq!(body[0], 0x93);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    abused.good_client_is_served();
}

/// A subscriber that never acknowledges gets its window and no more; the device is still served.
#[test]
fn never_acknowledging_subscriber_is_bounded() {
    let abused = Abused::new("unacked");
    let mut raw = abused.connected(5, "unacked");
    raw.send(&subscribe(5, 1, "devices/unacked/#", 1));
    assert_eq!(raw.next_packet().unwrap().0, 0x90);
    let http = abused.cluster.http(1);
    for round in 0..200 {
        let body = format!(r#"{{"n":{round}}}"#);
        http.send("PATCH", "/api/v1/devices/unacked/twin/desired", &[], body)
            .expect(200);
    }
    // The connection answers a ping behind at most a window of downlinks.
    raw.send(&packet(0xc0, &[]));
    let mut received = 0;
    loop {
        match raw.next_packet().expect("the connection stays") {
            (0xd0, _) => break,
            (first, _) => {
                assert_eq!(first & 0xf6, 0x32, "a first send with QoS 1");
                received += 1;
            }
        }
    }
    assert!((1..=16).contains(&received), "{received} downlinks in flight");
    raw.send(&publish(5, abused.topic(), 9, false, b"1"));
    assert_eq!(raw.puback(9), 0, "its own publishes go on");
    abused.good_client_is_served();
}

/// Who asks and never reads is not read from; memory stays bounded, and it is closed in the end.
#[test]
fn slow_reader_is_held_back_and_closed() {
    let abused = Abused::new("slow");
    let mut raw = abused.connected(5, "slow");
    raw.send(&subscribe(5, 1, "devices/slow/#", 0));
    assert_eq!(raw.next_packet().unwrap().0, 0x90);
    let filler = format!(r#"{{"filler":"{}"}}"#, "x".repeat(30_000));
    let http = abused.cluster.http(1);
    http.send("PATCH", "/api/v1/devices/slow/twin/desired", &[], filler)
        .expect(200);
    let ask = packet(0x30, &[text("devices/slow/twin/get/1"), vec![0]].concat());
    let asks: Vec<u8> = ask.iter().copied().cycle().take(ask.len() * 1000).collect();
    // Gigabytes of answers would pile up if nothing held it back; the socket stops taking requests.
    raw.write_patience(std::time::Duration::from_secs(2));
    let thousands = (0..10_000).take_while(|_| raw.try_send(&asks)).count();
    assert!(thousands < 10_000, "the server reads on and on");
    assert!(abused.cluster.resident_bytes(1).saturating_sub(abused.resident_before) < GROWTH_BYTES_MAX);
    eventually("the slow reader is closed and counted", || {
        let counted = http.metric("holdfast_mqtt_ends_total{reason=\"slow_reader\"}");
        (counted >= 1.0).then_some(())
    });
    drop(raw);
    abused.good_client_is_served();
}

/// A half-open socket goes away after one and a half keep-alives, and its will is recorded.
#[test]
fn silent_client_is_closed_after_its_keep_alive() {
    let abused = Abused::new("silent");
    for (version, id) in [(4, "silent-4"), (5, "silent-5")] {
        let mut raw = abused.open();
        raw.send(&connect(version, id, 1));
        assert_eq!(raw.next_packet().unwrap().1[1], 0);
        if version == 5 {
            assert_eq!(raw.goodbye(), 0x8d);
        }
        assert!(raw.until_closed().is_empty());
    }
    let http = abused.cluster.http(1);
    eventually("both are shown as disconnected", || {
        let state = |id| http.get(&format!("/api/v1/devices/{id}")).json()["connection"]["state"] == "disconnected";
        (state("silent-4") && state("silent-5")).then_some(())
    });
    abused.good_client_is_served();
}

/// Each packet type cut after every byte, and with each byte damaged: it is understood, refused or
/// waited for, and nobody else notices.
#[test]
fn truncated_and_damaged_packets_of_every_type_hurt_nobody() {
    let abused = Abused::new("mangled");
    let topic = abused.topic();
    for version in [4u8, 5] {
        let id = format!("mangled-{version}");
        let mut unsubscribe = vec![0, 2];
        let mut disconnect = Vec::new();
        if version == 5 {
            unsubscribe.push(0);
            disconnect.extend([0x04, 0]);
        }
        unsubscribe.extend(text("devices/mangled/#"));
        let packets = [
            connect(version, &id, 60),
            packet(0x20, &[0, 0]),
            publish(version, &topic, 3, false, b"{}"),
            packet(0x40, &[0, 1]),
            packet(0x50, &[0, 1]),
            packet(0x62, &[0, 1]),
            packet(0x70, &[0, 1]),
            subscribe(version, 1, "devices/mangled/#", 1),
            packet(0x90, &[0, 1, 0]),
            packet(0xa2, &unsubscribe),
            packet(0xb0, &[0, 1]),
            packet(0xc0, &[]),
            packet(0xd0, &[]),
            packet(0xe0, &disconnect),
            packet(0xf0, &[0x18, 0]),
        ];
        for good in &packets {
            for at in 0..good.len() {
                // Cut: the client goes away in the middle of a packet.
                let mut cut = abused.connected(version, &id);
                cut.send(&good[..at]);
                cut.finish();
                cut.until_closed();
                // Damaged: at most one more packet may be needed until the server has decided.
                let mut damaged = good.clone();
                damaged[at] ^= 0x55;
                let mut raw = abused.connected(version, &id);
                raw.send(&damaged);
                raw.finish();
                raw.until_closed();
            }
        }
        // The same before a session exists.
        let good = connect(version, &id, 60);
        for at in 0..good.len() {
            let mut raw = abused.open();
            raw.send(&good[..at]);
            raw.finish();
            assert!(raw.until_closed().is_empty(), "half a CONNECT is not answered");
        }
    }
    abused.good_client_is_served();
}

/// Connections that never finish their CONNECT are closed, and do not keep others out.
#[test]
fn half_a_connect_times_out() {
    let abused = Abused::new("half");
    let mut waiting: Vec<_> = (0..200).map(|_| abused.open()).collect();
    for raw in &mut waiting {
        raw.send(&connect(5, "half", 60)[..9]);
    }
    drop(abused.connected(5, "half"));
    for raw in &mut waiting {
        assert!(raw.until_closed().is_empty());
    }
    abused.good_client_is_served();
}
