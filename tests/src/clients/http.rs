//! A blocking HTTP client for the operators' API of one node.

use std::net::SocketAddr;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, AUTHORIZATION, CONTENT_TYPE};
use reqwest::Method;
use serde_json::Value;

/// One node's API, with the operator's token unless told otherwise.
pub struct Http {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    base: String,
    token: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// # Panics
    /// When the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// A header as text; empty when it is absent.
    pub fn header(&self, name: &str) -> String {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    }

    /// A problem document (RFC 9457) of `status`, and no other answer.
    ///
    /// # Panics
    /// When it is anything else.
    pub fn problem(&self, status: u16) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{text}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{text}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "no {member} in {text}");
        }
        problem
    }

    /// # Panics
    /// When the status is another.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

impl Http {
    /// # Panics
    /// When no runtime can be made.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            runtime: runtime.expect("a runtime"),
            client: reqwest::Client::builder()
                .timeout(super::PATIENCE)
                .pool_max_idle_per_host(1)
                .build()
                .expect("a client"),
            base: format!("http://{address}"),
            token: Some(token.to_owned()),
        }
    }

    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.token = None;
        self
    }

    /// `None` when the node does not answer at all.
    pub fn try_send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Option<Answer> {
        let mut all = HeaderMap::new();
        if let Some(token) = &self.token {
            all.insert(
                AUTHORIZATION,
                HeaderValue::from_str(&format!("Bearer {token}")).expect("tokens are text"),
            );
        }
        if !body.is_empty() {
            all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            all.insert(name, HeaderValue::from_str(value).expect("a header value"));
        }
        let request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .headers(all)
            .body(body);
        self.runtime.block_on(async {
            let response = request.send().await.ok()?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body = response.bytes().await.ok()?.to_vec();
            Some(Answer { status, headers, body })
        })
    }

    /// # Panics
    /// When the node does not answer.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        self.try_send(method.clone(), path, headers, body.into())
            .unwrap_or_else(|| panic!("{}: no answer to {method} {path}", self.base))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    /// Telemetry of a device, all of it, read page by page.
    pub fn telemetry(&self, device: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut after = 0;
        loop {
            let path = format!("/api/v1/devices/{device}/telemetry?limit=1000&after_seq={after}");
            let page = self.get(&path).expect(200).json();
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            match page["next"].as_u64() {
                Some(next) => after = next,
                None => return items,
            }
        }
    }

    /// The samples of `/metrics` whose line starts with `prefix`, added up.
    pub fn metric(&self, prefix: &str) -> f64 {
        let text = String::from_utf8(self.get("/metrics").expect(200).body).expect("text");
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}
