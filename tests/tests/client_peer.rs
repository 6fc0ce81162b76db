#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! The port between nodes, as a stranger sees it: everything but a peer is closed, and the cluster
//! goes on.

use holdfast_tests::clients::dev::Cluster;
use holdfast_tests::clients::eventually;
use holdfast_tests::clients::raw::Raw;

/// `magic 8 | version u16 | tag u8 | len u16 | body`, as in `cluster::transport::hello`.
fn handshake(version: u16, tag: u8, len: u16, body: &[u8]) -> Vec<u8> {
    let mut out = b"HFPEER\r\n".to_vec();
    out.extend(version.to_le_bytes());
    out.push(tag);
    out.extend(len.to_le_bytes());
    out.extend_from_slice(body);
    out
}

fn hello(cluster_id: &str, node: u64) -> Vec<u8> {
    let mut body = node.to_le_bytes().to_vec();
    body.extend(7u128.to_le_bytes());
    body.extend(1u64.to_le_bytes());
    body.push(1);
    body.extend([9; 16]);
    body.push(cluster_id.len() as u8);
    body.extend(cluster_id.as_bytes());
    handshake(1, 1, body.len() as u16, &body)
}

/// Garbage, other protocols, wrong versions, foreign clusters, frames without a handshake: closed,
/// bounded in memory, and the cluster serves.
#[test]
fn strangers_at_the_peer_port_are_closed() {
    let cluster = Cluster::shared(3);
    let peer = cluster.node(1).peer;
    let before = cluster.resident_bytes(1);
    let id: serde_json::Value =
        serde_json::from_slice(&std::fs::read(cluster.path().join("cluster.json")).unwrap()).unwrap();
    let id = id["cluster_id"].as_str().unwrap().to_owned();
    let whole = hello(&id, 2);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", (0..4096u32).map(|n| (n * 31 % 251) as u8).collect()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("MQTT", holdfast_tests::clients::raw::connect(5, "x", 60)),
        ("oversized frame without a handshake", vec![0xff; 64]),
        ("another version", handshake(99, 1, 4, b"\0\0\0\0")),
        ("unknown tag", handshake(1, 77, 0, b"")),
        ("oversized handshake", handshake(1, 1, u16::MAX, &[0; 70_000])),
        ("truncated in the magic", b"HFPE".to_vec()),
        ("truncated in the body", whole[..whole.len() - 3].to_vec()),
        ("body of zeros", handshake(1, 1, 60, &[0; 60])),
        ("another cluster", hello("not-this-cluster", 2)),
        ("unknown node", hello(&id, 77)),
        ("its own id", hello(&id, 1)),
        (
            "no proof after the hello",
            [whole.clone(), handshake(1, 2, 4, b"abcd")].concat(),
        ),
        (
            "a frame of 4 GiB instead of a proof",
            [whole, vec![0xff; 4096]].concat(),
        ),
    ];
    for (name, bytes) in &rows {
        let mut raw = Raw::open(peer);
        raw.send(bytes);
        if name.starts_with("truncated") {
            raw.finish();
        }
        let said = raw.until_closed();
        assert!(said.len() < 4096, "{name}: {} bytes of answer", said.len());
    }
    // Many at once that say nothing: the others still get through.
    let silent: Vec<_> = (0..200).map(|_| Raw::open(peer)).collect();
    let http = cluster.http(2);
    for n in 0..32 {
        let path = format!("/api/v1/devices/behind-strangers-{n}");
        http.send("PUT", &path, &[], "{}").expect(201);
    }
    drop(silent);
    let http = cluster.http(1);
    eventually("every peer is connected", || {
        (http.metric("holdfast_peer_connected{") >= 2.0).then_some(())
    });
    assert!(cluster.resident_bytes(1).saturating_sub(before) < 64 << 20);
    cluster.assert_no_panic();
}

/// Refused strangers are counted by reason, where dashboards look.
#[test]
fn refused_strangers_are_counted() {
    let cluster = Cluster::shared(3);
    let http = cluster.http(2);
    for _ in 0..5 {
        let mut raw = Raw::open(cluster.node(2).peer);
        raw.send(b"GET / HTTP/1.1\r\n\r\n");
        raw.until_closed();
    }
    eventually("five are counted", || {
        (http.metric("holdfast_peer_rejected_total{") >= 5.0).then_some(())
    });
}
