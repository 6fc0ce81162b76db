//! The HTTP edge over real sockets, in front of a cluster in memory.

mod cluster;
mod devices;
mod edge;
pub(crate) mod fake;
mod methods;
mod telemetry;
mod trouble;
mod twin;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::problem::{PROBLEM_JSON, TYPE_PREFIX};
use super::{serve, HttpConfig, HttpServer, Token};
use crate::observe::metrics::Metrics;
use fake::Fake;

const TOKEN: &str = "operator-token-of-the-tests";

/// A running server, its client and its cluster.
struct Edge {
    server: HttpServer,
    client: Client,
    fake: Arc<Fake>,
}

/// One answer, read to the end.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

fn edge() -> Edge {
    edge_with(|_| ())
}

fn edge_with(change: impl FnOnce(&mut HttpConfig)) -> Edge {
    let token = Token::new(TOKEN).unwrap();
    let mut config = HttpConfig::new("127.0.0.1:0".parse().unwrap(), token);
    change(&mut config);
    let fake = Arc::new(Fake::default());
    let (metrics, _) = Metrics::detached().unwrap();
    let server = serve(config, fake.clone(), fake.clone(), metrics).unwrap();
    let client = Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    Edge { server, client, fake }
}

impl Edge {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.addr())
    }

    /// Without a token.
    fn bare(&self, method: &str, path: &str) -> RequestBuilder {
        self.client
            .request(Method::from_bytes(method.as_bytes()).unwrap(), self.url(path))
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.bare(method, &format!("/api/v1{path}")).bearer_auth(TOKEN)
    }

    async fn get(&self, path: &str) -> Answer {
        send(self.request("GET", path)).await
    }

    async fn send_json(&self, method: &str, path: &str, body: &str) -> Answer {
        send(json(self.request(method, path), body)).await
    }

    /// Registers a device that must not be there yet.
    async fn create(&self, id: &str) -> Answer {
        self.send_json("PUT", &format!("/devices/{id}"), "{}").await.expect(201)
    }
}

fn json(request: RequestBuilder, body: &str) -> RequestBuilder {
    request.header("Content-Type", "application/json").body(body.to_owned())
}

async fn send(request: RequestBuilder) -> Answer {
    read(request.send().await.unwrap()).await
}

async fn read(response: Response) -> Answer {
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Checks that this is the problem `name` in full form, and returns it.
    #[track_caller]
    fn problem(&self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), Some(PROBLEM_JSON), "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["type"], format!("{TYPE_PREFIX}{name}"), "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert!(
            problem["title"].is_string() && problem["detail"].as_str().is_some_and(|d| d.len() > 10),
            "{problem}"
        );
        assert!(StatusCode::from_u16(status).is_ok());
        assert_eq!(
            self.header("retry-after").is_some(),
            matches!(status, 429 | 503),
            "{problem}"
        );
        assert!(self.header("x-request-id").is_some(), "{problem}");
        problem
    }
}
