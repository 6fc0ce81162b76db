//! Method calls to connected devices. Volatile: what is not answered here is answered nowhere.

use std::time::Duration;

use actix_web::{web, HttpResponse};
use actors::wire::topic::is_method_name;
use cluster::api::METHOD_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{Body, JSON};
use super::context::Context;
use super::problem::{Kind, Problem};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1..=300_000;

/// What to call a method with. Both may be left out, and so may the body.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MethodRequest {
    /// Any JSON, at most 128 KiB; null when left out.
    #[schema(value_type = Option<Value>)]
    payload: Option<Box<RawValue>>,
    /// How long to wait for the answer, in milliseconds: 1..=300000, default 30000.
    timeout_ms: Option<u64>,
}

/// What the device answered.
#[derive(Debug, Serialize, ToSchema)]
pub struct MethodResponse {
    /// The device's own; 200 by convention where it did what was asked.
    pub status: i32,
    #[schema(value_type = Value)]
    pub payload: Box<RawValue>,
}

#[utoipa::path(post, path = "/api/v1/devices/{id}/methods/{name}", tag = "methods", operation_id = "invokeMethod",
    params(("id" = String, Path, description = "Device id"),
        ("name" = String, Path, description = "Method, 1 to 64 of the characters of device ids; not `res`")),
    request_body(content = Option<MethodRequest>, content_type = "application/json"),
    responses((status = 200, description = "The device answered; `status` is its own", body = MethodResponse),
        (status = 404, description = "`device-not-found`, `not-connected` or `not-subscribed`: the call was not sent"),
        (status = 502, description = "`bad-answer`: the device answered with something that is no answer"),
        (status = 504, description = "`not-delivered`: certainly not sent; `unknown`: sent, and no answer came")))]
pub async fn post(context: Context, path: web::Path<(String, String)>, body: Body) -> Result<HttpResponse, Problem> {
    let (id, name) = path.into_inner();
    let device = context.device(&id)?;
    if !is_method_name(&name) {
        return Err(Problem::new(
            Kind::BadMethodName,
            "a method's name has 1 to 64 of the characters of device ids and is not `res`; nothing was sent",
        ));
    }
    let request: MethodRequest = match body.bytes.is_empty() {
        true => MethodRequest::default(),
        false => body.object(&[JSON])?,
    };
    let timeout = timeout(request.timeout_ms, context.asked())?;
    let payload = request.payload.map_or("null".into(), Box::<str>::from);
    if payload.len() > METHOD_BYTES_MAX {
        return Err(Problem::new(
            Kind::TooLarge,
            format!("the payload is larger than {METHOD_BYTES_MAX} bytes; nothing was sent"),
        )
        .with("max_bytes", METHOD_BYTES_MAX));
    }
    let call = context.app.backend.invoke(&device, &name, payload.into(), timeout);
    let answer = call.await.map_err(Problem::of_method)?;
    let payload = RawValue::from_string(answer.payload).map_err(|error| {
        let detail = format!("the device's answer was damaged on its way: {error}; this is a fault of the node");
        Problem::new(Kind::Internal, detail)
    })?;
    Ok(HttpResponse::Ok().json(MethodResponse {
        status: answer.status,
        payload,
    }))
}

/// The body's, else that of the request, else the default.
fn timeout(given_ms: Option<u64>, asked: Option<Duration>) -> Result<Duration, Problem> {
    match given_ms {
        None => Ok(asked.unwrap_or(TIMEOUT_DEFAULT)),
        Some(ms) if TIMEOUT_MS.contains(&ms) => Ok(Duration::from_millis(ms)),
        Some(ms) => Err(Problem::new(
            Kind::InvalidBody,
            format!("timeout_ms is {ms}, allowed is {TIMEOUT_MS:?}; nothing was sent"),
        )
        .with("field", "timeout_ms")),
    }
}
