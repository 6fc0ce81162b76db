//! The operator's side of a Holdfast: requests to whichever node answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::drive::Endpoints;

/// Pause before the next node is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// One request, as it ended.
#[derive(Clone, Debug)]
pub enum Reply<T> {
    Ok(T),
    /// The server said no; nothing was done.
    Refused(u16),
    /// It may have been done.
    Unknown(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the HTTP client cannot be built: {0}")]
    Client(reqwest::Error),
    #[error("{path} could not be read from any node within {waited:?}: {last}")]
    Deadline {
        path: String,
        waited: Duration,
        last: String,
    },
    #[error("{path} was refused with status {status}: the token is wrong or has no right to it")]
    Forbidden { path: String, status: u16 },
    #[error("the target names no HTTP endpoint")]
    NoEndpoint,
}

/// Goes round the nodes.
pub struct Api {
    client: reqwest::Client,
    nodes: Vec<SocketAddr>,
    token: Option<String>,
    next: AtomicUsize,
}

impl Api {
    /// # Errors
    /// There is nobody to ask.
    pub fn new(endpoints: &Endpoints) -> Result<Self, ApiError> {
        if endpoints.http.is_empty() {
            return Err(ApiError::NoEndpoint);
        }
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(15))
            .no_proxy()
            .build()
            .map_err(ApiError::Client)?;
        Ok(Self {
            client,
            nodes: endpoints.http.clone(),
            token: endpoints.token.clone(),
            next: AtomicUsize::new(0),
        })
    }

    /// One request to one node, not tried again.
    pub async fn once(&self, method: reqwest::Method, path: &str, body: Option<&serde_json::Value>) -> Reply<Vec<u8>> {
        let node = self.nodes[self.next.fetch_add(1, Ordering::Relaxed) % self.nodes.len()];
        let mut request = self.client.request(method, format!("http://{node}{path}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = match request.send().await {
            Ok(response) => response,
            // Nothing was sent where nobody listens.
            Err(error) if error.is_connect() => return Reply::Refused(0),
            Err(error) => return Reply::Unknown(error.to_string()),
        };
        let status = response.status().as_u16();
        match (status, response.bytes().await) {
            (200..=299, Ok(bytes)) => Reply::Ok(bytes.to_vec()),
            (504 | 500 | 502, _) => Reply::Unknown(format!("status {status}")),
            (_, Ok(_)) => Reply::Refused(status),
            (_, Err(error)) => Reply::Unknown(error.to_string()),
        }
    }

    /// Reads until some node answers. `None`: 404.
    ///
    /// # Errors
    /// None does within `deadline`, or the token is refused.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, deadline: Duration) -> Result<Option<T>, ApiError> {
        let started = Instant::now();
        loop {
            let last = match self.once(reqwest::Method::GET, path, None).await {
                Reply::Ok(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(value) => return Ok(Some(value)),
                    Err(error) => format!("an answer that cannot be read: {error}"),
                },
                Reply::Refused(404) => return Ok(None),
                Reply::Refused(status @ (401 | 403)) => {
                    return Err(ApiError::Forbidden {
                        path: path.to_owned(),
                        status,
                    })
                }
                Reply::Refused(0) => "nobody listens".to_owned(),
                Reply::Refused(status) => format!("status {status}"),
                Reply::Unknown(why) => why,
            };
            if started.elapsed() >= deadline {
                return Err(ApiError::Deadline {
                    path: path.to_owned(),
                    waited: started.elapsed(),
                    last,
                });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// A runtime of its own for whoever has no other.
///
/// # Errors
/// It cannot be built.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
