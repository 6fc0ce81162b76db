#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // tests run in real time
//! MQTT over WebSocket: frames, requests that are none, and what ends a connection.

mod mqtt_support;

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use mqtt_support::{eventually, with_gateway, Bench};
use node::gateway::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{client_async, WebSocketStream};

const CONNECT: &[u8] = b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04lamp";
const CONNACK: &[u8] = b"\x20\x02\0\0";

async fn tcp(bench: &Bench) -> TcpStream {
    TcpStream::connect(bench.gateway.ws_address().unwrap()).await.unwrap()
}

async fn open(bench: &Bench) -> WebSocketStream<TcpStream> {
    let mut request = "ws://127.0.0.1/mqtt".into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (socket, answer) = client_async(request, tcp(bench).await).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "mqtt");
    socket
}

async fn connected(bench: &Bench) -> WebSocketStream<TcpStream> {
    let mut socket = open(bench).await;
    socket.send(binary(CONNECT)).await.unwrap();
    assert_eq!(next(&mut socket).await, binary(CONNACK));
    socket
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    let next = tokio::time::timeout(Duration::from_secs(10), socket.next());
    next.await.expect("something comes").expect("not the end").unwrap()
}

/// The code the server closes with.
async fn closed_with(socket: &mut WebSocketStream<TcpStream>) -> CloseCode {
    loop {
        if let Message::Close(frame) = next(socket).await {
            return frame.expect("the server gives a code").code;
        }
    }
}

#[test]
fn packets_may_span_frames_and_share_them() {
    with_gateway(Limits::default(), |bench| async move {
        let mut socket = open(&bench).await;
        for byte in CONNECT {
            socket.send(binary(&[*byte])).await.unwrap();
        }
        assert_eq!(next(&mut socket).await, binary(CONNACK));
        socket.send(binary(b"\xc0\0\xc0\0\xc0")).await.unwrap();
        socket.send(binary(b"")).await.unwrap();
        socket.send(binary(b"\0")).await.unwrap();
        let mut pongs = Vec::new();
        while pongs.len() < 6 {
            pongs.extend(next(&mut socket).await.into_data());
        }
        assert_eq!(pongs, b"\xd0\0\xd0\0\xd0\0");
        socket.send(Message::Ping(b"are you there"[..].into())).await.unwrap();
        assert_eq!(next(&mut socket).await, Message::Pong(b"are you there"[..].into()));
        // A goodbye in MQTT is answered by one of the WebSocket.
        socket.send(binary(b"\xe0\0")).await.unwrap();
        assert_eq!(closed_with(&mut socket).await, CloseCode::Normal);
        eventually("the session has ended", || bench.gateway.connections() == 0).await;
    });
}

#[test]
fn frames_that_are_no_mqtt_end_the_connection_with_their_code() {
    with_gateway(Limits::default(), |bench| async move {
        let mut socket = connected(&bench).await;
        socket.send(Message::Text("hello".into())).await.unwrap();
        assert_eq!(closed_with(&mut socket).await, CloseCode::Unsupported);

        let mut socket = connected(&bench).await;
        let _ = socket.send(binary(&vec![0xc0; 1 << 20])).await;
        assert_eq!(closed_with(&mut socket).await, CloseCode::Size);

        // Clients must mask what they send.
        let mut socket = connected(&bench).await;
        socket.get_mut().write_all(b"\x82\x02\xc0\0").await.unwrap();
        assert_eq!(closed_with(&mut socket).await, CloseCode::Protocol);

        let mut socket = connected(&bench).await;
        socket.close(None).await.unwrap();
        eventually("all have ended", || bench.gateway.connections() == 0).await;
    });
}

#[test]
fn other_requests_are_refused_in_words() {
    with_gateway(Limits::default(), |bench| async move {
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "426 Upgrade Required"),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found"),
            (
                "POST /mqtt HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
                "405 Method Not Allowed",
            ),
            ("\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04lamp\r\n\r\n", "400 Bad Request"),
        ] {
            let mut stream = tcp(&bench).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{request}: {answer}"
            );
            assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        }
        let mut stream = tcp(&bench).await;
        let _ = stream.write_all(&[b'x'; 9000]).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    });
}

/// Neither a request nor a CONNECT may be waited for.
#[test]
fn the_handshake_has_a_deadline() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    with_gateway(limits, |bench| async move {
        let mut silent = tcp(&bench).await;
        let mut slow = tcp(&bench).await;
        slow.write_all(b"GET /mqtt HTTP/1.1\r\n").await.unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        let mut upgraded = open(&bench).await;
        assert_eq!(closed_with(&mut upgraded).await, CloseCode::Normal);
    });
}
