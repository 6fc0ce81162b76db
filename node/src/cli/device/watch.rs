//! `holdfast device watch`: what happens to devices, as it happens.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{client, query, shown, Target};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// Longest line of the feed that is read: an event with the largest body, in base64.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Pause before connecting again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Silence after which a feed is taken for dead; an idle one says so every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  holdfast device watch --dir /tmp/hf\n  holdfast device watch lamp-1 'pump-*' --kinds telemetry,twin --output json\n\nRuns until interrupted and connects again, to another node if need be, where it was. With --output json each\nline is one event. Lines of kind failover, gap and missed are about the feed itself: another node leads a shard,\nevents may be missing, events were left out because they were not read fast enough."
)]
pub struct Watch {
    /// Devices, and beginnings of device ids with * at their end [default: all]
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Only these kinds: telemetry, twin, session, registration, message
    #[arg(long, value_name = "KINDS")]
    kinds: Option<String>,
    /// Only telemetry of these streams
    #[arg(long, value_name = "STREAMS")]
    streams: Option<String>,
    /// Go on behind the event that came with this id
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
}

impl Watch {
    /// # Errors
    /// What went wrong, with its exit code; a connection that breaks off is no failure.
    pub async fn run(self, output: Output) -> Result<(), Failure> {
        let client = client(&self.target)?;
        let bases = client.bases().len();
        let ids = (!self.ids.is_empty()).then(|| self.ids.join(","));
        let path = format!(
            "/api/v1/events{}",
            query(&[
                ("devices", ids),
                ("kinds", self.kinds.clone()),
                ("streams", self.streams.clone())
            ])
        );
        let mut feed = Feed {
            output,
            cursor: self.after.clone(),
            next_cursor: None,
            left: self.count,
        };
        let (mut turn, mut refused) = (0, 0);
        loop {
            match client.open(turn % bases, &path, feed.cursor.as_deref()).await {
                Ok(response) => {
                    refused = 0;
                    if feed.read(response).await {
                        return Ok(());
                    }
                    eprintln!("the feed broke off, connecting again");
                }
                Err(failure) if failure.exit != Exit::Unavailable => return Err(failure),
                Err(failure) => {
                    refused += 1;
                    // Once every node was asked, somebody should hear of it.
                    if refused == bases {
                        eprintln!("{failure}\nwaiting for a node that answers");
                    }
                }
            }
            turn += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

struct Feed {
    output: Output,
    cursor: Option<String>,
    next_cursor: Option<String>,
    left: Option<u64>,
}

impl Feed {
    /// Prints what comes; `true` when that is enough.
    async fn read(&mut self, mut response: reqwest::Response) -> bool {
        let mut rest = Vec::new();
        self.next_cursor = None;
        loop {
            let chunk = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                _ => return false,
            };
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if self.line(String::from_utf8_lossy(&line).trim_end()) {
                    return true;
                }
            }
            if rest.len() > LINE_BYTES_MAX {
                return false;
            }
        }
    }

    /// An id counts once what it came with is printed, or there was nothing with it.
    fn line(&mut self, line: &str) -> bool {
        if let Some(id) = line.strip_prefix("id: ") {
            self.next_cursor = Some(id.to_owned());
        }
        let Some(text) = line.strip_prefix("data: ") else {
            if line.is_empty() {
                self.cursor = self.next_cursor.take().or(self.cursor.take());
            }
            return false;
        };
        match (self.output, serde_json::from_str::<Value>(text)) {
            (Output::Table, Ok(event)) => output::line(&for_people(&event)),
            _ => output::line(text),
        }
        self.cursor = self.next_cursor.take().or(self.cursor.take());
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        self.left == Some(0)
    }
}

/// One line: when, whose, what; then what is particular to it.
fn for_people(event: &Value) -> String {
    let part = |name: &str| event.get(name).map(shown).unwrap_or_default();
    let head = format!("{:24}  {:20}  {:12}", part("time"), part("device"), part("kind"));
    let about_events = [
        "seq",
        "stream",
        "section",
        "section_version",
        "change",
        "status",
        "cause",
        "body",
        "body_base64",
    ];
    let about_feed = ["shard", "term", "leader", "count", "reason"];
    let names = match event.get("device") {
        Some(_) => about_events.as_slice(),
        None => about_feed.as_slice(),
    };
    let tail: Vec<String> = names
        .iter()
        .filter_map(|name| Some((*name, event.get(*name)?)))
        .filter(|(_, value)| !value.is_null() && *value != "")
        .map(|(name, value)| format!("{name}={}", shown(value)))
        .collect();
    format!("{head}  {}", tail.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_for_people() {
        let event = serde_json::json!({
            "time": "2026-11-25T02:00:00.000Z", "kind": "telemetry", "device": "lamp-1", "seq": 7, "stream": "",
            "body": { "t": 1 },
        });
        assert_eq!(
            for_people(&event),
            "2026-11-25T02:00:00.000Z  lamp-1                telemetry     seq=7 body={\"t\":1}"
        );
    }
}
