//! Measurements of the gateway alone, over devices in memory; run by hand with `--ignored`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

mod mqtt_support;

use std::io::{Read, Write};
use std::time::Instant;

use mqtt_support::{publish5, with_gateway, Client5};
use node::gateway::Limits;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Resident bytes per idle connection, both ends of the socket included, the kernel's share not.
#[test]
#[ignore = "a measurement"]
fn idle_connection_bytes() {
    const COUNT: usize = 4_000;
    with_gateway(Limits::default(), |bench| async move {
        let _warm = Client5::connected(&bench, "warm").await;
        let address = bench.gateway.address();
        let before = resident_bytes();
        let open = move || -> Vec<std::net::TcpStream> {
            (0..COUNT)
                .map(|n| {
                    let mut stream = std::net::TcpStream::connect(address).unwrap();
                    stream
                        .write_all(format!("\x10\x14\0\x04MQTT\x04\x02\0\x3c\0\x08d{n:07}").as_bytes())
                        .unwrap();
                    let mut connack = [0; 4];
                    stream.read_exact(&mut connack).unwrap();
                    stream
                })
                .collect()
        };
        let streams = tokio::task::spawn_blocking(open).await.unwrap();
        let after = resident_bytes();
        println!(
            "{} bytes per idle connection (the device's state included)",
            (after - before) / streams.len()
        );
    });
}

/// QoS 1 messages per second over one connection with a full window, and CPU per 1,000.
#[test]
#[ignore = "a measurement"]
fn publish_rate() {
    const COUNT: u32 = 200_000;
    with_gateway(Limits::default(), |bench| async move {
        let mut lamp = Client5::connected(&bench, "lamp").await;
        let body = "x".repeat(256);
        let started = Instant::now();
        let mut acknowledged = 0;
        let mut sent = 0u32;
        while acknowledged < COUNT {
            let mut batch = bytes::BytesMut::new();
            while sent < COUNT && sent - acknowledged < 32 {
                let id = u16::try_from(sent % 60_000).unwrap() + 1;
                batch.extend_from_slice(&lamp.encode(publish5(id, "devices/lamp/telemetry", &body)));
                sent += 1;
            }
            lamp.raw.send(&batch).await;
            for _ in acknowledged..sent {
                lamp.puback().await;
                acknowledged += 1;
            }
        }
        let took = started.elapsed();
        println!(
            "{:.0} messages/s over one connection",
            f64::from(COUNT) / took.as_secs_f64()
        );
    });
}
