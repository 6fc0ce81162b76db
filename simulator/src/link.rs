//! One connection of one device: its buffers, its deadlines, and how it ends.
//!
//! Bytes only; which packets they hold is `protocol`'s, what they mean is `client`'s. The read
//! buffer is the thread's, so an idle connection keeps almost nothing.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use hdrhistogram::Histogram;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::fleet::{Load, Timing};
use crate::progress::Progress;
use crate::protocol::{Codec, ProtocolError, Version};

/// Shared by the devices of one thread.
pub(crate) struct Lane {
    pub endpoints: Vec<SocketAddr>,
    pub load: Load,
    pub timing: Timing,
    pub record: bool,
    pub progress: Arc<Progress>,
    pub connecting: Semaphore,
    pub scratch: RefCell<Vec<u8>>,
    pub latency: RefCell<Histogram<u64>>,
    pub measurement: Cell<u32>,
}

impl Lane {
    pub fn record_latency(&self, latency: Duration) {
        let measurement = self.progress.measurement.load(std::sync::atomic::Ordering::Relaxed);
        if measurement == 0 {
            return;
        }
        let mut histogram = self.latency.borrow_mut();
        if self.measurement.replace(measurement) != measurement {
            histogram.reset();
        }
        histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server did not answer in time")]
    Silent,
    #[error("the server refused the connection with code {0}")]
    Refused(u8),
    #[error("the server ended the connection with code {0}")]
    Disconnected(u8),
}

/// The present connection.
pub(crate) struct Link {
    pub codec: Codec,
    pub input: BytesMut,
    pub out: BytesMut,
    /// Telemetry publishes that may be outstanding.
    pub window: usize,
    /// Publishes of any kind that the server allows to be outstanding.
    pub receive_maximum: usize,
    /// Something was acknowledged on this connection.
    pub useful: bool,
    /// Since when an acknowledgement is awaited without progress.
    pub waiting_since: Option<Instant>,
    pub last_write: Instant,
    pub ping_sent: Option<Instant>,
}

impl Link {
    pub fn new(version: Version) -> Self {
        Self {
            codec: Codec::new(version),
            input: BytesMut::new(),
            out: BytesMut::new(),
            window: 1,
            receive_maximum: 1,
            useful: false,
            waiting_since: None,
            last_write: Instant::now(),
            ping_sent: None,
        }
    }
}

/// Writes what is pending and reads once; returns when something was read. Safe to cancel.
pub(crate) async fn exchange(
    stream: &mut TcpStream,
    lane: &Lane,
    input: &mut BytesMut,
    out: &mut BytesMut,
) -> Result<(), Broken> {
    let read = poll_fn(|cx| {
        while !out.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, out) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => out.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        let mut scratch = lane.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
        input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    });
    match read.await? {
        0 => Err(Broken::Closed),
        _ => Ok(()),
    }
}

/// Best effort: a DISCONNECT that cannot be written is not missed.
pub(crate) async fn flush(stream: &mut TcpStream, out: &mut BytesMut) {
    use tokio::io::AsyncWriteExt;
    let writing = async {
        stream.write_all(out).await?;
        stream.shutdown().await
    };
    if !matches!(timeout(Duration::from_secs(1), writing).await, Ok(Ok(()))) {
        tracing::debug!("farewell not written");
    }
}
