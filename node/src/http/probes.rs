//! For machines that watch: is it alive, is it ready, what does it measure, what can it do.

use std::sync::atomic::Ordering;

use actix_web::{web, HttpResponse};
use serde_json::json;

use super::context::App;
use super::openapi;
use super::problem::{Kind, Problem};

#[utoipa::path(get, path = "/livez", tag = "probes", operation_id = "livez",
    responses((status = 200, description = "The process runs", content_type = "text/plain", body = String)))]
pub async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

#[utoipa::path(get, path = "/readyz", tag = "probes", operation_id = "readyz",
    responses((status = 200, description = "Send devices here", content_type = "text/plain", body = String)))]
pub async fn readyz(app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let mut reasons = Vec::new();
    if app.stopping.load(Ordering::Relaxed) {
        reasons.push("the node is stopping");
    }
    if let Some(reason) = app.backend.quarantine() {
        let detail = format!("the node is quarantined: {reason}; repair it with `holdfast cluster repair`");
        return Err(Problem::new(Kind::NotReady, detail).with("reasons", json!(["the node is quarantined", reason])));
    }
    if app.backend.draining() {
        reasons.push("the node is draining");
    }
    if !app.backend.ready() {
        reasons.push("not every shard is known to have a leader");
    }
    if reasons.is_empty() {
        return Ok(HttpResponse::Ok().content_type("text/plain").body("ready\n"));
    }
    let detail = format!("{}; send devices to other nodes and ask again", reasons.join("; "));
    Err(Problem::new(Kind::NotReady, detail).with("reasons", json!(reasons)))
}

#[utoipa::path(get, path = "/metrics", tag = "probes", operation_id = "metrics",
    responses((status = 200, description = "Prometheus text format; names in docs/reference/metrics.md",
        content_type = "text/plain", body = String)))]
pub async fn metrics(app: web::Data<App>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(app.metrics.render())
}

#[utoipa::path(get, path = "/openapi.json", tag = "probes", operation_id = "openapi",
    responses((status = 200, description = "This document", content_type = "application/json", body = Object)))]
pub async fn openapi() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(openapi::text())
}
