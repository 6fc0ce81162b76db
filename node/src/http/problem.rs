//! Every error of the HTTP edge as an RFC 9457 problem: the one table from domain errors to statuses.
//!
//! 429 and 503 say that nothing was committed, 504 that nobody knows. Handlers choose a [`Kind`];
//! none of them names a status.

use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use actors::device::Refusal;
use actors::ports::CallError;
use cluster::api::MethodError;
use serde_json::{Map, Value};

/// Media type of every error body.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// What `type` starts with; the rest is [`Kind::name`].
pub const TYPE_PREFIX: &str = "urn:holdfast:problem:";

macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident = $status:literal $name:literal $title:literal; )*) => {
        /// What went wrong, as far as a client can act on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $( $(#[$doc])* $kind, )* }

        impl Kind {
            pub const ALL: &'static [Kind] = &[ $( Kind::$kind, )* ];

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $( Kind::$kind => $status, )* }
            }

            /// The last part of the problem's `type`; stable.
            pub fn name(self) -> &'static str {
                match self { $( Kind::$kind => $name, )* }
            }

            /// The same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $( Kind::$kind => $title, )* }
            }
        }
    };
}

kinds! {
    BadRequest = 400 "bad-request" "The request is malformed";
    BadDeviceId = 400 "bad-device-id" "The device id is not allowed";
    BadMethodName = 400 "bad-method-name" "The method's name is not allowed";
    BadParameter = 400 "bad-parameter" "A parameter is not allowed";
    BadHeader = 400 "bad-header" "A header is not allowed";
    BadFilter = 400 "bad-filter" "The filter cannot be read";
    BadCursor = 400 "bad-cursor" "The cursor does not belong to this query";
    MalformedJson = 400 "malformed-json" "The body is not JSON";
    InvalidBody = 400 "invalid-body" "The body is JSON of another shape";
    UnknownField = 400 "unknown-field" "The body names a field that does not exist";
    TooDeep = 400 "too-deep" "The document nests too deep";
    SectionInvalid = 400 "section-invalid" "The twin section is not acceptable";
    TelemetryInvalid = 400 "telemetry-invalid" "The message is not acceptable";
    MessageInvalid = 400 "message-invalid" "The message is not acceptable";
    BadFault = 400 "bad-fault" "The fault lease is not acceptable";
    Unauthenticated = 401 "unauthenticated" "A valid bearer token is needed";
    JoinRefused = 403 "join-refused" "The join token admits nobody";
    DrillsNotAllowed = 403 "drills-not-allowed" "This node does not allow drills";
    SectionForbidden = 403 "section-forbidden" "This twin section is not yours to write";
    NotFound = 404 "not-found" "There is nothing at this path";
    DeviceNotFound = 404 "device-not-found" "The device is not registered";
    MessageNotFound = 404 "message-not-found" "The device has no such message";
    NodeNotFound = 404 "node-not-found" "The cluster has no such node";
    TokenNotFound = 404 "token-not-found" "The cluster has no such join token";
    ShardNotFound = 404 "shard-not-found" "The cluster has no such shard";
    NotConnected = 404 "not-connected" "The device is not connected";
    NotSubscribed = 404 "not-subscribed" "The device does not listen for its methods";
    MethodNotAllowed = 405 "method-not-allowed" "The path does not know this method";
    RequestTimeout = 408 "request-timeout" "The request arrived too slowly";
    DeviceDisabled = 409 "device-disabled" "The device is disabled";
    Conflict = 409 "conflict" "The device's state does not allow this";
    MessageIdTaken = 409 "message-id-taken" "Another message has this id";
    ClusterConflict = 409 "cluster-conflict" "The cluster does not allow this as it is now";
    LeasesFull = 409 "leases-full" "The node holds as many fault leases as it may";
    PreconditionFailed = 412 "precondition-failed" "The condition does not hold";
    TooLarge = 413 "too-large" "The document is too large";
    ConfigRefused = 422 "config-refused" "The configuration is refused";
    KeyReused = 422 "idempotency-key-reused" "The idempotency key belongs to another message";
    UnsupportedMediaType = 415 "unsupported-media-type" "The content type is not supported here";
    /// Nothing was committed.
    Overloaded = 429 "overloaded" "Too much is waiting already";
    /// Nothing was committed.
    MessageQueueFull = 429 "message-queue-full" "The device's message queue is full";
    Internal = 500 "internal" "The node failed to answer";
    Quarantined = 500 "quarantined" "The device is quarantined";
    /// Nothing was committed.
    NoLeader = 503 "no-leader" "The shard has no leader that could be reached";
    /// A read that did not finish.
    Unavailable = 503 "unavailable" "The read did not finish in time";
    NotReady = 503 "not-ready" "The node is not ready";
    BadAnswer = 502 "bad-answer" "The device's answer cannot be read";
    /// Of a method call: it was certainly not sent to the device.
    NotDelivered = 504 "not-delivered" "The call did not reach the device";
    /// It may have been committed; of a method call: it may have been carried out.
    Unknown = 504 "unknown" "The outcome is unknown";
}

/// One error, ready to be sent. `detail` says what happened, why, and what to do.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: Kind,
    pub detail: String,
    /// Further members of the problem object.
    pub members: Map<String, Value>,
    /// For `Allow`, on 405.
    pub allow: Option<String>,
}

/// What was asked, as far as it changes what an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Changes nothing, so its outcome is never unknown.
    Read,
    Write,
    /// A write that creates what is missing: a missing device means that the condition failed.
    Put,
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            members: Map::new(),
            allow: None,
        }
    }

    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.members.insert(member.to_owned(), value.into());
        self
    }

    /// The problem for an answer that somebody else (the HTTP library) made without a body.
    pub fn of_status(status: StatusCode) -> Self {
        let kind = match status.as_u16() {
            404 => Kind::NotFound,
            405 => Kind::MethodNotAllowed,
            408 => Kind::RequestTimeout,
            413 => Kind::TooLarge,
            415 => Kind::UnsupportedMediaType,
            400..=499 => Kind::BadRequest,
            _ => Kind::Internal,
        };
        let reason = status.canonical_reason().unwrap_or("no reason given");
        Self::new(
            kind,
            format!("the request was not understood ({reason}); check it against /openapi.json"),
        )
    }

    /// The one place where a domain error becomes a status.
    pub fn of_call(error: CallError, ask: Ask) -> Self {
        match error {
            CallError::Refused(refusal) => Self::of_refusal(refusal, ask),
            CallError::NotLeader { shard, leader } => {
                let known = leader.map_or("no leader is known".into(), |node| format!("node {node} may lead it"));
                Self::new(
                    Kind::NoLeader,
                    format!(
                        "shard {shard} could not be reached at its leader ({known}); nothing was committed, try again"
                    ),
                )
                .with("shard", shard.0)
            }
            CallError::Overloaded { what } => Self::new(
                Kind::Overloaded,
                format!("{what}: too much is waiting already; nothing was committed, try again more slowly"),
            ),
            CallError::Unknown if ask == Ask::Read => Self::read_timed_out(),
            CallError::Unknown => Self::outcome_unknown(),
        }
    }

    /// As [`Self::of_call`], for calls to a device's methods.
    pub fn of_method(error: MethodError) -> Self {
        let text = error.to_string();
        match error {
            MethodError::Refused(refusal) => Self::of_refusal(refusal, Ask::Write),
            MethodError::NotConnected => Self::new(
                Kind::NotConnected,
                format!("{text}, so the call was not sent; try again when it is"),
            ),
            MethodError::NotSubscribed => Self::new(
                Kind::NotSubscribed,
                format!("{text}, so the call was not sent; it has to subscribe to devices/<id>/methods/# first"),
            ),
            MethodError::Overloaded { .. } => Self::new(
                Kind::Overloaded,
                format!("{text}; the call was not sent, try again more slowly"),
            ),
            MethodError::NotHere | MethodError::NotDelivered { .. } => Self::new(
                Kind::NotDelivered,
                format!("{text}; it was certainly not sent, so calling again is safe"),
            ),
            MethodError::Unknown => Self::new(
                Kind::Unknown,
                "the call was sent and no answer came in time, so it may or may not have been carried out; \
                 it is never sent again by itself, and a late answer is dropped",
            ),
            MethodError::BadAnswer { .. } => Self::new(
                Kind::BadAnswer,
                format!("{text}; it must be a JSON object with a whole `status` and perhaps a `payload`"),
            ),
        }
    }

    pub fn read_timed_out() -> Self {
        Self::new(
            Kind::Unavailable,
            "the read did not finish before its deadline; nothing was changed, try again",
        )
    }

    pub fn outcome_unknown() -> Self {
        Self::new(
            Kind::Unknown,
            "no answer came before the deadline, so the write may or may not have been committed; \
             read back before trying again, or send telemetry again with the same Idempotency-Key",
        )
    }

    pub fn of_refusal(refusal: Refusal, ask: Ask) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NotRegistered if ask == Ask::Put => Self::new(
                Kind::PreconditionFailed,
                "If-Match names a device that is not registered; leave the header out to create it",
            ),
            Refusal::NotRegistered => Self::new(Kind::DeviceNotFound, format!("{text}; create it with PUT")),
            Refusal::AlreadyRegistered => Self::new(
                Kind::PreconditionFailed,
                format!("{text}, and If-None-Match: * asked for it to be absent; read it, or leave the header out"),
            ),
            Refusal::Disabled => Self::new(Kind::DeviceDisabled, format!("{text}; enable it with PATCH first")),
            Refusal::StaleVersion { expected, current } => Self::new(
                Kind::PreconditionFailed,
                format!("{text}; read it again and decide anew"),
            )
            .with("expected", expected)
            .with("current", current),
            Refusal::TelemetryInvalid { .. } => {
                Self::new(Kind::TelemetryInvalid, format!("{text}; nothing was stored"))
            }
            Refusal::MessageInvalid { .. } => Self::new(Kind::MessageInvalid, format!("{text}; nothing was queued")),
            Refusal::MessageTooLarge { max, .. } => Self::new(
                Kind::TooLarge,
                format!("{text}; nothing was queued, send a reference instead"),
            )
            .with("max_bytes", max),
            Refusal::MessageQueueFull { max } => Self::new(
                Kind::MessageQueueFull,
                format!("{text}; nothing was queued, wait until some are delivered or expire, or purge them"),
            )
            .with("max_messages", max),
            Refusal::MessageIdTaken => Self::new(
                Kind::MessageIdTaken,
                format!("{text}; nothing was queued, choose another message_id"),
            ),
            Refusal::MessageNotFound => Self::new(
                Kind::MessageNotFound,
                format!("{text}; it may have been delivered or have expired, see the device's feedback"),
            ),
            Refusal::StaleSession { .. }
            | Refusal::OrdinalGap { .. }
            | Refusal::TooManySubscriptions { .. }
            | Refusal::FilterInvalid { .. }
            | Refusal::NotGateway { .. } => Self::new(Kind::Conflict, text),
            Refusal::GatewayInvalid { .. } => Self::new(Kind::InvalidBody, text).with("field", "gateway"),
            Refusal::SectionTooLarge { section, max, .. } => {
                Self::new(Kind::TooLarge, format!("{text}; move what is large out of the twin"))
                    .with("section", section.name())
                    .with("max_bytes", max)
            }
            Refusal::SectionTooDeep { section, max } => {
                Self::new(Kind::TooDeep, format!("{text}; flatten the document"))
                    .with("section", section.name())
                    .with("max_depth", max)
            }
            Refusal::SectionInvalid { section, .. } => {
                Self::new(Kind::SectionInvalid, format!("{text}; send a JSON object")).with("section", section.name())
            }
            Refusal::SectionForbidden { section } => Self::new(
                Kind::SectionForbidden,
                format!("{text}: operators write tags and desired, the device itself writes reported"),
            )
            .with("section", section.name()),
            Refusal::Quarantined => Self::new(Kind::Quarantined, text),
        }
    }

    /// Seconds after which trying again makes sense.
    fn retry_after_secs(&self) -> Option<u32> {
        matches!(self.kind.status(), 429 | 503).then_some(1)
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        let mut body = self.members.clone();
        body.insert("type".into(), format!("{TYPE_PREFIX}{}", self.kind.name()).into());
        body.insert("title".into(), self.kind.title().into());
        body.insert("status".into(), self.kind.status().into());
        body.insert("detail".into(), self.detail.clone().into());
        Value::Object(body)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status()).expect("the table holds valid statuses")
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((header::CONTENT_TYPE, PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_secs() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if self.kind == Kind::Unauthenticated {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"holdfast\""));
        }
        if let Some(allow) = self.allow.as_deref().and_then(|a| HeaderValue::from_str(a).ok()) {
            response.insert_header((header::ALLOW, allow));
        }
        response.body(self.to_json().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actors::device::Section;
    use actors::id::ShardId;

    /// Every domain error has its status; 429 and 503 mean nothing was committed, 504 unknown.
    #[test]
    fn each_domain_error_has_one_status_and_type() {
        let refused = |refusal| CallError::Refused(refusal);
        let section = Section::Tags;
        let rows = [
            (refused(Refusal::NotRegistered), Ask::Read, 404, "device-not-found"),
            (refused(Refusal::NotRegistered), Ask::Put, 412, "precondition-failed"),
            (
                refused(Refusal::AlreadyRegistered),
                Ask::Put,
                412,
                "precondition-failed",
            ),
            (refused(Refusal::Disabled), Ask::Write, 409, "device-disabled"),
            (
                refused(Refusal::StaleVersion {
                    expected: 1,
                    current: 2,
                }),
                Ask::Write,
                412,
                "precondition-failed",
            ),
            (
                refused(Refusal::StaleSession { given: 1, live: None }),
                Ask::Write,
                409,
                "conflict",
            ),
            (
                refused(Refusal::OrdinalGap { given: 3, expected: 2 }),
                Ask::Write,
                409,
                "conflict",
            ),
            (
                refused(Refusal::TooManySubscriptions { max: 1 }),
                Ask::Write,
                409,
                "conflict",
            ),
            (
                refused(Refusal::SectionTooLarge {
                    section,
                    bytes: 9,
                    max: 8,
                }),
                Ask::Write,
                413,
                "too-large",
            ),
            (
                refused(Refusal::SectionTooDeep { section, max: 10 }),
                Ask::Write,
                400,
                "too-deep",
            ),
            (
                refused(Refusal::SectionInvalid {
                    section,
                    reason: "x".into(),
                }),
                Ask::Write,
                400,
                "section-invalid",
            ),
            (
                refused(Refusal::SectionForbidden { section }),
                Ask::Write,
                403,
                "section-forbidden",
            ),
            (
                refused(Refusal::TelemetryInvalid { reason: "x".into() }),
                Ask::Write,
                400,
                "telemetry-invalid",
            ),
            (
                refused(Refusal::FilterInvalid { reason: "x".into() }),
                Ask::Write,
                409,
                "conflict",
            ),
            (
                refused(Refusal::MessageInvalid { reason: "x".into() }),
                Ask::Write,
                400,
                "message-invalid",
            ),
            (
                refused(Refusal::MessageTooLarge { bytes: 2, max: 1 }),
                Ask::Write,
                413,
                "too-large",
            ),
            (
                refused(Refusal::MessageQueueFull { max: 50 }),
                Ask::Write,
                429,
                "message-queue-full",
            ),
            (refused(Refusal::MessageIdTaken), Ask::Write, 409, "message-id-taken"),
            (refused(Refusal::MessageNotFound), Ask::Read, 404, "message-not-found"),
            (refused(Refusal::Quarantined), Ask::Read, 500, "quarantined"),
            (
                CallError::NotLeader {
                    shard: ShardId(3),
                    leader: None,
                },
                Ask::Write,
                503,
                "no-leader",
            ),
            (
                CallError::Overloaded {
                    what: "shard queue".into(),
                },
                Ask::Write,
                429,
                "overloaded",
            ),
            (CallError::Unknown, Ask::Write, 504, "unknown"),
            (CallError::Unknown, Ask::Put, 504, "unknown"),
            (CallError::Unknown, Ask::Read, 503, "unavailable"),
        ];
        for (error, ask, status, name) in rows {
            let text = format!("{error:?} asked as {ask:?}");
            let problem = Problem::of_call(error, ask);
            assert_eq!((problem.kind.status(), problem.kind.name()), (status, name), "{text}");
            let retry = problem.error_response().headers().contains_key(header::RETRY_AFTER);
            assert_eq!(retry, matches!(status, 429 | 503), "{text}");
        }
    }

    #[test]
    fn problem_names_are_unique() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|k| k.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
