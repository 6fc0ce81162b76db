//! From an HTTP request to a WebSocket that speaks MQTT: little is read, and there is a deadline.
//!
//! Whoever asks for something else gets a 4xx that says what to ask for.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::metrics;
use super::shared::Shared;
use super::websocket::WebSocket;

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// The first is ours, the others those of clients that leave the path out, and of Azure's SDKs.
const PATHS: [&str; 3] = ["/mqtt", "/", "/$iothub/websocket"];
/// Subprotocols, in the order of our preference. The second is what clients of MQTT 3.1 offer.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// `None`: it was refused, told so, and is closed.
pub async fn accept(shared: &Shared, mut stream: TcpStream) -> Option<WebSocket> {
    let limits = &shared.limits;
    let mut head = Vec::new();
    let read = tokio::time::timeout(limits.connect_timeout, read_head(&mut stream, &mut head)).await;
    let judged = match read {
        Ok(Ok(end)) => judge(&head[..end], &shared.ws_origins).map(|answer| (answer, end)),
        Ok(Err(no)) => Err(no),
        Err(_) if head.is_empty() => Err(No::Silently),
        Err(_) => Err(No::told(408, "the request did not arrive in time")),
    };
    match judged {
        Ok((answer, end)) => {
            stream.write_all(answer.as_bytes()).await.ok()?;
            Some(WebSocket::new(stream, head.split_off(end), limits.packet_bytes_max).await)
        }
        Err(no) => {
            metrics::rejected("websocket_refused");
            let parting = no.say(&mut stream);
            // A peer that reads nothing is cut off.
            let _ = tokio::time::timeout(limits.linger, parting).await;
            None
        }
    }
}

/// Reads until the head is whole; says where it ends.
async fn read_head(stream: &mut TcpStream, head: &mut Vec<u8>) -> Result<usize, No> {
    loop {
        if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(at + 4);
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Err(No::told(431, "the request's head is larger than 8 KiB"));
        }
        let read = stream.read_buf(head).await;
        if !read.is_ok_and(|bytes| bytes > 0) {
            return Err(No::Silently);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum No {
    /// There is nobody to tell.
    Silently,
    Told {
        status: u16,
        why: String,
        /// Whole lines.
        headers: &'static str,
    },
}

impl No {
    fn told(status: u16, why: impl Into<String>) -> Self {
        Self::with(status, why, "")
    }

    fn with(status: u16, why: impl Into<String>, headers: &'static str) -> Self {
        No::Told {
            status,
            why: why.into(),
            headers,
        }
    }

    async fn say(self, stream: &mut TcpStream) {
        let No::Told { status, why, headers } = self else {
            return;
        };
        let answer = format!(
            "HTTP/1.1 {status} {}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{why}\n",
            phrase(status),
            why.len() + 1,
        );
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        // What the peer still sends is read, or it would meet a reset instead of our answer.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        _ => "Request Header Fields Too Large",
    }
}

const UPGRADE: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";

/// The answer that makes it a WebSocket.
fn judge(head: &[u8], origins: &[String]) -> Result<String, No> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(No::told(431, "more than 64 headers")),
        _ => return Err(No::told(400, "this is no HTTP/1.1 request")),
    }
    let path = request.path.unwrap_or_default();
    if request.method != Some("GET") {
        return Err(No::with(405, "a WebSocket is opened with GET", "Allow: GET\r\n"));
    }
    let bare = path.split_once('?').map_or(path, |(bare, _)| bare);
    if !PATHS.contains(&bare) {
        return Err(No::told(404, "MQTT over WebSocket is at /mqtt"));
    }
    let headers = Headers(request.headers);
    let wants = |name: &str, token: &str| headers.list(name).any(|item| item.eq_ignore_ascii_case(token));
    if !wants("upgrade", "websocket") || !wants("connection", "upgrade") {
        let why = "this port speaks MQTT over WebSocket; the operators' HTTP API is on another";
        return Err(No::with(426, why, UPGRADE));
    }
    if !wants("sec-websocket-version", "13") {
        return Err(No::with(426, "only WebSocket version 13 is spoken", UPGRADE));
    }
    let Some(key) = headers.one("sec-websocket-key").filter(|key| is_key(key)) else {
        return Err(No::told(400, "Sec-WebSocket-Key is missing or not 16 bytes of base64"));
    };
    if let Some(origin) = headers.one("origin") {
        if !is_welcome(origin, headers.one("host"), origins) {
            let why = format!("pages of {origin} may not connect; listen.ws_origins names those that may");
            return Err(No::told(403, why));
        }
    }
    let offered = |name: &&&str| headers.list("sec-websocket-protocol").any(|item| item == **name);
    let Some(protocol) = PROTOCOLS.iter().find(offered) else {
        return Err(No::told(
            400,
            "offer the subprotocol mqtt (Sec-WebSocket-Protocol: mqtt)",
        ));
    };
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n",
        derive_accept_key(key.as_bytes()),
    ))
}

fn is_key(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .is_ok_and(|bytes| bytes.len() == 16)
}

struct Headers<'h>(&'h [httparse::Header<'h>]);

impl<'h> Headers<'h> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'h str> + use<'h, '_> {
        let name = name.to_owned();
        let named = self
            .0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(&name));
        named
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .map(str::trim)
    }

    fn one(&self, name: &str) -> Option<&'h str> {
        self.all(name).next()
    }

    /// The items of a list, over all lines that carry it.
    fn list(&self, name: &str) -> impl Iterator<Item = &'h str> + use<'h, '_> {
        self.all(name).flat_map(|line| line.split(',')).map(str::trim)
    }
}

/// Only browsers must tell where a page came from, and any page may try to connect. Welcome are
/// pages of this machine, pages of the very address that was dialled (not of its name, which may
/// be made to point here), and those the operator named.
fn is_welcome(origin: &str, host: Option<&str>, origins: &[String]) -> bool {
    if origins.iter().any(|one| one == "*" || one.eq_ignore_ascii_case(origin)) {
        return true;
    }
    let Some((_, authority)) = origin.split_once("://") else {
        return false;
    };
    let from = host_of(authority);
    let is_address = |name: &str| name.parse::<IpAddr>().is_ok();
    is_this_machine(from) || (is_address(from) && host.is_some_and(|host| host_of(host) == from))
}

/// Without port and brackets.
fn host_of(authority: &str) -> &str {
    if let Ok(address) = authority.parse::<SocketAddr>() {
        // `[::1]:80` or `1.2.3.4:80`
        let end = authority.rfind(':').unwrap_or(authority.len());
        let host = &authority[..end];
        return if address.is_ipv6() {
            host.trim_matches(['[', ']'])
        } else {
            host
        };
    }
    let bare = authority.trim_matches(['[', ']']);
    if bare.parse::<IpAddr>().is_ok() {
        return bare;
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: 10.0.0.7:18833\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqttv3.1, mqtt\r\n";

    /// `GOOD`, with `old` replaced and lines added.
    fn status(old: &str, new: &str) -> u16 {
        assert!(GOOD.contains(old), "{old}");
        let head = format!("{}\r\n", GOOD.replacen(old, new, 1));
        match judge(head.as_bytes(), &["https://app.example".to_owned()]) {
            Ok(_) => 101,
            Err(No::Told { status, .. }) => status,
            Err(No::Silently) => 0,
        }
    }

    #[test]
    fn an_upgrade_is_answered_as_the_rfc_says() {
        let answer = judge(format!("{GOOD}\r\n").as_bytes(), &[]).expect("a good request");
        assert!(
            answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{answer}"
        );
        assert!(answer.contains("Sec-WebSocket-Protocol: mqtt\r\n"), "{answer}");
    }

    #[test]
    fn whoever_asks_for_something_else_is_told() {
        let check = |old, new, expected| assert_eq!(status(old, new), expected, "{old} -> {new}");
        check("GET /mqtt", "GET /", 101);
        check("GET /mqtt", "GET /$iothub/websocket?iothub-no-client-cert=true", 101);
        check("mqttv3.1, mqtt", "mqttv3.1", 101);
        check("GET /mqtt", "GET /mqttx", 404);
        check("GET /mqtt", "POST /mqtt", 405);
        check("Upgrade: WebSocket\r\n", "", 426);
        check("Connection: keep-alive, Upgrade\r\n", "", 426);
        check("Version: 13", "Version: 8", 426);
        check("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 400);
        check("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400);
        check("Protocol: mqttv3.1, mqtt", "Protocol: chat", 400);
        check("Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n", "", 400);
        check("GET /mqtt HTTP/1.1", "HELO", 400);
        let many = "X: 1\r\n".repeat(HEADERS_MAX);
        check("Host:", &format!("{many}Host:"), 431);
    }

    #[test]
    fn pages_of_strangers_are_kept_out() {
        let check = |origin: &str, expected| {
            let line = format!("Origin: {origin}\r\nHost:");
            assert_eq!(status("Host:", &line), expected, "{origin}");
        };
        check("http://localhost:3000", 101);
        check("http://127.0.0.1:8081", 101);
        check("http://[::1]:8081", 101);
        check("https://10.0.0.7:18833", 101);
        check("https://app.example", 101);
        check("https://10.0.0.8", 403);
        check("https://evil.example", 403);
        check("https://localhost.evil.example", 403);
        check("null", 403);
    }
}
