//! The bytes of a handshake: `magic 8 | version u16 | tag u8 | len u16 | body`, little-endian.
//!
//! Parsing only. Who may come in is decided in `handshake`.

use std::io;

use actors::id::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::handshake::{HandshakeError, Refusal};
use super::Class;

/// Not a prefix of anything another protocol says; the line end shows text-mode mangling.
pub const MAGIC: [u8; 8] = *b"HFPEER\r\n";
pub const PROTOCOL_VERSION: u16 = 1;
/// Longest body of a handshake message.
pub const HANDSHAKE_BYTES_MAX: usize = 1024;
const PRELUDE_LEN: usize = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    Hello = 1,
    Proof = 2,
    Welcome = 3,
    Refused = 4,
}

impl Tag {
    fn of(byte: u8) -> Option<Self> {
        [Self::Hello, Self::Proof, Self::Welcome, Self::Refused]
            .into_iter()
            .find(|tag| *tag as u8 == byte)
    }
}

/// What a side says of itself before it proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub cluster_id: String,
    pub node: NodeId,
    pub uuid: u128,
    pub boot: u64,
    /// Which start of its directory this run is, from 1: an older copy put back is behind.
    pub starts: u64,
    /// It takes no part in any group; see [`super::Class::Device`].
    pub quarantined: bool,
    pub class: Class,
    pub nonce: [u8; 16],
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(59 + self.cluster_id.len());
        out.extend_from_slice(&self.node.to_le_bytes());
        out.extend_from_slice(&self.uuid.to_le_bytes());
        out.extend_from_slice(&self.boot.to_le_bytes());
        out.extend_from_slice(&self.starts.to_le_bytes());
        out.push(u8::from(self.quarantined));
        out.push(self.class.byte());
        out.extend_from_slice(&self.nonce);
        out.push(u8::try_from(self.cluster_id.len()).expect("checked at start: at most 255 bytes"));
        out.extend_from_slice(self.cluster_id.as_bytes());
        out
    }

    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let node = u64::from_le_bytes(take(&mut bytes)?);
        let uuid = u128::from_le_bytes(take(&mut bytes)?);
        let boot = u64::from_le_bytes(take(&mut bytes)?);
        let starts = u64::from_le_bytes(take(&mut bytes)?);
        let [quarantined] = take(&mut bytes)?;
        let [class] = take(&mut bytes)?;
        let nonce = take(&mut bytes)?;
        let [len] = take(&mut bytes)?;
        if bytes.len() != usize::from(len) {
            return None;
        }
        let cluster_id = std::str::from_utf8(bytes).ok()?.to_owned();
        Some(Self {
            cluster_id,
            node,
            uuid,
            boot,
            starts,
            quarantined: match quarantined {
                0 => false,
                1 => true,
                _ => return None,
            },
            class: Class::of(class)?,
            nonce,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// Appends one handshake message.
pub fn put(out: &mut Vec<u8>, tag: Tag, body: &[u8]) {
    put_version(out, PROTOCOL_VERSION, tag, body);
}

pub fn put_version(out: &mut Vec<u8>, version: u16, tag: Tag, body: &[u8]) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
    out.push(tag as u8);
    out.extend_from_slice(
        &u16::try_from(body.len())
            .expect("handshake bodies are short")
            .to_le_bytes(),
    );
    out.extend_from_slice(body);
}

/// Writes one or more handshake messages.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads one handshake message, of the tag that is due.
///
/// # Errors
/// `RefusedByPeer` when the other side sends its refusal instead; else what is wrong with the bytes.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin), due: Tag) -> Result<Vec<u8>, HandshakeError> {
    match receive_any(stream).await? {
        (Tag::Refused, body) => Err(HandshakeError::RefusedByPeer(refusal_of(&body))),
        (tag, body) if tag == due => Ok(body),
        _ => Err(Refusal::Malformed.into()),
    }
}

/// What a refusal's first byte says.
pub fn refusal_of(body: &[u8]) -> Refusal {
    body.first()
        .and_then(|byte| Refusal::of(*byte))
        .unwrap_or(Refusal::Malformed)
}

/// Reads one handshake message of any tag.
///
/// # Errors
/// What is wrong with the bytes.
pub async fn receive_any(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Tag, Vec<u8>), HandshakeError> {
    let mut prelude = [0; PRELUDE_LEN];
    // The magic first: a stranger's short greeting must be refused, not waited on.
    stream.read_exact(&mut prelude[..MAGIC.len()]).await?;
    if prelude[..MAGIC.len()] != MAGIC {
        return Err(Refusal::Magic.into());
    }
    stream.read_exact(&mut prelude[MAGIC.len()..]).await?;
    if u16::from_le_bytes([prelude[8], prelude[9]]) != PROTOCOL_VERSION {
        return Err(Refusal::Version.into());
    }
    let len = usize::from(u16::from_le_bytes([prelude[11], prelude[12]]));
    let tag = Tag::of(prelude[10])
        .filter(|_| len <= HANDSHAKE_BYTES_MAX)
        .ok_or(Refusal::Malformed)?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok((tag, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_hello_reads_back_and_any_bytes_are_refused_or_read(
            node in any::<u64>(), uuid in any::<u128>(), boot in any::<u64>(), starts in any::<u64>(), quarantined in any::<bool>(), nonce in any::<[u8; 16]>(),
            cluster_id in "[a-z]{0,30}", noise in prop::collection::vec(any::<u8>(), 0..120)
        ) {
            let hello = Hello { cluster_id, node, uuid, boot, starts, quarantined, class: Class::Device, nonce };
            prop_assert_eq!(Hello::decode(&hello.encode()), Some(hello.clone()));
            let mut longer = hello.encode();
            longer.push(0);
            prop_assert_eq!(Hello::decode(&longer), None);
            let _ = Hello::decode(&noise);
        }
    }
}
