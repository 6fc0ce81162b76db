//! What fault leases do to the links between two nodes: each bites, and is over when it is healed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{json, Value};

use super::harness::*;
use crate::faults::{Faults, Wanted};
use crate::transport::*;

const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes 1 and 2, and the leases of node 1.
async fn drilled() -> (Node, Node, Arc<Faults>) {
    let taken = Mutex::new(Vec::new());
    let (one, two) = pair_with(|config| taken.lock().unwrap().push(config.faults.clone())).await;
    let faults = taken.lock().unwrap().remove(0);
    (one, two, faults)
}

fn install(faults: &Arc<Faults>, fault: Value) {
    let wanted = Wanted::parse(&json!({ "fault": fault, "ttl_ms": 600_000 })).unwrap();
    faults.install("x", wanted).unwrap();
}

fn hits(faults: &Faults) -> u64 {
    let here: u64 = faults.leases().iter().map(|lease| lease.hits).sum();
    here + faults.past().iter().map(|past| past.hits).sum::<u64>()
}

/// As `eventually`, with more patience: some of this takes the transport seconds by itself.
async fn at_last(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ask(from: &Node, to: &Node, deadline: Duration) -> Result<Bytes, SendError> {
    from.transport
        .request(to.id, Class::Append, ECHO, Bytes::from_static(b"?"), deadline)
        .await
}

async fn heals(one: &Node, two: &Node, faults: &Faults) {
    assert!(hits(faults) > 0, "it has acted");
    faults.heal_all();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while ask(one, two, LONG).await.is_err() || ask(two, one, LONG).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "it is not over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn messages_that_go_out_vanish_and_the_connection_stays() {
    let (one, two, faults) = drilled().await;
    install(&faults, json!({ "kind": "link.drop", "peer": 2, "direction": "out" }));
    assert_eq!(ask(&one, &two, SHORT).await, Err(SendError::NoAnswer(2)));
    assert_eq!(two.seen.requests(), 0);
    assert_eq!(ask(&two, &one, SHORT).await, Err(SendError::NoAnswer(1)));
    assert_eq!(
        one.seen.requests(),
        1,
        "what comes in is not concerned, only the answer"
    );
    heals(&one, &two, &faults).await;
}

#[tokio::test]
async fn messages_that_come_in_vanish_one_way() {
    let (one, two, faults) = drilled().await;
    install(&faults, json!({ "kind": "link.drop", "peer": "*", "direction": "in" }));
    assert_eq!(ask(&two, &one, SHORT).await, Err(SendError::NoAnswer(1)));
    assert_eq!(one.seen.requests(), 0);
    assert_eq!(ask(&one, &two, SHORT).await, Err(SendError::NoAnswer(2)));
    assert_eq!(
        two.seen.requests(),
        1,
        "what goes out is not concerned, only the answer"
    );
    heals(&one, &two, &faults).await;
}

#[tokio::test]
async fn a_black_hole_is_found_by_silence_and_nobody_gets_through_it() {
    let (one, two, faults) = drilled().await;
    install(&faults, json!({ "kind": "link.drop", "peer": 2, "direction": "both" }));
    at_last("both sides know that the other one is lost", || {
        let lost = |node: &Node, peer| node.seen.events_of(peer).last() == Some(&PeerEvent::Lost);
        lost(&one, 2) && lost(&two, 1)
    })
    .await;
    let connections = one.transport.counters().connections;
    at_last("handshakes are tried", || {
        two.transport.counters().handshakes_timed_out > 2
    })
    .await;
    assert_eq!(one.transport.counters().connections, connections, "and get no answer");
    heals(&one, &two, &faults).await;
}

#[tokio::test]
async fn a_cut_link_is_refused_until_it_is_healed() {
    let (one, two, faults) = drilled().await;
    install(&faults, json!({ "kind": "link.cut", "peer": 2 }));
    at_last("the link is down on both sides", || {
        one.transport.boot_of(2).is_none() && two.transport.boot_of(1).is_none()
    })
    .await;
    assert_eq!(ask(&one, &two, SHORT).await, Err(SendError::NotSent(2)));
    at_last("the process counts as gone, as behind a firewall that rejects", || {
        one.seen.events_of(2).contains(&PeerEvent::ProcessGone)
    })
    .await;
    heals(&one, &two, &faults).await;
}

#[tokio::test]
async fn who_is_half_open_notices_at_once_and_the_peer_by_silence() {
    let (one, two, faults) = drilled().await;
    install(&faults, json!({ "kind": "link.half_open", "peer": 2 }));
    at_last("this side is through with the peer", || {
        one.seen.events_of(2).last() == Some(&PeerEvent::Lost)
    })
    .await;
    assert_eq!(ask(&one, &two, SHORT).await, Err(SendError::NotSent(2)));
    at_last("the other side hears nothing", || {
        two.seen.events_of(1).last() == Some(&PeerEvent::Lost)
    })
    .await;
    assert!(two.transport.counters().silences > 0, "no connection told it");
    heals(&one, &two, &faults).await;
}

#[tokio::test]
async fn latency_delays_and_keeps_the_order() {
    let (one, two, faults) = drilled().await;
    for fault in [
        json!({ "kind": "link.latency", "peer": 2, "ms": 200, "jitter_ms": 100 }),
        json!({ "kind": "link.reorder", "peer": 2, "percent": 50, "ms": 250 }),
    ] {
        let always = fault["kind"] == "link.latency";
        install(&faults, fault);
        two.seen.notices.lock().unwrap().clear();
        let began = tokio::time::Instant::now();
        for n in 0..20_u8 {
            let sent = one.transport.notify(2, Class::Device, n, Bytes::from(vec![n]));
            sent.expect("there is room");
            // A frame of its own each.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Without those that waited for the connection.
        let came = || -> Vec<u8> {
            let notices = two.seen.notices.lock().unwrap();
            notices
                .iter()
                .map(|notice| notice.2)
                .filter(|kind| *kind != 255)
                .collect()
        };
        at_last("all have come", || came().len() == 20).await;
        assert!(!always || began.elapsed() >= Duration::from_millis(200));
        assert_eq!(came(), (0..20).collect::<Vec<u8>>());
        heals(&one, &two, &faults).await;
    }
}

#[tokio::test]
async fn a_narrow_link_takes_as_long_as_its_bytes_need() {
    let (one, two, faults) = drilled().await;
    install(
        &faults,
        json!({ "kind": "link.bandwidth", "peer": 2, "bytes_per_second": 400_000 }),
    );
    let began = tokio::time::Instant::now();
    let body = Bytes::from(vec![7; 200_000]);
    let answer = one.transport.request(2, Class::Snapshot, ECHO, body.clone(), PATIENCE);
    assert_eq!(answer.await, Ok(body));
    assert!(began.elapsed() >= Duration::from_millis(500));
    heals(&one, &two, &faults).await;
}

#[tokio::test]
async fn what_a_fault_held_back_leaves_when_it_is_healed() {
    let (one, two, faults) = drilled().await;
    install(
        &faults,
        json!({ "kind": "link.bandwidth", "peer": 2, "bytes_per_second": 1_000 }),
    );
    // Ten minutes' worth.
    let body = Bytes::from(vec![7; 600_000]);
    let answer = one.transport.request(2, Class::Snapshot, ECHO, body.clone(), PATIENCE);
    at_last("it is held back", || hits(&faults) > 0).await;
    faults.heal_all();
    assert_eq!(answer.await, Ok(body));
    heals(&one, &two, &faults).await;
}

fn bad_frames(node: &Node) -> u64 {
    let counters = node.transport.counters();
    counters.frames_bad_checksum + counters.frames_oversized + counters.frames_malformed + counters.frames_truncated
}

/// Sends notices with numbers for as long as it takes until `done`; returns how many.
async fn send_until(one: &Node, done: impl Fn() -> bool) -> u64 {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut sent = 0_u64;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "the fault does not bite");
        let body = Bytes::copy_from_slice(&sent.to_le_bytes());
        if one.transport.notify(2, Class::Device, 9, body).is_ok() {
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sent
}

/// What came is a part of what was sent, each at most once and in order.
fn assert_whole(two: &Node, sent: u64) {
    let notices = two.seen.notices.lock().unwrap();
    let mine = notices
        .iter()
        .filter(|notice| notice.1 == Class::Device && notice.2 == 9);
    let numbers: Vec<u64> = mine
        .map(|notice| u64::from_le_bytes(notice.3[..].try_into().expect("eight bytes")))
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    assert!(numbers.iter().all(|number| *number < sent), "{numbers:?}");
}

#[tokio::test]
async fn damage_on_the_wire_costs_the_connection_and_never_the_data() {
    for kind in ["link.corrupt", "link.duplicate", "link.reset"] {
        let (one, two, faults) = drilled().await;
        let before = two.transport.counters().disconnections;
        install(&faults, json!({ "kind": kind, "peer": 2, "percent": 20, "seed": 5 }));
        let sent = send_until(&one, || bad_frames(&two) >= 5).await;
        assert!(two.transport.counters().disconnections > before, "{kind}");
        heals(&one, &two, &faults).await;
        assert_whole(&two, sent);
    }
}

#[tokio::test]
async fn only_the_named_peer_is_concerned() {
    let (one, two, faults) = drilled().await;
    install(&faults, json!({ "kind": "link.drop", "peer": 3 }));
    assert!(ask(&one, &two, LONG).await.is_ok() && ask(&two, &one, LONG).await.is_ok());
    assert_eq!(hits(&faults), 0);
}
