//! Each toxic bites, and lets go.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

/// Sends back what it is sent.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(got @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..got]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Bench {
    proxies: Proxies,
    listen: SocketAddr,
}

impl Bench {
    fn new() -> Self {
        let proxies = Proxies::new().unwrap();
        let listen = proxies.open(1, &echo().to_string()).unwrap();
        Self { proxies, listen }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listen).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// How long an echo takes.
    fn ask(&self, stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<(Duration, Vec<u8>)> {
        let began = Instant::now();
        stream.write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back)?;
        Ok((began.elapsed(), back))
    }
}

const PACKET: &[u8] = &[0x30, 4, 1, 2, 3, 4];

#[test]
fn slowness_bites_and_lets_go() {
    for toxic in [
        Toxic::Latency { ms: 150, jitter_ms: 0 },
        Toxic::Loss { percent: 100, ms: 150 },
        Toxic::Bandwidth { bytes_per_second: 20 },
        Toxic::SlowReader { bytes_per_second: 20 },
    ] {
        let bench = Bench::new();
        let mut stream = bench.connect();
        assert!(bench.proxies.set(1, "x", toxic));
        let (slow, back) = bench.ask(&mut stream, PACKET).unwrap();
        assert_eq!(back, PACKET, "{toxic:?} changes nothing");
        assert!(slow >= Duration::from_millis(100), "{toxic:?}: {slow:?}");
        bench.proxies.clear("x");
        assert_eq!(bench.ask(&mut stream, PACKET).unwrap().1, PACKET, "{toxic:?}");
    }
}

/// A connection that lost bytes does not go on after the heal: it is reset, and a new one works.
#[test]
fn holes_are_never_papered_over() {
    for toxic in [Toxic::BlackHole, Toxic::HalfOpen] {
        let bench = Bench::new();
        let mut stream = bench.connect();
        bench.ask(&mut stream, PACKET).unwrap();
        bench.proxies.set(1, "x", toxic);
        stream.write_all(PACKET).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while bench.proxies.hits() == 0 {
            assert!(Instant::now() < end, "{toxic:?} swallowed nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        bench.proxies.clear("x");
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{toxic:?}: {rest:?}");
        assert!(
            !matches!(&ended, Err(error) if error.kind() == ErrorKind::WouldBlock),
            "{toxic:?}: {ended:?}"
        );
        assert_eq!(bench.ask(&mut bench.connect(), PACKET).unwrap().1, PACKET);
    }
}

#[test]
fn a_reset_comes_in_the_middle_of_a_packet() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    bench.ask(&mut stream, PACKET).unwrap();
    bench.proxies.set(1, "x", Toxic::Reset { percent: 100 });
    stream.write_all(PACKET).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < PACKET.len(), "{rest:?}");
    bench.proxies.clear("x");
    assert_eq!(bench.ask(&mut bench.connect(), PACKET).unwrap().1, PACKET);
}

#[test]
fn corruption_falls_on_the_first_byte_only() {
    let bench = Bench::new();
    bench.proxies.set(1, "x", Toxic::Corrupt { percent: 100 });
    let (_, back) = bench.ask(&mut bench.connect(), PACKET).unwrap();
    assert_eq!((back[0], &back[1..]), (0x0F, &PACKET[1..]));
    assert!(bench.proxies.hits() > 0);
}
