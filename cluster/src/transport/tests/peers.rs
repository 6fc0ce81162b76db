//! What is noticed of a peer's process, and coming back.

use bytes::Bytes;

use super::harness::*;
use crate::transport::*;

const GONE: PeerEvent = PeerEvent::ProcessGone;

fn up(boot: u64) -> PeerEvent {
    PeerEvent::Connected { boot }
}

#[tokio::test]
async fn a_process_that_ends_is_gone_at_once_and_its_next_run_is_connected() {
    let (one, two) = pair().await;
    assert_eq!(one.seen.events_of(2), [up(21)]);
    let at = two.at;
    let waiting = one.transport.request(2, Class::Append, HOLD, Bytes::new(), LONG);
    eventually("the request is there", || two.seen.requests() == 1).await;
    drop(two);
    eventually("the process is known to be gone", || {
        one.seen.events_of(2) == [up(21), GONE]
    })
    .await;
    assert_eq!(
        waiting.await,
        Err(SendError::NoAnswer(2)),
        "it was written: the peer may have acted"
    );
    assert_eq!(one.transport.boot_of(2), None);
    assert_eq!(one.echo(2, "anybody?").await, Err(SendError::NotSent(2)));

    let two = start(config(2, 22, at, &[(1, one.at)]));
    eventually("the next run is known", || {
        one.seen.events_of(2) == [up(21), GONE, up(22)]
    })
    .await;
    one.connected_to(2).await;
    two.connected_to(1).await;
    assert_eq!(one.echo(2, "again").await, Ok(Bytes::from_static(b"again")));
    assert_eq!(two.echo(1, "back").await, Ok(Bytes::from_static(b"back")));
}

#[tokio::test]
async fn a_directory_that_changed_under_a_node_id_is_refused() {
    let (one, two) = pair().await;
    let at = two.at;
    drop(two);
    eventually("the process is known to be gone", || {
        one.seen.events_of(2).contains(&GONE)
    })
    .await;
    let mut changed = config(2, 22, at, &[(1, one.at)]);
    changed.node_uuid = 99;
    let two = start(changed);
    eventually("both directions are refused", || {
        one.transport.counters().refused_for(Refusal::Ledger) > 0
            && two.transport.counters().refused_by_peer_for(Refusal::Ledger) > 0
    })
    .await;
    assert_eq!(one.echo(2, "no").await, Err(SendError::NotSent(2)));
    assert_eq!(two.transport.boot_of(1), None);
}

/// Node 2 comes back as somebody who remembers nothing, and dials nobody.
async fn forgetful(secret: &[u8]) -> (Node, Node) {
    let (one, two) = pair().await;
    let at = two.at;
    drop(two);
    eventually("the process is known to be gone", || {
        one.seen.events_of(2).contains(&GONE)
    })
    .await;
    let mut forgetful = config(2, 22, at, &[]);
    forgetful.node_uuid = 99;
    forgetful.secret = crate::config::Secret(secret.to_vec());
    (one, start(forgetful))
}

#[tokio::test]
async fn a_node_that_forgot_its_cluster_is_told_by_those_it_does_not_know() {
    let (one, two) = forgetful(b"between us").await;
    eventually("it hears that it is known otherwise", || {
        two.transport.counters().disowned_for(Refusal::Ledger) > 0
    })
    .await;
    assert_eq!(one.echo(2, "no").await, Err(SendError::NotSent(2)));
}

#[tokio::test]
async fn nobody_without_the_secret_makes_a_node_believe_that_it_forgot_something() {
    let (_one, two) = forgetful(b"another").await;
    eventually("the proofs do not match", || {
        two.transport.counters().refused_by_peer_for(Refusal::Secret) > 0
    })
    .await;
    let counters = two.transport.counters();
    assert!(Refusal::ALL
        .into_iter()
        .all(|reason| counters.disowned_for(reason) == 0));
}

#[tokio::test]
async fn another_secret_cluster_or_unknown_node_is_refused_by_name() {
    type Adapt = fn(&mut TransportConfig);
    let cases: [(Refusal, Adapt); 3] = [
        (Refusal::Secret, |c| c.secret = crate::config::Secret(b"guess".to_vec())),
        (Refusal::Cluster, |c| c.cluster_id = "other".to_owned()),
        (Refusal::UnknownNode, |c| c.node_id = 3),
    ];
    let (one, two) = pair().await;
    for (reason, adapt) in cases {
        let (listener, at) = bound();
        let mut stranger = config(2, 66, at, &[(1, one.at)]);
        adapt(&mut stranger);
        let stranger = start_on(listener, stranger);
        eventually("the stranger is refused, by one side or the other", || {
            let (here, there) = (one.transport.counters(), stranger.transport.counters());
            let refused = here.refused_for(reason) + there.refused_for(reason);
            let told = here.refused_by_peer_for(reason) + there.refused_by_peer_for(reason);
            refused > 0 && told > 0
        })
        .await;
        assert_eq!(stranger.transport.boot_of(1), None);
    }
    assert_eq!(one.echo(2, "among us").await, Ok(Bytes::from_static(b"among us")));
    drop(two);
}
