//! What waits to be written on one connection, already in frames; and the loop that writes it.
//!
//! Messages are encoded once, into the frame they travel in. While a write is under way the next
//! frame fills up, so load makes frames larger and writes fewer, without a timer.

use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::config::FRAME_BYTES_SOFT;
use super::counters::{add, count, Counters};
use super::frame::{Checker, FRAME_HEADER_LEN};
use super::message::{put, Header, MESSAGE_HEADER_LEN};

pub struct Chunk {
    frame: Vec<u8>,
    /// The newest request in it, by its number.
    pub last_request: u64,
}

/// Bounded by bytes. Not locked here.
pub struct Outbox {
    chunks: VecDeque<Chunk>,
    /// Of all chunks, and of the one being written.
    bytes: usize,
    bytes_max: usize,
    payload_bytes_max: usize,
    spare: Vec<u8>,
}

impl Outbox {
    pub fn new(bytes_max: usize, payload_bytes_max: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            bytes: 0,
            bytes_max,
            payload_bytes_max,
            spare: Vec::new(),
        }
    }

    pub fn fits(&self, body_len: usize) -> bool {
        self.bytes + MESSAGE_HEADER_LEN + body_len <= self.bytes_max
    }

    pub fn full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// Appends a message; `true` when the writer has to be woken for it. The caller has checked that it fits.
    pub fn push(&mut self, header: Header, body: &[u8], last_request: u64) -> bool {
        let size = MESSAGE_HEADER_LEN + body.len();
        let limit = FRAME_HEADER_LEN + self.payload_bytes_max.min(FRAME_BYTES_SOFT);
        let idle = self.chunks.is_empty();
        if !self
            .chunks
            .back()
            .is_some_and(|chunk| chunk.frame.len() + size <= limit)
        {
            let mut frame = std::mem::take(&mut self.spare);
            frame.resize(FRAME_HEADER_LEN, 0);
            self.chunks.push_back(Chunk { frame, last_request });
        }
        let chunk = self.chunks.back_mut().expect("one was pushed if there was none");
        put(&mut chunk.frame, header, body);
        chunk.last_request = last_request;
        self.bytes += size;
        idle
    }

    pub fn pop(&mut self) -> Option<Chunk> {
        self.chunks.pop_front()
    }

    /// Gives back a chunk that was written.
    pub fn written(&mut self, mut chunk: Chunk) {
        self.bytes = self.bytes.saturating_sub(chunk.frame.len() - FRAME_HEADER_LEN);
        if chunk.frame.capacity() <= 2 * FRAME_BYTES_SOFT && self.spare.capacity() < chunk.frame.capacity() {
            chunk.frame.clear();
            self.spare = chunk.frame;
        }
    }

    pub fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
        self.spare = Vec::new();
    }
}

/// Where a writer gets its frames from.
pub trait Source {
    /// Takes back the chunk that was written and hands out the next.
    fn exchange(&self, written: Option<Chunk>) -> Option<Chunk>;
    /// Told when a chunk waits after there was none.
    fn wake(&self) -> &Notify;
}

/// Writes until the stream fails; returns why.
pub async fn write_all(
    mut stream: impl AsyncWrite + Unpin,
    mut checker: Checker,
    source: &impl Source,
    counters: &Counters,
) -> io::Error {
    let mut written = None;
    loop {
        let Some(mut chunk) = source.exchange(written.take()) else {
            source.wake().notified().await;
            continue;
        };
        checker.seal(&mut chunk.frame);
        // TCP flushes by itself; other streams may buffer.
        let result = match stream.write_all(&chunk.frame).await {
            Ok(()) => stream.flush().await,
            failed => failed,
        };
        if let Err(error) = result {
            return error;
        }
        count(&counters.frames_sent);
        add(&counters.bytes_sent, chunk.frame.len());
        written = Some(chunk);
    }
}
