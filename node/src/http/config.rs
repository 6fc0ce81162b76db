//! How the HTTP server is set up. Ranges are checked here, files and keys are `node::config`'s.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::gateway::Gates;

/// What operators prove themselves with. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None` for a text that no `Authorization` header can carry, or an empty one.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then_some(Self(text))
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// The operator's bearer token.
    pub token: Token,
    /// Threads that serve HTTP, apart from the device arbiters. Default 1; 1..=16.
    pub workers: usize,
    /// Open connections over all workers; further ones wait in the backlog. Default 1024; 1..=65536.
    pub connections_max: usize,
    /// Subscribers of live events. Default 128; 1..=10,000. Beyond: 429.
    pub event_subscribers_max: usize,
    /// Bytes of large answers that clients have not read. Default 128 MiB; 16 MiB..=64 GiB. Beyond:
    /// 429.
    pub answer_bytes_max: usize,
    /// How long a client may leave unread what it was sent. Default 30 s; 1 s..=1 h.
    pub slow_reader_timeout: Duration,
    /// Bytes of a request body. Default 256 KiB; 1 KiB..=2 MiB. Beyond: 413.
    pub body_bytes_max: usize,
    /// For the head of a request to arrive, and again for its body. Default 10 s; 1 s..=60 s
    /// (the library's clock ticks twice a second, so less would cut off the innocent).
    pub request_timeout: Duration,
    /// Idle time after which a connection is closed. Default 75 s; 1 s..=10 min.
    pub keep_alive: Duration,
    /// Deadline of a request that names none. Default 10 s; 100 ms..=60 s.
    pub deadline: Duration,
    /// Longest time a stop waits for requests in flight. Default 10 s; 1 s..=60 s.
    pub stop_timeout: Duration,
    /// What is let through to each shard, together with MQTT.
    /// Default: gates of its own, for 16 shards.
    pub gates: Arc<Gates>,
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("http.{key}: {given} lies outside {range}")]
pub struct BadHttpConfig {
    pub key: &'static str,
    pub given: String,
    pub range: String,
}

impl HttpConfig {
    /// The defaults.
    pub fn new(listen: SocketAddr, token: Token) -> Self {
        Self {
            listen,
            token,
            workers: 1,
            connections_max: 1024,
            event_subscribers_max: 128,
            answer_bytes_max: 128 << 20,
            slow_reader_timeout: Duration::from_secs(30),
            body_bytes_max: 256 * 1024,
            request_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            deadline: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(10),
            gates: Gates::new(16),
        }
    }

    /// # Errors
    /// Names the first setting outside its range.
    pub fn check(&self) -> Result<(), BadHttpConfig> {
        count("workers", self.workers, 1, 16)?;
        count("connections_max", self.connections_max, 1, 65_536)?;
        count("event_subscribers_max", self.event_subscribers_max, 1, 10_000)?;
        count("body_bytes_max", self.body_bytes_max, 1024, 2 * 1024 * 1024)?;
        count("answer_bytes_max", self.answer_bytes_max, 16 << 20, 1 << 36)?;
        millis("slow_reader_timeout", self.slow_reader_timeout, 1_000, 3_600_000)?;
        millis("request_timeout", self.request_timeout, 1_000, 60_000)?;
        millis("keep_alive", self.keep_alive, 1_000, 600_000)?;
        millis("deadline", self.deadline, 100, 60_000)?;
        millis("stop_timeout", self.stop_timeout, 1_000, 60_000)
    }
}

fn count(key: &'static str, given: usize, min: usize, max: usize) -> Result<(), BadHttpConfig> {
    if (min..=max).contains(&given) {
        return Ok(());
    }
    Err(BadHttpConfig {
        key,
        given: given.to_string(),
        range: format!("{min}..={max}"),
    })
}

fn millis(key: &'static str, given: Duration, min: u64, max: u64) -> Result<(), BadHttpConfig> {
    if (Duration::from_millis(min)..=Duration::from_millis(max)).contains(&given) {
        return Ok(());
    }
    Err(BadHttpConfig {
        key,
        given: format!("{given:?}"),
        range: format!("{min} ms..={max} ms"),
    })
}
