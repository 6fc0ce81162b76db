//! A WebSocket as a byte stream: MQTT packets in binary messages, which they may span or share.
//!
//! Pings are answered by the library. Text, an oversized message or a broken frame ends the
//! stream; the peer is told why in the closing frame.

use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::WebSocketStream;

/// Bytes one frame of ours carries at most.
const FRAME_BYTES_OUT: usize = 16 * 1024;
/// Bytes read from the socket at once; each connection keeps that much.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Bytes of our frames that may wait for the peer; at most one data frame does, beside pongs.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * FRAME_BYTES_OUT;
/// What a message may hold beyond the largest packet: clients may put several into one.
const MESSAGE_SPARE_BYTES: usize = 64 * 1024;

pub struct WebSocket {
    frames: WebSocketStream<TcpStream>,
    /// Of the message that is being read.
    received: Bytes,
    /// Bytes of the caller's buffer that are in a frame which is not wholly written yet. They are
    /// reported as written once it is, so that what waits is counted where it is bounded.
    sending: usize,
    farewell: Farewell,
}

/// How far the closing has come.
enum Farewell {
    Open(CloseCode, &'static str),
    Said,
}

impl WebSocket {
    /// Takes over after the upgrade; `early` came behind the request's head.
    pub async fn new(stream: TcpStream, early: Vec<u8>, packet_bytes_max: u32) -> Self {
        let message_bytes_max = packet_bytes_max as usize + MESSAGE_SPARE_BYTES;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        Self {
            frames: WebSocketStream::from_partially_read(stream, early, Role::Server, Some(config)).await,
            received: Bytes::new(),
            sending: 0,
            farewell: Farewell::Open(CloseCode::Normal, ""),
        }
    }

    /// The stream ends here, for this reason.
    fn fail(&mut self, code: CloseCode, why: &'static str) {
        super::metrics::websocket_failed(why);
        self.farewell = Farewell::Open(code, why);
    }

    fn say_goodbye(&mut self, cx: &mut Context<'_>) {
        let Farewell::Open(code, why) = self.farewell else {
            return;
        };
        self.farewell = Farewell::Said;
        let frame = CloseFrame {
            code,
            reason: why.into(),
        };
        let mut frames = Pin::new(&mut self.frames);
        // A peer that closed first has its answer from the library already.
        if matches!(frames.as_mut().poll_ready(cx), Poll::Ready(Ok(()))) {
            let _ = frames.start_send(Message::Close(Some(frame)));
        }
    }
}

impl AsyncRead for WebSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.received.is_empty() {
            match ready!(Pin::new(&mut this.frames).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.received = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    this.fail(CloseCode::Unsupported, "text_message");
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => {
                    if let Some((code, why)) = fault(&error) {
                        this.fail(code, why);
                    }
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.received.len().min(into.remaining());
        into.put_slice(&this.received[..count]);
        this.received.advance(count);
        if this.received.is_empty() {
            this.received = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// What the peer did; `None` when the connection just ended.
fn fault(error: &WsError) -> Option<(CloseCode, &'static str)> {
    Some(match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => (CloseCode::Size, "message_too_large"),
        WsError::Capacity(_) => (CloseCode::Size, "too_large"),
        WsError::Protocol(_) => (CloseCode::Protocol, "broken_frame"),
        WsError::Utf8(_) => (CloseCode::Unsupported, "text_message"),
        _ => return None,
    })
}

impl AsyncWrite for WebSocket {
    /// To be called with the same bytes at the front until they are written, as
    /// [`super::socket::Socket`] does.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.sending == 0 {
            ready!(Pin::new(&mut this.frames).poll_ready(cx)).map_err(io::Error::other)?;
            let count = bytes.len().min(FRAME_BYTES_OUT);
            let frame = Message::Binary(Bytes::copy_from_slice(&bytes[..count]));
            Pin::new(&mut this.frames).start_send(frame).map_err(io::Error::other)?;
            this.sending = count;
        }
        ready!(Pin::new(&mut this.frames).poll_flush(cx)).map_err(io::Error::other)?;
        Poll::Ready(Ok(std::mem::take(&mut this.sending)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().frames)
            .poll_flush(cx)
            .map_err(io::Error::other)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.say_goodbye(cx);
        // Whether the peer still hears it or not, nothing more is sent.
        let _ = ready!(Pin::new(&mut this.frames).poll_flush(cx));
        Pin::new(this.frames.get_mut()).poll_shutdown(cx)
    }
}
