//! Messages of the queue at one gateway, when notes and answers get lost on the way.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

mod mqtt_support;

use actors::device::{Command, Message, Outcome};
use mqtt_support::{eventually, with_gateway, Bench, Client5, Fault};
use node::gateway::Limits;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5;

const FILTER: &str = "devices/lamp/messages/+";

fn message(id: &str) -> Command {
    Command::EnqueueMessage {
        message: Box::new(Message {
            id: id.to_owned(),
            body: id.as_bytes().to_vec(),
            ..Message::default()
        }),
        ttl_secs: None,
    }
}

async fn subscribed(bench: &Bench) -> Client5 {
    let mut lamp = Client5::connected(bench, "lamp").await;
    lamp.subscribe(&[(FILTER, QoS::AtLeastOnce)]).await;
    lamp
}

async fn comes(lamp: &mut Client5, id: &str) -> Box<Publish> {
    let publish = lamp.published().await;
    assert_eq!(&*publish.topic, format!("devices/lamp/messages/{id}"));
    publish
}

async fn answer(lamp: &mut Client5, publish: &Publish, reason_code: v5::PublishAckReason) {
    lamp.send(v5::Packet::PublishAck(v5::PublishAck {
        packet_id: publish.packet_id.unwrap(),
        reason_code,
        properties: Vec::new(),
        reason_string: None,
    }))
    .await;
}

fn queue_len(bench: &Bench) -> usize {
    bench.fake.state("lamp").messages().queue.len()
}

/// A device without messages costs no question, whatever it subscribes to.
#[test]
fn an_empty_queue_is_not_asked() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = subscribed(&bench).await;
        bench.fake.operate("lamp", message("a")).unwrap();
        let a = comes(&mut lamp, "a").await;
        answer(&mut lamp, &a, v5::PublishAckReason::Success).await;
        eventually("it is settled", || queue_len(&bench) == 0).await;
        assert_eq!(bench.fake.takes(), 0, "it came with the news of it");
    });
}

/// The news of the first was lost: the second is not sent before it.
#[test]
fn a_lost_note_does_not_cost_the_order() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = subscribed(&bench).await;
        bench.fake.operate_silently("lamp", message("a"));
        bench.fake.operate("lamp", message("b")).unwrap();
        for id in ["a", "b"] {
            let publish = comes(&mut lamp, id).await;
            assert!(!publish.dup);
            answer(&mut lamp, &publish, v5::PublishAckReason::Success).await;
        }
        eventually("both are settled", || queue_len(&bench) == 0).await;
    });
}

/// A new leader tells how much waits, in case its predecessor's notes were lost.
#[test]
fn a_lost_note_is_found_by_the_next_leader() {
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = subscribed(&bench).await;
        bench.fake.operate_silently("lamp", message("a"));
        bench.fake.change_leader();
        comes(&mut lamp, "a").await;
    });
}

/// The leader says again what is due when nothing else happens.
#[test]
fn messages_are_given_again_when_the_answer_was_lost() {
    with_gateway(Limits::default(), |bench| async move {
        let lamp = Client5::connected(&bench, "lamp").await;
        drop(lamp);
        eventually("it is gone", || bench.fake.state("lamp").connected_via().is_none()).await;
        bench.fake.operate("lamp", message("a")).unwrap();
        bench.fake.fail_next_take([Fault::UnknownLost, Fault::UnknownCommitted]);
        let mut lamp = subscribed(&bench).await;
        let a = comes(&mut lamp, "a").await;
        let deliveries = || bench.fake.state("lamp").messages().queue[0].deliveries;
        assert_eq!(
            (deliveries(), bench.fake.takes()),
            (1, 3),
            "handed over once, whatever was lost"
        );
        answer(&mut lamp, &a, v5::PublishAckReason::ImplementationSpecificError).await;
        let reason = || {
            bench
                .fake
                .state("lamp")
                .messages()
                .dead
                .first()
                .map(|letter| letter.reason)
        };
        eventually("it is dead", || reason() == Some(Outcome::Rejected)).await;
    });
}

/// The window is shared with what else goes down, and freed by PUBACK.
#[test]
fn no_more_is_sent_than_the_client_allows() {
    with_gateway(Limits::default(), |bench| async move {
        let (mut lamp, _) = Client5::open(&bench, "lamp", |connect| {
            connect.receive_max = std::num::NonZeroU16::new(2);
        })
        .await;
        lamp.subscribe(&[(FILTER, QoS::AtLeastOnce)]).await;
        for id in ["a", "b", "c"] {
            bench.fake.operate("lamp", message(id)).unwrap();
        }
        let a = comes(&mut lamp, "a").await;
        let b = comes(&mut lamp, "b").await;
        assert_ne!(a.packet_id, b.packet_id);
        lamp.send(v5::Packet::PingRequest).await;
        assert!(matches!(lamp.next().await, Some(v5::Packet::PingResponse)));
        answer(&mut lamp, &b, v5::PublishAckReason::Success).await;
        comes(&mut lamp, "c").await;
    });
}
