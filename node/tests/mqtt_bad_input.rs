//! What a client does wrong has a clear end, costs little, and is counted by its reason.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

mod mqtt_support;

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use mqtt_support::{eventually, publish, publish5, with_gateway, Client3, Client5, Fault, Raw};
use node::gateway::Limits;
use rmqtt_codec::types::QoS;
use rmqtt_codec::v5;
use rmqtt_codec::v5::DisconnectReasonCode as Bye;

fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

fn counted(line: &str) -> bool {
    metrics()
        .render()
        .lines()
        .any(|l| l.contains(line) && !l.ends_with(" 0"))
}

const CONNECT_311: &[u8] = b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04lamp";

/// Bytes sent first, and all the server says before it closes: nothing, or a CONNACK.
#[test]
fn bad_first_packets() {
    metrics();
    let rows: &[(&str, &[u8], &[u8])] = &[
        ("PUBLISH first", b"\x30\x05\0\x01ahi", b""),
        ("PINGREQ first", b"\xc0\0", b""),
        ("HTTP first", b"GET / HTTP/1.1\r\n\r\n", b""),
        ("a length of five bytes", b"\x10\xff\xff\xff\xff\x01", b""),
        ("256 MiB announced, nothing known", b"\x10\xff\xff\xff\x7f", b""),
        (
            "256 MiB announced in 3.1.1",
            b"\x10\xff\xff\xff\x7f\0\x04MQTT\x04\x02\0\x3c",
            b"",
        ),
        (
            "256 MiB announced in 5",
            b"\x10\xff\xff\xff\x7f\0\x04MQTT\x05\x02\0\x3c",
            b"\x20\x03\0\x95\0",
        ),
        ("another protocol", b"\x10\x10\0\x04MQTS\x04\x02\0\x3c\0\x04lamp", b""),
        (
            "3.1",
            b"\x10\x12\0\x06MQIsdp\x03\x02\0\x3c\0\x04lamp",
            b"\x20\x02\0\x01",
        ),
        (
            "version 6",
            b"\x10\x11\0\x04MQTT\x06\x02\0\x3c\0\0\x04lamp",
            b"\x20\x03\0\x84\0",
        ),
        (
            "reserved connect flag",
            b"\x10\x10\0\x04MQTT\x04\x03\0\x3c\0\x04lamp",
            b"",
        ),
        (
            "reserved connect flag in 5",
            b"\x10\x11\0\x04MQTT\x05\x03\0\x3c\0\0\x04lamp",
            b"\x20\x03\0\x81\0",
        ),
        (
            "a password without a name",
            b"\x10\x13\0\x04MQTT\x04\x42\0\x3c\0\x04lamp\0\x01p",
            b"",
        ),
        ("truncated in the id", b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x04la", b""),
        ("no id", b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0", b"\x20\x02\0\x02"),
        (
            "no id, no clean session",
            b"\x10\x0c\0\x04MQTT\x04\0\0\x3c\0\0",
            b"\x20\x02\0\x02",
        ),
        (
            "no id in 5",
            b"\x10\x0d\0\x04MQTT\x05\x02\0\x3c\0\0\0",
            b"\x20\x03\0\x85\0",
        ),
        (
            "a space in the id",
            b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03a b",
            b"\x20\x02\0\x02",
        ),
        (
            "U+0000 in the id",
            b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03a\0b",
            b"\x20\x02\0\x02",
        ),
        (
            "an id that is not UTF-8",
            b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02\xc3\x28",
            b"",
        ),
        (
            "enhanced authentication",
            b"\x10\x15\0\x04MQTT\x05\x02\0\x3c\x04\x15\0\x01m\0\x04lamp",
            b"\x20\x03\0\x8c\0",
        ),
        (
            "a property twice",
            b"\x10\x17\0\x04MQTT\x05\x02\0\x3c\x06\x21\0\x01\x21\0\x01\0\x04lamp",
            b"\x20\x03\0\x81\0",
        ),
        (
            "an unknown property",
            b"\x10\x13\0\x04MQTT\x05\x02\0\x3c\x02\x7f\0\0\x04lamp",
            b"\x20\x03\0\x81\0",
        ),
        (
            "a foreign will",
            b"\x10\x23\0\x04MQTT\x04\x06\0\x3c\0\x04lamp\0\x0edevices/x/tele\0\x01w",
            b"\x20\x02\0\x05",
        ),
    ];
    with_gateway(Limits::default(), |bench| async move {
        for (what, sent, expected) in rows {
            let mut raw = Raw::connect(&bench).await;
            raw.send(sent).await;
            let said = raw.until_gone().await;
            assert_eq!(said, *expected, "{what}");
        }
        eventually("all are gone", || bench.gateway.connections() == 0).await;
        for reason in [
            "first_packet_not_connect",
            "packet_too_large",
            "unsupported_protocol",
            "not_mqtt",
        ] {
            assert!(counted(&format!("rejected_total{{reason=\"{reason}\"}}")), "{reason}");
        }
    });
}

/// Who says nothing, or not enough, is closed after the CONNECT time-out.
#[test]
fn half_a_connect_times_out() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        for sent in [&b""[..], b"\x10", b"\x10\x10\0\x04MQ"] {
            let mut raw = Raw::connect(&bench).await;
            raw.send(sent).await;
            assert!(raw.until_closed().await.is_empty());
        }
    });
}

/// Each row: packets after CONNECT, and what MQTT 5 is told.
#[test]
fn violations_end_the_connection() {
    metrics();
    let topic = "devices/lamp/telemetry";
    let many = |count: usize| {
        let mut many = publish(1, topic, "x");
        many.properties = Some(v5::PublishProperties {
            user_properties: vec![("k".into(), "v".into()); count],
            ..v5::PublishProperties::default()
        });
        v5::Packet::Publish(many)
    };
    let with = |change: &dyn Fn(&mut v5::PublishProperties, &mut bool)| {
        let mut packet = publish(1, topic, "x");
        let mut properties = v5::PublishProperties::default();
        change(&mut properties, &mut packet.dup);
        packet.properties = Some(properties);
        v5::Packet::Publish(packet)
    };
    let encode = |packet: v5::Packet| {
        use tokio_util::codec::Encoder;
        let mut bytes = bytes::BytesMut::new();
        v5::Codec::default().encode(packet, &mut bytes).unwrap();
        bytes.to_vec()
    };
    let qos2 = {
        let mut packet = publish(1, topic, "x");
        packet.qos = QoS::ExactlyOnce;
        packet.properties = Some(v5::PublishProperties::default());
        encode(v5::Packet::Publish(packet))
    };
    let rows: Vec<(&str, Vec<u8>, Bye, &str)> = vec![
        (
            "a second CONNECT",
            b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\0\0\x04lamp".to_vec(),
            Bye::ProtocolError,
            "second_connect",
        ),
        (
            "CONNACK",
            b"\x20\x03\0\0\0".to_vec(),
            Bye::ProtocolError,
            "unexpected_packet",
        ),
        (
            "SUBACK",
            b"\x90\x04\0\x01\0\0".to_vec(),
            Bye::ProtocolError,
            "unexpected_packet",
        ),
        ("PINGRESP", b"\xd0\0".to_vec(), Bye::ProtocolError, "unexpected_packet"),
        ("AUTH", b"\xf0\0".to_vec(), Bye::ProtocolError, "unexpected_packet"),
        (
            "PUBREL",
            b"\x62\x02\0\x01".to_vec(),
            Bye::ProtocolError,
            "unexpected_packet",
        ),
        ("packet type 0", b"\0\0".to_vec(), Bye::MalformedPacket, "malformed"),
        (
            "SUBSCRIBE with wrong flags",
            b"\x80\x06\0\x01\0\0\x01a\0".to_vec(),
            Bye::MalformedPacket,
            "malformed",
        ),
        (
            "SUBSCRIBE to nothing",
            b"\x82\x03\0\x01\0".to_vec(),
            Bye::ProtocolError,
            "protocol",
        ),
        (
            "UNSUBSCRIBE without id",
            b"\xa2\x06\0\0\0\0\x01a".to_vec(),
            Bye::MalformedPacket,
            "malformed",
        ),
        (
            "packet id 0",
            b"\x32\x08\0\x03a/b\0\0\0".to_vec(),
            Bye::MalformedPacket,
            "malformed",
        ),
        (
            "QoS 3",
            b"\x36\x08\0\x03a/b\0\x01\0".to_vec(),
            Bye::MalformedPacket,
            "malformed",
        ),
        ("QoS 2", qos2, Bye::QosNotSupported, "qos2"),
        (
            "an endless length",
            b"\x30\xff\xff\xff\xff".to_vec(),
            Bye::MalformedPacket,
            "malformed",
        ),
        (
            "a packet too large",
            b"\x30\xff\xff\xff\x7f".to_vec(),
            Bye::PacketTooLarge,
            "packet_too_large",
        ),
        (
            "a topic that is not UTF-8",
            b"\x30\x05\0\x02\xc3\x28\0".to_vec(),
            Bye::MalformedPacket,
            "malformed",
        ),
        (
            "U+0000 in a topic",
            b"\x30\x06\0\x03a\0b\0".to_vec(),
            Bye::TopicNameInvalid,
            "topic_name",
        ),
        (
            "an empty topic",
            b"\x30\x03\0\0\0".to_vec(),
            Bye::TopicNameInvalid,
            "topic_name",
        ),
        (
            "a wildcard",
            encode(publish5(1, "devices/lamp/+", "x")),
            Bye::TopicNameInvalid,
            "topic_name",
        ),
        (
            "10,000 user properties",
            encode(many(10_000)),
            Bye::ImplementationSpecificError,
            "too_many_properties",
        ),
        (
            "65 user properties",
            encode(many(65)),
            Bye::ImplementationSpecificError,
            "too_many_properties",
        ),
        (
            "a topic alias beyond the maximum",
            encode(with(&|p, _| p.topic_alias = 17.try_into().ok())),
            Bye::TopicAliasInvalid,
            "topic_alias",
        ),
        (
            "topic alias 0",
            b"\x30\x07\0\x01a\x03\x23\0\0".to_vec(),
            Bye::TopicAliasInvalid,
            "topic_alias",
        ),
        (
            "a topic alias that stands for nothing",
            b"\x30\x06\0\0\x03\x23\0\x02".to_vec(),
            Bye::ProtocolError,
            "protocol",
        ),
        (
            "U+0000 in a property",
            encode(with(&|p, _| p.user_properties = vec![("a\0".into(), "b".into())])),
            Bye::MalformedPacket,
            "malformed",
        ),
        (
            "a subscription id in a publish",
            encode(with(&|p, _| p.subscription_ids = vec![1.try_into().unwrap()])),
            Bye::ProtocolError,
            "protocol",
        ),
        (
            "a longer expiry than none",
            b"\xe0\x07\0\x05\x11\0\0\0\x09".to_vec(),
            Bye::ProtocolError,
            "protocol",
        ),
    ];
    with_gateway(Limits::default(), |bench| async move {
        for (what, sent, reason, label) in rows {
            let mut lamp = Client5::connected(&bench, "lamp").await;
            lamp.raw.send(&sent).await;
            assert_eq!(lamp.goodbye().await, reason, "{what}");
            assert!(counted(&format!("violations_total{{reason=\"{label}\"}}")), "{what}");

            // The same, byte for byte where it means the same, closes a 3.1.1 connection.
            if sent.first().is_some_and(|first| first >> 4 != 3 && first >> 4 != 14) {
                let mut old = Client3::connected(&bench, "old").await;
                old.raw.send(&sent).await;
                assert!(old.raw.until_gone().await.is_empty(), "{what}");
            }
        }
        assert!(bench.fake.bodies("lamp").is_empty());
    });
}

/// 3.1.1 has no words for most of it: the connection is closed.
#[test]
fn violations_close_311() {
    let rows: &[(&str, &[u8])] = &[
        ("QoS 2", b"\x34\x08\0\x03a/b\0\x01x"),
        ("QoS 3", b"\x36\x08\0\x03a/b\0\x01x"),
        ("packet id 0", b"\x32\x08\0\x03a/b\0\0x"),
        ("a wildcard", b"\x30\x06\0\x03a/#x"),
        ("U+0000", b"\x30\x06\0\x03a\0bx"),
        ("not UTF-8", b"\x30\x05\0\x02\xc3\x28x"),
        ("a foreign device's topic", b"\x32\x18\0\x13devices/x/telemetry\0\x01x"),
        ("an unknown topic", b"\x32\x08\0\x03a/b\0\x01x"),
        ("a topic longer than its packet", b"\x30\x03\0\x09a"),
    ];
    with_gateway(Limits::default(), |bench| async move {
        for (what, sent) in rows {
            let mut lamp = Client3::connected(&bench, "lamp").await;
            lamp.raw.send(sent).await;
            assert!(lamp.raw.until_closed().await.is_empty(), "{what}");
        }
        assert!(bench.fake.bodies("lamp").is_empty());
        assert!(bench.fake.bodies("x").is_empty());
    });
}

/// A foreign or unknown topic is refused in its PUBACK, in turn, and the connection stays.
#[test]
fn foreign_topics_are_refused() {
    metrics();
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        lamp.publish(1, "devices/lamp/telemetry", "a").await;
        lamp.publish(2, "devices/other/telemetry", "b").await;
        lamp.publish(3, "somewhere", "c").await;
        lamp.publish(4, "devices/lamp/telemetry", "d").await;
        use v5::PublishAckReason as R;
        for (id, reason) in [
            (1, R::Success),
            (2, R::NotAuthorized),
            (3, R::TopicNameInvalid),
            (4, R::Success),
        ] {
            let ack = lamp.puback().await;
            assert_eq!((ack.packet_id.get(), ack.reason_code), (id, reason));
        }
        assert_eq!(bench.fake.bodies("lamp"), ["a", "d"]);
        assert!(bench.fake.bodies("other").is_empty());
        assert!(counted("reason=\"foreign_topic\""));
    });
}

/// A packet id in use: the same packet again is answered once, another one is an offence.
#[test]
fn packet_id_reuse() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.hold();
        lamp.publish(1, "devices/lamp/telemetry", "a").await;
        let v5::Packet::Publish(mut again) = publish5(1, "devices/lamp/telemetry", "a") else {
            unreachable!()
        };
        again.dup = true;
        lamp.send(v5::Packet::Publish(again)).await;
        lamp.send(v5::Packet::PingRequest).await;
        assert!(
            matches!(lamp.next().await, Some(v5::Packet::PingResponse)),
            "both were read"
        );
        assert_eq!(bench.fake.held(), 1);
        bench.fake.release();
        assert_eq!(lamp.puback().await.packet_id.get(), 1);
        // Free again after its PUBACK.
        lamp.publish(1, "devices/lamp/telemetry", "b").await;
        assert_eq!(lamp.puback().await.packet_id.get(), 1);
        assert_eq!(bench.fake.bodies("lamp"), ["a", "b"]);

        bench.fake.hold();
        lamp.publish(1, "devices/lamp/telemetry", "c").await;
        lamp.publish(1, "devices/lamp/telemetry", "d").await;
        assert_eq!(lamp.goodbye().await, Bye::ProtocolError);
    });
}

/// Real clients (paho) resend a whole backlog whatever the receive maximum says. Ending the
/// connection would end it again at the next try; so the rest is not read until there is room.
#[test]
fn receive_maximum_is_back_pressure() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.hold();
        for n in 1..=200u16 {
            lamp.publish(n, "devices/lamp/telemetry", "x").await;
        }
        eventually("the window is full", || bench.fake.held() == 32).await;
        bench.fake.release();
        for n in 1..=200u16 {
            assert_eq!(lamp.puback().await.packet_id.get(), n);
        }
        assert_eq!(bench.fake.bodies("lamp").len(), 200);
    });
}

/// A 3.1.1 client knows no window: it is not read from, and everything is answered in the end.
#[test]
fn window_of_311_is_back_pressure() {
    let limits = Limits {
        in_flight_max: 16,
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut lamp = Client3::connected(&bench, "lamp").await;
        bench.fake.hold();
        for n in 1..=200u16 {
            lamp.publish(n, "devices/lamp/telemetry", &n.to_string()).await;
        }
        eventually("the window is full", || bench.fake.held() == 16).await;
        bench.fake.release();
        for n in 1..=200u16 {
            assert_eq!(lamp.puback().await, n);
        }
        assert_eq!(bench.fake.bodies("lamp").len(), 200);
    });
}

/// QoS 0 is dropped when too much is in flight; QoS 1 is not.
#[test]
fn qos0_is_dropped_under_load() {
    metrics();
    let limits = Limits {
        qos0_in_flight_max: 4,
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.hold();
        for _ in 0..10 {
            lamp.publish(0, "devices/lamp/telemetry", "zero").await;
        }
        lamp.publish(1, "devices/lamp/telemetry", "one").await;
        eventually("five are out", || bench.fake.held() == 5).await;
        bench.fake.release();
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::Success);
        assert_eq!(bench.fake.bodies("lamp"), ["zero", "zero", "zero", "zero", "one"]);
        assert!(counted("publishes_dropped_total{reason=\"overload\"}"));
    });
}

/// With the node's budget used up, MQTT 5 is refused at once, 3.1.1 waits; neither loses.
#[test]
fn full_node_refuses_early() {
    let limits = Limits {
        node_in_flight_bytes_max: 1500,
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let body = "x".repeat(400);
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let mut old = Client3::connected(&bench, "old").await;
        bench.fake.hold();
        lamp.publish(1, "devices/lamp/telemetry", &body).await;
        eventually("the first is out", || bench.fake.held() == 1).await;
        lamp.publish(2, "devices/lamp/telemetry", &body).await;
        old.publish(1, "devices/old/telemetry", &body).await;
        // Its answer says that the publish before it was judged; PUBACKs wait for the first one.
        lamp.send(v5::Packet::PingRequest).await;
        assert!(matches!(lamp.next().await, Some(v5::Packet::PingResponse)));
        bench.fake.release();
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::Success);
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::QuotaExceeded);
        assert_eq!(old.puback().await, 1);
    });
}

/// A client that never acknowledges gets its window and no more; its queue is bounded.
#[test]
fn never_acknowledging_client_is_bounded() {
    metrics();
    let limits = Limits {
        down_queue_max: 4,
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let (mut lamp, _) = Client5::open(&bench, "lamp", |c| c.receive_max = 2.try_into().ok()).await;
        lamp.subscribe(&[("devices/lamp/twin/res/+", QoS::AtLeastOnce)]).await;
        for n in 1..=20u16 {
            lamp.publish(n, &format!("devices/lamp/twin/get/{n}"), "").await;
        }
        let (mut acks, mut responses) = (0, Vec::new());
        while acks < 20 || responses.len() < 2 {
            match lamp.next().await {
                Some(v5::Packet::PublishAck(_)) => acks += 1,
                Some(v5::Packet::Publish(publish)) => responses.push(publish.packet_id.unwrap()),
                other => panic!("{other:?}"),
            }
        }
        assert_ne!(responses[0], responses[1]);
        let puback = v5::Packet::PublishAck(v5::PublishAck {
            packet_id: responses[0],
            reason_code: v5::PublishAckReason::Success,
            properties: Vec::new(),
            reason_string: None,
        });
        lamp.send(puback).await;
        let third = lamp.published().await;
        assert_eq!(&*third.topic, "devices/lamp/twin/res/3");
        assert!(counted("downlinks_dropped_total{reason=\"queue_full\"}"));
    });
}

/// With the node's buffers used up, a question is refused in its own words before anybody is asked.
#[test]
fn no_room_for_an_answer_is_said() {
    let limits = Limits {
        buffer_bytes_max: 64 * 1024,
        admission_wait: Duration::from_millis(50),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        lamp.subscribe(&[("devices/lamp/twin/res/+", QoS::AtMostOnce)]).await;
        let before = bench.fake.submitted();
        lamp.publish(1, "devices/lamp/twin/get/1", "").await;
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::QuotaExceeded);
        let told = lamp.published().await;
        assert!(told.payload.starts_with(br#"{"error""#), "{told:?}");
        assert!(told.payload.ends_with(br#""status":429}"#), "{told:?}");
        let mut old = Client3::connected(&bench, "old").await;
        old.publish(1, "devices/old/twin/get/1", "").await;
        assert_eq!(old.puback().await, 1, "3.1.1 has no other word for it");
        // Its session was opened.
        assert_eq!(bench.fake.submitted(), before + 1);
        lamp.publish(2, "devices/lamp/telemetry", "x").await;
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::Success);
    });
}

/// What does not fit the client's maximum packet size is not sent to it.
#[test]
fn client_maximum_packet_size_is_kept() {
    with_gateway(Limits::default(), |bench| async move {
        let (mut lamp, _) = Client5::open(&bench, "lamp", |c| c.max_packet_size = 60.try_into().ok()).await;
        lamp.subscribe(&[("devices/lamp/twin/res/+", QoS::AtLeastOnce)]).await;
        lamp.publish(1, "devices/lamp/twin/get/1", "").await;
        lamp.puback().await;
        lamp.send(v5::Packet::PingRequest).await;
        assert!(matches!(lamp.next().await, Some(v5::Packet::PingResponse)));
    });
}

/// A client whose packets are smaller than any CONNACK is not left waiting for one.
#[test]
fn a_client_that_no_connack_fits_is_closed() {
    with_gateway(Limits::default(), |bench| async move {
        let mut raw = Raw::connect(&bench).await;
        // Maximum Packet Size 8.
        raw.send(b"\x10\x15\0\x04MQTT\x05\x02\0\x3c\x05\x27\0\0\0\x08\0\x03big")
            .await;
        assert!(raw.until_closed().await.is_empty());
        eventually("its session is closed", || {
            let state = bench.fake.state("big");
            state.last_generation == 1 && state.connected_via().is_none()
        })
        .await;
    });
}

/// A client that reads nothing is closed when it has not read for too long.
#[test]
fn slow_reader_is_closed() {
    metrics();
    let limits = Limits {
        slow_reader_timeout: Duration::from_millis(300),
        linger: Duration::from_millis(50),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        // PINGREQs until the server no longer reads: its answers are stuck.
        let pings = b"\xc0\0".repeat(32 * 1024);
        let flood = async {
            use tokio::io::AsyncWriteExt;
            while lamp.raw.stream.write_all(&pings).await.is_ok() {}
        };
        tokio::time::timeout(mqtt_support::PATIENCE, flood)
            .await
            .expect("the server gives up");
        eventually("it is gone", || bench.gateway.connections() == 0).await;
        assert!(counted("ends_total{reason=\"slow_reader\"}"));
    });
}

/// Silence for one and a half keep-alives ends the connection, so that half-open ones go away.
#[test]
fn silent_client_is_closed() {
    with_gateway(Limits::default(), |bench| async move {
        let (mut lamp, _) = Client5::open(&bench, "lamp", |connect| connect.keep_alive = 1).await;
        assert_eq!(lamp.goodbye().await, Bye::KeepAliveTimeout);
        eventually("offline", || bench.fake.state("lamp").connected_via().is_none()).await;
    });
}

/// One connection more than allowed is closed, the others stay.
#[test]
fn connections_are_bounded() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut a = Client5::connected(&bench, "a").await;
        let _b = Client5::connected(&bench, "b").await;
        let mut c = Raw::connect(&bench).await;
        assert!(c.until_gone().await.is_empty());
        a.send(v5::Packet::PingRequest).await;
        assert!(matches!(a.next().await, Some(v5::Packet::PingResponse)));
        drop(a);
        eventually("a place is free", || bench.gateway.connections() == 1).await;
        Client5::connected(&bench, "c").await;
    });
}

/// Truncated and bit-flipped packets of every type, on live connections: each ends cleanly or is
/// understood, and the gateway goes on serving.
#[test]
fn mangled_packets_never_hurt_others() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(100),
        linger: Duration::from_millis(20),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut witness = Client5::connected(&bench, "witness").await;
        for (n, bytes) in every_packet().into_iter().enumerate() {
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (n % 8);
                for mangled in [&bytes[..at], &flipped[..]] {
                    let mut raw = Raw::connect(&bench).await;
                    let five = b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\0\0\x04lamp";
                    raw.send(if n % 2 == 0 { &five[..] } else { CONNECT_311 }).await;
                    raw.send(mangled).await;
                    drop(raw);
                }
            }
        }
        witness.publish(1, "devices/witness/telemetry", "alive").await;
        assert_eq!(witness.puback().await.reason_code, v5::PublishAckReason::Success);
        eventually("all others are gone", || bench.gateway.connections() == 1).await;
    });
}

fn every_packet() -> Vec<Vec<u8>> {
    [
        CONNECT_311,
        b"\x20\x03\0\0\0",
        b"\x32\x1c\0\x16devices/lamp/telemetry\0\x01\0x",
        b"\x40\x02\0\x01",
        b"\x50\x02\0\x01",
        b"\x62\x02\0\x01",
        b"\x70\x02\0\x01",
        b"\x82\x13\0\x01\0\0\x0ddevices/lamp/\0",
        b"\x90\x04\0\x01\0\0",
        b"\xa2\x12\0\x01\0\0\x0ddevices/lamp/",
        b"\xb0\x04\0\x01\0\0",
        b"\xc0\0",
        b"\xd0\0",
        b"\xe0\x02\0\0",
        b"\xf0\x02\x18\0",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

/// A refused write is told apart from a lost one: 5 gets the reason, the ordinal is used up.
#[test]
fn refusal_of_the_device_reaches_the_client() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let filters: Vec<String> = (0..40).map(|n| format!("devices/lamp/x{n}")).collect();
        let filters: Vec<_> = filters.iter().map(|f| (f.as_str(), QoS::AtMostOnce)).collect();
        let codes = lamp.subscribe(&filters).await;
        assert!(codes.iter().all(|code| *code == v5::SubscribeAckReason::QuotaExceeded));
        bench.fake.fail_next([Fault::UnknownCommitted]);
        lamp.publish(1, "devices/lamp/telemetry", "after").await;
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::Success);
        assert_eq!(bench.fake.bodies("lamp"), ["after"]);
    });
}
