//! HTTP ingest of one device: a request per message over a connection that stays.

use bytes::{Buf, BytesMut};

use super::errors::Fault;
use crate::history::Place;
use crate::protocol::ProtocolError;

const HEAD_BYTES_MAX: usize = 32 * 1024;
const BODY_BYTES_MAX: usize = 1 << 20;

/// What one message is sent as.
pub struct Request<'a> {
    pub host: &'a str,
    pub device: &'a str,
    pub stream: &'a str,
    pub token: Option<&'a str>,
    pub message_id: Option<&'a str>,
}

/// Appends a POST.
pub fn request(request: &Request<'_>, payload: &[u8], out: &mut Vec<u8>) {
    use std::io::Write;
    let is_json = matches!(payload.first(), Some(b'{' | b'['));
    let content_type = if is_json {
        "application/json"
    } else {
        "application/octet-stream"
    };
    let _ = write!(
        out,
        "POST /api/v1/devices/{}/telemetry HTTP/1.1\r\nHost: {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n",
        escape(request.device),
        request.host,
        payload.len()
    );
    for (name, value) in [
        ("Authorization: Bearer", request.token),
        ("Idempotency-Key:", request.message_id),
        (
            "X-Holdfast-Stream:",
            Some(request.stream).filter(|stream| !stream.is_empty()),
        ),
    ] {
        if let Some(value) = value {
            let _ = write!(out, "{name} {value}\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
}

/// Device ids may hold characters that mean something in a path.
pub fn escape(device: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(device.len());
    for byte in device.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// What the server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub seq: u64,
    pub place: Option<Place>,
    /// The server ends the connection after this.
    pub closes: bool,
}

/// Takes a whole answer from the front; `None` when more bytes are needed.
///
/// # Errors
/// This is no HTTP, or too long.
pub fn answer(raw: &mut BytesMut) -> Result<Option<Answer>, Fault> {
    let bad = |text: String| Fault::Protocol(ProtocolError::Unreadable(text));
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(raw).map_err(|error| bad(error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else {
        return match raw.len() > HEAD_BYTES_MAX {
            true => Err(bad("an endless head".into())),
            false => Ok(None),
        };
    };
    let header = |name: &str| {
        let found = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let length = match (header("content-length"), response.code) {
        (Some(text), _) => text
            .trim()
            .parse::<usize>()
            .ok()
            .filter(|length| *length <= BODY_BYTES_MAX),
        (None, Some(204 | 304)) => Some(0),
        (None, _) => None,
    };
    let length = length.ok_or_else(|| bad("an answer without a length".into()))?;
    if raw.len() < head + length {
        return Ok(None);
    }
    let receipt = header("x-holdfast-receipt").and_then(|text| text.parse::<actors::wire::receipt::Receipt>().ok());
    let answer = Answer {
        status: response.code.unwrap_or(0),
        seq: receipt.map_or(0, |receipt| receipt.seq),
        place: receipt.map(|receipt| Place {
            shard: receipt.shard.0,
            term: receipt.term,
            index: receipt.index,
        }),
        closes: header("connection").is_some_and(|text| text.eq_ignore_ascii_case("close")),
    };
    raw.advance(head + length);
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_and_with_their_receipts() {
        let text = "HTTP/1.1 201 Created\r\nX-Holdfast-Receipt: 3-1-11-9\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 429 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let mut raw = BytesMut::from(&text[..40]);
        assert_eq!(answer(&mut raw).unwrap(), None);
        raw.extend_from_slice(&text.as_bytes()[40..]);
        let first = answer(&mut raw).unwrap().unwrap();
        assert_eq!((first.status, first.seq, first.place.unwrap().index), (201, 9, 11));
        let second = answer(&mut raw).unwrap().unwrap();
        assert_eq!((second.status, second.seq, second.closes), (429, 0, true));
        assert!(answer(&mut BytesMut::from("HTTP/1.1 200 x\r\n\r\n")).is_err());
        assert!(answer(&mut BytesMut::from("MQTT\r\n\r\n")).is_err());
    }

    #[test]
    fn requests_say_who_and_what() {
        let mut out = Vec::new();
        let head = Request {
            host: "h:1",
            device: "a/b",
            stream: "s",
            token: Some("t"),
            message_id: Some("1-2"),
        };
        request(&head, b"{}", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("POST /api/v1/devices/a%2Fb/telemetry HTTP/1.1\r\n"));
        for part in [
            "Content-Length: 2\r\n",
            "Authorization: Bearer t\r\n",
            "Idempotency-Key: 1-2\r\n",
            "X-Holdfast-Stream: s\r\n",
            "\r\n\r\n{}",
        ] {
            assert!(text.contains(part), "{part}");
        }
    }
}
