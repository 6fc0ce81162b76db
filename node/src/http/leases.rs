//! The fault leases of the answering node: install, look, heal. See `docs/reference/chaos-leases.md`.

use std::sync::Arc;

use actix_web::{web, HttpResponse};
use cluster::faults::{Faults, InstallError, Wanted};
use serde::Serialize;
use serde_json::{json, Value};
use utoipa::ToSchema;

use super::body::{Body, JSON};
use super::context::Context;
use super::problem::{Kind, Problem};

/// # Errors
/// 403 where drills are not allowed.
fn allowed(context: &Context) -> Result<Arc<Faults>, Problem> {
    let faults = context.app.backend.faults().filter(|faults| faults.allowed());
    faults.ok_or_else(|| {
        Problem::new(
            Kind::DrillsNotAllowed,
            "this node takes no faults; set chaos.allow_drills = true in its configuration and restart it, or start a \
             local cluster with `holdfast cluster up --allow-drills`",
        )
    })
}

/// What is installed in the answering node, and what was.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeasesView {
    /// Whether this node takes any (`chaos.allow_drills`).
    pub allowed: bool,
    pub node: Option<u64>,
    /// `id`, `kind`, `fault`, `seed`, `expires_in_ms`, `hits`: how often the fault has acted.
    #[schema(value_type = Vec<Object>)]
    pub leases: Vec<Value>,
    /// The last 64 that are over, oldest first: as above, with `reason` (`healed` or `expired`) and
    /// `ended_ms_ago`.
    #[schema(value_type = Vec<Object>)]
    pub past: Vec<Value>,
}

#[utoipa::path(get, path = "/api/v1/chaos/leases", tag = "chaos", operation_id = "listFaultLeases",
    responses((status = 200, description = "Fault leases of the node that answers", body = LeasesView)))]
pub async fn list(context: Context) -> Result<HttpResponse, Problem> {
    let Some(faults) = context.app.backend.faults().filter(|faults| faults.allowed()) else {
        return Ok(HttpResponse::Ok().json(LeasesView {
            allowed: false,
            node: None,
            leases: Vec::new(),
            past: Vec::new(),
        }));
    };
    Ok(HttpResponse::Ok().json(LeasesView {
        allowed: true,
        node: Some(faults.node()),
        leases: faults.leases().iter().map(|lease| json!(lease)).collect(),
        past: faults.past().iter().map(|lease| json!(lease)).collect(),
    }))
}

/// A fault and how long it lasts.
#[derive(ToSchema)]
#[allow(dead_code)] // the shape of `cluster::faults::Wanted`, for the description only
pub struct LeaseBody {
    /// `kind` and its parameters; `seed` for what it decides by chance.
    #[schema(value_type = Object)]
    fault: Value,
    /// 100..=600000; then it heals by itself.
    ttl_ms: u64,
}

/// A lease in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeaseAnswer {
    pub id: String,
    pub kind: String,
    pub node: u64,
    #[schema(value_type = Object)]
    pub fault: Value,
    pub seed: u64,
    pub expires_in_ms: u64,
    /// How often it has acted.
    pub hits: u64,
}

#[utoipa::path(put, path = "/api/v1/chaos/leases/{id}", tag = "chaos", operation_id = "putFaultLease",
    params(("id" = String, Path, description = "1 to 64 letters, digits, . _ -; the same again renews, another fault replaces")),
    request_body(content = LeaseBody),
    responses((status = 200, description = "The fault acts in the node that answers, until it is healed or its time is up", body = LeaseAnswer),
        (status = 403, description = "This node does not allow drills"),
        (status = 409, description = "64 leases are installed already")))]
pub async fn put(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let faults = allowed(&context)?;
    let body: Value = body.json(&[JSON])?;
    let installed = Wanted::parse(&body)
        .map_err(InstallError::Bad)
        .and_then(|wanted| faults.install(&id, wanted));
    let lease = installed.map_err(|error| match error {
        InstallError::NotAllowed => Problem::new(Kind::DrillsNotAllowed, error.to_string()),
        InstallError::Full => Problem::new(Kind::LeasesFull, format!("{error}; heal some first")),
        InstallError::Bad(bad) => Problem::new(Kind::BadFault, bad.to_string()).with("key", bad.key),
    })?;
    Ok(HttpResponse::Ok().json(LeaseAnswer {
        fault: json!(lease.fault),
        id: lease.id,
        kind: lease.kind.to_owned(),
        node: faults.node(),
        seed: lease.seed,
        expires_in_ms: lease.expires_in_ms,
        hits: lease.hits,
    }))
}

#[utoipa::path(delete, path = "/api/v1/chaos/leases/{id}", tag = "chaos", operation_id = "healFaultLease",
    params(("id" = String, Path, description = "Of the lease")),
    responses((status = 204, description = "There is no such lease (any more)")))]
pub async fn heal(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    if let Some(faults) = context.app.backend.faults() {
        faults.heal(&id);
    }
    Ok(HttpResponse::NoContent().finish())
}

#[utoipa::path(delete, path = "/api/v1/chaos/leases", tag = "chaos", operation_id = "healAllFaultLeases",
    responses((status = 204, description = "There are no leases in this node any more")))]
pub async fn heal_all(context: Context) -> Result<HttpResponse, Problem> {
    if let Some(faults) = context.app.backend.faults() {
        faults.heal_all();
    }
    Ok(HttpResponse::NoContent().finish())
}
