//! How MQTT bytes travel: as they are over TCP, or in the frames of a WebSocket.
//!
//! No socket here: bytes go in and come out.

use std::io::Cursor;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use bytes::{Buf, BytesMut};
use rand::RngCore;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::FrameHeader;

use super::errors::Fault;
use crate::payloads::Chance;
use crate::protocol::ProtocolError;

/// Bytes of the answer to a WebSocket's request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes of one incoming frame.
const FRAME_BYTES_MAX: u64 = 4 << 20;

pub enum Framing {
    Plain,
    Ws(Box<Ws>),
}

pub struct Ws {
    key: String,
    is_open: bool,
    chance: Chance,
}

impl Framing {
    pub fn ws(mut chance: Chance) -> Self {
        let mut key = [0u8; 16];
        chance.fill_bytes(&mut key);
        Self::Ws(Box::new(Ws {
            key: STANDARD.encode(key),
            is_open: false,
            chance,
        }))
    }

    /// What has to be written before anything else.
    pub fn greeting(&self, host: &str) -> Option<String> {
        let Self::Ws(ws) = self else { return None };
        Some(format!(
            "GET /mqtt HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n",
            ws.key
        ))
    }

    #[cfg(test)]
    fn is_open(&self) -> bool {
        match self {
            Self::Plain => true,
            Self::Ws(ws) => ws.is_open,
        }
    }

    /// Moves MQTT bytes to the wire.
    pub fn wrap(&mut self, mqtt: &mut Vec<u8>, wire: &mut Vec<u8>) {
        match self {
            Self::Plain if wire.is_empty() => std::mem::swap(mqtt, wire),
            Self::Plain => wire.append(mqtt),
            Self::Ws(ws) => {
                if ws.is_open && !mqtt.is_empty() {
                    ws.frame(OpCode::Data(Data::Binary), mqtt, wire);
                    mqtt.clear();
                }
            }
        }
    }

    /// Moves bytes from the wire to MQTT. Answers of the framing's own go to `wire`.
    ///
    /// # Errors
    /// The server speaks something else, or closes.
    pub fn unwrap(&mut self, raw: &mut BytesMut, mqtt: &mut BytesMut, wire: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            Self::Plain => {
                match mqtt.is_empty() {
                    true => std::mem::swap(raw, mqtt),
                    false => mqtt.extend_from_slice(raw),
                }
                raw.clear();
                Ok(())
            }
            Self::Ws(ws) => ws.unwrap(raw, mqtt, wire),
        }
    }
}

fn unreadable(text: impl Into<String>) -> Fault {
    Fault::Protocol(ProtocolError::Unreadable(text.into()))
}

impl Ws {
    fn unwrap(&mut self, raw: &mut BytesMut, mqtt: &mut BytesMut, wire: &mut Vec<u8>) -> Result<(), Fault> {
        if !self.is_open && !self.handshake(raw)? {
            return Ok(());
        }
        loop {
            let mut cursor = Cursor::new(&raw[..]);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|error| unreadable(error.to_string()))?;
            let Some((header, length)) = parsed else { return Ok(()) };
            if length > FRAME_BYTES_MAX {
                return Err(unreadable(format!("a frame of {length} bytes")));
            }
            let (head, length) = (cursor.position() as usize, length as usize);
            if raw.len() < head + length {
                return Ok(());
            }
            raw.advance(head);
            let payload = raw.split_to(length);
            match header.opcode {
                OpCode::Data(Data::Binary | Data::Continue) => mqtt.extend_from_slice(&payload),
                OpCode::Control(Control::Ping) => self.frame(OpCode::Control(Control::Pong), &payload, wire),
                OpCode::Control(Control::Pong) => {}
                OpCode::Control(Control::Close) => return Err(Fault::Closed),
                other => return Err(unreadable(format!("a frame of kind {other}"))),
            }
        }
    }

    /// `false`: the answer is not whole yet.
    fn handshake(&mut self, raw: &mut BytesMut) -> Result<bool, Fault> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(raw).map_err(|error| unreadable(error.to_string()))?;
        let httparse::Status::Complete(head) = parsed else {
            return match raw.len() > HEAD_BYTES_MAX {
                true => Err(unreadable("an endless answer to the WebSocket's request")),
                false => Ok(false),
            };
        };
        let status = response.code.unwrap_or(0);
        if status != 101 {
            return Err(Fault::Status(status));
        }
        let accept = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("sec-websocket-accept"));
        let expected = derive_accept_key(self.key.as_bytes());
        if accept.is_none_or(|header| header.value != expected.as_bytes()) {
            return Err(unreadable("the WebSocket was not accepted for what was asked"));
        }
        raw.advance(head);
        self.is_open = true;
        Ok(true)
    }

    fn frame(&mut self, opcode: OpCode, payload: &[u8], wire: &mut Vec<u8>) {
        let mask = self.chance.next_u32().to_be_bytes();
        let header = FrameHeader {
            opcode,
            mask: Some(mask),
            ..FrameHeader::default()
        };
        header
            .format(payload.len() as u64, wire)
            .expect("writing into memory does not fail");
        wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(payload: &[u8], opcode: u8) -> Vec<u8> {
        let mut out = vec![0x80 | opcode, payload.len() as u8];
        out.extend_from_slice(payload);
        out
    }

    fn opened() -> (Framing, BytesMut) {
        let mut framing = Framing::ws(Chance::new(1));
        let greeting = framing.greeting("h:1").unwrap();
        let key = greeting.split("Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
        let answer = format!(
            "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        let (mut raw, mut mqtt, mut wire) = (BytesMut::new(), BytesMut::new(), Vec::new());
        // The answer may come in pieces.
        raw.extend_from_slice(&answer.as_bytes()[..10]);
        framing.unwrap(&mut raw, &mut mqtt, &mut wire).unwrap();
        assert!(!framing.is_open());
        raw.extend_from_slice(&answer.as_bytes()[10..]);
        framing.unwrap(&mut raw, &mut mqtt, &mut wire).unwrap();
        assert!(framing.is_open());
        (framing, raw)
    }

    #[test]
    fn frames_are_opened_and_pings_answered() {
        let (mut framing, mut raw) = opened();
        let (mut mqtt, mut wire) = (BytesMut::new(), Vec::new());
        raw.extend_from_slice(&server_frame(b"abc", 2));
        raw.extend_from_slice(&server_frame(b"p", 9));
        raw.extend_from_slice(&server_frame(b"def", 2)[..3]);
        framing.unwrap(&mut raw, &mut mqtt, &mut wire).unwrap();
        raw.extend_from_slice(&server_frame(b"def", 2)[3..]);
        framing.unwrap(&mut raw, &mut mqtt, &mut wire).unwrap();
        assert_eq!(&mqtt[..], b"abcdef");
        assert_eq!((wire[0], wire[1]), (0x8a, 0x81));
        raw.extend_from_slice(&server_frame(b"", 8));
        assert!(matches!(
            framing.unwrap(&mut raw, &mut mqtt, &mut wire),
            Err(Fault::Closed)
        ));
    }

    #[test]
    fn what_is_sent_is_masked() {
        let (mut framing, _) = opened();
        let (mut mqtt, mut wire) = (b"hello".to_vec(), Vec::new());
        framing.wrap(&mut mqtt, &mut wire);
        assert!(mqtt.is_empty());
        assert_eq!((wire[0], wire[1]), (0x82, 0x85));
        let plain: Vec<u8> = wire[6..]
            .iter()
            .zip(wire[2..6].iter().cycle())
            .map(|(b, m)| b ^ m)
            .collect();
        assert_eq!(plain, b"hello");
    }

    #[test]
    fn other_answers_are_faults() {
        for (answer, status) in [
            ("HTTP/1.1 426 x\r\n\r\n", Some(426)),
            ("HTTP/1.1 101 x\r\n\r\n", None),
            ("nonsense\r\n\r\n", None),
        ] {
            let mut framing = Framing::ws(Chance::new(1));
            let mut raw = BytesMut::from(answer);
            match framing.unwrap(&mut raw, &mut BytesMut::new(), &mut Vec::new()) {
                Err(Fault::Status(found)) => assert_eq!(Some(found), status),
                Err(_) => assert_eq!(status, None),
                Ok(()) => panic!("{answer}"),
            }
        }
    }
}
