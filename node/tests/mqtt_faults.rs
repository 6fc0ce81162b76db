//! Devices that lose their connections while the cluster fails commands in every way it can.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

mod mqtt_support;

use mqtt_support::{publish5, with_gateway, Bench, Client5, Fault};
use node::gateway::Limits;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rmqtt_codec::v5;

const WINDOW: usize = 16;

fn any_fault(random: &mut SmallRng) -> Fault {
    match random.random_range(0..12) {
        0 => Fault::NotLeader,
        1 => Fault::Overloaded,
        2 => Fault::UnknownLost,
        3 => Fault::UnknownCommitted,
        _ => Fault::None,
    }
}

async fn reconnect(bench: &Bench, id: &str) -> Client5 {
    let (client, ack) = Client5::open(bench, id, |connect| {
        connect.clean_start = false;
        connect.session_expiry_interval_secs = 1000;
    })
    .await;
    assert_eq!(ack.reason_code, v5::ConnectAckReason::Success);
    client
}

fn message(id: &str, n: usize, dup: bool) -> v5::Packet {
    let packet_id = u16::try_from(n % 500).unwrap() + 1;
    let v5::Packet::Publish(mut publish) = publish5(packet_id, &format!("devices/{id}/telemetry"), &n.to_string())
    else {
        unreachable!()
    };
    publish.dup = dup;
    v5::Packet::Publish(publish)
}

/// Publishes `count` messages with a window, dropping the connection now and then, and sends again
/// what was not acknowledged, as MQTT clients do.
async fn story(bench: &Bench, id: &str, count: usize, random: &mut SmallRng) {
    let mut client = reconnect(bench, id).await;
    let (mut acknowledged, mut sent, mut ever_sent) = (0, 0, 0);
    while acknowledged < count {
        bench.fake.fail_next((0..4).map(|_| any_fault(random)));
        while sent < count && sent - acknowledged < WINDOW {
            let packet = message(id, sent, sent < ever_sent);
            client.send(packet).await;
            sent += 1;
            ever_sent = ever_sent.max(sent);
        }
        let reads = random.random_range(0..=sent - acknowledged);
        for _ in 0..reads {
            let ack = client.puback().await;
            assert_eq!(ack.reason_code, v5::PublishAckReason::Success);
            assert_eq!(
                usize::from(ack.packet_id.get()),
                acknowledged % 500 + 1,
                "acknowledged in order"
            );
            acknowledged += 1;
        }
        if random.random_bool(0.1) {
            client = reconnect(bench, id).await;
            sent = acknowledged;
        }
    }
}

/// Everything acknowledged is stored once, in order, whatever fails and however often the client
/// comes back.
#[test]
fn failing_commands_and_connections_lose_and_repeat_nothing() {
    let seed = std::env::var("SEED").map_or(11, |seed| seed.parse().unwrap());
    println!("replay with SEED={seed}");
    with_gateway(Limits::default(), |bench| async move {
        let mut random = SmallRng::seed_from_u64(seed);
        for device in 0..6 {
            let id = format!("lamp-{device}");
            story(&bench, &id, 400, &mut random).await;
            let expected: Vec<String> = (0..400).map(|n| n.to_string()).collect();
            assert_eq!(bench.fake.bodies(&id), expected, "seed {seed}, {id}");
        }
    });
}
