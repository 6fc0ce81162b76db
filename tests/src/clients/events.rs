//! A reader of the live feed: server-sent events of one node, one object at a time.

use std::net::SocketAddr;

use serde_json::Value;

use super::PATIENCE;

/// An open feed. Read on demand only: one that is not asked is a slow reader.
pub struct Feed {
    runtime: tokio::runtime::Runtime,
    response: reqwest::Response,
    input: Vec<u8>,
    id: String,
}

impl Feed {
    /// Returns once the node has begun to watch.
    ///
    /// # Panics
    /// When the node refuses.
    pub fn open(address: SocketAddr, token: &str, query: &str, last_id: Option<&str>) -> Self {
        Self::try_open(address, token, query, last_id).expect("the feed is opened")
    }

    /// # Errors
    /// The status, or why there is none.
    ///
    /// # Panics
    /// When no runtime can be made.
    pub fn try_open(address: SocketAddr, token: &str, query: &str, last_id: Option<&str>) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut request = client
            .get(format!("http://{address}/api/v1/events?{query}"))
            .bearer_auth(token);
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = runtime
            .block_on(request.send())
            .map_err(|error| error.to_string())?
            .error_for_status()
            .map_err(|error| error.to_string())?;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self {
            runtime,
            response,
            input: Vec::new(),
            id: last_id.unwrap_or_default().to_owned(),
        })
    }

    /// The last id that came: where another feed may go on.
    pub fn last_id(&self) -> &str {
        &self.id
    }

    /// The next object, be it an event or a marker.
    ///
    /// # Panics
    /// When nothing comes, or the feed ends.
    #[allow(clippy::should_implement_trait)] // a feed has no end that a loop could wait for
    pub fn next(&mut self) -> Value {
        self.try_next().expect("the feed goes on")
    }

    /// As [`Self::next`]; `None` when the feed ends.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn try_next(&mut self) -> Option<Value> {
        loop {
            while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                let line = String::from_utf8(line).expect("UTF-8");
                if let Some(id) = line.trim_end().strip_prefix("id: ") {
                    id.clone_into(&mut self.id);
                }
                if let Some(text) = line.strip_prefix("data: ") {
                    return Some(serde_json::from_str(text).expect("JSON"));
                }
            }
            let response = &mut self.response;
            let chunk = self
                .runtime
                .block_on(async { tokio::time::timeout(PATIENCE, response.chunk()).await })
                .expect("something comes");
            self.input.extend_from_slice(&chunk.ok()??);
        }
    }

    /// The next event; markers of failovers are passed over.
    ///
    /// # Panics
    /// As [`Self::next`], and when events were left out.
    pub fn event(&mut self) -> Value {
        loop {
            let event = self.next();
            match event["kind"].as_str() {
                Some("failover") => {}
                Some("gap" | "missed") => panic!("{event}"),
                _ => return event,
            }
        }
    }
}
