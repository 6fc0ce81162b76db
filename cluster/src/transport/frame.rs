//! Frames: `len u32 | crc32c u32 | payload`, little-endian, on an authenticated stream.
//!
//! The checksum covers the connection's key, the direction, the frame's number and the payload: a
//! frame that was altered, cut, repeated, reordered or recorded on another connection fails. It
//! finds damage and replay; it does not stop somebody who can compute with the traffic they see
//! (that is TLS, below this). What the payload means is not known here.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

pub const FRAME_HEADER_LEN: usize = 8;
/// Room a read asks for at least.
const READ_BYTES: usize = 64 << 10;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromDialer,
    FromAcceptor,
}

/// Numbers and checks the frames of one direction of one connection.
pub struct Checker {
    key: [u8; 16],
    direction: Direction,
    next: u64,
}

impl Checker {
    pub fn new(key: [u8; 16], direction: Direction) -> Self {
        Self {
            key,
            direction,
            next: 0,
        }
    }

    fn checksum(&mut self, payload: &[u8]) -> u32 {
        let mut seed = [0; 25];
        seed[..16].copy_from_slice(&self.key);
        seed[16] = self.direction as u8;
        seed[17..].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        crc32c::crc32c_append(crc32c::crc32c(&seed), payload)
    }

    /// Fills in the header of `frame`, whose payload begins after [`FRAME_HEADER_LEN`] bytes of room.
    pub fn seal(&mut self, frame: &mut [u8]) {
        let (header, payload) = frame.split_at_mut(FRAME_HEADER_LEN);
        let len = u32::try_from(payload.len()).expect("frames are bounded far below 4 GiB");
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4..].copy_from_slice(&self.checksum(payload).to_le_bytes());
    }
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("frame checksum does not match")]
    Checksum,
    #[error("frame of {0} bytes is longer than allowed")]
    Oversized(usize),
    #[error("empty frame")]
    Empty,
    #[error("stream ended inside a frame")]
    Truncated,
    #[error("read failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads frames off a stream, many per read where many have come.
pub struct FrameReader<R> {
    stream: R,
    checker: Checker,
    buffer: BytesMut,
    payload_bytes_max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R, checker: Checker, payload_bytes_max: usize) -> Self {
        Self {
            stream,
            checker,
            buffer: BytesMut::new(),
            payload_bytes_max,
        }
    }

    /// The next frame's payload; `None` when the stream ended between two frames.
    ///
    /// # Errors
    /// The connection is of no more use and must be closed.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            let missing = match self.complete()? {
                Ok(payload) => return Ok(Some(payload)),
                Err(missing) => missing,
            };
            self.buffer.reserve(missing.max(READ_BYTES));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(ReadError::Truncated)
                };
            }
        }
    }

    /// A frame that is wholly in the buffer, or how many bytes it still lacks.
    fn complete(&mut self) -> Result<Result<Bytes, usize>, ReadError> {
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(Err(FRAME_HEADER_LEN - self.buffer.len()));
        };
        let [a, b, c, d, w, x, y, z] = *header;
        let (len, checksum) = (
            u32::from_le_bytes([a, b, c, d]) as usize,
            u32::from_le_bytes([w, x, y, z]),
        );
        // Before any room is made for it.
        if len > self.payload_bytes_max {
            return Err(ReadError::Oversized(len));
        }
        if len == 0 {
            return Err(ReadError::Empty);
        }
        let whole = FRAME_HEADER_LEN + len;
        if self.buffer.len() < whole {
            return Ok(Err(whole - self.buffer.len()));
        }
        let payload = self.buffer.split_to(whole).freeze().slice(FRAME_HEADER_LEN..);
        if self.checker.checksum(&payload) != checksum {
            return Err(ReadError::Checksum);
        }
        Ok(Ok(payload))
    }
}
