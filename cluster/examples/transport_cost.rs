//! What a 1 KiB round trip between two nodes costs: one JSON line per number of requests in flight.
//!
//! Both nodes run on one thread of this process over 127.0.0.1, so `cpu_us` is the sum of both
//! sides and the kernel's part: `cargo run --release -p cluster --example transport_cost`.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actors::id::NodeId;
use actors::time::{Clock, Timestamp};
use bytes::Bytes;
use cluster::config::Secret;
use cluster::faults::Faults;
use cluster::transport::*;
use tokio::time::Instant;

struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.monotonic_ms())
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

struct Echo;

impl Handler for Echo {
    fn request(&self, _: NodeId, _: Class, _: u8, body: Bytes, answer: Answer) {
        answer.send(body);
    }
    fn notice(&self, _: NodeId, _: Class, _: u8, _: Bytes) {}
    fn peer(&self, _: NodeId, _: PeerEvent) {}
}

struct Everybody;

impl PeerLedger for Everybody {
    fn admit(&self, _: NodeId, _: Run) -> Admission {
        Admission::Admitted
    }
}

fn node(id: NodeId, listener: TcpListener, peers: &[(NodeId, SocketAddr)]) -> Transport {
    let next = AtomicU64::new(id << 32);
    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(Instant::now()));
    let config = TransportConfig {
        cluster_id: "cost".to_owned(),
        node_id: id,
        boot: id,
        node_uuid: u128::from(id),
        starts: 1,
        quarantined: false,
        secret: Secret(b"cost".to_vec()),
        listen: listener.local_addr().unwrap(),
        peers: peers.to_vec(),
        queue_bytes_max: TransportConfig::QUEUE_BYTES_MAX,
        frame_bytes_max: TransportConfig::FRAME_BYTES_MAX,
        connect_timeout: TransportConfig::CONNECT_TIMEOUT,
        faults: Faults::new(id, false, clock.clone()),
        clock,
        nonces: Arc::new(move || u128::from(next.fetch_add(1, Ordering::Relaxed)).to_le_bytes()),
    };
    let connector = Arc::new(TcpConnector::with_listener(listener));
    Transport::start(config, connector, Arc::new(Echo), Arc::new(Everybody)).unwrap()
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1_000);
    of(usage.user_time()) + of(usage.system_time())
}

/// Asks again whenever an answer comes, until `left` is used up.
fn ask(transport: Transport, left: Arc<AtomicU64>, finished: Arc<tokio::sync::Semaphore>) {
    let again = transport.clone();
    let done = Box::new(move |answer: Result<Bytes, SendError>| {
        answer.unwrap();
        finished.add_permits(1);
        if left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
        {
            ask(again, left, finished);
        }
    });
    let body = Bytes::from_static(&[7; 1024]);
    transport.request_with(2, Class::Append, 0, body, Duration::from_secs(10), done);
}

async fn measure(one: &Transport, in_flight: u64, requests: u64) {
    let finished = Arc::new(tokio::sync::Semaphore::new(0));
    let left = Arc::new(AtomicU64::new(requests - in_flight));
    let (frames, started, cpu_before) = (one.counters().frames_sent, Instant::now(), cpu());
    for _ in 0..in_flight {
        ask(one.clone(), left.clone(), finished.clone());
    }
    let _all = finished.acquire_many(u32::try_from(requests).unwrap()).await.unwrap();
    let (wall, cpu) = (started.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    let per_frame = requests as f64 / (one.counters().frames_sent - frames) as f64;
    println!(
        "{{\"in_flight\":{in_flight},\"requests\":{requests},\"requests_per_s\":{:.0},\"cpu_us\":{:.2},\"requests_per_frame\":{per_frame:.1}}}",
        requests as f64 / wall,
        cpu * 1e6 / requests as f64,
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (a, b) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let peers = [(1, a.local_addr().unwrap()), (2, b.local_addr().unwrap())];
    let (one, two) = (node(1, a, &peers), node(2, b, &peers));
    while one.notify(2, Class::Append, 0, Bytes::new()).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    measure(&one, 64, 20_000).await;
    measure(&one, 1, 50_000).await;
    measure(&one, 64, 500_000).await;
    one.shutdown();
    two.shutdown();
}
