//! Reads everything a fleet stored back over the operator API and judges it.
//!
//! Any node answers for any device; a request that fails is tried at the next node until the
//! deadline. A read that never succeeds is a failure of the harness, not a loss: what could not be
//! read was not seen to be absent. Memory: one device's messages per reader.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use simulator::drive::ingest::escape;
use simulator::Ledger;

use crate::checker::{check_device, Findings, StoredMessage, StoredTwin};

/// Messages per page; the API allows no more.
const PAGE: usize = 1000;
/// Devices read at the same time.
const READERS: usize = 8;
/// Pause before the next node is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{path} could not be read from any node within {waited:?}: {last}")]
    Deadline {
        path: String,
        waited: Duration,
        last: String,
    },
    #[error("the HTTP client cannot be built: {0}")]
    Client(reqwest::Error),
    #[error("a reader ended early: {0}")]
    Reader(String),
}

#[derive(Clone, Debug)]
pub struct ReadBack {
    /// HTTP listeners of the nodes; 1 or more.
    pub nodes: Vec<SocketAddr>,
    pub token: String,
    /// For one request over all nodes and retries.
    pub request_deadline: Duration,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct Item {
    seq: u64,
    #[serde(default)]
    body: serde_json::Value,
}

/// Reads each device of `ledger` back and returns all findings. `read` counts messages as they come.
///
/// # Errors
/// Something could not be read at all; the findings would be incomplete, so there are none.
pub async fn read_back(from: ReadBack, ledger: Arc<Ledger>, read: Arc<AtomicU64>) -> Result<Findings, ReadError> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .no_proxy()
        .build()
        .map_err(ReadError::Client)?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..READERS {
        let mut source = Source {
            client: client.clone(),
            from: from.clone(),
            node: reader,
        };
        let (ledger, next, read) = (ledger.clone(), next.clone(), read.clone());
        readers.spawn(async move {
            let mut findings = Findings::default();
            while let Some(device) = ledger.devices.get(next.fetch_add(1, Ordering::Relaxed)) {
                let stored = source.telemetry(&device.device, &read).await?;
                let twin = if device.twin_acks.is_empty() {
                    None
                } else {
                    source.twin(&device.device).await?
                };
                findings.add(check_device(device, &stored, twin.as_ref()));
            }
            Ok::<_, ReadError>(findings)
        });
    }
    let mut whole = Findings::default();
    while let Some(part) = readers.join_next().await {
        whole.add(part.map_err(|e| ReadError::Reader(e.to_string()))??);
    }
    Ok(whole)
}

struct Source {
    client: reqwest::Client,
    from: ReadBack,
    node: usize,
}

impl Source {
    async fn telemetry(&mut self, device: &str, read: &AtomicU64) -> Result<Vec<StoredMessage>, ReadError> {
        let mut stored = Vec::new();
        let mut after = 0u64;
        loop {
            let path = format!(
                "/api/v1/devices/{}/telemetry?after_seq={after}&limit={PAGE}",
                escape(device)
            );
            // A device that never got through has no telemetry; that is for the checker to judge.
            let Some(page) = self.get::<Page>(&path).await? else {
                return Ok(stored);
            };
            read.fetch_add(page.items.len() as u64, Ordering::Relaxed);
            let last = page.items.last().map(|item| item.seq);
            stored.extend(page.items.into_iter().map(|item| StoredMessage {
                seq: item.seq,
                body: item.body,
            }));
            match (page.next, last) {
                // A page that does not advance would be read for ever.
                (Some(_), Some(last)) if last > after => after = last,
                _ => return Ok(stored),
            }
        }
    }

    async fn twin(&mut self, device: &str) -> Result<Option<StoredTwin>, ReadError> {
        let path = format!("/api/v1/devices/{}/twin", escape(device));
        let Some(twin) = self.get::<serde_json::Value>(&path).await? else {
            return Ok(None);
        };
        // A device's answer may name the version of the section or of the whole twin, which is never
        // smaller; the content is checked exactly, so the larger of the two is enough here.
        let versions = ["/versions/reported", "/version"]
            .iter()
            .filter_map(|at| twin.pointer(at)?.as_u64());
        let version = versions.max().unwrap_or(0);
        Ok(Some(StoredTwin {
            reported: twin["reported"].clone(),
            version,
        }))
    }

    /// `None`: a node answered 404.
    async fn get<T: serde::de::DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, ReadError> {
        let started = Instant::now();
        loop {
            let node = self.from.nodes[self.node % self.from.nodes.len()];
            let last = match self.ask(node, path).await {
                Ok(answer) => return Ok(answer),
                Err(problem) => format!("{node}: {problem}"),
            };
            if started.elapsed() >= self.from.request_deadline {
                return Err(ReadError::Deadline {
                    path: path.to_owned(),
                    waited: started.elapsed(),
                    last,
                });
            }
            self.node += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, node: SocketAddr, path: &str) -> Result<Option<T>, String> {
        let request = self
            .client
            .get(format!("http://{node}{path}"))
            .bearer_auth(&self.from.token);
        let response = request.send().await.map_err(|e| e.to_string())?;
        match response.status().as_u16() {
            200 => response.json().await.map(Some).map_err(|e| e.to_string()),
            404 => Ok(None),
            status => Err(format!("status {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simulator::ledger::{Ack, DeviceLedger};
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    /// A node with `stored` messages of every device but `ghost`; each third request gets a 503.
    fn node(stored: u64) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (count, stream) in listener.incoming().enumerate() {
                let answer = |path: &str| match count % 3 {
                    2 => (503, String::new()),
                    _ => respond(path, stored),
                };
                serve(stream.unwrap(), answer);
            }
        });
        address
    }

    fn serve(stream: TcpStream, answer: impl Fn(&str) -> (u16, String)) {
        let mut reader = BufReader::new(stream);
        let (mut first, mut line, mut authorised) = (String::new(), String::new(), false);
        reader.read_line(&mut first).unwrap();
        while reader.read_line(&mut line).unwrap() > 2 {
            authorised |= line.trim_end().eq_ignore_ascii_case("authorization: Bearer secret");
            line.clear();
        }
        let path = first.split(' ').nth(1).unwrap();
        let (status, body) = if authorised { answer(path) } else { (401, String::new()) };
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        reader.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
    }

    fn respond(path: &str, stored: u64) -> (u16, String) {
        if path.contains("ghost") {
            return (404, String::new());
        }
        let after: u64 = path
            .split("after_seq=")
            .nth(1)
            .unwrap()
            .split('&')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let last = (after + PAGE as u64).min(stored);
        let item = |seq: u64| {
            let mut body = bytes::BytesMut::new();
            simulator::payload::telemetry("dev-1", 1, seq as u32, 64, &mut body);
            format!(r#"{{"seq":{seq},"body":{}}}"#, std::str::from_utf8(&body).unwrap())
        };
        let items: Vec<String> = (after + 1..=last).map(item).collect();
        let next = if last < stored { last.to_string() } else { "null".into() };
        (200, format!(r#"{{"items":[{}],"next":{next}}}"#, items.join(",")))
    }

    fn ledger(device: &str, acked: u32) -> DeviceLedger {
        let acks = (1..=acked)
            .map(|n| Ack {
                n,
                at_ms: n,
                seq: n,
                index: n,
            })
            .collect();
        DeviceLedger {
            device: device.into(),
            run: 1,
            payload_bytes: 64,
            sent: acked,
            acks,
            ..Default::default()
        }
    }

    fn source(nodes: Vec<SocketAddr>) -> ReadBack {
        ReadBack {
            nodes,
            token: "secret".into(),
            request_deadline: Duration::from_secs(20),
        }
    }

    /// Everything is read over pages, past a node that is gone and answers that are refusals.
    #[tokio::test]
    async fn everything_is_read_from_whoever_answers() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let whole = Arc::new(Ledger {
            devices: vec![ledger("dev-1", 2_500), ledger("ghost", 3)],
        });
        let read = Arc::new(AtomicU64::new(0));
        let findings = read_back(source(vec![gone, node(2_500)]), whole, read.clone())
            .await
            .unwrap();
        assert_eq!(
            (findings.acknowledged, findings.stored, findings.devices),
            (2_503, 2_500, 2)
        );
        assert_eq!(
            findings.lost(),
            3,
            "only the device that nobody knows has lost something"
        );
        assert_eq!(read.load(Ordering::Relaxed), 2_500);
    }

    /// A message missing at the end is seen although the pages look complete.
    #[tokio::test]
    async fn a_lost_tail_is_found() {
        let whole = Arc::new(Ledger {
            devices: vec![ledger("dev-1", 2_001)],
        });
        let findings = read_back(source(vec![node(2_000)]), whole, Arc::default())
            .await
            .unwrap();
        assert_eq!(findings.lost(), 1);
    }

    /// What cannot be read is not called lost.
    #[tokio::test]
    async fn unreadable_is_a_harness_failure() {
        let whole = Arc::new(Ledger {
            devices: vec![ledger("dev-1", 1)],
        });
        let mut from = source(vec![node(1)]);
        (from.token, from.request_deadline) = ("wrong".into(), Duration::from_millis(300));
        assert!(matches!(
            read_back(from, whole, Arc::default()).await,
            Err(ReadError::Deadline { .. })
        ));
    }
}
