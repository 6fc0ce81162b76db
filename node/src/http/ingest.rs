//! Telemetry taken in over HTTP, one message or many, with the guarantees of MQTT.
//!
//! The idempotency key is the message id. A repetition is answered as the first time; a key that
//! comes with another message is a mistake of the client, and is told so.

use actix_web::{web, HttpResponse};
use actors::device::{check_telemetry, Answer, Command, Origin, Telemetry};
use actors::id::DeviceKey;
use actors::ports::{CallError, Reply};
use actors::wire::receipt::Receipt;
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use cluster::api::TelemetryQuery;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{Body, JSON};
use super::context::{odd_answer, Context};
use super::problem::{Ask, Kind, Problem};
use super::respond::receipt;
use super::stamp;
use super::telemetry::{count, id_header, message, TelemetryStored};

/// Says that the answer is that of an earlier request with the same key.
pub const REPLAYED_HEADER: &str = "Idempotency-Replayed";
const NDJSON: &str = "application/x-ndjson";
/// Messages of one batch.
const BATCH_MAX: usize = 1000;

#[utoipa::path(post, path = "/api/v1/devices/{id}/telemetry", tag = "telemetry", operation_id = "postTelemetry",
    params(("id" = String, Path, description = "Device id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Message id, at most 128 bytes: a repetition is stored once"),
        ("X-Holdfast-Stream" = Option<String>, Header, description = "Stream, at most 64 of the characters of device ids"),
        ("X-Holdfast-Device-Time" = Option<String>, Header, description = "The device's own time: RFC 3339, or milliseconds since 1970"),
        ("X-Holdfast-Property-{name}" = Option<String>, Header, description = "User properties; names in lower case, at most 64")),
    request_body(content(("application/json"), ("application/octet-stream")), description = "The payload, as it is"),
    responses((status = 201, description = "Stored on a majority of the replicas", body = TelemetryStored),
        (status = 200, description = "Stored before, under this message id; Idempotency-Replayed is true", body = TelemetryStored),
        (status = 422, description = "The key was used for another message")))]
pub async fn post(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let telemetry = message(context.headers(), body)?;
    let command = Command::RecordTelemetry {
        origin: Origin::Operator,
        telemetry: telemetry.clone(),
    };
    let reply = record(&context, &device, command).await?;
    let Answer::Telemetry { seq, repeated } = reply.answer else {
        return Err(odd_answer(&reply.answer));
    };
    let mut response = if repeated {
        same_as_stored(&context, &device, seq, &telemetry).await?;
        let mut response = HttpResponse::Ok();
        response.insert_header((REPLAYED_HEADER, "true"));
        response
    } else {
        HttpResponse::Created()
    };
    receipt(&mut response, reply.receipt);
    Ok(response.json(TelemetryStored {
        seq: (seq > 0).then_some(seq),
        receipt: reply.receipt.map(|r| r.to_string()),
        repeated,
    }))
}

async fn record(context: &Context, device: &DeviceKey, command: Command) -> Result<Reply, Problem> {
    let _pass = context.pass(device).await?;
    let call = context.app.backend.call(device, command, context.left());
    let outcome = context.finish(async { Ok(call.await) }, Ask::Write).await;
    // A call that did not come back in time is as unknown as one that says so.
    let outcome = outcome.unwrap_or(Err(CallError::Unknown));
    count(&outcome);
    outcome.map_err(|e| Problem::of_call(e, Ask::Write))
}

/// What is stored under `seq` is looked at while it is there; later nobody can tell.
async fn same_as_stored(context: &Context, device: &DeviceKey, seq: u64, sent: &Telemetry) -> Result<(), Problem> {
    let Some(after_seq) = seq.checked_sub(1) else {
        return Ok(());
    };
    let query = TelemetryQuery {
        after_seq,
        limit: 1,
        ..TelemetryQuery::default()
    };
    let page = context.app.backend.telemetry(device, query, context.left());
    let page = context.finish(page, Ask::Read).await?;
    let stored = page.rows.into_iter().find(|row| row.seq == seq);
    match stored.map(|row| row.telemetry) {
        Some(stored) if stored.body != sent.body || stored.stream != sent.stream => Err(Problem::new(
            Kind::KeyReused,
            format!(
                "this Idempotency-Key names the message with seq {seq}, and that one is another; nothing was stored. \
                 Use a new key for each message"
            ),
        )
        .with("seq", seq)),
        _ => Ok(()),
    }
}

/// One message of a batch. Either `body` or `body_base64` is there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// Any JSON value; kept as it is written.
    #[schema(value_type = Option<serde_json::Value>)]
    body: Option<Box<RawValue>>,
    body_base64: Option<String>,
    #[serde(default)]
    stream: String,
    /// `application/json` for a `body`, if left out.
    content_type: Option<String>,
    #[serde(default)]
    #[schema(value_type = Object)]
    properties: std::collections::BTreeMap<String, String>,
    /// RFC 3339, or milliseconds since 1970 as text.
    device_time: Option<String>,
    /// Left out, it is made from the request's `Idempotency-Key` and the place in the batch.
    message_id: Option<String>,
}

/// What became of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchStored {
    /// In the order of the request.
    pub items: Vec<BatchOutcome>,
    pub stored: usize,
    /// Stored before, under the same message id.
    pub repeated: usize,
    pub refused: usize,
}

/// What became of one message: as if it had been sent alone.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchOutcome {
    /// 201, 200 for a repetition, or 400.
    pub status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[utoipa::path(post, path = "/api/v1/devices/{id}/telemetry/batch", tag = "telemetry", operation_id = "postTelemetryBatch",
    params(("id" = String, Path, description = "Device id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the message ids of items without one: the key, a slash, and the place from 0")),
    request_body(content((Vec<BatchItem> = "application/json"), (String = "application/x-ndjson")),
        description = "1 to 1000 messages: an array, or one object a line. They are stored in this order, in one commit"),
    responses((status = 200, description = "All are stored", body = BatchStored),
        (status = 207, description = "Some were refused: each item says what became of it", body = BatchStored)))]
pub async fn batch(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let key = id_header(context.headers())?;
    let items = items(&body)?;
    let read: Vec<Result<Telemetry, String>> = items
        .iter()
        .enumerate()
        .map(|(at, text)| telemetry(text, key.as_deref(), at))
        .collect();
    let good: Vec<Telemetry> = read.iter().flatten().cloned().collect();
    let (answered, at) = if good.is_empty() {
        (Vec::new(), None)
    } else {
        let reply = record(&context, &device, Command::RecordBatch { telemetry: good }).await?;
        let Answer::Batch(answered) = reply.answer else {
            return Err(odd_answer(&reply.answer));
        };
        (answered, reply.receipt)
    };
    let mut answered = answered.into_iter();
    let outcomes = read.into_iter().map(|item| match item {
        Ok(_) => outcome(answered.next().unwrap_or((0, true)), at),
        Err(why) => BatchOutcome {
            status: Kind::TelemetryInvalid.status(),
            seq: None,
            receipt: None,
            error: Some(why),
        },
    });
    let items: Vec<BatchOutcome> = outcomes.collect();
    let count = |status| items.iter().filter(|item| item.status == status).count();
    let (stored, repeated) = (count(201), count(200));
    let refused = items.len() - stored - repeated;
    let mut response = if refused == 0 {
        HttpResponse::Ok()
    } else {
        HttpResponse::MultiStatus()
    };
    receipt(&mut response, at);
    Ok(response.json(BatchStored {
        items,
        stored,
        repeated,
        refused,
    }))
}

fn outcome((seq, repeated): (u64, bool), at: Option<Receipt>) -> BatchOutcome {
    BatchOutcome {
        status: if repeated { 200 } else { 201 },
        seq: (seq > 0).then_some(seq),
        receipt: at.filter(|_| !repeated).map(|at| Receipt { seq, ..at }.to_string()),
        error: None,
    }
}

/// The items as they are written; what is inside is looked at one by one.
fn items(body: &Body) -> Result<Vec<Box<RawValue>>, Problem> {
    let lines = body.content_type.as_deref().is_some_and(|given| {
        let essence = given.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case(NDJSON)
    });
    let items = if lines {
        let text = std::str::from_utf8(&body.bytes).map_err(|_| bad_batch("the body is not UTF-8"))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // A line that is no JSON is one refused item, as one of another shape is.
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| null()))
            .collect()
    } else {
        body.json::<Vec<Box<RawValue>>>(&[JSON, NDJSON])?
    };
    match items.len() {
        0 => Err(bad_batch("the batch holds no message")),
        1..=BATCH_MAX => Ok(items),
        count => Err(Problem::new(
            Kind::TooLarge,
            format!("the batch holds {count} messages, at most {BATCH_MAX} are taken; nothing was stored"),
        )
        .with("max_items", BATCH_MAX as u64)),
    }
}

fn null() -> Box<RawValue> {
    RawValue::from_string("null".to_owned()).expect("null is JSON")
}

fn bad_batch(what: &str) -> Problem {
    Problem::new(
        Kind::InvalidBody,
        format!("{what}; send a JSON array of messages, or one message a line as {NDJSON}"),
    )
}

fn telemetry(text: &RawValue, key: Option<&str>, at: usize) -> Result<Telemetry, String> {
    if !text.get().trim_start().starts_with('{') {
        return Err("the message is no JSON object".to_owned());
    }
    let item: BatchItem = serde_json::from_str(text.get()).map_err(|e| e.to_string())?;
    let (body, default_type) = match (item.body, item.body_base64) {
        (Some(body), None) => (body.get().as_bytes().to_vec(), Some(JSON.to_owned())),
        (None, Some(base64)) => {
            let bytes = STANDARD
                .decode(base64)
                .map_err(|_| "body_base64 is not base64".to_owned())?;
            (bytes, None)
        }
        _ => return Err("give either body or body_base64".to_owned()),
    };
    let device_time = item.device_time.as_deref().map(|text| {
        stamp::parse(text).ok_or_else(|| "device_time is neither RFC 3339 nor milliseconds since 1970".to_owned())
    });
    let telemetry = Telemetry {
        stream: item.stream,
        content_type: item.content_type.or(default_type),
        properties: item.properties.into_iter().collect(),
        device_time: device_time.transpose()?,
        message_id: item.message_id.or_else(|| key.map(|key| format!("{key}/{at}"))),
        body,
    };
    check_telemetry(&telemetry).map_err(|refusal| refusal.to_string())?;
    Ok(telemetry)
}
