//! What a device may rely on when it talks MQTT to a node.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

mod mqtt_support;

use std::time::Duration;

use actors::device::{Command, Origin, Precondition, Qos, Section, SectionWrite, Status, WriteMode};
use mqtt_support::{eventually, publish5, with_gateway, Bench, Client3, Client5, Fault};
use node::gateway::Limits;
use rmqtt_codec::types::QoS;
use rmqtt_codec::{v3, v5};

fn desired(json: &str) -> Command {
    Command::UpdateTwin {
        origin: Origin::Operator,
        writes: vec![SectionWrite {
            section: Section::Desired,
            mode: WriteMode::Merge,
            json: json.to_owned(),
        }],
        condition: None,
    }
}

fn is_connected(bench: &Bench, id: &str) -> bool {
    bench.fake.state(id).connected_via().is_some()
}

/// A PUBACK means that the message is stored, and MQTT 5 gets the receipt.
#[test]
fn acknowledged_telemetry_is_stored() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        lamp.publish(1, "devices/lamp/telemetry/room", "21.5").await;
        let ack = lamp.puback().await;
        assert_eq!(ack.reason_code, v5::PublishAckReason::Success);
        let (name, receipt) = &ack.properties[0];
        assert_eq!(&**name, "holdfast-receipt");
        assert!(receipt.parse::<actors::wire::receipt::Receipt>().is_ok(), "{receipt}");
        assert_eq!(bench.fake.rows("lamp")[0].telemetry.stream, "room");
        assert_eq!(bench.fake.bodies("lamp"), ["21.5"]);

        let mut old = Client3::connected(&bench, "old").await;
        old.publish(7, "devices/old/messages/events/$.mid=m1&kind=x", "1").await;
        assert_eq!(old.puback().await, 7);
        let row = &bench.fake.rows("old")[0].telemetry;
        assert_eq!(row.message_id.as_deref(), Some("m1"));
        assert_eq!(row.properties, [("kind".to_owned(), "x".to_owned())]);
    });
}

/// What the device says about a message is kept with it, in order.
#[test]
fn properties_travel_with_telemetry() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let v5::Packet::Publish(mut publish) = publish5(1, "devices/lamp/telemetry", "{}") else {
            unreachable!()
        };
        publish.properties = Some(v5::PublishProperties {
            content_type: Some("application/json".into()),
            user_properties: vec![
                ("b".into(), "1".into()),
                ("a".into(), "2".into()),
                ("message-id".into(), "m-1".into()),
                ("hf-device-time".into(), "1970-01-01T00:00:01.5Z".into()),
            ],
            ..v5::PublishProperties::default()
        });
        lamp.send(v5::Packet::Publish(publish)).await;
        lamp.puback().await;
        let row = bench.fake.rows("lamp").remove(0).telemetry;
        assert_eq!(row.content_type.as_deref(), Some("application/json"));
        assert_eq!(row.message_id.as_deref(), Some("m-1"));
        assert_eq!(row.device_time.map(|t| t.0), Some(1500));
        assert_eq!(row.properties[0].0, "b");
        assert_eq!(row.properties[1].0, "a");
    });
}

/// CONNACK tells what this server does not do.
#[test]
fn connack_announces_the_limits() {
    with_gateway(Limits::default(), |bench| async move {
        let (_lamp, ack) = Client5::open(&bench, "lamp", |connect| {
            connect.keep_alive = 0;
            connect.session_expiry_interval_secs = u32::MAX;
        })
        .await;
        assert_eq!(ack.receive_max.get(), 32);
        assert_eq!(ack.max_qos, QoS::AtLeastOnce);
        assert!(!ack.retain_available);
        assert!(!ack.shared_subscription_available);
        assert!(ack.subscription_identifiers_available);
        assert!(ack.wildcard_subscription_available);
        assert_eq!(ack.topic_alias_max, 16);
        assert_eq!(ack.server_keepalive_sec, Some(3600));
        assert_eq!(ack.session_expiry_interval_secs, Some(7 * 24 * 3600));
        assert!(!ack.session_present);
    });
}

/// A client may want no user properties on a PUBACK, or have no room for them.
#[test]
fn a_receipt_is_left_out_where_it_is_not_wanted() {
    with_gateway(Limits::default(), |bench| async move {
        let (mut lamp, _) = Client5::open(&bench, "lamp", |c| c.request_problem_info = false).await;
        let (mut small, _) = Client5::open(&bench, "small", |c| c.max_packet_size = 40.try_into().ok()).await;
        let mut other = Client5::connected(&bench, "other").await;
        for (client, id, receipts) in [
            (&mut lamp, "lamp", 0),
            (&mut small, "small", 0),
            (&mut other, "other", 1),
        ] {
            client.publish(7, &format!("devices/{id}/telemetry"), "x").await;
            let ack = client.puback().await;
            assert_eq!((ack.packet_id.get(), ack.properties.len()), (7, receipts), "{id}");
        }
    });
}

/// PUBACKs come in the order of the PUBLISHes, even if the answers do not, and none before its
/// message is stored.
#[test]
fn pubacks_come_in_order() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.hold();
        for n in 1..=10u16 {
            lamp.publish(n, "devices/lamp/telemetry", &n.to_string()).await;
        }
        lamp.send(v5::Packet::PingRequest).await;
        // The ping is answered, none of the publishes is.
        assert!(matches!(lamp.next().await, Some(v5::Packet::PingResponse)));
        eventually("ten commands are out", || bench.fake.held() == 10).await;
        bench.fake.release();
        for n in 1..=10u16 {
            assert_eq!(lamp.puback().await.packet_id.get(), n);
        }
    });
}

/// Failures on the way cost time, not messages: nothing lost, nothing twice, order kept.
#[test]
fn retries_neither_lose_nor_repeat() {
    let rows = [
        vec![Fault::NotLeader],
        vec![Fault::UnknownLost, Fault::None, Fault::UnknownCommitted],
        vec![Fault::UnknownCommitted; 3],
        vec![
            Fault::None,
            Fault::Overloaded,
            Fault::None,
            Fault::NotLeader,
            Fault::NotLeader,
        ],
        vec![
            Fault::None,
            Fault::None,
            Fault::UnknownCommitted,
            Fault::NotLeader,
            Fault::UnknownLost,
        ],
    ];
    with_gateway(Limits::default(), |bench| async move {
        for (row, faults) in rows.into_iter().enumerate() {
            let id = format!("lamp-{row}");
            let mut lamp = Client5::connected(&bench, &id).await;
            bench.fake.fail_next(faults);
            let topic = format!("devices/{id}/telemetry");
            for n in 1..=20u16 {
                lamp.publish(n, &topic, &n.to_string()).await;
            }
            for n in 1..=20u16 {
                let ack = lamp.puback().await;
                assert_eq!(
                    (ack.packet_id.get(), ack.reason_code),
                    (n, v5::PublishAckReason::Success),
                    "row {row}"
                );
            }
            let expected: Vec<_> = (1..=20).map(|n| n.to_string()).collect();
            assert_eq!(bench.fake.bodies(&id), expected, "row {row}");
        }
    });
}

/// A command that finds no leader in time ends the connection, without a PUBACK: unknown is not
/// failed.
#[test]
fn unanswered_publish_closes_without_puback() {
    let limits = Limits {
        commit_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.fail_next(vec![Fault::NotLeader; 1000]);
        lamp.publish(1, "devices/lamp/telemetry", "x").await;
        assert_eq!(lamp.goodbye().await, v5::DisconnectReasonCode::ServerBusy);
    });
}

/// The newer connection takes over; the older one hears of it and is closed gently.
#[test]
fn newer_connection_takes_over() {
    with_gateway(Limits::default(), |bench| async move {
        let mut first = Client5::connected(&bench, "lamp").await;
        let mut second = Client5::connected(&bench, "lamp").await;
        assert_eq!(first.goodbye().await, v5::DisconnectReasonCode::SessionTakenOver);
        second.publish(1, "devices/lamp/telemetry", "mine").await;
        second.puback().await;
        assert!(is_connected(&bench, "lamp"));
        let generation = bench.fake.state("lamp").session.unwrap().generation;
        assert_eq!(generation, 2);
    });
}

/// Subscriptions outlive the connection of a session that does.
#[test]
fn session_is_present_after_reconnect() {
    with_gateway(Limits::default(), |bench| async move {
        let keep = |connect: &mut v3::Connect| connect.clean_session = false;
        let (mut lamp, ack) = Client3::open(&bench, "lamp", keep).await;
        assert!(!ack.session_present);
        let filters = vec![("devices/lamp/twin/#".into(), QoS::AtLeastOnce)];
        let packet_id = 3.try_into().unwrap();
        lamp.send(v3::Packet::Subscribe {
            packet_id,
            topic_filters: filters,
        })
        .await;
        assert!(matches!(lamp.next().await, Some(v3::Packet::SubscribeAck { .. })));
        drop(lamp);
        eventually("the loss is committed", || !is_connected(&bench, "lamp")).await;

        let (mut lamp, ack) = Client3::open(&bench, "lamp", keep).await;
        assert!(ack.session_present);
        bench.fake.operate("lamp", desired(r#"{"lit":true}"#)).unwrap();
        match lamp.next().await {
            Some(v3::Packet::Publish(publish)) => {
                assert_eq!(&*publish.topic, "devices/lamp/twin/desired");
                assert_eq!(publish.qos, QoS::AtLeastOnce);
            }
            other => panic!("the desired change expected, got {other:?}"),
        }
    });
}

/// A will becomes telemetry when the connection is lost, and not when it ends with a goodbye.
#[test]
fn will_is_recorded_on_loss_only() {
    with_gateway(Limits::default(), |bench| async move {
        let with_will = |id: &'static str| {
            move |connect: &mut v5::Connect| {
                connect.last_will = Some(v5::LastWill {
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    topic: format!("devices/{id}/telemetry/will").into(),
                    message: "gone".into(),
                    will_delay_interval_sec: None,
                    correlation_data: None,
                    message_expiry_interval: None,
                    content_type: None,
                    user_properties: Vec::new(),
                    is_utf8_payload: None,
                    response_topic: None,
                });
            }
        };
        let (lost, _) = Client5::open(&bench, "lost", with_will("lost")).await;
        drop(lost);
        eventually("the will is stored", || bench.fake.bodies("lost") == ["gone"]).await;

        let (mut polite, _) = Client5::open(&bench, "polite", with_will("polite")).await;
        polite.send(v5::Packet::Disconnect(v5::Disconnect::default())).await;
        assert!(polite.raw.until_closed().await.is_empty());
        eventually("the goodbye is stored", || !is_connected(&bench, "polite")).await;
        assert!(bench.fake.bodies("polite").is_empty());

        let (mut wanting, _) = Client5::open(&bench, "wanting", with_will("wanting")).await;
        let bye = v5::Disconnect::new(v5::DisconnectReasonCode::DisconnectWithWillMessage);
        wanting.send(v5::Packet::Disconnect(bye)).await;
        eventually("the will is stored", || bench.fake.bodies("wanting") == ["gone"]).await;
    });
}

/// QoS 0 publishes followed at once by DISCONNECT are carried out.
#[test]
fn what_precedes_a_goodbye_is_carried_out() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.fail_next([Fault::NotLeader]);
        let mut all = lamp.encode(publish5(0, "devices/lamp/telemetry", "a"));
        all.extend_from_slice(&lamp.encode(publish5(0, "devices/lamp/telemetry", "b")));
        all.extend_from_slice(&lamp.encode(v5::Packet::Disconnect(v5::Disconnect::default())));
        lamp.raw.send(&all).await;
        assert!(lamp.raw.until_closed().await.is_empty());
        eventually("both are stored", || bench.fake.bodies("lamp") == ["a", "b"]).await;
        eventually("the session ends", || !is_connected(&bench, "lamp")).await;
    });
}

/// A session whose end could not be committed at once ends all the same.
#[test]
fn presence_converges() {
    with_gateway(Limits::default(), |bench| async move {
        let lamp = Client5::connected(&bench, "lamp").await;
        assert!(is_connected(&bench, "lamp"));
        drop(lamp);
        eventually("offline", || !is_connected(&bench, "lamp")).await;
        eventually("nothing is pending", || bench.gateway.closes_pending() == 0).await;
    });
}

/// The twin is read and reported over topics; responses go to who subscribed to them.
#[test]
fn twin_is_read_and_reported() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let granted = lamp.subscribe(&[("devices/lamp/twin/res/+", QoS::AtLeastOnce)]).await;
        assert_eq!(granted, [v5::SubscribeAckReason::GrantedQos1]);
        bench.fake.operate("lamp", desired(r#"{"lit":true}"#)).unwrap();

        lamp.publish(1, "devices/lamp/twin/reported/r1", r#"{"lit":false}"#)
            .await;
        assert_eq!(lamp.puback().await.reason_code, v5::PublishAckReason::Success);
        let response = lamp.published().await;
        assert_eq!(&*response.topic, "devices/lamp/twin/res/r1");
        assert_eq!(&response.payload[..], br#"{"status":204,"version":1}"#);

        lamp.publish(2, "devices/lamp/twin/get/r2", "").await;
        assert_eq!(lamp.puback().await.packet_id.get(), 2);
        let response = lamp.published().await;
        let json: serde_json::Value = serde_json::from_slice(&response.payload).unwrap();
        assert_eq!(json["status"], 200);
        assert_eq!(json["desired"]["lit"], true);
        assert_eq!(json["reported"]["lit"], false);
        assert_eq!(json["versions"]["desired"], 1);
        assert_eq!(json["versions"]["reported"], 1);

        lamp.publish(3, "devices/lamp/twin/reported/r3", "[1]").await;
        assert_eq!(
            lamp.puback().await.reason_code,
            v5::PublishAckReason::PayloadFormatInvalid
        );
        let json: serde_json::Value = serde_json::from_slice(&lamp.published().await.payload).unwrap();
        assert_eq!(json["status"], 400);
    });
}

/// A read after a write sees it, also when the write had to be sent again.
#[test]
fn device_reads_its_own_writes() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        lamp.subscribe(&[("devices/lamp/twin/res/#", QoS::AtMostOnce)]).await;
        bench.fake.fail_next([Fault::NotLeader]);
        let mut both = lamp.encode(publish5(0, "devices/lamp/twin/reported/w", r#"{"n":1}"#));
        both.extend_from_slice(&lamp.encode(publish5(0, "devices/lamp/twin/get/r", "")));
        lamp.raw.send(&both).await;
        let written = lamp.published().await;
        assert_eq!(&*written.topic, "devices/lamp/twin/res/w");
        let read = lamp.published().await;
        let json: serde_json::Value = serde_json::from_slice(&read.payload).unwrap();
        assert_eq!(json["reported"]["n"], 1);
    });
}

/// Filters outside the device's tree are refused one by one.
#[test]
fn foreign_filters_are_refused() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let codes = lamp
            .subscribe(&[
                ("devices/lamp/#", QoS::ExactlyOnce),
                ("devices/other/#", QoS::AtLeastOnce),
                ("#", QoS::AtLeastOnce),
                ("devices/lamp/a#", QoS::AtLeastOnce),
                ("$share/g/devices/lamp/#", QoS::AtLeastOnce),
            ])
            .await;
        use v5::SubscribeAckReason as R;
        let expected = [
            R::GrantedQos1,
            R::NotAuthorized,
            R::NotAuthorized,
            R::TopicFilterInvalid,
            R::SharedSubscriptionNotSupported,
        ];
        assert_eq!(codes, expected);
        let kept = bench.fake.state("lamp").session.unwrap().subscriptions;
        let own: Vec<_> = kept
            .iter()
            .filter(|kept| kept.filter.starts_with("devices/lamp/"))
            .collect();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].qos, Qos::AtLeastOnce);

        let unsubscribe = v5::Unsubscribe {
            packet_id: 4.try_into().unwrap(),
            user_properties: Vec::new(),
            topic_filters: vec![
                "devices/lamp/#".into(),
                "devices/lamp/x".into(),
                "devices/other/#".into(),
            ],
        };
        lamp.send(v5::Packet::Unsubscribe(unsubscribe)).await;
        let Some(v5::Packet::UnsubscribeAck(ack)) = lamp.next().await else {
            panic!("UNSUBACK expected")
        };
        use v5::UnsubscribeAckReason as U;
        assert_eq!(ack.status, [U::Success, U::NoSubscriptionExisted, U::NotAuthorized]);
        let kept = bench.fake.state("lamp").session.unwrap().subscriptions;
        assert!(!kept.iter().any(|kept| kept.filter.starts_with("devices/lamp/")));
    });
}

/// While no leader answers, a client is told to come back, never that it is wrong.
#[test]
fn unavailable_is_never_a_final_refusal() {
    let limits = Limits {
        open_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        bench.fake.fail_next_open(vec![Fault::NotLeader; 50]);
        let (_, ack) = Client3::open(&bench, "lamp", |_| {}).await;
        assert_eq!(ack.return_code, v3::ConnectAckReason::ServiceUnavailable);
    });
    with_gateway(Limits::default(), |bench| async move {
        bench
            .fake
            .fail_next_open([Fault::NotLeader, Fault::UnknownCommitted, Fault::Overloaded]);
        let lamp = Client5::connected(&bench, "lamp").await;
        assert!(is_connected(&bench, "lamp"));
        drop(lamp);
    });
}

/// A session that was opened without anybody learning of it does not stay open.
#[test]
fn session_of_an_unknown_outcome_is_ended() {
    let limits = Limits {
        open_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        bench.fake.fail_next_open(vec![Fault::UnknownCommitted; 50]);
        let (_, ack) = Client5::open(&bench, "lamp", |_| {}).await;
        assert_eq!(ack.reason_code, v5::ConnectAckReason::ServerUnavailable);
        eventually("the orphan is closed", || !is_connected(&bench, "lamp")).await;
    });
}

/// A device that is disabled is told so, and its connection ends.
#[test]
fn disabled_device_is_thrown_out() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let disable = Command::PatchDevice {
            status: Some(Status::Disabled),
            condition: Precondition::None,
            gateway: None,
        };
        bench.fake.operate("lamp", disable).unwrap();
        assert_eq!(lamp.goodbye().await, v5::DisconnectReasonCode::NotAuthorized);
        let (_, ack) = Client5::open(&bench, "lamp", |_| {}).await;
        assert_eq!(ack.reason_code, v5::ConnectAckReason::NotAuthorized);
        let (_, ack) = Client3::open(&bench, "lamp", |_| {}).await;
        assert_eq!(ack.return_code, v3::ConnectAckReason::NotAuthorized);
    });
}

/// A drain answers all that was received, says where to go, and takes nobody in.
#[test]
fn drain_answers_everything() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        bench.fake.hold();
        for n in 1..=5u16 {
            lamp.publish(n, "devices/lamp/telemetry", &n.to_string()).await;
        }
        eventually("all are out", || bench.fake.held() == 5).await;
        bench.fake.set_draining();
        let (_, ack) = Client5::open(&bench, "late", |_| {}).await;
        assert_eq!(ack.reason_code, v5::ConnectAckReason::UseAnotherServer);
        let (_, ack) = Client3::open(&bench, "late", |_| {}).await;
        assert_eq!(ack.return_code, v3::ConnectAckReason::ServiceUnavailable);
        bench.fake.set_drained();
        bench.fake.release();
        for n in 1..=5u16 {
            assert_eq!(lamp.puback().await.packet_id.get(), n);
        }
        assert_eq!(lamp.goodbye().await, v5::DisconnectReasonCode::UseAnotherServer);
        assert!(bench.gateway.drain(Duration::from_secs(10)).await);
    });
}

/// A stop tells every client, and waits until their sessions are closed.
#[test]
fn shutdown_closes_every_session() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamps = Vec::new();
        for n in 0..10 {
            lamps.push(Client5::connected(&bench, &format!("lamp-{n}")).await);
        }
        let clients = async {
            for lamp in &mut lamps {
                assert_eq!(lamp.goodbye().await, v5::DisconnectReasonCode::ServerShuttingDown);
            }
        };
        let (in_time, ()) = tokio::join!(bench.gateway.shutdown(Duration::from_secs(15)), clients);
        assert!(in_time);
        for n in 0..10 {
            assert!(!is_connected(&bench, &format!("lamp-{n}")));
        }
    });
}

/// A new leader hears of every session that this node holds.
#[test]
fn sessions_announce_themselves_to_a_new_leader() {
    let limits = Limits {
        announce_spread: Duration::from_millis(50),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let _other = Client5::connected(&bench, "other").await;
        let before = bench.fake.announced();
        bench.fake.change_leader();
        eventually("both announced", || bench.fake.announced() >= before + 2).await;
        // A session that another node took over meanwhile learns of it here.
        let elsewhere = Command::OpenSession(Box::new(actors::device::OpenSession {
            gateway: actors::id::Gateway { node: 2, boot: 1 },
            clean_start: true,
            expiry_secs: 0,
            keep_alive_secs: 60,
            protocol: 5,
            will: None,
            via: None,
        }));
        bench.fake.operate_silently("lamp", elsewhere);
        bench.fake.change_leader();
        assert_eq!(lamp.goodbye().await, v5::DisconnectReasonCode::SessionTakenOver);
    });
}
