//! One socket of one device: connecting without waiting, and its bytes in and out.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::errors::Fault;
use super::framing::Framing;

/// Buffers that grew beyond this are given back when empty. Unit: bytes.
const BUFFER_KEPT_MAX: usize = 4 * 1024;

pub struct Wire {
    stream: TcpStream,
    pub framing: Framing,
    /// MQTT (or HTTP) bytes to be sent.
    pub out: Vec<u8>,
    /// MQTT (or HTTP) bytes received.
    pub input: BytesMut,
    /// Framed bytes to be sent; from `sent` on.
    wire: Vec<u8>,
    sent: usize,
    raw: BytesMut,
    /// Waiting for the socket to become writable.
    blocked: bool,
    pub is_connected: bool,
    /// Not read from: the device is a slow reader just now.
    pub is_deaf: bool,
}

impl Wire {
    /// Begins to connect; readiness for writing tells the end.
    ///
    /// # Errors
    /// No descriptor, no port, or refused at once.
    pub fn connect(
        to: SocketAddr,
        from: Option<Ipv4Addr>,
        framing: Framing,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, Fault> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let (Some(from), true) = (from, to.is_ipv4()) {
            // The port is chosen at connect, so that one address serves as many targets as it can.
            let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
            socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(115) || error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let mut wire = Vec::new();
        if let Some(greeting) = framing.greeting(&to.to_string()) {
            wire.extend_from_slice(greeting.as_bytes());
        }
        Ok(Self {
            stream,
            framing,
            out: Vec::new(),
            input: BytesMut::new(),
            wire,
            sent: 0,
            raw: BytesMut::new(),
            blocked: true,
            is_connected: false,
            is_deaf: false,
        })
    }

    /// Whether the TCP connection stands; `false`: not yet.
    ///
    /// # Errors
    /// It failed.
    pub fn finish_connect(&mut self) -> Result<bool, Fault> {
        if self.is_connected {
            return Ok(true);
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error.into());
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                (self.is_connected, self.blocked) = (true, false);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) if error.raw_os_error() == Some(115) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The socket said that it takes bytes again.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Bytes that were not handed to the kernel yet.
    pub fn pending(&self) -> usize {
        self.out.len() + self.wire.len() - self.sent
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn write(&mut self) -> Result<(), Fault> {
        if !self.is_connected {
            return Ok(());
        }
        self.framing.wrap(&mut self.out, &mut self.wire);
        while !self.blocked && self.sent < self.wire.len() {
            match self.stream.write(&self.wire[self.sent..]) {
                Ok(0) => return Err(Fault::Closed),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.sent == self.wire.len() {
            self.wire.clear();
            self.sent = 0;
            for buffer in [&mut self.wire, &mut self.out] {
                if buffer.is_empty() && buffer.capacity() > BUFFER_KEPT_MAX {
                    *buffer = Vec::new();
                }
            }
        }
        Ok(())
    }

    /// Reads until the socket has no more, through the thread's buffer.
    ///
    /// # Errors
    /// The connection is gone; what came before is in `input`.
    pub fn read(&mut self, scratch: &mut [u8]) -> Result<(), Fault> {
        if self.is_deaf || !self.is_connected {
            return Ok(());
        }
        let ended = loop {
            match self.stream.read(scratch) {
                Ok(0) => break Err(Fault::Closed),
                Ok(got) => {
                    self.raw.extend_from_slice(&scratch[..got]);
                    // Less than there was room for: the rest will be announced.
                    if got < scratch.len() {
                        break Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error.into()),
            }
        };
        if !self.raw.is_empty() {
            self.framing.unwrap(&mut self.raw, &mut self.input, &mut self.wire)?;
        }
        ended
    }

    /// Gives large empty buffers back.
    pub fn tidy(&mut self) {
        for buffer in [&mut self.input, &mut self.raw] {
            if buffer.is_empty() && buffer.capacity() > BUFFER_KEPT_MAX {
                *buffer = BytesMut::new();
            }
        }
    }

    pub fn close(mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.stream);
        // Dropping closes; a farewell was written before if there was one.
    }
}
