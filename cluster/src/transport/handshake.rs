//! Who is at the other end: both sides prove that they know the cluster's secret, now.
//!
//! dialer → `Hello`; acceptor → `Hello`, `Proof`; dialer → `Proof`; acceptor → `Welcome`. A dialer
//! that does not want whom it reached sends a proof of its refusal instead. A proof
//! is an HMAC over the role and both hellos, which hold the nonces, the cluster, both nodes, their
//! uuids, starts and boots, the class; the version is in its label. Recorded proofs are worthless: the other side's nonce is new.
//! Knows nothing of frames or of what is spoken afterwards.

use std::io;

use actors::id::NodeId;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::hello::{self, Hello, Tag, PROTOCOL_VERSION};
use super::{Admission, Class, PeerLedger, Run, TransportConfig};
use crate::faults::Entry;

/// Why a connection was refused; told to the other side, so never a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("not a peer of this protocol")]
    Magic = 1,
    #[error("protocol version is not spoken here")]
    Version = 2,
    #[error("another cluster")]
    Cluster = 3,
    #[error("proof does not match the cluster's secret, or was replayed")]
    Secret = 4,
    #[error("node is not a member")]
    UnknownNode = 5,
    #[error("node has this node's own id")]
    OwnId = 6,
    #[error("node id was seen with another directory")]
    Ledger = 7,
    #[error("malformed handshake")]
    Malformed = 8,
    #[error("another node than the one dialed")]
    WrongNode = 9,
    #[error("an older copy of the node's directory, or a copy of it, was started")]
    OlderCopy = 10,
    #[error("a quarantined node takes no part in any group")]
    Quarantined = 11,
}

impl Refusal {
    pub const COUNT: usize = 11;
    pub const ALL: [Refusal; Self::COUNT] = [
        Self::Magic,
        Self::Version,
        Self::Cluster,
        Self::Secret,
        Self::UnknownNode,
        Self::OwnId,
        Self::Ledger,
        Self::Malformed,
        Self::WrongNode,
        Self::OlderCopy,
        Self::Quarantined,
    ];

    pub fn index(self) -> usize {
        self as usize - 1
    }

    /// A short name for metrics and log topics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Magic => "magic",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Secret => "secret",
            Self::UnknownNode => "unknown_node",
            Self::OwnId => "own_id",
            Self::Ledger => "ledger",
            Self::Malformed => "malformed",
            Self::WrongNode => "wrong_node",
            Self::OlderCopy => "older_copy",
            Self::Quarantined => "quarantined",
        }
    }

    pub(super) fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == byte)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refusal),
    /// Not by whoever happened to answer: the peer had proven itself before.
    #[error("disowned by the peer: {0}")]
    Disowned(Refusal),
    #[error("handshake broke off: {0}")]
    Io(#[from] io::Error),
    #[error("handshake did not finish in time")]
    TimedOut,
}

/// Both ends know each other, and share a key for the frames of this connection.
#[derive(Debug)]
pub struct Established {
    pub peer: NodeId,
    pub boot: u64,
    pub class: Class,
    pub key: [u8; 16],
}

#[derive(Clone, Copy)]
enum Side {
    Dialer = 1,
    Acceptor = 2,
}

/// The dialer's part.
///
/// # Errors
/// After a refusal the stream is to be dropped; the other side has been told why.
pub async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    config: &TransportConfig,
    peer: NodeId,
    class: Class,
    ledger: &dyn PeerLedger,
) -> Result<Established, HandshakeError> {
    let mine = hello_of(config, class);
    let mut out = Vec::new();
    hello::put(&mut out, Tag::Hello, &mine);
    hello::send(stream, &out).await?;
    let mut disowning = None;
    let verdict = async {
        let theirs = hello::receive(stream, Tag::Hello).await?;
        let hello = Hello::decode(&theirs).ok_or(Refusal::Malformed)?;
        check(config, &hello)?;
        if hello.node != peer || hello.class != class {
            return Err(Refusal::WrongNode.into());
        }
        let transcript = Transcript {
            secret: &config.secret.0,
            dialer: &mine,
            acceptor: &theirs,
        };
        transcript.verify(Side::Acceptor, &hello::receive(stream, Tag::Proof).await?)?;
        if let Err(reason) = admit(ledger, &hello) {
            // The other side lost its directory, it may be; it must be able to believe that.
            disowning = Some(transcript.prove_refusal(reason));
            return Err(reason.into());
        }
        Ok((transcript.prove(Side::Dialer), transcript.key(), hello))
    };
    let verdict = verdict.await;
    let (proof, key, hello) = told(verdict, stream, disowning.as_deref()).await?;
    out.clear();
    hello::put(&mut out, Tag::Proof, &proof);
    hello::send(stream, &out).await?;
    match hello::receive(stream, Tag::Welcome).await {
        Err(HandshakeError::RefusedByPeer(reason)) => return Err(HandshakeError::Disowned(reason)),
        welcome => welcome?,
    };
    Ok(Established {
        peer,
        boot: hello.boot,
        class,
        key,
    })
}

/// The acceptor's part; `member` says who may come in. Who is no member is heard out all the same:
/// a node that has forgotten its cluster is told so by those it does not know any more.
///
/// # Errors
/// As [`dial`].
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    config: &TransportConfig,
    member: impl Fn(NodeId) -> bool,
    ledger: &dyn PeerLedger,
) -> Result<Established, HandshakeError> {
    let verdict = async {
        let theirs = hello::receive(stream, Tag::Hello).await?;
        let hello = Hello::decode(&theirs).ok_or(Refusal::Malformed)?;
        check(config, &hello)?;
        match config.faults.wire(hello.node).entry() {
            Entry::Open => {}
            Entry::Refused => return Err(HandshakeError::Io(std::io::ErrorKind::ConnectionReset.into())),
            // Not a word comes back; the caller's patience ends it.
            Entry::Vanishes => std::future::pending().await,
        }
        let mine = hello_of(config, hello.class);
        let transcript = Transcript {
            secret: &config.secret.0,
            dialer: &theirs,
            acceptor: &mine,
        };
        let mut out = Vec::new();
        hello::put(&mut out, Tag::Hello, &mine);
        hello::put(&mut out, Tag::Proof, &transcript.prove(Side::Acceptor));
        hello::send(stream, &out).await?;
        match hello::receive_any(stream).await? {
            (Tag::Proof, proof) => transcript.verify(Side::Dialer, &proof)?,
            (Tag::Refused, refusal) => return Err(transcript.refused(&refusal, &hello, ledger)),
            _ => return Err(Refusal::Malformed.into()),
        }
        if !member(hello.node) {
            return Err(Refusal::UnknownNode.into());
        }
        admit(ledger, &hello)?;
        Ok(Established {
            peer: hello.node,
            boot: hello.boot,
            class: hello.class,
            key: transcript.key(),
        })
    };
    let established = told(verdict.await, stream, None).await?;
    let mut out = Vec::new();
    hello::put(&mut out, Tag::Welcome, &[]);
    hello::send(stream, &out).await?;
    Ok(established)
}

fn hello_of(config: &TransportConfig, class: Class) -> Vec<u8> {
    let hello = Hello {
        cluster_id: config.cluster_id.clone(),
        node: config.node_id,
        uuid: config.node_uuid,
        boot: config.boot,
        starts: config.starts,
        quarantined: config.quarantined,
        class,
        nonce: (config.nonces)(),
    };
    hello.encode()
}

fn check(config: &TransportConfig, theirs: &Hello) -> Result<(), Refusal> {
    if theirs.cluster_id != config.cluster_id {
        return Err(Refusal::Cluster);
    }
    if theirs.node == config.node_id {
        return Err(Refusal::OwnId);
    }
    if (config.quarantined || theirs.quarantined) && theirs.class != Class::Device {
        return Err(Refusal::Quarantined);
    }
    Ok(())
}

/// A quarantined node's directory proves nothing, and nothing is believed because of it.
fn admit(ledger: &dyn PeerLedger, hello: &Hello) -> Result<(), Refusal> {
    if hello.quarantined {
        return Ok(());
    }
    let run = Run {
        uuid: hello.uuid,
        starts: hello.starts,
        boot: hello.boot,
    };
    match ledger.admit(hello.node, run) {
        Admission::Admitted => Ok(()),
        Admission::OtherDirectory => Err(Refusal::Ledger),
        Admission::OlderCopy => Err(Refusal::OlderCopy),
    }
}

/// Tells the other side of a refusal of ours, as far as it still listens.
async fn told<T>(
    verdict: Result<T, HandshakeError>,
    stream: &mut (impl AsyncWrite + Unpin),
    proof: Option<&[u8]>,
) -> Result<T, HandshakeError> {
    if let Err(HandshakeError::Refused(reason)) = &verdict {
        let mut out = Vec::new();
        let refusal = [&[*reason as u8], proof.unwrap_or_default()].concat();
        hello::put(&mut out, Tag::Refused, &refusal);
        if hello::send(stream, &out).await.is_ok() {
            stream.shutdown().await.ok();
        }
    }
    verdict
}

/// All that both sides have said, in full.
struct Transcript<'a> {
    secret: &'a [u8],
    dialer: &'a [u8],
    acceptor: &'a [u8],
}

impl Transcript<'_> {
    fn mac(&self, purpose: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret).expect("HMAC takes keys of any length");
        mac.update(b"holdfast peer ");
        mac.update(&PROTOCOL_VERSION.to_le_bytes());
        mac.update(purpose);
        for hello in [self.dialer, self.acceptor] {
            mac.update(&(hello.len() as u64).to_le_bytes());
            mac.update(hello);
        }
        mac
    }

    fn prove(&self, side: Side) -> Vec<u8> {
        self.mac(&[b'P', side as u8]).finalize().into_bytes().to_vec()
    }

    fn prove_refusal(&self, reason: Refusal) -> Vec<u8> {
        self.mac(&[b'R', reason as u8]).finalize().into_bytes().to_vec()
    }

    /// What the dialer's refusal means. One that is proven is by a node of this cluster, which is
    /// then known to exist.
    fn refused(&self, refusal: &[u8], dialer: &Hello, ledger: &dyn PeerLedger) -> HandshakeError {
        let reason = hello::refusal_of(refusal);
        let proof = refusal.get(1..).unwrap_or_default();
        if self.mac(&[b'R', reason as u8]).verify_slice(proof).is_err() {
            return HandshakeError::RefusedByPeer(reason);
        }
        let _ = admit(ledger, dialer);
        HandshakeError::Disowned(reason)
    }

    fn verify(&self, side: Side, proof: &[u8]) -> Result<(), Refusal> {
        self.mac(&[b'P', side as u8])
            .verify_slice(proof)
            .map_err(|_| Refusal::Secret)
    }

    fn key(&self) -> [u8; 16] {
        let full: [u8; 32] = self.mac(b"K0").finalize().into_bytes().into();
        *full.first_chunk().expect("32 bytes hold 16")
    }
}
