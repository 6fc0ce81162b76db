//! Requests, answers and notices between two healthy nodes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::harness::*;
use crate::transport::*;

#[tokio::test]
async fn a_request_is_answered_in_every_class_and_both_directions() {
    let (one, two) = pair().await;
    for class in Class::ALL {
        for (from, to) in [(&one, &two), (&two, &one)] {
            let body = Bytes::from(format!("{class:?}"));
            assert_eq!(
                from.transport.request(to.id, class, ECHO, body.clone(), LONG).await,
                Ok(body)
            );
        }
    }
    assert!(one.transport.last_heard_ms(2).is_some());
    assert_eq!(one.transport.boot_of(2), Some(21));
}

#[tokio::test]
async fn thousands_in_flight_get_each_its_own_answer_and_share_frames() {
    let (one, _two) = pair().await;
    let before = one.transport.counters().frames_sent;
    let asked = (0..20_000u32).map(|n| {
        let body = Bytes::copy_from_slice(&n.to_le_bytes());
        let answer = one.transport.request(2, Class::Append, ECHO, body.clone(), LONG);
        async move { answer.await == Ok(body) }
    });
    assert!(join_all(asked).await.into_iter().all(|right| right));
    let frames = one.transport.counters().frames_sent - before;
    assert!(frames < 200, "20,000 messages took {frames} frames");
}

#[tokio::test]
async fn notices_of_a_class_arrive_in_the_order_they_were_sent() {
    let (one, two) = pair().await;
    two.seen.notices.lock().unwrap().clear();
    for n in 0..5_000u32 {
        one.transport
            .notify(2, Class::Device, 7, Bytes::copy_from_slice(&n.to_le_bytes()))
            .unwrap();
    }
    let of_seven = || -> Vec<u32> {
        let notices = two.seen.notices.lock().unwrap();
        let bodies = notices
            .iter()
            .filter(|(_, _, kind, _)| *kind == 7)
            .map(|(.., body)| body[..].try_into().unwrap());
        bodies.map(u32::from_le_bytes).collect()
    };
    eventually("all notices are there", || of_seven().len() == 5_000).await;
    assert!(of_seven().is_sorted());
}

#[tokio::test]
async fn bodies_up_to_a_frame_travel_and_larger_ones_are_refused_at_sending() {
    let (one, _two) = pair().await;
    let largest = Bytes::from(vec![7; one.transport.body_bytes_max()]);
    let answer = one
        .transport
        .request(2, Class::Snapshot, ECHO, largest.clone(), LONG)
        .await;
    assert!(answer == Ok(largest));
    let larger = Bytes::from(vec![7; one.transport.body_bytes_max() + 1]);
    let refused = one
        .transport
        .request(2, Class::Snapshot, ECHO, larger.clone(), LONG)
        .await;
    assert_eq!(refused, Err(SendError::NotSent(2)));
    assert_eq!(
        one.transport.notify(2, Class::Snapshot, ECHO, larger),
        Err(SendError::NotSent(2))
    );
    assert_eq!(one.transport.counters().bodies_oversized, 2);
}

#[tokio::test]
async fn a_deadline_ends_a_request_and_its_late_answer_is_ignored() {
    let (one, two) = pair().await;
    let short = one
        .transport
        .request(2, Class::Append, HOLD, Bytes::new(), Duration::from_millis(30));
    let long = one
        .transport
        .request(2, Class::Append, HOLD, Bytes::from_static(b"long"), LONG);
    assert_eq!(short.await, Err(SendError::NoAnswer(2)));
    assert_eq!(one.transport.counters().deadlines_passed, 1);
    eventually("both are held", || two.seen.held.lock().unwrap().len() == 2).await;
    for (body, answer) in two.seen.held.lock().unwrap().drain(..) {
        answer.send(body);
    }
    assert_eq!(long.await, Ok(Bytes::from_static(b"long")));
    assert_eq!(one.transport.counters().answers_unknown, 1);
}

#[tokio::test]
async fn a_dropped_answer_is_told_at_once() {
    let (one, _two) = pair().await;
    let day = Duration::from_secs(86_400);
    assert_eq!(
        one.transport.request(2, Class::Device, DROP, Bytes::new(), day).await,
        Err(SendError::NoAnswer(2))
    );
}

#[tokio::test]
async fn a_panicking_handler_costs_its_connection_only() {
    let (one, two) = pair().await;
    let outcome = one.transport.request(2, Class::Device, PANIC, Bytes::new(), LONG).await;
    assert_eq!(outcome, Err(SendError::NoAnswer(2)));
    one.connected_to(2).await;
    assert_eq!(one.echo(2, "still there").await, Ok(Bytes::from_static(b"still there")));
    drop(two);
}

#[tokio::test]
async fn nothing_is_sent_to_strangers_or_to_oneself() {
    let (one, _two) = pair().await;
    assert_eq!(one.echo(1, "me").await, Err(SendError::NotSent(1)));
    assert_eq!(one.echo(3, "who").await, Err(SendError::NotSent(3)));
}

#[tokio::test]
async fn a_handler_that_does_not_answer_stops_the_reading_and_the_sending() {
    let (one, two) = pair().await;
    let mebibyte = Bytes::from(vec![1; 1 << 20]);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..200 {
        let outcomes = outcomes.clone();
        let done = Box::new(move |outcome: Result<Bytes, SendError>| outcomes.lock().unwrap().push(outcome.map(drop)));
        one.transport
            .request_with(2, Class::Snapshot, HOLD, mebibyte.clone(), LONG * 10, done);
        tokio::task::yield_now().await;
    }
    // 64 MiB unanswered there, 64 MiB queued here, and what the sockets hold between them.
    eventually("reading has stopped", || two.transport.counters().reads_paused > 0).await;
    let refused = outcomes
        .lock()
        .unwrap()
        .iter()
        .filter(|o| **o == Err(SendError::NotSent(2)))
        .count();
    assert!(
        refused >= 40,
        "only {refused} of 200 were refused: what is queued is not bounded"
    );
    assert_eq!(two.seen.held.lock().unwrap().len(), 64);
    // Other classes do not wait.
    assert_eq!(one.echo(2, "free").await, Ok(Bytes::from_static(b"free")));
    // And all that was accepted is answered once the handler does.
    eventually("everything is answered", || {
        for (_, answer) in two.seen.held.lock().unwrap().drain(..) {
            answer.send(Bytes::new());
        }
        outcomes.lock().unwrap().len() == 200
    })
    .await;
    let answered = outcomes.lock().unwrap().iter().filter(|o| o.is_ok()).count();
    assert_eq!(answered + refused, 200);
    assert_eq!(two.seen.requests.load(Ordering::Relaxed), answered as u64 + 1);
}

#[tokio::test]
async fn at_most_65536_requests_wait_on_one_connection() {
    let (one, two) = pair().await;
    let refused = Arc::new(Mutex::new(0));
    for _ in 0..65_540 {
        let refused = refused.clone();
        let done = Box::new(move |outcome| {
            if outcome == Err(SendError::NotSent(2)) {
                *refused.lock().unwrap() += 1;
            }
        });
        one.transport
            .request_with(2, Class::Append, HOLD, Bytes::new(), LONG, done);
    }
    assert_eq!(*refused.lock().unwrap(), 4);
    eventually("all are held", || two.seen.held.lock().unwrap().len() == 65_536).await;
}
