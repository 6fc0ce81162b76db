#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // tests run in real time
//! A gateway device's connection, over devices in memory that follow the rules and fail on demand.

mod mqtt_support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use actors::device::{Command, Message, OpenSession, Precondition, Status};
use actors::id::{DeviceId, Gateway};
use mqtt_support::fake::Fault;
use mqtt_support::{eventually, with_gateway, Bench, Client3, Client5};
use node::gateway::Limits;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::{Packet, PublishAck, PublishAckReason, Subscribe, SubscribeAckReason, SubscriptionOptions};

fn device(id: &str) -> DeviceId {
    DeviceId::parse(id).unwrap()
}

/// Registers children of `hub`.
fn register(bench: &Bench, children: &[&str]) {
    for child in children {
        let put = Command::PutDevice {
            status: Status::Enabled,
            condition: Precondition::None,
            gateway: Some(device("hub")),
        };
        bench.fake.operate(child, put).unwrap();
    }
}

fn telemetry(child: &str) -> String {
    format!("devices/{child}/telemetry")
}

#[test]
fn pubacks_leave_in_the_order_of_the_publishes_across_children() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a", "b"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        bench.fake.hold();
        for (packet_id, owner) in [(1, "a"), (2, "b"), (3, "hub"), (4, "a")] {
            hub.publish(packet_id, &telemetry(owner), "x").await;
        }
        eventually("all are with their devices", || bench.fake.held() == 4).await;
        // The newest first.
        bench.fake.release();
        for packet_id in 1..=4 {
            let ack = hub.puback().await;
            assert_eq!(
                (ack.packet_id.get(), ack.reason_code),
                (packet_id, PublishAckReason::Success)
            );
        }
        assert_eq!(bench.fake.bodies("a"), ["x", "x"]);
        assert_eq!(bench.fake.bodies("hub"), ["x"]);
    });
}

#[test]
fn each_child_goes_back_by_itself_and_nothing_is_stored_twice() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a", "b", "c"]);
        let mut hub = Client3::connected(&bench, "hub").await;
        bench.fake.fail_next_open([
            Fault::NotLeader,
            Fault::UnknownCommitted,
            Fault::UnknownLost,
            Fault::None,
        ]);
        use Fault::{None, NotLeader, Overloaded, UnknownCommitted, UnknownLost};
        bench.fake.fail_next([
            None,
            UnknownCommitted,
            NotLeader,
            None,
            UnknownLost,
            Overloaded,
            UnknownCommitted,
        ]);
        let children = ["a", "b", "c"];
        for n in 0..30u16 {
            let child = children[usize::from(n) % 3];
            hub.publish(n + 1, &telemetry(child), &n.to_string()).await;
        }
        for n in 0..30 {
            assert_eq!(hub.puback().await, n + 1);
        }
        for (at, child) in children.iter().enumerate() {
            let expected: Vec<String> = (at..30).step_by(3).map(|n| n.to_string()).collect();
            assert_eq!(bench.fake.bodies(child), expected, "{child}");
        }
    });
}

#[test]
fn what_was_in_flight_at_a_takeover_is_stored_once() {
    let limits = Limits {
        retry_min: Duration::from_secs(5),
        retry_max: Duration::from_secs(5),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        register(&bench, &["a"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        hub.publish(1, &telemetry("a"), "1").await;
        hub.puback().await;
        bench.fake.fail_next([Fault::UnknownCommitted, Fault::UnknownLost]);
        hub.publish(2, &telemetry("a"), "2").await;
        hub.publish(3, &telemetry("a"), "3").await;
        eventually("one is stored and not answered", || bench.fake.bodies("a").len() == 2).await;
        let own = Command::OpenSession(Box::new(OpenSession {
            gateway: Gateway { node: 9, boot: 9 },
            clean_start: true,
            expiry_secs: 0,
            keep_alive_secs: 60,
            protocol: 5,
            will: None,
            via: None,
        }));
        bench.fake.operate("a", own).unwrap();
        for packet_id in [2, 3] {
            let ack = hub.puback().await;
            assert_eq!(
                (ack.packet_id.get(), ack.reason_code),
                (packet_id, PublishAckReason::Success)
            );
        }
        assert_eq!(bench.fake.bodies("a"), ["1", "2", "3"]);
    });
}

#[test]
fn refused_children_leave_the_others_alone() {
    let limits = Limits {
        children_max: 2,
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        register(&bench, &["a", "b", "c"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        let expected = [
            ("a", PublishAckReason::Success),
            ("stranger", PublishAckReason::NotAuthorized),
            ("b", PublishAckReason::Success),
            ("c", PublishAckReason::QuotaExceeded),
            ("a", PublishAckReason::Success),
        ];
        for (at, (child, reason)) in expected.into_iter().enumerate() {
            hub.publish(at as u16 + 1, &telemetry(child), "x").await;
            assert_eq!(hub.puback().await.reason_code, reason, "{child}");
        }
        let unassign = Command::PatchDevice {
            status: None,
            condition: Precondition::None,
            gateway: Some(None),
        };
        bench.fake.operate("a", unassign).unwrap();
        assert!(bench.fake.state("a").connected_via().is_none());
        hub.publish(9, &telemetry("a"), "y").await;
        assert_eq!(hub.puback().await.reason_code, PublishAckReason::NotAuthorized);
        assert_eq!(bench.fake.bodies("a"), ["x", "x"]);
        hub.publish(10, &telemetry("c"), "y").await;
        assert_eq!(
            hub.puback().await.reason_code,
            PublishAckReason::Success,
            "its place is free"
        );
    });
}

#[test]
fn one_suback_answers_for_all_devices_of_a_subscribe() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a", "b"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        let granted = hub
            .subscribe(&[
                ("devices/a/twin/desired", QoS::AtLeastOnce),
                ("devices/hub/#", QoS::AtMostOnce),
                ("devices/stranger/#", QoS::AtLeastOnce),
                ("devices/b/+/desired", QoS::AtMostOnce),
                ("devices/+/twin/desired", QoS::AtLeastOnce),
                ("devices/a/x#", QoS::AtLeastOnce),
            ])
            .await;
        use SubscribeAckReason::{GrantedQos0, GrantedQos1, NotAuthorized, TopicFilterInvalid};
        let expected = [
            GrantedQos1,
            GrantedQos0,
            NotAuthorized,
            GrantedQos0,
            NotAuthorized,
            TopicFilterInvalid,
        ];
        assert_eq!(granted, expected);
        for child in ["a", "b", "hub"] {
            let write = Command::UpdateTwin {
                origin: actors::device::Origin::Operator,
                writes: vec![actors::device::SectionWrite {
                    section: actors::device::Section::Desired,
                    mode: actors::device::WriteMode::Merge,
                    json: r#"{"on":true}"#.into(),
                }],
                condition: None,
            };
            bench.fake.operate(child, write).unwrap();
            let publish = hub.published().await;
            assert_eq!(publish.topic, format!("devices/{child}/twin/desired"));
            assert_eq!(publish.qos == QoS::AtLeastOnce, child == "a");
        }
    });
}

fn kept(bench: &Bench, id: &str) -> Vec<String> {
    let session = bench.fake.state(id).session;
    let kept = session.iter().flat_map(|session| &session.subscriptions);
    kept.map(|subscription| subscription.filter.clone()).collect()
}

/// What the SUBACK refuses is in nobody's session; of a child that took its filter the gateway's
/// session keeps a mark, once.
#[test]
fn refused_filters_are_not_remembered() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        let foreign = [("devices/stranger/#", QoS::AtLeastOnce)];
        assert_eq!(hub.subscribe(&foreign).await, [SubscribeAckReason::NotAuthorized]);
        assert_eq!(kept(&bench, "hub"), [""; 0]);
        let filters = [
            ("devices/stranger/#", QoS::AtLeastOnce),
            ("devices/a/#", QoS::AtLeastOnce),
            ("devices/hub/#", QoS::AtMostOnce),
        ];
        for _ in 0..2 {
            let granted = hub.subscribe(&filters).await;
            use SubscribeAckReason::{GrantedQos0, GrantedQos1, NotAuthorized};
            assert_eq!(granted, [NotAuthorized, GrantedQos1, GrantedQos0]);
            let mut own = kept(&bench, "hub");
            own.sort();
            assert_eq!(own, ["devices/a/", "devices/hub/#"]);
        }
        assert_eq!(kept(&bench, "a"), ["devices/a/#"]);
        assert_eq!(kept(&bench, "stranger"), [""; 0]);
    });
}

/// A child that was taken from the gateway while it was away is forgotten when it comes back.
#[test]
fn a_mark_for_no_child_is_dropped() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a", "b"]);
        let lasting = |c: &mut rmqtt_codec::v5::Connect| {
            c.clean_start = false;
            c.session_expiry_interval_secs = 600;
        };
        let (mut hub, _) = Client5::open(&bench, "hub", lasting).await;
        for filter in ["devices/a/#", "devices/b/#"] {
            hub.subscribe(&[(filter, QoS::AtLeastOnce)]).await;
        }
        drop(hub);
        eventually("it is gone", || bench.fake.state("hub").connected_via().is_none()).await;
        let unassign = Command::PatchDevice {
            status: None,
            condition: Precondition::None,
            gateway: Some(None),
        };
        bench.fake.operate("a", unassign).unwrap();
        let (_hub, _) = Client5::open(&bench, "hub", lasting).await;
        eventually("only the child is remembered", || kept(&bench, "hub") == ["devices/b/"]).await;
        eventually("the child is back", || bench.fake.state("b").connected_via().is_some()).await;
    });
}

fn queue(bench: &Bench, child: &str, id: &str) {
    let message = Message {
        id: id.to_owned(),
        body: id.as_bytes().to_vec(),
        ..Message::default()
    };
    let message = Box::new(message);
    let queue = Command::EnqueueMessage {
        message,
        ttl_secs: None,
    };
    bench.fake.operate(child, queue).unwrap();
}

fn queued(bench: &Bench, child: &str) -> usize {
    bench.fake.state(child).messages().queue.len()
}

async fn acknowledge(hub: &mut Client5, publish: &Publish) {
    let ack = PublishAck {
        packet_id: publish.packet_id.unwrap(),
        reason_code: PublishAckReason::Success,
        properties: Vec::new(),
        reason_string: None,
    };
    hub.send(Packet::PublishAck(ack)).await;
}

/// The children share the window of the one connection; each one's messages come in its order, and
/// none is starved by another's.
#[test]
fn messages_of_children_come_in_order_within_the_window() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a", "b", "c"]);
        for child in ["a", "b", "c"] {
            for n in 0..10 {
                queue(&bench, child, &format!("m-{n}"));
            }
        }
        let (mut hub, _) = Client5::open(&bench, "hub", |c| c.receive_max = 3.try_into().ok()).await;
        for child in ["a", "b", "c"] {
            let filter = format!("devices/{child}/messages/+");
            hub.send(subscribe(&filter)).await;
        }
        let mut next = BTreeMap::from([("a", 0), ("b", 0), ("c", 0)]);
        let mut open = Vec::new();
        let mut subacks = 0;
        while subacks < 3 || next.values().any(|n| *n < 10) {
            match hub.next().await.unwrap() {
                Packet::SubscribeAck(_) => subacks += 1,
                Packet::Publish(publish) => {
                    let topic = publish.topic.to_string();
                    let (child, next) = next
                        .iter_mut()
                        .find(|(child, _)| topic.starts_with(&format!("devices/{child}/")))
                        .unwrap();
                    assert_eq!(topic, format!("devices/{child}/messages/m-{next}"));
                    assert!(!publish.dup);
                    *next += 1;
                    open.push(publish);
                }
                other => panic!("{other:?}"),
            }
            assert!(open.len() <= 3, "the window is 3");
            let ids: BTreeSet<_> = open.iter().map(|publish| publish.packet_id).collect();
            assert_eq!(ids.len(), open.len(), "packet ids of children meet");
            if open.len() == 3 {
                // The newest first: each PUBACK settles its own.
                let newest = open.pop().unwrap();
                acknowledge(&mut hub, &newest).await;
            }
        }
        for publish in open {
            acknowledge(&mut hub, &publish).await;
        }
        eventually("all are settled", || {
            ["a", "b", "c"].iter().all(|child| queued(&bench, child) == 0)
        })
        .await;
        let feedback = |child| bench.fake.state(child).messages().last_feedback;
        assert_eq!(["a", "b", "c"].map(feedback), [10, 10, 10]);
    });
}

fn subscribe(filter: &str) -> Packet {
    let options = SubscriptionOptions {
        qos: QoS::AtLeastOnce,
        ..SubscriptionOptions::default()
    };
    Packet::Subscribe(Subscribe {
        packet_id: 9.try_into().unwrap(),
        id: None,
        user_properties: Vec::new(),
        topic_filters: vec![(filter.into(), options)],
    })
}

/// A child that connects by itself gets its messages itself. When it has gone, they come through
/// the gateway again, what it did not acknowledge included.
#[test]
fn messages_follow_the_session() {
    let limits = Limits {
        child_look_every: Duration::from_millis(50),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        register(&bench, &["a"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        hub.subscribe(&[("devices/a/messages/+", QoS::AtLeastOnce)]).await;
        queue(&bench, "a", "first");
        let first = hub.published().await;
        assert_eq!(first.topic, "devices/a/messages/first");
        acknowledge(&mut hub, &first).await;
        eventually("it is settled", || queued(&bench, "a") == 0).await;

        let mut child = Client5::connected(&bench, "a").await;
        child.subscribe(&[("devices/a/messages/+", QoS::AtLeastOnce)]).await;
        for id in ["second", "third"] {
            queue(&bench, "a", id);
        }
        let second = child.published().await;
        assert_eq!(second.topic, "devices/a/messages/second");
        assert_eq!(child.published().await.topic, "devices/a/messages/third");
        acknowledge(&mut child, &second).await;
        eventually("it is settled", || queued(&bench, "a") == 1).await;
        hub.send(Packet::PingRequest).await;
        let pong = hub.next().await;
        assert!(
            matches!(pong, Some(Packet::PingResponse)),
            "nothing came to both: {pong:?}"
        );
        drop(child);
        let third = hub.published().await;
        assert_eq!(third.topic, "devices/a/messages/third");
        acknowledge(&mut hub, &third).await;
        eventually("it is settled", || queued(&bench, "a") == 0).await;
    });
}

/// Questions and settlements that get lost cost nothing but time; a message is given again only to
/// the next connection.
#[test]
fn messages_of_children_survive_what_gets_lost() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a"]);
        let lasting = |c: &mut rmqtt_codec::v5::Connect| {
            c.clean_start = false;
            c.session_expiry_interval_secs = 600;
        };
        let (mut hub, _) = Client5::open(&bench, "hub", lasting).await;
        hub.subscribe(&[("devices/a/#", QoS::AtLeastOnce)]).await;
        bench.fake.fail_next_take([Fault::UnknownCommitted, Fault::UnknownLost]);
        queue(&bench, "a", "first");
        assert_eq!(hub.published().await.topic, "devices/a/messages/first");
        let deliveries = || bench.fake.state("a").messages().queue[0].deliveries;
        assert_eq!(deliveries(), 1);
        // It goes without having acknowledged anything.
        drop(hub);
        eventually("it is gone", || bench.fake.state("a").connected_via().is_none()).await;
        let (mut hub, _) = Client5::open(&bench, "hub", lasting).await;
        let again = hub.published().await;
        assert_eq!(again.topic, "devices/a/messages/first");
        assert_eq!(deliveries(), 2);
        acknowledge(&mut hub, &again).await;
        eventually("it is settled", || queued(&bench, "a") == 0).await;
    });
}

/// Also when the gateway goes without a word.
#[test]
fn children_go_offline_with_their_gateway() {
    with_gateway(Limits::default(), |bench| async move {
        register(&bench, &["a", "b"]);
        let mut hub = Client5::connected(&bench, "hub").await;
        for (packet_id, child) in [(1, "a"), (2, "b")] {
            hub.publish(packet_id, &telemetry(child), "x").await;
            hub.puback().await;
            assert!(bench.fake.state(child).connected_via().is_some());
        }
        drop(hub);
        eventually("all are offline", || {
            ["hub", "a", "b"]
                .iter()
                .all(|id| bench.fake.state(id).connected_via().is_none())
        })
        .await;
        eventually("nothing is left", || {
            bench.gateway.connections() == 0 && bench.gateway.closes_pending() == 0
        })
        .await;
    });
}
