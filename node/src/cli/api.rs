//! The CLI's own HTTP client: asks the nodes of a cluster in turn until one answers.
//!
//! Only a request that certainly did nothing (no connection) or changes nothing (GET) goes to the
//! next node; anything else might be done twice.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, ETAG};
use reqwest::Method;
use serde_json::Value;

use super::failure::{Exit, Failure};

/// Time for one request, to be longer than the node's own deadline.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

const NOBODY: &str = "see what runs with `holdfast cluster status`, start it with `holdfast cluster up` (or `systemctl status holdfast`), \
                      and check the address given with --url";
const NOT_HTTP: &str =
    "name the address of a node's HTTP API: listen.http, on a local cluster base port + 1 (MQTT is base port + 0)";

pub struct Client {
    http: reqwest::Client,
    /// `http://host:port`, without a slash at the end.
    bases: Vec<String>,
    token: String,
    deadline: Duration,
}

pub struct Answer {
    pub status: u16,
    pub etag: Option<String>,
    pub receipt: Option<String>,
    /// `Null` when there was no body.
    pub body: Value,
}

/// What is asked; `headers` are names and values.
#[derive(Clone, Default)]
pub struct Request<'a> {
    pub path: &'a str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<(&'static str, Value)>,
}

impl Client {
    /// # Errors
    /// The token cannot be sent, or the client cannot be made.
    pub fn new(bases: Vec<String>, token: &str) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_DEADLINE)
            .build()
            .map_err(|error| Failure::new(Exit::Internal, "no HTTP client").because(error))?;
        let bases = bases
            .into_iter()
            .map(|base| base.trim_end_matches('/').to_owned())
            .collect();
        Ok(Self {
            http,
            bases,
            token: token.to_owned(),
            deadline: REQUEST_DEADLINE,
        })
    }

    /// For requests whose answer may take longer than usual.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Nodes it may ask.
    pub fn bases(&self) -> &[String] {
        &self.bases
    }

    /// Opens a feed at the node `base`: server-sent events without an end, after `last_id`.
    ///
    /// # Errors
    /// `Unavailable` when another node may do better, or this one later.
    pub async fn open(&self, base: usize, path: &str, last_id: Option<&str>) -> Result<reqwest::Response, Failure> {
        let base = &self.bases[base];
        let mut request = self
            .http
            .get(format!("{base}{path}"))
            .bearer_auth(&self.token)
            .header("accept", "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.map_err(|error| {
            Failure::new(Exit::Unavailable, format!("{base} does not answer")).because(innermost(&error))
        })?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let body = serde_json::from_str(&response.text().await.unwrap_or_default()).unwrap_or(Value::Null);
        let answer = Answer {
            status,
            etag: None,
            receipt: None,
            body,
        };
        match judge(answer, &Method::GET, path) {
            Ok(_) => Err(Failure::new(
                Exit::Internal,
                format!("{base} answered with {status} instead of a feed"),
            )),
            Err(failure) => Err(failure),
        }
    }

    /// # Errors
    /// Nobody answered, or the answer was no success; the text says which.
    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        let request = Request {
            path,
            ..Request::default()
        };
        self.send(Method::GET, request).await
    }

    /// # Errors
    /// As [`Self::get`]; says so when the outcome is unknown.
    pub async fn send(&self, method: Method, request: Request<'_>) -> Result<Answer, Failure> {
        let mut silent = Vec::new();
        let mut advice = NOBODY;
        for base in &self.bases {
            let url = format!("{base}{}", request.path);
            match self.attempt(&method, &url, &request).await {
                Ok(answer) => return judge(answer, &method, request.path),
                Err(error) if error.is_connect() || method == Method::GET => {
                    if !error.is_connect() && !error.is_timeout() {
                        advice = NOT_HTTP;
                    }
                    silent.push(format!("{base}: {}", meaning(&error)));
                }
                Err(error) => return Err(unknown(&method, request.path, &innermost(&error))),
            }
        }
        Err(Failure::new(Exit::Unavailable, "no node answers")
            .because(silent.join("\n"))
            .advise(advice))
    }

    async fn attempt(&self, method: &Method, url: &str, request: &Request<'_>) -> Result<Answer, reqwest::Error> {
        let mut builder = self
            .http
            .request(method.clone(), url)
            .timeout(self.deadline)
            .bearer_auth(&self.token)
            .headers(headers(request));
        if let Some((content_type, body)) = &request.body {
            builder = builder.header("content-type", *content_type).body(body.to_string());
        }
        let response = builder.send().await?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        let (etag, receipt) = (header(ETAG.as_str()), header("x-holdfast-receipt"));
        let text = response.text().await?;
        let body = match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(_) if text.is_empty() => Value::Null,
            Err(_) => Value::String(text),
        };
        Ok(Answer {
            status,
            etag,
            receipt,
            body,
        })
    }
}

fn headers(request: &Request<'_>) -> HeaderMap {
    let pairs = request
        .headers
        .iter()
        .filter_map(|(name, value)| Some((HeaderName::try_from(*name).ok()?, HeaderValue::try_from(value).ok()?)));
    pairs.collect()
}

/// Turns a problem document into a failure.
fn judge(answer: Answer, method: &Method, path: &str) -> Result<Answer, Failure> {
    if (200..300).contains(&answer.status) {
        return Ok(answer);
    }
    let text = |key: &str| {
        answer
            .body
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (title, detail) = (text("title"), text("detail"));
    let why = match (title.is_empty(), detail.is_empty()) {
        (true, true) => answer.body.to_string(),
        (_, true) => title,
        (true, false) => detail,
        (false, false) => format!("{title}: {detail}"),
    };
    let (exit, advice) = match answer.status {
        404 if is(&answer, "not-connected") || is(&answer, "not-subscribed") => (
            Exit::Unavailable,
            "nothing was sent; try again when the device is connected and listens",
        ),
        504 if is(&answer, "not-delivered") => (Exit::Unavailable, "nothing was sent; calling again is safe"),
        502 => (Exit::BadInput, "mend what the device answers with"),
        401 | 403 => (
            Exit::BadInput,
            "give the operator token with --token, HOLDFAST_TOKEN or --dir",
        ),
        404 if path.starts_with("/api/v1/cluster/") => (
            Exit::BadInput,
            "check the id; `holdfast cluster status` shows the nodes, `cluster token list` the tokens",
        ),
        404 => (
            Exit::BadInput,
            "check the name; `holdfast device list` shows what there is",
        ),
        409 if text("type").ends_with(":cluster-conflict") => (Exit::BadInput, "nothing was changed"),
        409 | 412 => (
            Exit::BadInput,
            "somebody changed it meanwhile: read it again, then decide",
        ),
        429 | 503 => (Exit::Unavailable, "nothing was done; try again in a moment"),
        504 => return Err(unknown(method, path, &why)),
        400..=499 => (Exit::BadInput, "mend what the answer names"),
        _ => (Exit::Internal, "look into the log of the node"),
    };
    let what = format!("{method} {path} was answered with {}", answer.status);
    Err(Failure::new(exit, what).because(why).advise(advice))
}

/// Whether the answer is the problem of that name.
fn is(answer: &Answer, name: &str) -> bool {
    let kind = answer.body.get("type").and_then(Value::as_str);
    kind.is_some_and(|kind| kind.rsplit(':').next() == Some(name))
}

fn unknown(method: &Method, path: &str, why: &str) -> Failure {
    Failure::new(Exit::Unavailable, format!("the outcome of {method} {path} is unknown"))
        .because(why)
        .advise("it may have been done: read it back before trying again")
}

/// What went wrong with a request, in words.
fn meaning(error: &reqwest::Error) -> String {
    let reason = innermost(error);
    if error.is_timeout() {
        return format!("no answer in time ({reason}); the node is paused, overloaded or cut off");
    }
    if error.is_connect() {
        return format!("{reason}; nothing listens there");
    }
    format!("{reason}; something answers there, but not the HTTP API")
}

/// The innermost reason; reqwest's own text only repeats the URL.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}
