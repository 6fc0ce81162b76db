//! A TCP proxy in front of a node's MQTT port, for what goes wrong between clients and nodes.
//!
//! What a fault swallows is gone, so a connection that lost bytes is reset when the fault heals:
//! it must never go on with a hole in it. Bounds: 64 pieces of 16 KiB wait in each direction of a
//! connection; beyond, the sender is not read.

mod framing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use simulator::payloads::Chance;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Notify};
use tokio::time::Instant;

use framing::Framing;

const PIECE: usize = 16 * 1024;
const PIECES: usize = 64;

/// What the proxy does to connections. Lengths of time in ms, shares in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "toxic", rename_all = "snake_case")]
pub enum Toxic {
    Latency { ms: u64, jitter_ms: u64 },
    Loss { percent: u8, ms: u64 },
    Reset { percent: u8 },
    HalfOpen,
    BlackHole,
    Bandwidth { bytes_per_second: u64 },
    SlowReader { bytes_per_second: u64 },
    Corrupt { percent: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the client.
    Up,
    Down,
}

/// One proxy; `listen` stands for `upstream`.
pub struct Front {
    pub listen: SocketAddr,
    upstream: SocketAddr,
    toxics: Mutex<BTreeMap<String, Toxic>>,
    /// Times that a toxic did something.
    hits: AtomicU64,
    seed: AtomicU64,
}

/// All proxies of a warden; they end with it.
pub struct Proxies {
    runtime: tokio::runtime::Runtime,
    fronts: Mutex<BTreeMap<u64, Arc<Front>>>,
}

impl Proxies {
    /// # Errors
    /// The system gives no threads.
    pub fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            fronts: Mutex::default(),
        })
    }

    /// Opens a proxy for a node on a port of the system's choice.
    ///
    /// # Errors
    /// The address is none, or nothing can be bound.
    pub fn open(&self, node: u64, upstream: &str) -> io::Result<SocketAddr> {
        let upstream: SocketAddr = upstream.parse().map_err(io::Error::other)?;
        let listener = self.runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let front = Arc::new(Front {
            listen: listener.local_addr()?,
            upstream,
            toxics: Mutex::default(),
            hits: AtomicU64::new(0),
            seed: AtomicU64::new(node << 32),
        });
        let listen = front.listen;
        self.runtime.spawn(accept(listener, front.clone()));
        self.lock().insert(node, front);
        Ok(listen)
    }

    /// `false`: there is no proxy in front of this node.
    pub fn set(&self, node: u64, name: &str, toxic: Toxic) -> bool {
        let front = self.lock().get(&node).cloned();
        front.is_some_and(|front| {
            front.toxics().insert(name.to_owned(), toxic);
            true
        })
    }

    pub fn clear(&self, name: &str) {
        for front in self.lock().values() {
            front.toxics().remove(name);
        }
    }

    /// How often a toxic did something, over all proxies.
    pub fn hits(&self) -> u64 {
        self.lock()
            .values()
            .map(|front| front.hits.load(Ordering::Relaxed))
            .sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Front>>> {
        self.fronts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Front {
    fn toxics(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Toxic>> {
        self.toxics.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn now(&self) -> Vec<Toxic> {
        self.toxics().values().copied().collect()
    }

    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, front: Arc<Front>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(connection(client, front.clone()))),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// What both directions of a connection share.
struct Pair {
    front: Arc<Front>,
    /// Something was swallowed: the connection cannot go on as if nothing were.
    has_hole: AtomicBool,
    cut: Notify,
}

async fn connection(client: TcpStream, front: Arc<Front>) {
    // A client sees a node that does not listen as it would without the proxy.
    let Ok(server) = TcpStream::connect(front.upstream).await else {
        reset(&client);
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let pair = Arc::new(Pair {
        front,
        has_hole: AtomicBool::new(false),
        cut: Notify::new(),
    });
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = pump(Way::Up, from_client, to_server, pair.clone());
    let down = pump(Way::Down, from_server, to_client, pair.clone());
    let both = async { tokio::join!(up, down) };
    tokio::select! {
        _ = both => {}
        () = pair.cut.notified() => {}
    }
}

/// The next close sends RST instead of a farewell.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    /// Only half of it is sent, then both ends are reset.
    last: bool,
}

async fn pump(way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pair: Arc<Pair>) {
    let (send, mut pieces) = mpsc::channel::<Piece>(PIECES);
    let reading = read(way, &mut from, send, &pair);
    let writing = async {
        while let Some(piece) = pieces.recv().await {
            tokio::time::sleep_until(piece.due).await;
            let rate = pair.front.now().iter().filter_map(|toxic| toxic.rate(way)).min();
            let part = if piece.last {
                piece.bytes.len() / 2
            } else {
                piece.bytes.len()
            };
            if write(&mut to, &piece.bytes[..part], rate).await.is_err() || piece.last {
                reset(to.as_ref());
                pair.cut.notify_one();
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

async fn write(to: &mut OwnedWriteHalf, bytes: &[u8], rate: Option<u64>) -> io::Result<()> {
    let Some(rate) = rate else {
        return to.write_all(bytes).await;
    };
    // Twenty small steps a second, so that slowness is even.
    let step = usize::try_from(rate / 20).unwrap_or(1).max(1);
    for part in bytes.chunks(step) {
        to.write_all(part).await?;
        tokio::time::sleep(Duration::from_secs_f64(part.len() as f64 / rate as f64)).await;
    }
    Ok(())
}

async fn read(way: Way, from: &mut OwnedReadHalf, send: mpsc::Sender<Piece>, pair: &Pair) {
    let mut chance = Chance::new(pair.front.seed.fetch_add(2, Ordering::Relaxed) + (way == Way::Up) as u64);
    let mut framing = Framing::default();
    let mut buffer = vec![0; PIECE];
    // Pieces keep their order, however their delays fall.
    let mut due = Instant::now();
    loop {
        let ready = tokio::time::timeout(Duration::from_millis(200), from.read(&mut buffer)).await;
        let toxics = pair.front.now();
        let swallows = toxics.iter().any(|toxic| toxic.swallows(way));
        if pair.has_hole.load(Ordering::Relaxed) && !swallows && !toxics.iter().any(|toxic| toxic.is_hole()) {
            reset(from.as_ref());
            pair.cut.notify_one();
            return;
        }
        let got = match ready {
            Err(_) => continue,
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(got)) => got,
        };
        if swallows {
            pair.has_hole.store(true, Ordering::Relaxed);
            pair.front.hit();
            continue;
        }
        let mut bytes = buffer[..got].to_vec();
        if way == Way::Up {
            let percent = toxics.iter().filter_map(|toxic| toxic.corrupts()).max().unwrap_or(0);
            if framing.spoil(&mut bytes, || chance.hit(f64::from(percent) / 100.0)) {
                pair.front.hit();
            }
        }
        let delay: u64 = toxics.iter().map(|toxic| toxic.delay_ms(&mut chance)).sum();
        due = due.max(Instant::now() + Duration::from_millis(delay));
        let last = toxics.iter().any(|toxic| toxic.resets(&mut chance));
        if delay > 0 || last {
            pair.front.hit();
        }
        if send.send(Piece { due, bytes, last }).await.is_err() {
            return;
        }
    }
}

impl Toxic {
    fn delay_ms(self, chance: &mut Chance) -> u64 {
        match self {
            Self::Latency { ms, jitter_ms } => (ms + chance.below(2 * jitter_ms + 1)).saturating_sub(jitter_ms),
            Self::Loss { percent, ms } if chance.hit(f64::from(percent) / 100.0) => ms,
            _ => 0,
        }
    }

    fn resets(self, chance: &mut Chance) -> bool {
        matches!(self, Self::Reset { percent } if chance.hit(f64::from(percent) / 100.0))
    }

    fn corrupts(self) -> Option<u8> {
        match self {
            Self::Corrupt { percent } => Some(percent),
            _ => None,
        }
    }

    fn is_hole(self) -> bool {
        matches!(self, Self::BlackHole | Self::HalfOpen)
    }

    fn swallows(self, way: Way) -> bool {
        self == Self::BlackHole || (self == Self::HalfOpen && way == Way::Up)
    }

    fn rate(self, way: Way) -> Option<u64> {
        match self {
            Self::Bandwidth { bytes_per_second } => Some(bytes_per_second),
            Self::SlowReader { bytes_per_second } if way == Way::Down => Some(bytes_per_second),
            _ => None,
        }
    }
}
