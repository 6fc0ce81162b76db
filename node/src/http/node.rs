//! The answering node itself, as its operators see it: facts, configuration, log, reload.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::{web, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};

use super::body::{Body, JSON};
use super::context::{params, Context};
use super::problem::{Kind, Problem};
use super::respond::{bad_param, number};
use crate::config::{duration, settings, Change, ConfigError, Setting};
use crate::observe::level::{LogView, BORROW_MAX};
use crate::observe::recent::RECENT_BYTES_MAX;
use crate::serve::control::Control;
use crate::serve::facts;

/// # Errors
/// 503 while the node starts.
fn control(context: &Context) -> Result<Arc<Control>, Problem> {
    let control = context.app.control.get().cloned();
    control.ok_or_else(|| Problem::new(Kind::NotReady, "the node is still starting; ask again in a moment"))
}

#[utoipa::path(get, path = "/api/v1/node", tag = "node", operation_id = "getNode",
    responses((status = 200, description = "Version, process, machine, disk and storage of the node that answers", body = Object)))]
pub async fn get(context: Context) -> Result<HttpResponse, Problem> {
    let control = control(&context)?;
    let mut facts = blocking(move || facts::gather(&control)).await?;
    let (draining, ready) = (context.app.backend.draining(), context.app.backend.ready());
    facts["draining"] = draining.into();
    facts["ready"] = ready.into();
    Ok(HttpResponse::Ok().json(facts))
}

/// Every key with the value in force. Secrets are shown as `"[secret]"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConfigView {
    pub file: String,
    /// `key`, `value` as TOML, `source`, `line`, `variable`, `reloadable`.
    #[schema(value_type = Vec<Object>)]
    pub settings: Vec<Value>,
}

#[utoipa::path(get, path = "/api/v1/node/config", tag = "node", operation_id = "getNodeConfig",
    responses((status = 200, description = "The configuration in force, without secrets", body = ConfigView)))]
pub async fn config(context: Context) -> Result<HttpResponse, Problem> {
    let control = control(&context)?;
    Ok(HttpResponse::Ok().json(ConfigView {
        file: control.start().file.display().to_string(),
        settings: control.settings().iter().map(Setting::json).collect(),
    }))
}

/// What a reload did.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReloadView {
    /// In force now.
    pub changed: Vec<ChangeView>,
    /// In the file, and in force after a restart only.
    pub needs_restart: Vec<ChangeView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeView {
    pub key: String,
    pub from: String,
    pub to: String,
}

impl From<Change> for ChangeView {
    fn from(Change { key, from, to, .. }: Change) -> Self {
        Self { key, from, to }
    }
}

#[utoipa::path(post, path = "/api/v1/node/reload", tag = "node", operation_id = "reloadNode",
    responses((status = 200, description = "As SIGHUP: the file was accepted and read again", body = ReloadView),
        (status = 422, description = "The file is refused as a whole, nothing has changed; `problems` has file, line and key of each mistake")))]
pub async fn reload(context: Context) -> Result<HttpResponse, Problem> {
    let control = control(&context)?;
    let reloaded = blocking(move || control.reload()).await?;
    let reloaded = reloaded.map_err(|error| {
        let problems: Vec<Value> = match &error {
            ConfigError::Refused(problems) => problems.iter().map(settings::problem_json).collect(),
            unreadable @ ConfigError::Unreadable { .. } => vec![json!({ "reason": unreadable.to_string() })],
        };
        let detail = format!("{error}; everything stays as it was, mend the file and reload again");
        Problem::new(Kind::ConfigRefused, detail).with("problems", problems)
    })?;
    Ok(HttpResponse::Ok().json(ReloadView {
        changed: reloaded.changed.into_iter().map(ChangeView::from).collect(),
        needs_restart: reloaded.restart.into_iter().map(ChangeView::from).collect(),
    }))
}

/// The log filter in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct LogFilterView {
    pub filter: String,
    /// What the configuration says (`log.filter`).
    pub configured: String,
    /// When the configured filter is in force again. Null: it is, or the other one has no end.
    pub until: Option<String>,
}

impl From<LogView> for LogFilterView {
    fn from(view: LogView) -> Self {
        Self {
            filter: view.filter,
            configured: view.configured,
            until: view.until.and_then(|until: SystemTime| facts::stamp(until)),
        }
    }
}

#[utoipa::path(get, path = "/api/v1/node/log", tag = "node", operation_id = "getLogFilter",
    responses((status = 200, description = "The log filter in force", body = LogFilterView)))]
pub async fn log(context: Context) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(LogFilterView::from(control(&context)?.log.view())))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogFilterBody {
    /// Such as `info,cluster=debug`; 1 to 1024 bytes.
    filter: String,
    /// How long, such as `10m`, 1 s to 1 d; then the configured filter returns by itself. Without
    /// it: until DELETE or a restart.
    #[serde(rename = "for")]
    lasts: Option<String>,
}

#[utoipa::path(put, path = "/api/v1/node/log", tag = "node", operation_id = "putLogFilter",
    request_body(content = LogFilterBody),
    responses((status = 200, description = "In force from the next line on", body = LogFilterView)))]
pub async fn put_log(context: Context, body: Body) -> Result<HttpResponse, Problem> {
    let control = control(&context)?;
    let body: LogFilterBody = body.object(&[JSON])?;
    let lasts = body.lasts.as_deref().map(lasts).transpose()?;
    let view = control.log.set(&body.filter, lasts).map_err(|error| {
        Problem::new(
            Kind::BadFilter,
            format!("{error}; write such as \"info,cluster=debug\""),
        )
    })?;
    Ok(HttpResponse::Ok().json(LogFilterView::from(view)))
}

fn lasts(text: &str) -> Result<Duration, Problem> {
    let parsed = duration::parse(text).map_err(|error| Problem::new(Kind::InvalidBody, format!("for: {error}")))?;
    if (Duration::from_secs(1)..=BORROW_MAX).contains(&parsed) {
        return Ok(parsed);
    }
    Err(Problem::new(
        Kind::InvalidBody,
        format!("for: {text} is out of range, 1s..=1d is allowed"),
    ))
}

#[utoipa::path(delete, path = "/api/v1/node/log", tag = "node", operation_id = "resetLogFilter",
    responses((status = 200, description = "The configured filter is in force", body = LogFilterView)))]
pub async fn reset_log(context: Context) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(LogFilterView::from(control(&context)?.log.reset())))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LinesParams {
    /// At most so many bytes, 1..=1048576; default 1048576.
    bytes: Option<String>,
    /// Deadline in milliseconds, 100..=60000.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/node/log/lines", tag = "node", operation_id = "getLogLines", params(LinesParams),
    responses((status = 200, description = "The last whole lines of the node's log since it started, oldest first",
        content_type = "text/plain", body = String)))]
pub async fn lines(context: Context) -> Result<HttpResponse, Problem> {
    let control = control(&context)?;
    let params: LinesParams = params(&context.request)?;
    let bytes = number("bytes", params.bytes.as_deref())?.unwrap_or(RECENT_BYTES_MAX as u64);
    if !(1..=RECENT_BYTES_MAX as u64).contains(&bytes) {
        return Err(bad_param("bytes", &bytes.to_string(), "a number in 1..=1048576"));
    }
    let text = control.log.recent(usize::try_from(bytes).unwrap_or(RECENT_BYTES_MAX));
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(text))
}

/// Runs what asks the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    web::block(work)
        .await
        .map_err(|_| Problem::new(Kind::Internal, "the node is too busy to look at itself; ask again"))
}
