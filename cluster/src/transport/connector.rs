//! Where byte streams come from: TCP in production, whatever a test or a simulation likes.
//!
//! The only file of the transport that names sockets.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Mutex;
use std::time::Duration;

use actors::id::NodeId;
use futures::future::BoxFuture;
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::config::TCP_USER_TIMEOUT;

/// A two-way stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> ByteStream for S {}

pub trait Connector: Send + Sync + 'static {
    /// Opens a stream to a peer. `ConnectionRefused` is understood as: no process listens there.
    fn dial(&self, peer: NodeId, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>>;

    /// Begins to listen; from now on nobody is refused.
    ///
    /// # Errors
    /// The address is in use or not ours.
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;
}

pub trait Listener: Send {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>>;
}

/// TCP without delay, giving up on data that is not taken for [`TCP_USER_TIMEOUT`].
#[derive(Default)]
pub struct TcpConnector {
    /// Bound beforehand by whoever had to know the port; used by the first `listen`.
    bound: Mutex<Option<StdListener>>,
}

impl TcpConnector {
    /// Uses a listener that exists already, instead of binding the configured address.
    pub fn with_listener(listener: StdListener) -> Self {
        Self {
            bound: Mutex::new(Some(listener)),
        }
    }
}

impl Connector for TcpConnector {
    fn dial(&self, _peer: NodeId, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> {
        async move { tuned(TcpStream::connect(address).await?) }.boxed()
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let bound = self
            .bound
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let listener = match bound {
            Some(listener) => listener,
            None => bind(address)?,
        };
        listener.set_nonblocking(true)?;
        Ok(Box::new(Accepting(TcpListener::from_std(listener)?)))
    }
}

struct Accepting(TcpListener);

impl Listener for Accepting {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        async { tuned(self.0.accept().await?.0) }.boxed()
    }
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // A restarted node must not wait for its former connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn tuned(stream: TcpStream) -> io::Result<Box<dyn ByteStream>> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    // Finds peers that vanished while nothing was being sent to them.
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(TCP_USER_TIMEOUT)
        .with_interval(Duration::from_secs(1));
    socket.set_tcp_keepalive(&keep_alive)?;
    Ok(Box::new(stream))
}
