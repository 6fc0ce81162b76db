#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // tests run in real time
//! A gateway device's connection, over devices in memory that follow the rules and fail on demand.

mod mqtt_support;

use std::time::Duration;

use actors::device::{Command, OpenSession, Precondition, Status};
use actors::id::{DeviceId, Gateway};
use mqtt_support::fake::Fault;
use mqtt_support::{eventually, with_gateway, Bench, Client3, Client5};
use node::gateway::Limits;
use rmqtt_codec::types::QoS;
use rmqtt_codec::v5::{PublishAckReason, SubscribeAckReason};

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
