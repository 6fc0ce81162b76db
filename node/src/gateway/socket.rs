//! Bytes in and out of one connection, with bounds; knows packets only by their length.
//!
//! An idle connection holds no buffer: they are allocated by need and freed once empty.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes one read asks for.
const READ_BYTES: usize = 16 * 1024;
pub struct Socket<S> {
    stream: S,
    pub input: BytesMut,
    pub output: BytesMut,
    /// The peer sends nothing more: it closed, or the connection failed.
    pub ended: bool,
}

/// What is at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// Not even a whole fixed header.
    Partial,
    /// A packet with this first byte; `whole` when all of it is here.
    Packet {
        first: u8,
        header: usize,
        remaining: u32,
        whole: bool,
    },
    /// A remaining length of more than four bytes.
    Malformed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            ended: false,
        }
    }

    /// Reads once; `Ready` with the number of bytes (0: the end).
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.ended {
            return Poll::Pending;
        }
        let mut space = [std::mem::MaybeUninit::uninit(); READ_BYTES];
        let mut into = ReadBuf::uninit(&mut space);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut into);
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if into.filled().is_empty() => {
                self.ended = true;
                Poll::Ready(0)
            }
            Poll::Ready(Ok(())) => {
                self.input.extend_from_slice(into.filled());
                Poll::Ready(into.filled().len())
            }
            Poll::Ready(Err(_)) => {
                self.ended = true;
                Poll::Ready(0)
            }
        }
    }

    /// Writes what it can; `Ready` when the output is empty or can never be written.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.output.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        self.output = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Frees the input buffer when nothing is in it.
    pub fn relax(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 0 {
            self.input = BytesMut::new();
        }
    }

    /// Bytes that both buffers take.
    pub fn buffered(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// Looks at the front of the input without consuming it.
    pub fn front(&self) -> Front {
        front(&self.input)
    }

    /// Flushes, says that nothing more comes, and waits briefly for the peer to do the same: a
    /// reset makes some SDKs give up for good.
    pub async fn close_gently(mut self, linger: Duration) {
        let goodbye = async {
            if poll_fn(|cx| self.poll_flush(cx)).await.is_err() {
                return;
            }
            if poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx))
                .await
                .is_err()
            {
                return;
            }
            while !self.ended {
                self.input.clear();
                poll_fn(|cx| self.poll_fill(cx)).await;
            }
        };
        // A peer that reads nothing, or never stops sending, is cut off.
        let _ = tokio::time::timeout(linger, goodbye).await;
        self.relax();
    }
}

pub fn front(input: &[u8]) -> Front {
    let Some((&first, rest)) = input.split_first() else {
        return Front::Partial;
    };
    let mut remaining = 0u32;
    for (at, byte) in rest.iter().take(4).enumerate() {
        remaining |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let header = at + 2;
            return Front::Packet {
                first,
                header,
                remaining,
                whole: input.len() - header >= remaining as usize,
            };
        }
    }
    if rest.len() >= 4 {
        Front::Malformed
    } else {
        Front::Partial
    }
}
