//! Telemetry over HTTP: read back in order, and what one message looks like. See [`super::ingest`].

use std::collections::BTreeMap;

use actix_web::http::header::HeaderMap;
use actix_web::{web, HttpResponse};
use actors::device::{check_telemetry, Answer, Telemetry};
use actors::ports::{CallError, Reply};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use cluster::api::{TelemetryPage, TelemetryQuery, TelemetryRow};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::body::{is_json_type, Body};
use super::context::{params, Context};
use super::problem::{Ask, Kind, Problem};
use super::respond::{bad_param, limit, number};
use super::stamp;
use crate::observe::metrics::names;

const LIMIT_DEFAULT: u32 = 100;
/// Payload bytes after which a page ends early; it holds at least one row.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Payloads that nest deeper are shown as base64.
const BODY_DEPTH_MAX: usize = 64;

pub const ID_HEADER: &str = "Idempotency-Key";
pub const STREAM_HEADER: &str = "X-Holdfast-Stream";
pub const TIME_HEADER: &str = "X-Holdfast-Device-Time";
/// Header names ignore case, so properties sent this way have lower-case names.
pub const PROPERTY_PREFIX: &str = "x-holdfast-property-";

/// One message as it was stored. Either `body` or `body_base64` is there.
#[derive(Debug, Serialize, ToSchema)]
pub struct TelemetryItem {
    /// From 1, without gaps, in the order of commitment.
    pub seq: u64,
    pub enqueued_at: String,
    /// Empty for the default stream.
    pub stream: String,
    /// A value is a string, or an array of strings for a name that came several times.
    #[schema(value_type = Object)]
    pub properties: BTreeMap<String, Property>,
    pub content_type: Option<String>,
    /// The payload as it came, when it is JSON (by its content type, or because it parses), at most
    /// 64 levels deep and with numbers that fit 64 bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub body: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Where the message stands in its shard's log.
    pub receipt: String,
    pub device_time: Option<String>,
    pub message_id: Option<String>,
    /// The will of a connection that broke off, rather than something the device sent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub will: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Property {
    Once(String),
    Often(Vec<String>),
}

/// One page of telemetry, in the order of seq.
#[derive(Debug, Serialize, ToSchema)]
pub struct TelemetryList {
    pub items: Vec<TelemetryItem>,
    /// `after_seq` of the next page; null when this one reached the end.
    pub next: Option<u64>,
}

/// A message was stored, now or before.
#[derive(Debug, Serialize, ToSchema)]
pub struct TelemetryStored {
    /// Null for a repetition of a message so old that its place is forgotten.
    pub seq: Option<u64>,
    /// Null for a repetition of a message that is kept no more.
    pub receipt: Option<String>,
    /// The message id was known; nothing was stored again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}

impl TelemetryItem {
    pub(crate) fn new(row: TelemetryRow) -> Self {
        let telemetry = row.telemetry;
        let body = json_body(telemetry.content_type.as_deref(), &telemetry.body);
        let body_base64 = body.is_none().then(|| STANDARD.encode(&telemetry.body));
        Self {
            seq: row.seq,
            enqueued_at: stamp::text(row.enqueued_at),
            stream: telemetry.stream,
            properties: properties_object(telemetry.properties),
            content_type: telemetry.content_type,
            body,
            body_base64,
            receipt: row.receipt.to_string(),
            device_time: telemetry.device_time.map(stamp::text),
            message_id: telemetry.message_id,
            will: row.will,
        }
    }
}

/// The payload as JSON, if it promises or seems to be JSON and every reader of the page can be
/// expected to read it: one device must not make a page unreadable with a number of a thousand
/// digits or with brackets ten thousand deep.
pub(super) fn json_body(content_type: Option<&str>, body: &[u8]) -> Option<Box<RawValue>> {
    if !content_type.is_none_or(is_json_type) {
        return None;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    if depth(&value) > BODY_DEPTH_MAX {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// Levels of nesting; 0 for a scalar. The parser has bounded it.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

pub(super) fn properties_object(properties: Vec<(String, String)>) -> BTreeMap<String, Property> {
    let mut object = BTreeMap::new();
    for (name, value) in properties {
        let entry = match object.remove(&name) {
            None => Property::Once(value),
            Some(Property::Once(first)) => Property::Often(vec![first, value]),
            Some(Property::Often(mut values)) => {
                values.push(value);
                Property::Often(values)
            }
        };
        object.insert(name, entry);
    }
    object
}

/// Which rows to read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TelemetryParams {
    /// Rows with a greater seq. Default 0.
    after_seq: Option<String>,
    /// Enqueued then or later: RFC 3339, or milliseconds since 1970.
    from: Option<String>,
    /// Enqueued earlier than this.
    to: Option<String>,
    /// 1..=1000, default 100. A page also ends at 4 MiB of payload.
    limit: Option<String>,
    /// Deadline in milliseconds, 100..=60000.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<String>,
}

impl TelemetryParams {
    fn query(&self) -> Result<TelemetryQuery, Problem> {
        let time = |name, text: Option<&str>| {
            let expected = "RFC 3339 (with + written as %2B) or milliseconds since 1970";
            text.map(|text| stamp::parse(text).ok_or_else(|| bad_param(name, text, expected)))
                .transpose()
        };
        let query = TelemetryQuery {
            after_seq: number("after_seq", self.after_seq.as_deref())?.unwrap_or(0),
            from: time("from", self.from.as_deref())?,
            to: time("to", self.to.as_deref())?,
            limit: limit(self.limit.as_deref(), LIMIT_DEFAULT)?,
        };
        match (query.from, query.to) {
            (Some(from), Some(to)) if from > to => {
                Err(Problem::new(Kind::BadParameter, "from lies after to; swap them").with("parameter", "from"))
            }
            _ => Ok(query),
        }
    }
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/telemetry", tag = "telemetry", operation_id = "getTelemetry",
    params(("id" = String, Path, description = "Device id"), TelemetryParams),
    responses((status = 200, description = "Rows in the order of seq", body = TelemetryList)))]
pub async fn get(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let query = params::<TelemetryParams>(&context.request)?.query()?;
    context.page_room().await?;
    let page = context.app.backend.telemetry(&device, query, context.left());
    let page = cut(context.finish(page, Ask::Read).await?, PAGE_BYTES_MAX);
    Ok(HttpResponse::Ok().json(TelemetryList {
        items: page.rows.into_iter().map(TelemetryItem::new).collect(),
        next: page.next,
    }))
}

/// Ends a page early that would be too large to send.
fn cut(mut page: TelemetryPage, bytes_max: usize) -> TelemetryPage {
    let mut bytes = 0;
    let fits = |row: &TelemetryRow| {
        bytes += row.telemetry.bytes();
        bytes <= bytes_max
    };
    let keep = page.rows.iter().map(fits).take_while(|fits| *fits).count().max(1);
    if keep < page.rows.len() {
        page.rows.truncate(keep);
        page.next = page.rows.last().map(|row| row.seq);
    }
    page
}

pub(super) fn count(outcome: &actors::ports::CallResult) {
    let ingested = |outcome: &'static str| metrics::counter!(names::INGEST_MESSAGES, "outcome" => outcome);
    if let Ok(Reply {
        answer: Answer::Batch(items),
        ..
    }) = outcome
    {
        let repeated = items.iter().filter(|(_, repeated)| *repeated).count();
        ingested("repeated").increment(repeated as u64);
        ingested("acknowledged").increment((items.len() - repeated) as u64);
        return;
    }
    let outcome = match outcome {
        Ok(reply) if matches!(reply.answer, Answer::Telemetry { repeated: true, .. }) => "repeated",
        Ok(_) => "acknowledged",
        Err(CallError::Refused(_)) => "refused",
        Err(CallError::Overloaded { .. }) => "overloaded",
        Err(CallError::NotLeader { .. }) => "not_leader",
        Err(CallError::Unknown) => "unknown",
    };
    ingested(outcome).increment(1);
}

pub(super) fn message(headers: &HeaderMap, body: Body) -> Result<Telemetry, Problem> {
    let device_time = text(headers, TIME_HEADER)?.map(|given| {
        stamp::parse(&given).ok_or_else(|| bad_header(TIME_HEADER, "is neither RFC 3339 nor milliseconds since 1970"))
    });
    let telemetry = Telemetry {
        stream: text(headers, STREAM_HEADER)?.unwrap_or_default(),
        content_type: body.content_type,
        properties: properties(headers)?,
        device_time: device_time.transpose()?,
        message_id: id_header(headers)?,
        body: body.bytes.into(),
    };
    check_telemetry(&telemetry).map_err(|refusal| Problem::of_refusal(refusal, Ask::Write))?;
    Ok(telemetry)
}

/// The message id a client gave its request.
pub(super) fn id_header(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    text(headers, ID_HEADER)
}

/// A header that appears at most once and is UTF-8.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad_header(name, "appears twice; send it once"));
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| bad_header(name, "is not UTF-8"))?;
    Ok(Some(text.to_owned()))
}

fn properties(headers: &HeaderMap) -> Result<Vec<(String, String)>, Problem> {
    let mut properties = Vec::new();
    for (name, value) in headers {
        let Some(property) = name.as_str().strip_prefix(PROPERTY_PREFIX) else {
            continue;
        };
        if property.is_empty() {
            return Err(bad_header(name.as_str(), "names no property"));
        }
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| bad_header(name.as_str(), "is not UTF-8"))?;
        properties.push((property.to_owned(), value.to_owned()));
    }
    // Headers of different names have no order; values of one name keep theirs.
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(properties)
}

fn bad_header(name: &str, what: &str) -> Problem {
    Problem::new(Kind::BadHeader, format!("{name} {what}; nothing was stored")).with("header", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actors::wire::receipt::Receipt;

    fn row(seq: u64, bytes: usize) -> TelemetryRow {
        let receipt = Receipt {
            shard: actors::id::ShardId(0),
            term: 1,
            index: seq,
            seq,
        };
        let telemetry = Telemetry {
            body: vec![0; bytes],
            ..Telemetry::default()
        };
        TelemetryRow {
            seq,
            enqueued_at: actors::time::Timestamp(0),
            receipt,
            will: false,
            telemetry,
        }
    }

    /// A page that is cut says where to go on, and always holds something.
    #[test]
    fn a_page_ends_before_it_is_too_large() {
        let page = |next| TelemetryPage {
            rows: (1..=4).map(|seq| row(seq, 10)).collect(),
            next,
        };
        let seqs = |page: &TelemetryPage| page.rows.iter().map(|r| r.seq).collect::<Vec<_>>();
        let whole = cut(page(Some(9)), 40);
        assert_eq!((seqs(&whole), whole.next), (vec![1, 2, 3, 4], Some(9)));
        let some = cut(page(None), 25);
        assert_eq!((seqs(&some), some.next), (vec![1, 2], Some(2)));
        let one = cut(page(None), 1);
        assert_eq!((seqs(&one), one.next), (vec![1], Some(1)));
        let none = cut(
            TelemetryPage {
                rows: vec![],
                next: None,
            },
            1,
        );
        assert_eq!((seqs(&none), none.next), (vec![], None));
    }

    #[test]
    fn a_payload_is_json_by_type_or_by_sight() {
        let json = |content_type, body: &str| json_body(content_type, body.as_bytes()).map(|v| v.get().to_owned());
        assert_eq!(json(None, r#"{"t":1.50}"#).as_deref(), Some(r#"{"t":1.50}"#));
        assert_eq!(json(Some("application/json; charset=utf-8"), "1").as_deref(), Some("1"));
        assert_eq!(json(Some("application/senml+json"), "[]").as_deref(), Some("[]"));
        assert_eq!(json(Some("text/plain"), "1"), None);
        assert_eq!(json(Some("application/json"), "{"), None);
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(json(None, &nested(64)).is_some() && json(None, &nested(65)).is_none());
        assert_eq!(json(None, &nested(100_000)), None);
        assert_eq!(json(None, &"1".repeat(1000)), None, "no number that readers know");
        assert_eq!(json(None, r#""\ud800""#), None, "no text that readers know");
        assert_eq!(json(None, ""), None);
    }

    #[test]
    fn a_property_that_came_twice_keeps_both_values() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let object = properties_object(vec![pair("a", "1"), pair("b", "2"), pair("a", "3"), pair("a", "4")]);
        let json = serde_json::to_string(&object).unwrap();
        assert_eq!(json, r#"{"a":["1","3","4"],"b":"2"}"#);
    }
}
