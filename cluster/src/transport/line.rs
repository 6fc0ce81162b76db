//! Frames that a fault holds back on their way out, in the order they were sealed.
//!
//! Empty without a fault. Bounded by the outbox they come from: it counts them until they are written.

use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::outbox::Chunk;
use crate::faults::{Shape, Wire};

#[derive(Default)]
pub struct Line {
    held: VecDeque<(Instant, Shape, Chunk)>,
    /// When the newest of them is due.
    last: Option<Instant>,
}

impl Line {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn push(&mut self, chunk: Chunk, shape: Shape) {
        let now = Instant::now();
        let free = self.last.filter(|_| !self.is_empty()).map_or(now, |last| last.max(now));
        // A stream keeps its order: what comes after a late frame is as late.
        let due = (now + shape.hold).max(free) + shape.busy;
        self.last = Some(due);
        self.held.push_back((due, shape, chunk));
    }

    /// The oldest frame, once its time has come or nothing holds it back any more; waits for ever
    /// when there is none.
    pub async fn next(&mut self, wire: &Wire) -> (Shape, Chunk) {
        match self.held.front() {
            Some((due, ..)) => tokio::select! {
                () = tokio::time::sleep_until(*due) => {}
                () = wire.lets_go() => {}
            },
            None => std::future::pending().await,
        }
        let (_, shape, chunk) = self.held.pop_front().expect("there was one before the wait");
        (shape, chunk)
    }

    pub fn is_due(&self, wire: &Wire) -> bool {
        let due = |(due, ..): &(Instant, Shape, Chunk)| *due <= Instant::now() || !wire.holds_back();
        self.held.front().is_some_and(due)
    }
}

/// Writes a sealed frame the way a fault wants it.
///
/// # Errors
/// The stream failed, or the fault cuts it off in the middle of the frame.
pub async fn write_shaped(stream: &mut (impl AsyncWrite + Unpin), frame: &mut [u8], shape: Shape) -> io::Result<()> {
    if let Some(bit) = shape.flipped {
        frame[bit / 8] ^= 1 << (bit % 8);
    }
    if let Some(end) = shape.cut_after {
        stream.write_all(&frame[..end]).await?;
        stream.flush().await?;
        return Err(io::Error::new(io::ErrorKind::ConnectionReset, "reset by a fault lease"));
    }
    stream.write_all(frame).await?;
    if shape.twice {
        stream.write_all(frame).await?;
    }
    stream.flush().await
}
