//! What a handler knows of its request: the backend, who asks, and how long it may take.

use std::future::{ready, Future, Ready};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::HeaderMap;
use actix_web::{web, FromRequest, HttpMessage as _, HttpRequest};
use actors::device::{Answer, Command};
use actors::id::{DeviceId, DeviceKey, TenantId};
use actors::ports::{CallError, Reply};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::config::HttpConfig;
use super::events::LiveEdge;
use super::live::Live;
use super::port::Backend;
use super::problem::{Ask, Kind, Problem};
use super::room::{crowded, Answers};
use crate::gateway::gate::Pass;
use crate::observe::metrics::Metrics;
use crate::serve::control::Control;

pub const TIMEOUT_HEADER: &str = "X-Holdfast-Timeout-Ms";
/// Bounds of a deadline a client may ask for.
pub const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// How much longer than its deadline a call may run before the edge gives up on it: what the
/// cluster says at the deadline is more exact than "unknown".
const GRACE: Duration = Duration::from_millis(250);

/// How long a telemetry message waits for its turn before it is refused.
const PASS_PATIENCE: Duration = Duration::from_secs(1);

/// Shared by all workers of the server.
pub struct App {
    pub config: HttpConfig,
    /// Of the configuration, what may change while the server runs.
    pub live: Live,
    /// Set once the node has one; see [`super::HttpServer::set_control`].
    pub control: OnceLock<Arc<Control>>,
    pub backend: Arc<dyn Backend>,
    pub metrics: Metrics,
    pub events: LiveEdge,
    /// Room for large answers.
    pub answers: Answers,
    /// The server is on its way out.
    pub stopping: AtomicBool,
    /// Fixed when a cluster is created, so asked once.
    pub shard_count: tokio::sync::OnceCell<usize>,
}

impl App {
    pub async fn shard_count(&self) -> usize {
        let ask = || async { self.backend.status().await.shards.len() };
        *self.shard_count.get_or_init(ask).await
    }
}

/// Who asks. Put into the request by `auth`.
#[derive(Clone, Copy, Debug)]
pub struct Principal {
    pub tenant: TenantId,
}

/// One authenticated request.
pub struct Context {
    pub app: web::Data<App>,
    pub tenant: TenantId,
    asked: Option<Duration>,
    until: Instant,
    pub request: HttpRequest,
}

impl FromRequest for Context {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let app = request
            .app_data::<web::Data<App>>()
            .expect("the server registers it")
            .clone();
        let principal = request.extensions().get::<Principal>().copied();
        let principal = principal.expect("every route that takes a Context lies behind `auth`");
        ready(asked(request).map(|asked| Self {
            tenant: principal.tenant,
            asked,
            until: Instant::now() + asked.unwrap_or_else(|| app.live.deadline()),
            app,
            request: request.clone(),
        }))
    }
}

#[derive(serde::Deserialize)]
struct TimeoutParam {
    timeout_ms: Option<String>,
}

/// The deadline the client asks for, if it does.
fn asked(request: &HttpRequest) -> Result<Option<Duration>, Problem> {
    let param = web::Query::<TimeoutParam>::from_query(request.query_string()).map_err(|e| bad_query(&e))?;
    let header = request
        .headers()
        .get(TIMEOUT_HEADER)
        .map(|v| v.to_str().unwrap_or("?").to_owned());
    let Some(text) = header.or(param.into_inner().timeout_ms) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(ms) if TIMEOUT_MS.contains(&ms) => Ok(Some(Duration::from_millis(ms))),
        _ => Err(Problem::new(
            Kind::BadParameter,
            format!("the timeout {text:?} is not a number of milliseconds in {TIMEOUT_MS:?}"),
        )),
    }
}

/// The query parameters, all known ones and no others.
///
/// # Errors
/// 400 that names the parameter.
pub fn params<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    let query = web::Query::<T>::from_query(request.query_string());
    query.map(web::Query::into_inner).map_err(|e| bad_query(&e))
}

fn bad_query(error: &actix_web::error::QueryPayloadError) -> Problem {
    Problem::new(
        Kind::BadParameter,
        format!("{error}; see /openapi.json for the parameters of this path"),
    )
}

impl Context {
    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// The deadline the client named, if it did.
    pub fn asked(&self) -> Option<Duration> {
        self.asked
    }

    /// What is left of the request's deadline.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// The device a path names, within the tenant of who asks.
    ///
    /// # Errors
    /// 400 that says which rule the id breaks.
    pub fn device(&self, id: &str) -> Result<DeviceKey, Problem> {
        let id = DeviceId::parse(id).map_err(|e| Problem::new(Kind::BadDeviceId, e.to_string()))?;
        Ok(DeviceKey::new(self.tenant, id))
    }

    /// Runs a command of a device to its end, or to the deadline.
    ///
    /// # Errors
    /// As the table in [`super::problem`] says.
    pub async fn call(&self, device: &DeviceKey, command: Command, ask: Ask) -> Result<Reply, Problem> {
        let call = self.app.backend.call(device, command, self.left());
        let reply = self.finish(call, ask).await?;
        match reply.answer {
            Answer::Refused(refusal) => Err(Problem::of_refusal(refusal, ask)),
            answer => Ok(Reply { answer, ..reply }),
        }
    }

    /// Waits for the turn of a telemetry message. Keep what is returned until it is answered.
    ///
    /// # Errors
    /// 429: the shard has more to do than it can, and the wait was long enough.
    pub async fn pass(&self, device: &DeviceKey) -> Result<Pass<'_>, Problem> {
        let shards = u16::try_from(self.app.shard_count().await).unwrap_or(1).max(1);
        let patience = PASS_PATIENCE.min(self.left());
        let gate = self.app.config.gates.of(device.shard(shards));
        gate.pass(patience).await.ok_or_else(|| {
            let what = "telemetry of this shard".to_owned();
            Problem::of_call(CallError::Overloaded { what }, Ask::Write)
        })
    }

    /// Takes room for a page of an answer, before it is asked for; it goes with the answer.
    ///
    /// # Errors
    /// 429: others have not read theirs, and the wait was long enough.
    pub async fn page_room(&self) -> Result<(), Problem> {
        let patience = PASS_PATIENCE.min(self.left());
        let room = tokio::time::timeout(patience, self.app.answers.page()).await;
        let room = room.map_err(|_| crowded())?;
        self.request.extensions_mut().insert(room);
        Ok(())
    }

    /// Waits for any question to the backend, at most until the deadline.
    ///
    /// # Errors
    /// As the table in [`super::problem`] says.
    pub async fn finish<T>(&self, call: impl Future<Output = Result<T, CallError>>, ask: Ask) -> Result<T, Problem> {
        match tokio::time::timeout_at(self.until + GRACE, call).await {
            Ok(result) => result.map_err(|e| Problem::of_call(e, ask)),
            Err(_) => Err(Problem::of_call(CallError::Unknown, ask)),
        }
    }
}

/// The backend answered a question that was not asked.
pub fn odd_answer(answer: &Answer) -> Problem {
    tracing::error!(?answer, "the answer does not fit the command");
    Problem::new(
        Kind::Internal,
        "the device gave an answer of another kind; this is a fault of the node, report it",
    )
}
