//! What the tests of the simulator share: servers that do as they are told, and a quiet watcher.
#![allow(dead_code)]

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use simulator::run::directory::RunFile;
use simulator::run::{Options, View, Watcher, Wish};
use simulator::scenario;

/// How a stub server treats its clients.
#[derive(Clone, Default)]
pub struct Manner {
    /// (every, long): does nothing at all for `long` out of `every`.
    pub stall: Option<(Duration, Duration)>,
    /// Answers CONNECT of ids ending in an odd digit with this code.
    pub refuse_odd: Option<u8>,
}

/// An MQTT server of one thread that acknowledges everything and keeps nothing. Dropping it ends it.
pub struct Stub {
    pub address: SocketAddr,
    pub publishes: Arc<AtomicU64>,
    pub duplicates: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Stub {
    pub fn start(manner: Manner) -> Stub {
        let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (publishes, duplicates) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let shared = (publishes.clone(), duplicates.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut poll = Poll::new().unwrap();
            poll.registry()
                .register(&mut listener, Token(usize::MAX), Interest::READABLE)
                .unwrap();
            let mut server = Server {
                clients: Vec::new(),
                scratch: vec![0; 256 * 1024],
                publishes: shared.0,
                duplicates: shared.1,
                manner,
            };
            let (began, mut events) = (Instant::now(), Events::with_capacity(1_024));
            while !shared.2.load(Ordering::Relaxed) {
                if let Some((every, long)) = server.manner.stall {
                    let into = Duration::from_nanos((began.elapsed().as_nanos() % every.as_nanos()) as u64);
                    if every - into <= long {
                        std::thread::sleep(every - into);
                    }
                }
                if poll.poll(&mut events, Some(Duration::from_millis(20))).is_err() {
                    continue; // interrupted
                }
                for event in &events {
                    match event.token() {
                        Token(usize::MAX) => server.accept(&listener, &poll),
                        Token(at) => server.serve(at),
                    }
                }
            }
        });
        Stub {
            address,
            publishes,
            duplicates,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    out: Vec<u8>,
    v5: bool,
}

struct Server {
    clients: Vec<Option<Client>>,
    scratch: Vec<u8>,
    publishes: Arc<AtomicU64>,
    duplicates: Arc<AtomicU64>,
    manner: Manner,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener, poll: &Poll) {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.set_nodelay(true);
            let token = Token(self.clients.len());
            poll.registry()
                .register(&mut stream, token, Interest::READABLE)
                .unwrap();
            self.clients.push(Some(Client {
                stream,
                input: Vec::new(),
                out: Vec::new(),
                v5: false,
            }));
        }
    }

    fn serve(&mut self, at: usize) {
        let Some(client) = &mut self.clients[at] else { return };
        let ended = loop {
            match client.stream.read(&mut self.scratch) {
                Ok(0) => break true,
                Ok(got) => client.input.extend_from_slice(&self.scratch[..got]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        let mut taken = 0;
        let mut closes = false;
        while let Some((head, length)) = whole(&client.input[taken..]) {
            let packet = &client.input[taken..taken + head + length];
            closes |= answer(
                packet,
                head,
                &mut client.out,
                &mut client.v5,
                &self.manner,
                &self.publishes,
                &self.duplicates,
            );
            taken += head + length;
        }
        client.input.drain(..taken);
        // What a test server sends is small; a socket that does not take it ends the client.
        let failed = !client.out.is_empty() && client.stream.write_all(&client.out).is_err();
        client.out.clear();
        if ended || failed || closes {
            self.clients[at] = None;
        }
    }
}

/// Length of the fixed header and of the rest, if the packet is whole.
fn whole(input: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0usize;
    for (at, byte) in input.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let head = at + 2;
            return (input.len() >= head + length).then_some((head, length));
        }
    }
    None
}

/// `true`: the connection closes.
fn answer(
    packet: &[u8],
    head: usize,
    out: &mut Vec<u8>,
    v5: &mut bool,
    manner: &Manner,
    publishes: &AtomicU64,
    duplicates: &AtomicU64,
) -> bool {
    let body = &packet[head..];
    match packet[0] >> 4 {
        1 => {
            *v5 = body[6] == 5;
            let odd = packet.last().is_some_and(|last| last % 2 == 1);
            if let (Some(code), true) = (manner.refuse_odd, odd) {
                match *v5 {
                    true => out.extend_from_slice(&[0x20, 3, 0, code, 0]),
                    false => out.extend_from_slice(&[0x20, 2, 0, code]),
                }
                return true;
            }
            match *v5 {
                true => out.extend_from_slice(&[0x20, 3, 0, 0, 0]),
                false => out.extend_from_slice(&[0x20, 2, 0, 0]),
            }
        }
        3 => {
            publishes.fetch_add(1, Ordering::Relaxed);
            duplicates.fetch_add(u64::from(packet[0] & 8 != 0), Ordering::Relaxed);
            if packet[0] & 6 != 0 {
                let topic = usize::from(body[0]) << 8 | usize::from(body[1]);
                let id = &body[topic + 2..topic + 4];
                out.extend_from_slice(&[0x40, 2, id[0], id[1]]);
            }
        }
        8 => {
            let id = [body[0], body[1]];
            match *v5 {
                true => out.extend_from_slice(&[0x90, 4, id[0], id[1], 0, 1]),
                false => out.extend_from_slice(&[0x90, 3, id[0], id[1], 1]),
            }
        }
        12 => out.extend_from_slice(&[0xd0, 0]),
        14 => return true,
        _ => {}
    }
    false
}

/// Watches without a word; stops or aborts when told.
#[derive(Default)]
pub struct Quiet {
    pub stop_after_us: Option<u64>,
    pub elapsed_us: u64,
    pub notes: Vec<String>,
}

impl Watcher for Quiet {
    fn prepared(&mut self, _: &str) {}

    fn update(&mut self, view: &View<'_>) {
        self.elapsed_us = view.elapsed_us;
        if std::env::var_os("HOLDFAST_SHOW").is_some() {
            eprintln!("{}", simulator::report::live::screen(view, 120).join("\n"));
        }
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    fn wish(&self) -> Wish {
        match self.stop_after_us {
            Some(after) if self.elapsed_us >= after => Wish::Stop,
            _ => Wish::GoOn,
        }
    }
}

/// Runs a scenario given as text; its directory is `out`.
pub fn drive(text: &str, out: &Path, watcher: &mut Quiet) -> RunFile {
    let loaded = match scenario::parse(&out.join("scenario.toml"), text.to_owned()) {
        Ok(loaded) => loaded,
        Err(error) => panic!("{error}"),
    };
    let options = Options {
        out: out.to_owned(),
        run: 7,
        worker: Vec::new(),
        version: "test".into(),
        resume: false,
    };
    simulator::run::run(loaded, &options, watcher).unwrap()
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Resident memory of this process, bytes.
pub fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}
