//! A device that waits for messages: raw MQTT, so that packet ids, DUP and the answer to each
//! message are in the test's hand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::raw::{packet, subscribe, text, Raw};

/// How a device connects.
#[derive(Clone, Copy, Debug)]
pub struct Login {
    pub version: u8,
    pub clean: bool,
    /// MQTT 5 only; 0 leaves the server's bound.
    pub receive_maximum: u16,
}

impl Login {
    /// MQTT 5, with a session that goes on.
    pub const RESUMED: Login = Login {
        version: 5,
        clean: false,
        receive_maximum: 0,
    };
    /// MQTT 3.1.1, clean.
    pub const CLEAN: Login = Login {
        version: 4,
        clean: true,
        receive_maximum: 0,
    };

    fn packet(self, id: &str) -> Vec<u8> {
        let mut body = text("MQTT");
        body.extend([self.version, if self.clean { 0x02 } else { 0 }]);
        body.extend(60_u16.to_be_bytes());
        if self.version == 5 {
            // Session Expiry Interval: an hour.
            let mut properties = vec![0x11, 0, 0, 0x0e, 0x10];
            if self.receive_maximum > 0 {
                properties.push(0x21);
                properties.extend(self.receive_maximum.to_be_bytes());
            }
            body.push(properties.len() as u8);
            body.extend(properties);
        }
        body.extend(text(id));
        packet(0x10, &body)
    }
}

/// A PUBLISH as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub message_id: String,
    pub packet_id: u16,
    pub dup: bool,
    /// MQTT 5, undecoded.
    pub properties: Vec<u8>,
    pub payload: Vec<u8>,
}

pub struct Mailbox {
    raw: Raw,
    login: Login,
    pub session_present: bool,
}

impl Mailbox {
    /// `None`: the server did not let it in, for now.
    pub fn try_open(address: SocketAddr, id: &str, login: Login) -> Option<Self> {
        let mut raw = Raw::try_open(address)?;
        raw.send(&login.packet(id));
        let (first, body) = raw.next_packet()?;
        let accepted = first == 0x20 && body.get(1) == Some(&0);
        accepted.then(|| Self {
            raw,
            login,
            session_present: body[0] == 1,
        })
    }

    /// # Panics
    /// When the server does not let it in.
    pub fn open(address: SocketAddr, id: &str, login: Login) -> Self {
        Self::try_open(address, id, login).unwrap_or_else(|| panic!("{address} lets {id} in"))
    }

    /// As [`Self::open`], subscribed to its messages.
    ///
    /// # Panics
    /// When either is refused.
    pub fn subscribed(address: SocketAddr, id: &str, login: Login) -> Self {
        let mut mailbox = Self::open(address, id, login);
        mailbox.subscribe(&format!("devices/{id}/messages/+"), 1);
        mailbox
    }

    /// # Panics
    /// When it is refused.
    pub fn subscribe(&mut self, filter: &str, qos: u8) {
        assert!(self.try_subscribe(filter, qos), "{filter} is granted");
    }

    pub fn try_subscribe(&mut self, filter: &str, qos: u8) -> bool {
        self.raw.send(&subscribe(self.login.version, 1, filter, qos));
        let suback = self.raw.next_packet();
        suback.is_some_and(|(first, body)| first == 0x90 && body.last().is_some_and(|code| *code < 0x80))
    }

    /// The next message; `None` when the connection ended.
    ///
    /// # Panics
    /// When nothing comes, or something that is no PUBLISH.
    pub fn take(&mut self) -> Option<Delivery> {
        let (first, body) = self.raw.next_packet()?;
        if first == 0xe0 {
            return None;
        }
        assert_eq!(first & 0xf0, 0x30, "a PUBLISH expected: {first:#x} {body:?}");
        Some(self.delivery(first, &body))
    }

    /// As [`Self::next`], but gives up once `stop` is set, and takes any silence for an end.
    pub fn next_until(&mut self, stop: &AtomicBool) -> Option<Delivery> {
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some((first, body)) = self.raw.poll_packet()? {
                return (first & 0xf0 == 0x30).then(|| self.delivery(first, &body));
            }
        }
    }

    fn delivery(&self, first: u8, body: &[u8]) -> Delivery {
        let (topic_len, rest) = body.split_at(2);
        let (topic, mut rest) = rest.split_at(usize::from(u16::from_be_bytes([topic_len[0], topic_len[1]])));
        let mut packet_id = 0;
        if first & 0x06 != 0 {
            packet_id = u16::from_be_bytes([rest[0], rest[1]]);
            rest = &rest[2..];
        }
        let mut properties = Vec::new();
        if self.login.version == 5 {
            let (length, header) = variable(rest);
            properties = rest[header..header + length].to_vec();
            rest = &rest[header + length..];
        }
        let topic = String::from_utf8_lossy(topic);
        Delivery {
            message_id: topic.rsplit('/').next().unwrap_or_default().to_owned(),
            packet_id,
            dup: first & 0x08 != 0,
            properties,
            payload: rest.to_vec(),
        }
    }

    pub fn acknowledge(&mut self, delivery: &Delivery) {
        self.raw.send(&packet(0x40, &delivery.packet_id.to_be_bytes()));
    }

    /// PUBACK with a reason code; MQTT 5.
    pub fn reject(&mut self, delivery: &Delivery, reason: u8) {
        let [high, low] = delivery.packet_id.to_be_bytes();
        self.raw.send(&packet(0x40, &[high, low, reason]));
    }

    /// Whether the server answers a PINGREQ before anything else: nothing is on its way.
    pub fn is_quiet(&mut self) -> bool {
        self.raw.send(&packet(0xc0, &[]));
        self.raw.next_packet().is_some_and(|(first, _)| first == 0xd0)
    }

    /// Says goodbye and waits until the server has closed.
    pub fn leave(mut self) {
        self.raw.send(&packet(0xe0, &[]));
        self.raw.until_closed();
    }
}

/// A variable byte integer and its length.
fn variable(bytes: &[u8]) -> (usize, usize) {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return (value, at + 1);
        }
    }
    (value, 4)
}
