//! Messages to a device: queued, listed, taken back; its dead letters, and what became of each.

use std::collections::BTreeMap;

use actix_web::{web, HttpResponse};
use actors::device::{Answer, Command, Message};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use cluster::api::{FeedbackRow, MessageQuery, MessageRow, MessageSelection, MessageState};
use rand::Rng as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::body::{Body, JSON};
use super::context::{odd_answer, params, Context};
use super::problem::{Ask, Kind, Problem};
use super::respond::{limit, number, receipt};
use super::stamp;
use super::telemetry::{json_body, properties_object, text, Property, ID_HEADER};

const LIMIT_DEFAULT: u32 = 100;

/// A message to be queued. Either `payload` or `payload_base64` has to be there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageBody {
    /// Any JSON value; the device gets its text as it stands here.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Value>)]
    payload: Option<Box<RawValue>>,
    /// Any bytes.
    payload_base64: Option<String>,
    /// Passed on as MQTT 5 user properties. A value is a string, or an array of strings.
    #[serde(default)]
    #[schema(value_type = Object)]
    properties: BTreeMap<String, Values>,
    /// Passed on in MQTT 5; `application/json` for a `payload` without one.
    content_type: Option<String>,
    /// Seconds until it expires undelivered; the node's default (1 hour) without it.
    ttl_secs: Option<u32>,
    /// 1 to 128 of the characters of device ids; without it, the `Idempotency-Key`, or a new one.
    message_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// Tells `null` from nothing.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// The message is queued on a majority of the replicas.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageStored {
    pub id: String,
    /// The same as `id`.
    pub message_id: String,
    /// `queued`; for a repetition also `ended`: see the feedback.
    pub state: &'static str,
    pub enqueued_at: Option<String>,
    pub expires_at: Option<String>,
    /// Null for a repetition: the first answer carried it.
    pub receipt: Option<String>,
    /// The id was known; nothing was queued again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}

/// One message in the queue, or a dead letter. Either `payload` or `payload_base64` is there.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageItem {
    pub id: String,
    /// The same as `id`.
    pub message_id: String,
    /// `queued`, `delivering` (sent to the live connection, not acknowledged yet) or `dead`.
    pub state: &'static str,
    /// Of a dead letter: `expired`, `max-deliveries`, `rejected` or `purged`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// How often it was handed to a connection.
    pub delivery_count: u16,
    pub enqueued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_at: Option<String>,
    pub content_type: Option<String>,
    #[schema(value_type = Object)]
    pub properties: BTreeMap<String, Property>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// Of the write that queued it first.
    pub receipt: String,
}

/// One page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageList {
    pub items: Vec<MessageItem>,
    /// `cursor` of the next page; null on the last.
    pub next: Option<u64>,
}

/// How a message ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedbackItem {
    /// Per device, from 1, in the order of the ends.
    pub seq: u64,
    pub message_id: String,
    /// `completed`, `expired`, `max-deliveries`, `rejected` or `purged`.
    pub outcome: &'static str,
    pub at: String,
    pub enqueued_at: String,
    pub delivery_count: u16,
}

/// One page of feedback.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedbackList {
    pub items: Vec<FeedbackItem>,
    /// `after_seq` of the next page; null on the last.
    pub next: Option<u64>,
}

impl From<MessageRow> for MessageItem {
    fn from(row: MessageRow) -> Self {
        let message = row.message;
        let payload = json_body(message.content_type.as_deref(), &message.body);
        let payload_base64 = payload.is_none().then(|| STANDARD.encode(&message.body));
        let (state, reason, dead_at) = match row.state {
            MessageState::Queued => ("queued", None, None),
            MessageState::Delivering => ("delivering", None, None),
            MessageState::Dead { reason, at } => ("dead", Some(reason.name()), Some(stamp::text(at))),
        };
        Self {
            message_id: message.id.clone(),
            id: message.id,
            state,
            reason,
            delivery_count: row.deliveries,
            enqueued_at: stamp::text(row.enqueued_at),
            expires_at: row.expires_at.map(stamp::text),
            dead_at,
            content_type: message.content_type,
            properties: properties_object(message.properties),
            payload,
            payload_base64,
            receipt: row.receipt.to_string(),
        }
    }
}

impl From<FeedbackRow> for FeedbackItem {
    fn from(row: FeedbackRow) -> Self {
        Self {
            seq: row.seq,
            message_id: row.message_id,
            outcome: row.outcome.name(),
            at: stamp::text(row.at),
            enqueued_at: stamp::text(row.enqueued_at),
            delivery_count: row.deliveries,
        }
    }
}

impl MessageBody {
    /// The message, and its time to live.
    fn read(self, key: Option<&str>) -> Result<(Message, Option<u32>), Problem> {
        let (body, default_type) = match (self.payload, self.payload_base64) {
            (Some(json), None) => (json.get().as_bytes().to_vec(), Some(JSON.to_owned())),
            (None, Some(text)) => (decoded(&text)?, None),
            (Some(_), Some(_)) => {
                let detail = "payload and payload_base64 contradict each other; send one";
                return Err(Problem::new(Kind::InvalidBody, detail));
            }
            (None, None) => {
                let detail = "there is no payload; send any JSON value as payload, or bytes as payload_base64";
                return Err(Problem::new(Kind::InvalidBody, detail));
            }
        };
        let mut properties = Vec::new();
        for (name, values) in self.properties {
            match values {
                Values::One(value) => properties.push((name, value)),
                Values::Many(values) => properties.extend(values.into_iter().map(|value| (name.clone(), value))),
            }
        }
        let message = Message {
            id: self.message_id.unwrap_or_else(|| id_of(key)),
            content_type: self.content_type.or(default_type),
            properties,
            body,
        };
        Ok((message, self.ttl_secs))
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Problem> {
    let bytes = STANDARD.decode(text);
    bytes.map_err(|error| Problem::new(Kind::InvalidBody, format!("payload_base64 is no base64: {error}")))
}

/// A key that can be an id is the id; a repetition must lead to the same in any case.
fn id_of(key: Option<&str>) -> String {
    match key {
        Some(key) if actors::id::DeviceId::parse(key).is_ok() => key.to_owned(),
        Some(key) => format!("key-{:032x}", xxhash_rust::xxh3::xxh3_128(key.as_bytes())),
        None => format!("{:032x}", rand::rng().random::<u128>()),
    }
}

#[utoipa::path(post, path = "/api/v1/devices/{id}/messages", tag = "messages", operation_id = "sendMessage",
    params(("id" = String, Path, description = "Device id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Becomes the message id of a body without one: a repetition is queued once")),
    request_body(content = MessageBody),
    responses((status = 201, description = "Queued on a majority of the replicas", body = MessageStored),
        (status = 200, description = "Queued before, under this message id", body = MessageStored)))]
pub async fn send(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let key = text(context.headers(), ID_HEADER)?;
    let (message, ttl_secs) = body.object::<MessageBody>(&[JSON])?.read(key.as_deref())?;
    let message_id = message.id.clone();
    let location = format!("{}/{message_id}", context.request.path());
    let command = Command::EnqueueMessage {
        message: Box::new(message),
        ttl_secs,
    };
    stored(&context, &device, command, (message_id, location)).await
}

async fn stored(
    context: &Context,
    device: &actors::id::DeviceKey,
    command: Command,
    (message_id, location): (String, String),
) -> Result<HttpResponse, Problem> {
    let reply = context.call(device, command, Ask::Write).await?;
    let Answer::MessageQueued { queued, repeated } = reply.answer else {
        return Err(odd_answer(&reply.answer));
    };
    let mut response = if repeated {
        HttpResponse::Ok()
    } else {
        HttpResponse::Created()
    };
    receipt(&mut response, reply.receipt);
    response.insert_header(("Location", location));
    Ok(response.json(MessageStored {
        id: message_id.clone(),
        message_id,
        state: if queued.is_some() { "queued" } else { "ended" },
        enqueued_at: queued.as_ref().map(|queued| stamp::text(queued.enqueued_at)),
        expires_at: queued.as_ref().map(|queued| stamp::text(queued.expires_at)),
        receipt: reply.receipt.map(|receipt| receipt.to_string()),
        repeated,
    }))
}

/// Which page of messages.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MessageParams {
    /// `next` of the page before.
    cursor: Option<String>,
    /// 1..=1000, default 100. A page also ends at 4 MiB of payload.
    limit: Option<String>,
    /// Deadline in milliseconds, 100..=60000.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/messages", tag = "messages", operation_id = "listMessages",
    params(("id" = String, Path, description = "Device id"), MessageParams),
    responses((status = 200, description = "The queue, in the order of delivery", body = MessageList)))]
pub async fn list(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    page(&context, &id, MessageSelection::Queue).await
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/messages/dead", tag = "messages", operation_id = "listDeadLetters",
    params(("id" = String, Path, description = "Device id"), MessageParams),
    responses((status = 200, description = "Dead letters, in the order in which they were queued", body = MessageList)))]
pub async fn list_dead(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    page(&context, &id, MessageSelection::Dead).await
}

async fn page(context: &Context, id: &str, which: MessageSelection) -> Result<HttpResponse, Problem> {
    let device = context.device(id)?;
    let params: MessageParams = params(&context.request)?;
    let query = MessageQuery {
        which,
        after_number: number("cursor", params.cursor.as_deref())?.unwrap_or(0),
        limit: limit(params.limit.as_deref(), LIMIT_DEFAULT)?,
    };
    context.page_room().await?;
    let page = context.app.backend.messages(&device, query, context.left());
    let page = context.finish(page, Ask::Read).await?;
    Ok(HttpResponse::Ok().json(MessageList {
        items: page.rows.into_iter().map(MessageItem::from).collect(),
        next: page.next,
    }))
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/messages/{message_id}", tag = "messages", operation_id = "getMessage",
    params(("id" = String, Path, description = "Device id"), ("message_id" = String, Path, description = "Message id")),
    responses((status = 200, description = "The message, in the queue or dead", body = MessageItem)))]
pub async fn get(context: Context, path: web::Path<(String, String)>) -> Result<HttpResponse, Problem> {
    let (id, message_id) = path.into_inner();
    let device = context.device(&id)?;
    let query = MessageQuery {
        which: MessageSelection::Id(message_id),
        after_number: 0,
        limit: 1,
    };
    let page = context.app.backend.messages(&device, query, context.left());
    let found = context.finish(page, Ask::Read).await?.rows.pop();
    let row = found.ok_or_else(|| Problem::of_refusal(actors::device::Refusal::MessageNotFound, Ask::Read))?;
    Ok(HttpResponse::Ok().json(MessageItem::from(row)))
}

#[utoipa::path(delete, path = "/api/v1/devices/{id}/messages", tag = "messages", operation_id = "purgeMessages",
    params(("id" = String, Path, description = "Device id")),
    responses((status = 200, description = "How many left the queue for the dead letters: {\"purged\": 3}", body = Value)))]
pub async fn purge(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let (count, mut response) = end(&context, &id, Command::PurgeMessages { id: None }).await?;
    Ok(response.json(json!({ "purged": count })))
}

#[utoipa::path(delete, path = "/api/v1/devices/{id}/messages/{message_id}", tag = "messages", operation_id = "purgeMessage",
    params(("id" = String, Path, description = "Device id"), ("message_id" = String, Path, description = "Message id")),
    responses((status = 200, description = "It is a dead letter now: {\"purged\": 1}", body = Value)))]
pub async fn purge_one(context: Context, path: web::Path<(String, String)>) -> Result<HttpResponse, Problem> {
    let (id, message_id) = path.into_inner();
    let command = Command::PurgeMessages { id: Some(message_id) };
    let (count, mut response) = end(&context, &id, command).await?;
    Ok(response.json(json!({ "purged": count })))
}

#[utoipa::path(delete, path = "/api/v1/devices/{id}/messages/dead", tag = "messages", operation_id = "dropDeadLetters",
    params(("id" = String, Path, description = "Device id")),
    responses((status = 200, description = "How many are gone for good: {\"dropped\": 3}", body = Value)))]
pub async fn drop_dead(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let (count, mut response) = end(&context, &id, Command::DropDeadLetters { id: None }).await?;
    Ok(response.json(json!({ "dropped": count })))
}

#[utoipa::path(delete, path = "/api/v1/devices/{id}/messages/dead/{message_id}", tag = "messages", operation_id = "dropDeadLetter",
    params(("id" = String, Path, description = "Device id"), ("message_id" = String, Path, description = "Message id")),
    responses((status = 200, description = "It is gone for good: {\"dropped\": 1}", body = Value)))]
pub async fn drop_dead_one(context: Context, path: web::Path<(String, String)>) -> Result<HttpResponse, Problem> {
    let (id, message_id) = path.into_inner();
    let command = Command::DropDeadLetters { id: Some(message_id) };
    let (count, mut response) = end(&context, &id, command).await?;
    Ok(response.json(json!({ "dropped": count })))
}

async fn end(context: &Context, id: &str, command: Command) -> Result<(u32, actix_web::HttpResponseBuilder), Problem> {
    let device = context.device(id)?;
    let reply = context.call(&device, command, Ask::Write).await?;
    let Answer::MessagesEnded { count } = reply.answer else {
        return Err(odd_answer(&reply.answer));
    };
    let mut response = HttpResponse::Ok();
    receipt(&mut response, reply.receipt);
    Ok((count, response))
}

/// How a dead letter goes back to the queue.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayBody {
    /// Seconds until it expires again; the node's default (1 hour) without it.
    ttl_secs: Option<u32>,
}

#[utoipa::path(post, path = "/api/v1/devices/{id}/messages/dead/{message_id}/replay", tag = "messages", operation_id = "replayMessage",
    params(("id" = String, Path, description = "Device id"), ("message_id" = String, Path, description = "Message id")),
    request_body(content = ReplayBody, description = "May be empty"),
    responses((status = 201, description = "At the end of the queue again, under its id, as if it were new", body = MessageStored),
        (status = 200, description = "It was in the queue already", body = MessageStored)))]
pub async fn replay(context: Context, path: web::Path<(String, String)>, body: Body) -> Result<HttpResponse, Problem> {
    let (id, message_id) = path.into_inner();
    let device = context.device(&id)?;
    let body: ReplayBody = if body.bytes.is_empty() {
        ReplayBody::default()
    } else {
        body.object(&[JSON])?
    };
    let command = Command::ReplayMessage {
        id: message_id.clone(),
        ttl_secs: body.ttl_secs,
    };
    let location = format!("/api/v1/devices/{id}/messages/{message_id}");
    stored(&context, &device, command, (message_id, location)).await
}

/// Which page of feedback.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FeedbackParams {
    /// Feedback with a greater seq. Default 0.
    after_seq: Option<String>,
    /// Another name for `after_seq`.
    cursor: Option<String>,
    /// 1..=1000, default 100.
    limit: Option<String>,
    /// Deadline in milliseconds, 100..=60000.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/messages/feedback", tag = "messages", operation_id = "messageFeedback",
    params(("id" = String, Path, description = "Device id"), FeedbackParams),
    responses((status = 200, description = "What became of messages, in the order of their ends", body = FeedbackList)))]
pub async fn feedback(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let params: FeedbackParams = params(&context.request)?;
    let after_seq = match (&params.after_seq, &params.cursor) {
        (Some(seq), _) => number("after_seq", Some(seq))?,
        (None, cursor) => number("cursor", cursor.as_deref())?,
    };
    let page = (after_seq.unwrap_or(0), limit(params.limit.as_deref(), LIMIT_DEFAULT)?);
    let page = context.app.backend.feedback(&device, page, context.left());
    let page = context.finish(page, Ask::Read).await?;
    Ok(HttpResponse::Ok().json(FeedbackList {
        items: page.rows.into_iter().map(FeedbackItem::from).collect(),
        next: page.next,
    }))
}
