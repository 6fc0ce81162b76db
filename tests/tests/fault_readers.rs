#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests run in real time
//! Whoever reads nothing costs a bounded amount of memory: devices and their downlinks, operators
//! and their pages, subscribers of live events (G7). `limits.md` says how much.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use holdfast_tests::clients::raw::{self, Raw};
use holdfast_tests::harness::{client, eventually, Cluster, Plan};

/// What the memory of a busy node moves by anyway: tables that are not flushed, and the allocator.
const NOISE_BYTES: u64 = 64 << 20;

fn cluster(limits: &[(&str, &str)]) -> Cluster {
    let env = limits
        .iter()
        .map(|(name, value)| (format!("HOLDFAST_LIMITS_{name}"), (*value).to_owned()));
    Cluster::start_plan(Plan {
        nodes: 1,
        env: env.collect(),
    })
}

fn resident(cluster: &Cluster) -> u64 {
    cluster.process(1).resident_bytes().unwrap()
}

fn post(cluster: &Cluster, bodies: &[(String, String)]) {
    let http = client(Duration::from_secs(60));
    cluster.runtime().block_on(async {
        let sent = bodies.iter().map(|(path, body)| {
            http.post(format!("http://{}{path}", cluster.http()[0]))
                .bearer_auth(&cluster.file.token)
                .header("Content-Type", "application/json")
                .body(body.clone())
                .send()
        });
        for answer in futures::future::join_all(sent).await {
            answer.unwrap().error_for_status().unwrap();
        }
    });
}

/// A request whose answer is not read.
fn ask(cluster: &Cluster, path: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.http()[0]).unwrap();
    let token = &cluster.file.token;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {token}\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Megabytes of telemetry in one device.
fn fill(cluster: &Cluster, device: &str, megabytes: usize) {
    Raw::connected(cluster.mqtt()[0], 5, device);
    let body = format!("\"{}\"", "x".repeat(200 << 10));
    for _ in 0..megabytes {
        let one = (format!("/api/v1/devices/{device}/telemetry"), body.clone());
        post(cluster, &vec![one; 5]);
    }
}

/// Pages that nobody reads fill the room for answers, and no more; after a while the kernel gives
/// those clients up, and there is room again.
#[test]
fn pages_that_are_not_read_cost_bounded_memory() {
    const CLIENTS: usize = 60;
    const ROOM: u64 = 16 << 20;
    let room = ROOM.to_string();
    let cluster = cluster(&[("HTTP_ANSWER_BYTES_MAX", &room), ("SLOW_READER_TIMEOUT", "5s")]);
    fill(&cluster, "full", 5);
    let page = "/api/v1/devices/full/telemetry?limit=1000";
    let before = resident(&cluster);
    let deaf: Vec<TcpStream> = (0..CLIENTS).map(|_| ask(&cluster, page, "")).collect();
    let status = || {
        let url = format!("http://{}{page}", cluster.http()[0]);
        let http = client(Duration::from_secs(20));
        let ask = async { http.get(url).bearer_auth(&cluster.file.token).send().await };
        let answer = cluster.runtime().block_on(ask).map_err(|error| error.to_string())?;
        Ok::<_, String>(answer.status().as_u16())
    };
    let mut most = 0;
    eventually(
        "a client is told that there is no room",
        Duration::from_secs(30),
        || {
            most = most.max(resident(&cluster));
            let status = status()?;
            (status == 429).then_some(()).ok_or(status.to_string())
        },
    );
    eventually("there is room again", Duration::from_secs(60), || {
        most = most.max(resident(&cluster));
        let status = status()?;
        (status == 200).then_some(()).ok_or(status.to_string())
    });
    let (grown, bound) = (most.saturating_sub(before), 2 * ROOM + NOISE_BYTES);
    println!("resident memory grew by {} KiB of {}", grown >> 10, bound >> 10);
    assert!(grown < bound, "{CLIENTS} pages that are not read cost {grown} bytes");
    drop(deaf);
}

/// Subscribers of live events that read nothing, over SSE and over WebSocket.
#[test]
fn live_events_that_are_not_read_cost_bounded_memory() {
    const EACH: usize = 20;
    let cluster = cluster(&[("SLOW_READER_TIMEOUT", "1h")]);
    // The same load without subscribers, so that only they are measured.
    fill(&cluster, "loud", 30);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let path = "/api/v1/events?devices=loud";
    let mut deaf: Vec<TcpStream> = (0..2 * EACH)
        .map(|number| ask(&cluster, path, if number < EACH { "" } else { upgrade }))
        .collect();
    for stream in &mut deaf {
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert!(head.ends_with(b"200") || head.ends_with(b"101"), "{head:?}");
    }
    let before = resident(&cluster);
    let mut most = 0;
    let body = format!("\"{}\"", "x".repeat(200 << 10));
    for _ in 0..30 {
        let one = ("/api/v1/devices/loud/telemetry".to_owned(), body.clone());
        post(&cluster, &vec![one; 5]);
        most = most.max(resident(&cluster));
    }
    // What they have not taken is shared among them; what each holds for itself is a few events.
    let (grown, bound) = (most.saturating_sub(before), 2 * EACH as u64 * (1 << 20) + NOISE_BYTES);
    println!("resident memory grew by {} KiB of {}", grown >> 10, bound >> 10);
    assert!(
        grown < bound,
        "{} subscribers that do not read cost {grown} bytes",
        deaf.len()
    );
}

/// Devices that subscribe and read nothing: calls and changes wait up to their bounds, the rest is
/// refused or dropped, and in the end the device is closed.
#[test]
fn downlinks_that_are_not_read_cost_bounded_memory() {
    const DEVICES: usize = 30;
    let cluster = cluster(&[("SLOW_READER_TIMEOUT", "10s")]);
    let deaf: Vec<Raw> = (0..DEVICES)
        .map(|number| {
            let id = format!("deaf-{number}");
            let mut raw = Raw::connected(cluster.mqtt()[0], 5, &id);
            raw.send(&raw::subscribe(5, 1, format!("devices/{id}/#"), 0));
            raw.next_packet();
            raw
        })
        .collect();
    let before = resident(&cluster);
    let mut most = 0;
    let http = client(Duration::from_secs(60));
    let payload = "x".repeat(100 << 10);
    let mut refused = 0;
    for _ in 0..20 {
        // Each device is called more often than a connection holds calls.
        let calls = (0..DEVICES * 2).map(|number| {
            let device = number % DEVICES;
            let url = format!(
                "http://{}/api/v1/devices/deaf-{device}/methods/blink",
                cluster.http()[0]
            );
            let body = serde_json::json!({"payload": payload, "timeout_ms": 1_000});
            http.post(url).bearer_auth(&cluster.file.token).json(&body).send()
        });
        let answers = cluster
            .runtime()
            .block_on(async { futures::future::join_all(calls).await });
        for answer in answers {
            let status = answer.unwrap().status().as_u16();
            assert!([404, 429, 504].contains(&status), "a call ended with {status}");
            refused += usize::from(status != 504);
        }
        most = most.max(resident(&cluster));
    }
    let (grown, bound) = (most.saturating_sub(before), DEVICES as u64 * (1 << 20) + NOISE_BYTES);
    println!(
        "resident memory grew by {} KiB of {}, {refused} calls refused",
        grown >> 10,
        bound >> 10
    );
    assert!(grown < bound, "{DEVICES} devices that do not read cost {grown} bytes");
    eventually("those who do not read are closed", Duration::from_secs(60), || {
        let open = cluster.counter(1, "holdfast_mqtt_connections");
        (open == 0.0).then_some(()).ok_or(format!("{open} are open"))
    });
    drop(deaf);
}
