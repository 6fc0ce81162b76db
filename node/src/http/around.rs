//! What surrounds every request: its trace, its figures, and the promise that errors are problems.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, CONTENT_TYPE};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, ResponseError as _};
use futures::FutureExt as _;
use tracing::Instrument as _;

use super::problem::{Kind, Problem, PROBLEM_JSON};
use super::room;
use crate::observe::metrics::names;
use crate::observe::trace::{self, TraceContext};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longer ids are replaced by the trace id.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Runs a request inside its trace and gives every answer its request id and trace.
///
/// # Errors
/// Only with a finished response inside.
pub async fn around(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = Instant::now();
    let trace = TraceContext::from_headers(request.headers().get(TRACEPARENT).and_then(|v| v.to_str().ok()));
    let id = request_id(request.headers(), &trace);
    let method = request.method().clone();
    // At the level of errors, so that no filter that lets a line through takes its trace away.
    let span = tracing::error_span!("http", %method, path = request.path(), trace_id = %trace.trace_id_text());
    let inner = AssertUnwindSafe(next.call(request)).catch_unwind();
    let outcome = trace::scope(trace, inner).instrument(span.clone()).await;
    let _entered = span.enter();
    let finished = match outcome {
        Ok(Ok(response)) => Ok(room::held(as_problem(response.map_into_boxed_body()))),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(panicked()),
    };
    match finished {
        Ok(mut response) => {
            let route = response.request().match_pattern().unwrap_or_else(|| "none".into());
            count(method.as_str(), route, response.status().as_u16(), started);
            mark(response.headers_mut(), &id, &trace);
            Ok(response)
        }
        Err(mut response) => {
            count(method.as_str(), "none".into(), response.status().as_u16(), started);
            mark(response.headers_mut(), &id, &trace);
            Err(InternalError::from_response("finished", response).into())
        }
    }
}

fn request_id(headers: &HeaderMap, trace: &TraceContext) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    let ours = || HeaderValue::from_str(&trace.trace_id_text()).expect("hexadecimal digits");
    given.cloned().unwrap_or_else(ours)
}

fn mark(headers: &mut HeaderMap, id: &HeaderValue, trace: &TraceContext) {
    headers.insert(REQUEST_ID, id.clone());
    headers.insert(
        TRACEPARENT,
        HeaderValue::from_str(&trace.to_traceparent()).expect("hexadecimal digits"),
    );
}

/// Gives an error that the HTTP library answered by itself the form of a problem.
fn as_problem(response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    if !is_error || response.headers().get(CONTENT_TYPE).is_some_and(|t| t == PROBLEM_JSON) {
        return response;
    }
    let problem = Problem::of_status(response.status());
    response.into_response(problem.error_response())
}

fn refused(error: &Error) -> HttpResponse {
    Problem::of_status(error.as_response_error().status_code()).error_response()
}

fn panicked() -> HttpResponse {
    tracing::error!("a request handler panicked");
    let detail = "the node failed while it handled the request, a write may or may not have been committed; \
                  this is a fault of the node, report it";
    Problem::new(Kind::Internal, detail).error_response()
}

fn count(method: &str, route: String, status: u16, started: Instant) {
    // Unknown methods could be any text; labels must stay few.
    let method = match method {
        "GET" => "GET",
        "PUT" => "PUT",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    };
    let elapsed = started.elapsed();
    tracing::debug!(
        method,
        route,
        status,
        elapsed_us = elapsed.as_micros() as u64,
        "answered"
    );
    metrics::histogram!(names::HTTP_REQUEST_SECONDS, "route" => route.clone()).record(elapsed.as_secs_f64());
    metrics::counter!(names::HTTP_REQUESTS, "method" => method, "route" => route, "status" => status.to_string())
        .increment(1);
}
