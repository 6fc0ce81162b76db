//! Raw MQTT sockets: packets are bytes, right or wrong, and answers are looked at as bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::PATIENCE;

/// A packet: type and flags, remaining length, body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let low = (rest % 128) as u8;
        rest /= 128;
        out.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

/// Bytes with their length in front of them.
pub fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let len = u16::try_from(bytes.len()).expect("short texts");
    [&len.to_be_bytes()[..], bytes].concat()
}

/// A CONNECT that any server takes, with clean start.
pub fn connect(version: u8, id: &str, keep_alive_secs: u16) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([version, 0x02]);
    body.extend(keep_alive_secs.to_be_bytes());
    if version == 5 {
        body.push(0);
    }
    body.extend(text(id));
    packet(0x10, &body)
}

/// PUBLISH with QoS 1, and DUP where asked.
pub fn publish(version: u8, topic: impl AsRef<[u8]>, packet_id: u16, dup: bool, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    body.extend(packet_id.to_be_bytes());
    if version == 5 {
        body.push(0);
    }
    body.extend_from_slice(payload);
    packet(0x32 | u8::from(dup) << 3, &body)
}

/// PUBLISH in MQTT 5 with QoS 1 and user properties.
pub fn publish_with(topic: &str, packet_id: u16, properties: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut user = Vec::new();
    for (name, value) in properties {
        user.push(0x26);
        user.extend(text(name));
        user.extend(text(value));
    }
    let mut body = text(topic);
    body.extend(packet_id.to_be_bytes());
    body.extend(&packet(0, &user)[1..]);
    body.extend_from_slice(payload);
    packet(0x32, &body)
}

pub fn subscribe(version: u8, packet_id: u16, filter: impl AsRef<[u8]>, options: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    body.extend(text(filter));
    body.push(options);
    packet(0x82, &body)
}

/// A connection on which anything may be sent.
pub struct Raw {
    stream: TcpStream,
    /// Taken in and not looked at yet.
    input: Vec<u8>,
}

impl Raw {
    /// # Panics
    /// When the server does not accept.
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("the server accepts")
    }

    /// `None`: nobody accepts.
    ///
    /// # Panics
    /// When the socket takes no time-outs.
    pub fn try_open(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Some(Self {
            stream,
            input: Vec::new(),
        })
    }

    /// A client with a session.
    ///
    /// # Panics
    /// When the server does not let it in.
    pub fn connected(address: SocketAddr, version: u8, id: &str) -> Self {
        let mut raw = Self::open(address);
        raw.send(&connect(version, id, 60));
        let (first, body) = raw.next_packet().expect("a CONNACK");
        assert_eq!((first, body[1]), (0x20, 0), "CONNACK of success expected: {body:?}");
        raw
    }

    /// The server may have closed already; what it said tells.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// How long a write may find no room before it fails.
    ///
    /// # Panics
    /// When the socket is gone.
    pub fn write_patience(&self, patience: std::time::Duration) {
        self.stream.set_write_timeout(Some(patience)).expect("a timeout");
    }

    /// Whether all of it could be written in time.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Nothing more is sent; what comes can still be read.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next packet: its first byte and its body. `None`: the server closed, gently or not.
    ///
    /// # Panics
    /// When nothing comes and the connection stays open.
    pub fn next_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((first, header, length)) = front(&self.input) {
                if self.input.len() >= header + length {
                    let body = self.input[header..header + length].to_vec();
                    self.input.drain(..header + length);
                    return Some((first, body));
                }
            }
            if self.fill() == 0 {
                return None;
            }
        }
    }

    /// All that comes until the server closes.
    ///
    /// # Panics
    /// When it stays open.
    pub fn until_closed(&mut self) -> Vec<u8> {
        while self.fill() > 0 {}
        std::mem::take(&mut self.input)
    }

    /// The next packet if one comes within a moment: `None` once the connection has ended.
    ///
    /// # Panics
    /// When the socket takes no time-outs.
    pub fn poll_packet(&mut self) -> Option<Option<(u8, Vec<u8>)>> {
        const MOMENT: std::time::Duration = std::time::Duration::from_millis(50);
        if front(&self.input).is_none_or(|(_, header, length)| self.input.len() < header + length) {
            self.stream.set_read_timeout(Some(MOMENT)).expect("a timeout");
            let mut buffer = [0; 16 * 1024];
            let read = self.stream.read(&mut buffer);
            self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            match read {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
        let Some((first, header, length)) = front(&self.input) else {
            return Some(None);
        };
        if self.input.len() < header + length {
            return Some(None);
        }
        let body = self.input[header..header + length].to_vec();
        self.input.drain(..header + length);
        Some(Some((first, body)))
    }

    fn fill(&mut self) -> usize {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                count
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server neither answers nor closes; so far {:?}", self.input)
            }
            Err(_) => 0,
        }
    }

    /// The reason code of the PUBACK of `packet_id`, which must be next. MQTT 5 and 3.1.1.
    ///
    /// # Panics
    /// When something else comes.
    pub fn puback(&mut self, packet_id: u16) -> u8 {
        let (first, body) = self.next_packet().expect("a PUBACK, and not the end");
        assert_eq!(
            (first, &body[..2]),
            (0x40, &packet_id.to_be_bytes()[..]),
            "PUBACK expected: {body:?}"
        );
        body.get(2).copied().unwrap_or(0)
    }

    /// What MQTT 5 is told before the end: the reason of DISCONNECT. Other packets before it are passed over.
    ///
    /// # Panics
    /// When the server closes without one.
    pub fn goodbye(&mut self) -> u8 {
        loop {
            let (first, body) = self.next_packet().expect("a DISCONNECT before the end");
            if first == 0xe0 {
                return body.first().copied().unwrap_or(0);
            }
        }
    }
}

/// First byte, length of the fixed header, remaining length.
fn front(input: &[u8]) -> Option<(u8, usize, usize)> {
    let mut length = 0;
    for at in 1..=4 {
        let byte = *input.get(at)?;
        length |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some((input[0], at + 1, length));
        }
    }
    None
}
