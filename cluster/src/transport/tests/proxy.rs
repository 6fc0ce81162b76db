//! A proxy between two nodes that records what the dialer says, can say it again, and can freeze.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::harness::eventually;
use crate::transport::*;

/// Where the class stands in the dialer's first bytes: prelude, node, uuid, boot, starts,
/// whether it is quarantined.
const CLASS_AT: usize = 13 + 8 + 16 + 8 + 8 + 1;

#[derive(Clone, Default)]
pub struct Proxy {
    tapes: Arc<Mutex<Vec<Arc<Tape>>>>,
    frozen: Arc<AtomicBool>,
}

pub struct Tape {
    said: Mutex<Vec<u8>>,
    inject: mpsc::UnboundedSender<Vec<u8>>,
}

impl Tape {
    pub fn said(&self) -> Vec<u8> {
        self.said.lock().unwrap().clone()
    }

    /// Says this to the acceptor, after what the dialer has said so far.
    pub fn inject(&self, bytes: Vec<u8>) {
        self.inject.send(bytes).unwrap();
    }
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let proxy = Self::default();
        let running = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(running.clone().carry(stream, to));
            }
        });
        (proxy, at)
    }

    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// The tapes of a class, oldest first.
    pub fn tapes(&self, class: Class) -> Vec<Arc<Tape>> {
        let of_class = |tape: &&Arc<Tape>| tape.said.lock().unwrap().get(CLASS_AT) == Some(&class.byte());
        self.tapes.lock().unwrap().iter().filter(of_class).cloned().collect()
    }

    async fn thawed(&self) {
        while self.frozen.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn carry(self, dialer: TcpStream, to: SocketAddr) {
        let acceptor = TcpStream::connect(to).await.unwrap();
        let (mut from_dialer, mut to_dialer) = dialer.into_split();
        let (mut from_acceptor, mut to_acceptor) = acceptor.into_split();
        let (inject, mut injected) = mpsc::unbounded_channel();
        let tape = Arc::new(Tape {
            said: Mutex::default(),
            inject,
        });
        self.tapes.lock().unwrap().push(tape.clone());
        let there = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                self.thawed().await;
                let bytes = tokio::select! {
                    Some(bytes) = injected.recv() => bytes,
                    n = from_dialer.read(&mut buffer) => {
                        let n = n.unwrap_or(0);
                        tape.said.lock().unwrap().extend_from_slice(&buffer[..n]);
                        buffer[..n].to_vec()
                    }
                };
                self.thawed().await;
                if bytes.is_empty() || to_acceptor.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        let back = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                self.thawed().await;
                let n = from_acceptor.read(&mut buffer).await.unwrap_or(0);
                self.thawed().await;
                if n == 0 || to_dialer.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = there => {}, () = back => {} }
    }
}

/// Says `bytes` to `to` on a connection of their own, and waits until it is closed. Returns what came back.
pub async fn say(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The other side may close before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut back = Vec::new();
    let _ = tokio::time::timeout(super::harness::LONG, stream.read_to_end(&mut back))
        .await
        .expect("is closed");
    back
}

/// The newest tape of a class, once it holds more than a handshake.
pub async fn recorded(proxy: &Proxy, class: Class, longer_than: usize) -> Arc<Tape> {
    let last = || proxy.tapes(class).last().cloned();
    eventually("something was recorded", || {
        last().is_some_and(|tape| tape.said().len() > longer_than)
    })
    .await;
    last().unwrap()
}
