//! Messages inside a frame: `kind u8 | flags u8 | correlation u64 | len u32 | body`, little-endian.
//!
//! A frame holds one or more, back to back; nothing of another shape.

use bytes::Bytes;

pub const MESSAGE_HEADER_LEN: usize = 14;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    Request = 0,
    Notice = 1,
    Answer = 2,
    /// The handler will not answer this request.
    NoAnswer = 3,
    Ping = 4,
    Pong = 5,
}

impl Role {
    fn of(flags: u8) -> Option<Self> {
        Some(match flags {
            0 => Self::Request,
            1 => Self::Notice,
            2 => Self::Answer,
            3 => Self::NoAnswer,
            4 => Self::Ping,
            5 => Self::Pong,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub role: Role,
    /// 0 for what needs no answer.
    pub correlation: u64,
}

/// A frame whose checksum is right and whose content is not: the peer runs another program.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Appends a message. The caller has checked that `body` fits a frame.
pub fn put(out: &mut Vec<u8>, header: Header, body: &[u8]) {
    let len = u32::try_from(body.len()).expect("bodies are bounded by the frame, far below 4 GiB");
    let mut head = [0; MESSAGE_HEADER_LEN];
    head[0] = header.kind;
    head[1] = header.role as u8;
    head[2..10].copy_from_slice(&header.correlation.to_le_bytes());
    head[10..].copy_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(body);
}

/// The messages of a frame; bodies are slices of it, not copies.
pub struct Messages(pub Bytes);

impl Iterator for Messages {
    type Item = Result<(Header, Bytes), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        Some(self.parse())
    }
}

impl Messages {
    fn parse(&mut self) -> Result<(Header, Bytes), Malformed> {
        let head: &[u8; MESSAGE_HEADER_LEN] = self.0.first_chunk().ok_or(Malformed)?;
        let role = Role::of(head[1]).ok_or(Malformed)?;
        let correlation = u64::from_le_bytes(head[2..10].try_into().map_err(|_| Malformed)?);
        let len = u32::from_le_bytes(head[10..].try_into().map_err(|_| Malformed)?) as usize;
        let header = Header {
            kind: head[0],
            role,
            correlation,
        };
        if self.0.len() - MESSAGE_HEADER_LEN < len {
            return Err(Malformed);
        }
        let mut message = self.0.split_to(MESSAGE_HEADER_LEN + len);
        Ok((header, message.split_off(MESSAGE_HEADER_LEN)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_is_parsed_back(
            bodies in prop::collection::vec((any::<u8>(), 0u8..6, any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)), 1..20)
        ) {
            let mut out = Vec::new();
            for (kind, role, correlation, body) in &bodies {
                let role = Role::of(*role).unwrap();
                put(&mut out, Header { kind: *kind, role, correlation: *correlation }, body);
            }
            let back: Vec<_> = Messages(out.into()).map(|m| m.unwrap()).collect();
            prop_assert_eq!(back.len(), bodies.len());
            for ((header, body), (kind, role, correlation, expected)) in back.iter().zip(&bodies) {
                prop_assert_eq!((header.kind, header.role as u8, header.correlation), (*kind, *role, *correlation));
                prop_assert_eq!(&body[..], &expected[..]);
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            // An error ends the connection, so nobody iterates past one.
            let total: usize = Messages(bytes.clone().into()).map_while(Result::ok).map(|(_, b)| b.len() + MESSAGE_HEADER_LEN).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}
