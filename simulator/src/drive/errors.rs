//! How a connection or an attempt at one ended, in one word each for counters and histories.

use std::fmt;
use std::io;

use crate::protocol::ProtocolError;

#[derive(Debug)]
pub enum Fault {
    /// Nobody listens there.
    Refused,
    /// No answer to TCP connect, CONNECT, or the WebSocket's request in time.
    ConnectTimeout,
    /// CONNACK with this code; final: real devices do not come back.
    ConnectRefused {
        code: u8,
        is_final: bool,
    },
    /// The server closed without a word.
    Closed,
    Reset,
    /// DISCONNECT with this reason.
    Disconnected(u8),
    /// Something awaited did not come for `ack_timeout`.
    Silent,
    Protocol(ProtocolError),
    /// The request for a WebSocket or over HTTP was answered with this status.
    Status(u16),
    /// No descriptors or ports left on this machine.
    Exhausted(io::Error),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Self::Exhausted(error),
            _ if matches!(error.raw_os_error(), Some(23 | 24)) => Self::Exhausted(error),
            _ => Self::Io(error),
        }
    }
}

impl From<ProtocolError> for Fault {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl Fault {
    /// A number for histories: the code of the protocol, or one of our own from 1000.
    pub fn code(&self) -> u16 {
        match self {
            Self::ConnectRefused { code, .. } | Self::Disconnected(code) => u16::from(*code),
            Self::Status(status) => *status,
            Self::Refused => 1_001,
            Self::ConnectTimeout => 1_002,
            Self::Closed => 1_003,
            Self::Reset => 1_004,
            Self::Silent => 1_005,
            Self::Protocol(_) => 1_006,
            Self::Exhausted(_) => 1_007,
            Self::Io(_) => 1_008,
        }
    }

    pub fn is_final(&self) -> bool {
        matches!(self, Self::ConnectRefused { is_final: true, .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::ConnectTimeout => f.write_str("connect timed out"),
            Self::ConnectRefused { code, is_final: false } => write!(f, "CONNACK 0x{code:02X}, come back later"),
            Self::ConnectRefused { code, is_final: true } => write!(f, "CONNACK 0x{code:02X}, for good"),
            Self::Closed => f.write_str("closed by the server"),
            Self::Reset => f.write_str("reset"),
            Self::Disconnected(code) => write!(f, "DISCONNECT 0x{code:02X}"),
            Self::Silent => f.write_str("no answer for ack_timeout"),
            Self::Protocol(_) => f.write_str("unreadable packet"),
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::Exhausted(_) => f.write_str("no descriptors or ports left here"),
            Self::Io(error) => write!(f, "{:?}", error.kind()),
        }
    }
}
