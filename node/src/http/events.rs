//! Live events over SSE, and over WebSocket on upgrade.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::{Duration, Instant};

use actix::{Actor as _, Addr};
use actix_rt::Arbiter;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::header::{HeaderName, CACHE_CONTROL, CONTENT_TYPE, UPGRADE};
use actix_web::web::Bytes;
use actix_web::{web, HttpRequest, HttpResponse};
use actix_ws::{CloseCode, CloseReason, Message, Session};
use futures::StreamExt as _;
use tokio::sync::Notify;
use utoipa::IntoParams;

use super::context::Context;
use super::problem::{Kind, Problem};
use super::respond::bad_param;
use crate::live::hub::{Hub, HubLimits, Stop};
use crate::live::session::{CannotWatch, Next, Watch, KEEP_ALIVE};
use crate::live::source::Source;
use crate::live::{BadFilter, Cursor, Filter};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How long a browser waits before it connects again. Unit: ms.
const RECONNECT_MS: u32 = 1_000;
/// A WebSocket subscriber that says nothing for this long, not even a pong, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest message a WebSocket subscriber may send; none of them means anything.
const INCOMING_BYTES_MAX: usize = 4 * 1024;

/// Bytes written ahead of what a WebSocket subscriber reads, beside one message.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// The hub of live events, on a thread of its own.
pub struct LiveEdge {
    hub: Addr<Hub>,
    source: Arc<dyn Source>,
    arbiter: Arbiter,
}

impl LiveEdge {
    pub fn start(source: Arc<dyn Source>, subscribers_max: usize) -> Self {
        let arbiter = Arbiter::new();
        let limits = HubLimits {
            subscribers_max,
            ..HubLimits::default()
        };
        let reads = source.clone();
        let hub = Hub::start_in_arbiter(&arbiter.handle(), move |_| Hub::new(reads, limits));
        Self { hub, source, arbiter }
    }

    /// Ends every subscription; new ones are refused.
    pub async fn end_watches(&self, deadline: Duration) {
        // A hub that does not answer in time ends with its thread.
        let _ = tokio::time::timeout(deadline, self.hub.send(Stop)).await;
    }

    pub fn stop(&self) {
        self.arbiter.stop();
    }
}

/// Which events to tell. Lists are separated by commas; a parameter may be given several times.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)] // read by hand, because parameters may repeat
pub struct EventParams {
    /// Device ids, and beginnings of device ids with `*` at their end. Default: all.
    devices: Option<String>,
    /// Telemetry of these streams and nothing else; `default` is the one without a name.
    streams: Option<String>,
    /// `telemetry`, `twin`, `session`, `registration`, `message`. Default: all. Markers
    /// (`failover`, `gap`, `missed`) are always told.
    kinds: Option<String>,
    /// Goes on behind the event that came with this cursor, as `Last-Event-ID` does.
    after: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/events", tag = "events", operation_id = "watchEvents",
    params(EventParams, ("Last-Event-ID" = Option<String>, Header, description = "Goes on behind the event that came with this id")),
    responses((status = 200, description = "Server-sent events, one JSON object each", content_type = "text/event-stream", body = String),
        (status = 101, description = "On upgrade: a WebSocket, one JSON object in each text message")))]
pub async fn get(context: Context, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let request = context.request.clone();
    let asked = asked(&context)?;
    let live = &context.app.events;
    let watch = Watch::begin(&live.hub, live.source.clone(), asked.filter, asked.cursor).await;
    let watch = watch.map_err(|error| match error {
        CannotWatch::Full(full) => Problem::new(
            Kind::Overloaded,
            format!("{full}, and this node takes no more; ask another node, or come back later"),
        ),
        CannotWatch::Stopping => Problem::new(Kind::NotReady, "the node is stopping; ask another one"),
    })?;
    if is_websocket(&request) {
        return websocket(&request, payload, watch);
    }
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(server_sent(watch)))
}

struct Asked {
    filter: Filter,
    cursor: Option<Cursor>,
}

fn asked(context: &Context) -> Result<Asked, Problem> {
    let request = &context.request;
    let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    let pairs = pairs.map_err(|error| Problem::new(Kind::BadParameter, error.to_string()))?;
    let mut filter = Filter::all(context.tenant);
    let mut after = None;
    for (name, value) in pairs.into_inner() {
        match name.as_str() {
            "devices" => filter.add_devices(&value),
            "streams" => filter.add_streams(&value),
            "kinds" => filter.add_kinds(&value),
            "after" => {
                after = Some(value);
                Ok(())
            }
            "timeout_ms" => Ok(()),
            other => {
                let detail = format!("{other:?} is no parameter here; there are devices, streams, kinds and after");
                return Err(Problem::new(Kind::BadParameter, detail).with("parameter", other));
            }
        }
        .map_err(bad_filter)?;
    }
    let header = request.headers().get(LAST_EVENT_ID);
    let header = header.map(|value| value.to_str().unwrap_or("?").to_owned());
    // Whoever connects again by itself sends the header, and the address it began with.
    let given = header.or(after).filter(|text| !text.is_empty());
    let cursor = given.map(|text| {
        text.parse()
            .map_err(|_| bad_param("after", &text, "the id of an event, or a cursor, as it came"))
    });
    Ok(Asked {
        filter,
        cursor: cursor.transpose()?,
    })
}

fn bad_filter(error: BadFilter) -> Problem {
    Problem::new(Kind::BadParameter, error.to_string())
}

fn is_websocket(request: &HttpRequest) -> bool {
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|text| {
        text.split(',')
            .any(|part| part.trim().eq_ignore_ascii_case("websocket"))
    })
}

/// The watch as a stream of server-sent events; it begins with the cursor it begins at.
fn server_sent(watch: Watch) -> impl futures::Stream<Item = Result<Bytes, actix_web::Error>> {
    let hello = format!("retry: {RECONNECT_MS}\nid: {}\n\n", watch.cursor());
    let rest = futures::stream::unfold(watch, |mut watch| async move {
        let next = watch.next().await?;
        Some((Ok(Bytes::from(sse_text(next))), watch))
    });
    futures::stream::once(async move { Ok(Bytes::from(hello)) }).chain(rest)
}

fn sse_text(next: Next) -> String {
    match next {
        // JSON holds no line breaks.
        Next::Object {
            text,
            cursor: Some(cursor),
        } => format!("id: {cursor}\ndata: {text}\n\n"),
        Next::Object { text, cursor: None } => format!("data: {text}\n\n"),
        Next::KeepAlive { cursor } => format!(": still here\nid: {cursor}\n\n"),
    }
}

fn websocket(request: &HttpRequest, payload: web::Payload, watch: Watch) -> Result<HttpResponse, Problem> {
    let (response, session, incoming) = actix_ws::handle(request, payload)
        .map_err(|error| Problem::new(Kind::BadRequest, format!("the upgrade cannot be done: {error}")))?;
    let incoming = incoming.max_frame_size(INCOMING_BYTES_MAX);
    let ahead = Rc::new(Ahead::default());
    actix_web::rt::spawn(serve(session, incoming, watch, ahead.clone()));
    Ok(response.map_body(|_, body| BoxBody::new(Watched { body, ahead })))
}

/// Bytes given to the library and not yet taken by the socket. The library counts messages, of
/// which thirty-two may have megabytes.
#[derive(Default)]
struct Ahead {
    bytes: Cell<usize>,
    taken: Notify,
}

impl Ahead {
    /// Waits until the next message may be given.
    async fn room(&self) {
        while self.bytes.get() > AHEAD_BYTES_MAX {
            self.taken.notified().await;
        }
    }

    /// All that was given is with the socket, or will never be.
    fn clear(&self) {
        self.bytes.set(0);
        self.taken.notify_one();
    }
}

/// The body of the upgraded response. It takes all that is there at once.
struct Watched {
    body: BoxBody,
    ahead: Rc<Ahead>,
}

impl MessageBody for Watched {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_next(cx);
        if polled.is_ready() {
            self.ahead.clear();
        }
        polled
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.ahead.clear();
    }
}

/// Writes events until either side ends it.
async fn serve(mut session: Session, mut incoming: actix_ws::MessageStream, mut watch: Watch, ahead: Rc<Ahead>) {
    let mut heard = Instant::now();
    let reason = loop {
        tokio::select! {
            next = watch.next() => {
                let sent = match next {
                    None => break Some(CloseCode::Away),
                    Some(Next::KeepAlive { .. }) if heard.elapsed() > SILENCE_MAX => break None,
                    Some(Next::KeepAlive { .. }) => session.ping(b"").await,
                    Some(Next::Object { text, cursor }) => {
                        let text = with_cursor(&text, cursor);
                        ahead.room().await;
                        ahead.bytes.set(ahead.bytes.get() + text.len());
                        session.text(text).await
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
            message = incoming.next() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Ping(bytes))) => if session.pong(&bytes).await.is_err() {
                        return;
                    },
                    Some(Ok(Message::Close(_))) | None => break Some(CloseCode::Normal),
                    Some(Ok(_)) => {}
                    Some(Err(_)) => break Some(CloseCode::Protocol),
                }
            }
        }
    };
    let reason = reason.map(|code| CloseReason {
        code,
        description: None,
    });
    // The other side may be gone already.
    let _ = session.close(reason).await;
}

/// Server-sent events carry the cursor beside the object, WebSocket messages in it.
fn with_cursor(text: &str, cursor: Option<String>) -> String {
    match (text.strip_suffix('}'), cursor) {
        (Some(open), Some(cursor)) => format!(r#"{open},"cursor":"{cursor}"}}"#),
        _ => text.to_owned(),
    }
}

const _: () = assert!(KEEP_ALIVE.as_secs() * 2 < SILENCE_MAX.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_each_protocol_has_it() {
        let object = |cursor: Option<&str>| Next::Object {
            text: r#"{"kind":"twin"}"#.into(),
            cursor: cursor.map(str::to_owned),
        };
        assert_eq!(
            sse_text(object(Some("1-2-3"))),
            "id: 1-2-3\ndata: {\"kind\":\"twin\"}\n\n"
        );
        assert_eq!(sse_text(object(None)), "data: {\"kind\":\"twin\"}\n\n");
        let alive = Next::KeepAlive { cursor: "1-2".into() };
        assert_eq!(sse_text(alive), ": still here\nid: 1-2\n\n");
        let text = with_cursor(r#"{"a":1}"#, Some("1-2".into()));
        assert_eq!(text, r#"{"a":1,"cursor":"1-2"}"#);
    }
}
