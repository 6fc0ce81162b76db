//! Request bodies: read up to a bound and within a time, then parsed as JSON with named errors.

use std::future::Future;
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::web::{self, Bytes, BytesMut};
use actix_web::{FromRequest, HttpRequest};
use futures::StreamExt as _;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::context::App;
use super::problem::{Kind, Problem};

pub const JSON: &str = "application/json";
pub const MERGE_PATCH: &str = "application/merge-patch+json";

/// A whole request body, at most `HttpConfig::body_bytes_max` bytes.
pub struct Body {
    pub bytes: Bytes,
    /// As the client wrote it.
    pub content_type: Option<String>,
}

impl FromRequest for Body {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let request = request.clone();
        let payload = payload.take();
        Box::pin(async move { read(&request, payload).await })
    }
}

async fn read(request: &HttpRequest, mut payload: Payload) -> Result<Body, Problem> {
    let app = request.app_data::<web::Data<App>>().expect("the server registers it");
    let max = app.live.body_bytes_max();
    let header = |name| request.headers().get(name).map(|v| v.to_str().map(str::to_owned));
    let content_type = header(&CONTENT_TYPE)
        .transpose()
        .map_err(|_| Problem::new(Kind::BadHeader, "Content-Type holds bytes that are not ASCII"))?;
    if request.headers().get(CONTENT_ENCODING).is_some_and(|v| v != "identity") {
        return Err(Problem::new(
            Kind::UnsupportedMediaType,
            "compressed bodies are not supported; send the body without Content-Encoding",
        ));
    }
    let announced = header(&CONTENT_LENGTH).and_then(|v| v.ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > max as u64) {
        return Err(too_large(max));
    }
    let collect = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|e| Problem::new(Kind::BadRequest, format!("the body broke off: {e}")))?;
            if bytes.len() + chunk.len() > max {
                return Err(too_large(max));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    let bytes = tokio::time::timeout(app.config.request_timeout, collect)
        .await
        .map_err(|_| {
            Problem::new(
                Kind::RequestTimeout,
                format!(
                    "the body did not arrive within {:?}; nothing was done",
                    app.config.request_timeout
                ),
            )
        })??;
    Ok(Body { bytes, content_type })
}

fn too_large(max: usize) -> Problem {
    Problem::new(
        Kind::TooLarge,
        format!("the body is larger than {max} bytes; nothing was done"),
    )
    .with("max_bytes", max as u64)
}

impl Body {
    /// The body as `T`, if its content type is one of `types` or absent.
    ///
    /// # Errors
    /// 415 for another content type, else 400 that says where and why.
    pub fn json<T: DeserializeOwned>(&self, types: &[&str]) -> Result<T, Problem> {
        self.expect_type(types)?;
        serde_json::from_slice(&self.bytes).map_err(|e| bad_json(&e))
    }

    /// As [`Self::json`], for a type that is an object: serde would take an array for a struct.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn object<T: DeserializeOwned>(&self, types: &[&str]) -> Result<T, Problem> {
        if self.bytes.trim_ascii_start().first() != Some(&b'{') {
            self.json::<IgnoredAny>(types)?;
            return Err(Problem::new(
                Kind::InvalidBody,
                "the body is JSON, but no object; see /openapi.json for the expected shape",
            ));
        }
        self.json(types)
    }

    fn expect_type(&self, types: &[&str]) -> Result<(), Problem> {
        let Some(given) = &self.content_type else {
            return Ok(());
        };
        let essence = given.split(';').next().unwrap_or_default().trim();
        if types.iter().any(|t| t.eq_ignore_ascii_case(essence)) {
            return Ok(());
        }
        Err(Problem::new(
            Kind::UnsupportedMediaType,
            format!("the body came as {given}; send it as {}", types.join(" or ")),
        ))
    }
}

/// Whether a content type promises JSON.
pub fn is_json_type(content_type: &str) -> bool {
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == JSON || essence.ends_with("+json")
}

fn bad_json(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    if text.starts_with("recursion limit exceeded") {
        return Problem::new(Kind::TooDeep, format!("{text}; flatten the document"));
    }
    if error.is_data() {
        if text.starts_with("unknown field") {
            let field = text.split('`').nth(1).unwrap_or_default().to_owned();
            return Problem::new(Kind::UnknownField, format!("{text}; leave it out")).with("field", field);
        }
        return Problem::new(
            Kind::InvalidBody,
            format!("{text}; see /openapi.json for the expected shape"),
        );
    }
    Problem::new(Kind::MalformedJson, format!("{text}; send one JSON document"))
}
