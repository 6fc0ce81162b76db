//! Bytes that are damaged, foreign, hostile or old: refused, counted, and no trouble to good peers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::*;
use super::proxy::{recorded, say, Proxy};
use crate::transport::frame::{Checker, Direction, FrameReader, FRAME_HEADER_LEN};
use crate::transport::hello::{put_version, Tag};
use crate::transport::message::{put, Header};
use crate::transport::*;

/// Hello and proof of a node in the cluster `test`.
const HANDSHAKE_LEN: usize = (13 + 59 + 4) + (13 + 32);

/// Nodes 1 and 2, where 1 reaches 2 through a proxy.
async fn pair_through_proxy() -> (Node, Node, Proxy) {
    let ((one, at_one), (two, at_two)) = (bound(), bound());
    let (proxy, at_proxy) = Proxy::start(at_two).await;
    let one = start_on(one, config(1, 11, at_one, &[(2, at_proxy)]));
    let two = start_on(two, config(2, 21, at_two, &[(1, at_one)]));
    one.connected_to(2).await;
    two.connected_to(1).await;
    (one, two, proxy)
}

#[tokio::test]
async fn a_recorded_connection_said_again_is_refused() {
    let (one, two, proxy) = pair_through_proxy().await;
    assert!(one.echo(2, "once").await.is_ok());
    let tape = recorded(&proxy, Class::Append, HANDSHAKE_LEN).await;
    say(two.at, &tape.said()).await;
    assert_eq!(two.transport.counters().refused_for(Refusal::Secret), 1);
    assert_eq!(two.seen.requests(), 1, "the request must not be served again");
}

#[tokio::test]
async fn a_frame_said_twice_on_its_connection_closes_it() {
    let (one, two, proxy) = pair_through_proxy().await;
    assert!(one.echo(2, "once").await.is_ok());
    let tape = recorded(&proxy, Class::Append, HANDSHAKE_LEN).await;
    let frames = tape.said()[HANDSHAKE_LEN..].to_vec();
    tape.inject(frames);
    eventually("the replay is noticed", || {
        two.transport.counters().frames_bad_checksum == 1
    })
    .await;
    assert_eq!(two.seen.requests(), 1, "the request must not be served again");
    // The peer connects again and is served.
    eventually("a new connection", || proxy.tapes(Class::Append).len() == 2).await;
    one.connected_to(2).await;
    assert!(one.echo(2, "and on").await.is_ok());
}

#[tokio::test]
async fn a_frame_of_an_earlier_connection_is_refused_in_its_very_place() {
    let (one, two, proxy) = pair_through_proxy().await;
    let earlier = recorded(&proxy, Class::Append, HANDSHAKE_LEN).await;
    let first_frames = earlier.said()[HANDSHAKE_LEN..].to_vec();
    // End that connection; the next one begins, like it did, with frame 0.
    earlier.inject(vec![0xff; 64]);
    eventually("a new connection", || proxy.tapes(Class::Append).len() == 2).await;
    let later = recorded(&proxy, Class::Append, HANDSHAKE_LEN - 1).await;
    let before = two.transport.counters();
    later.inject(first_frames);
    eventually("the replay is noticed", || {
        two.transport.counters().frames_bad_checksum == before.frames_bad_checksum + 1
    })
    .await;
    one.connected_to(2).await;
    assert!(one.echo(2, "and on").await.is_ok());
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_lost_and_found_again() {
    let (one, _two, proxy) = pair_through_proxy().await;
    let up = PeerEvent::Connected { boot: 21 };
    proxy.freeze(true);
    eventually("the silence is noticed", || {
        one.seen.events_of(2) == [up, PeerEvent::Lost]
    })
    .await;
    assert_eq!(one.transport.boot_of(2), None);
    assert_eq!(one.transport.counters().silences, 1);
    proxy.freeze(false);
    eventually("the peer is back", || {
        one.seen.events_of(2) == [up, PeerEvent::Lost, up]
    })
    .await;
    one.connected_to(2).await;
    assert!(one.echo(2, "found").await.is_ok());
}

/// Becomes node 3 by an honest handshake, then says `bytes`; returns once it is closed.
async fn as_a_member(one: &Node, make: impl FnOnce(&mut Checker) -> Vec<u8>) {
    let mut stream = TcpStream::connect(one.at).await.unwrap();
    let me = config(3, 31, one.at, &[]);
    let established = handshake::dial(&mut stream, &me, 1, Class::Device, &Ledger::default())
        .await
        .unwrap();
    let bytes = make(&mut Checker::new(established.key, Direction::FromDialer));
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let mut back = Vec::new();
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut back))
        .await
        .expect("is closed");
}

fn frame(role: Role, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEADER_LEN];
    put(
        &mut frame,
        Header {
            kind: ECHO,
            role,
            correlation: 1,
        },
        body,
    );
    frame
}

/// A frame as the dialer would send it.
fn sealed(checker: &mut Checker, role: Role) -> Vec<u8> {
    let mut frame = frame(role, b"body");
    checker.seal(&mut frame);
    frame
}

#[tokio::test]
async fn damaged_frames_of_a_member_are_counted_by_kind_and_others_go_on_being_served() {
    type Counter = fn(&TransportCounters) -> u64;
    type Make = fn(&mut Checker) -> Vec<u8>;
    let cases: [(&str, Counter, Make); 8] = [
        (
            "truncated",
            |c| c.frames_truncated,
            |c| sealed(c, Role::Notice)[..20].to_vec(),
        ),
        (
            "header cut",
            |c| c.frames_truncated,
            |c| sealed(c, Role::Notice)[..5].to_vec(),
        ),
        ("oversized", |c| c.frames_oversized, |_| vec![0xff; 100]),
        ("empty", |c| c.frames_malformed, |_| vec![0; 8]),
        (
            "altered",
            |c| c.frames_bad_checksum,
            |c| {
                let mut frame = sealed(c, Role::Notice);
                *frame.last_mut().unwrap() ^= 1;
                frame
            },
        ),
        (
            "reordered",
            |c| c.frames_bad_checksum,
            |c| {
                let first = sealed(c, Role::Notice);
                [sealed(c, Role::Notice), first].concat()
            },
        ),
        (
            "answer to the acceptor",
            |c| c.frames_malformed,
            |c| sealed(c, Role::Answer),
        ),
        (
            "body longer than its frame",
            |c| c.frames_malformed,
            |c| {
                let mut frame = frame(Role::Notice, b"body");
                frame.truncate(frame.len() - 1);
                c.seal(&mut frame);
                frame
            },
        ),
    ];
    let ((one, at_one), (two, at_two)) = (bound(), bound());
    let (_nobody, at_three) = bound();
    let one = start_on(one, config(1, 11, at_one, &[(2, at_two), (3, at_three)]));
    let two = start_on(two, config(2, 21, at_two, &[(1, at_one)]));
    two.connected_to(1).await;
    for (name, counter, make) in cases {
        let before = one.transport.counters();
        as_a_member(&one, make).await;
        eventually(name, || counter(&one.transport.counters()) == counter(&before) + 1).await;
        assert!(two.echo(1, "good").await.is_ok(), "after {name}");
    }
    let of_three = one
        .seen
        .notices
        .lock()
        .unwrap()
        .iter()
        .filter(|(from, ..)| *from == 3)
        .count();
    assert_eq!(of_three, 0, "nothing of a bad frame is handed on");
}

#[tokio::test]
async fn foreign_protocols_and_versions_are_refused_by_name() {
    let (one, two) = pair().await;
    let mut other_version = Vec::new();
    put_version(&mut other_version, 2, Tag::Hello, &[0; 60]);
    let mut too_long = Vec::new();
    put_version(&mut too_long, 1, Tag::Hello, &[0; 1025]);
    let mut no_hello = Vec::new();
    put_version(&mut no_hello, 1, Tag::Hello, b"?");
    let cases: [(Refusal, &[u8]); 6] = [
        (Refusal::Magic, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (Refusal::Magic, b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd"),
        (Refusal::Magic, &[0; 4096]),
        (Refusal::Version, &other_version),
        (Refusal::Malformed, &too_long),
        (Refusal::Malformed, &no_hello),
    ];
    for (reason, bytes) in cases {
        let before = one.transport.counters().refused_for(reason);
        say(one.at, bytes).await;
        eventually(reason.name(), || {
            one.transport.counters().refused_for(reason) == before + 1
        })
        .await;
        assert!(two.echo(1, "good").await.is_ok());
    }
}

#[tokio::test]
async fn a_handshake_that_dawdles_is_ended() {
    let (one, two) = pair().await;
    let mut slow = TcpStream::connect(one.at).await.unwrap();
    slow.write_all(b"HFPEER").await.unwrap();
    eventually("it is ended", || one.transport.counters().handshakes_timed_out == 1).await;
    assert_eq!(slow.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(two.echo(1, "good").await.is_ok());
}

#[tokio::test]
async fn a_crowd_of_strangers_is_bounded_and_members_come_in_afterwards() {
    let (one, two) = pair().await;
    let mut crowd = Vec::new();
    for _ in 0..config::HANDSHAKES_MAX + 20 {
        crowd.push(TcpStream::connect(one.at).await.unwrap());
    }
    eventually("those beyond the bound are closed", || {
        one.transport.counters().handshakes_crowded_out == 20
    })
    .await;
    assert!(two.echo(1, "good").await.is_ok(), "who is connected does not notice");
    drop(crowd);
}

fn run<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_get_a_stranger_in(good_start in 0usize..14, noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut hello = Vec::new();
        put_version(&mut hello, 1, Tag::Hello, &[0; 60]);
        hello.truncate(good_start);
        hello.extend_from_slice(&noise);
        let outcome = run(async {
            let (mut here, mut there) = tokio::io::duplex(8192);
            there.write_all(&hello).await.unwrap();
            there.shutdown().await.unwrap();
            let me = config(1, 1, "127.0.0.1:1".parse().unwrap(), &[]);
            tokio::time::timeout(Duration::from_secs(5), handshake::accept(&mut here, &me, |_| true, &Ledger::default())).await
        });
        prop_assert!(outcome.expect("ends").is_err());
    }

    #[test]
    fn no_bytes_are_taken_for_a_frame(noise in prop::collection::vec(any::<u8>(), 1..400), len in prop::option::of(0u32..400)) {
        let mut bytes = noise.clone();
        if let (Some(len), true) = (len, bytes.len() >= 4) {
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        let mut reader = FrameReader::new(&bytes[..], Checker::new([7; 16], Direction::FromDialer), 1 << 20);
        prop_assert!(run(reader.next()).is_err());
    }
}

/// The same code runs on streams that are not sockets.
#[tokio::test]
async fn nodes_can_be_joined_by_pipes() {
    let net = Arc::new(pipes::Net::default());
    let at = |n: u16| std::net::SocketAddr::from(([127, 0, 0, 1], n));
    let ledger = || Arc::new(Ledger::default());
    let one = start_with(net.clone(), config(1, 11, at(1), &[(2, at(2))]), ledger());
    let two = start_with(net.clone(), config(2, 21, at(2), &[(1, at(1))]), ledger());
    one.connected_to(2).await;
    two.connected_to(1).await;
    assert_eq!(
        one.echo(2, "through a pipe").await,
        Ok(Bytes::from_static(b"through a pipe"))
    );
}

mod pipes {
    use std::collections::BTreeMap;
    use std::io;
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use actors::id::NodeId;
    use futures::future::BoxFuture;
    use futures::FutureExt;
    use tokio::sync::mpsc;

    use crate::transport::{ByteStream, Connector, Listener};

    type Stream = Box<dyn ByteStream>;

    #[derive(Default)]
    pub struct Net(Mutex<BTreeMap<SocketAddr, mpsc::UnboundedSender<Stream>>>);

    struct Accepting(mpsc::UnboundedReceiver<Stream>);

    impl Connector for Net {
        fn dial(&self, _: NodeId, address: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
            let (here, there) = tokio::io::duplex(1 << 16);
            let listener = self.0.lock().unwrap().get(&address).cloned();
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let outcome = listener
                .ok_or_else(refused)
                .and_then(|l| l.send(Box::new(there)).map_err(|_| refused()));
            async move { outcome.map(|()| Box::new(here) as Stream) }.boxed()
        }

        fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.0.lock().unwrap().insert(address, sender);
            Ok(Box::new(Accepting(receiver)))
        }
    }

    impl Listener for Accepting {
        fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>> {
            async { self.0.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) }.boxed()
        }
    }
}
