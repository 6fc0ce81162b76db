//! What waits to be written on one connection, already in frames; and the loop that writes it.
//!
//! Messages are encoded once, into the frame they travel in. While a write is under way the next
//! frame fills up, so load makes frames larger and writes fewer, without a timer.

use std::collections::VecDeque;
use std::io;

use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use super::config::FRAME_BYTES_SOFT;
use super::counters::{add, count, Counters};
use super::frame::{Checker, FRAME_HEADER_LEN};
use super::line::{write_shaped, Line};
use super::message::{put, Header, MESSAGE_HEADER_LEN};
use crate::faults::{Shape, Way, Wire};

pub struct Chunk {
    pub frame: Vec<u8>,
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
        if self.chunks.back().is_none_or(|chunk| chunk.frame.len() + size > limit) {
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
    /// Takes back a chunk without handing one out.
    fn give_back(&self, written: Chunk);
    /// Told when a chunk waits after there was none.
    fn wake(&self) -> &Notify;
}

/// Writes until the stream fails; returns why.
pub async fn write_all(
    stream: &mut (impl AsyncWrite + Unpin),
    mut checker: Checker,
    source: &impl Source,
    counters: &Counters,
    wire: &Wire,
) -> io::Error {
    let mut written = None;
    let mut line = Line::default();
    loop {
        let (shape, mut chunk) = if line.is_due(wire) {
            line.next(wire).await
        } else if let Some(mut chunk) = source.exchange(written.take()) {
            if wire.drops(Way::Out) {
                // Never sealed: the other side misses no number, only what was said.
                written = Some(chunk);
                continue;
            }
            checker.seal(&mut chunk.frame);
            if wire.asked() || !line.is_empty() {
                let shape = wire.shape(chunk.frame.len());
                line.push(chunk, shape);
                continue;
            }
            (Shape::default(), chunk)
        } else {
            tokio::select! {
                biased;
                late = line.next(wire) => late,
                () = source.wake().notified() => continue,
            }
        };
        if let Err(error) = write_shaped(stream, &mut chunk.frame, shape).await {
            return error;
        }
        count(&counters.frames_sent);
        add(&counters.bytes_sent, chunk.frame.len());
        // The one before was given back when this one was taken, unless both had waited in the line.
        if let Some(earlier) = written.replace(chunk) {
            source.give_back(earlier);
        }
    }
}
