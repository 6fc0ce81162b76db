//! `holdfast device send` and `holdfast device messages`: a device's message queue, over the HTTP
//! API.

use std::path::PathBuf;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use clap::{Args, ValueEnum};
use reqwest::Method;
use serde_json::{json, Map, Value};

use super::device::{call, device_path, escape, query, show_rows, One, JSON};
use super::failure::{Exit, Failure};
use super::output::{self, Output};
use crate::config::duration;

#[derive(Args, Clone, Debug)]
pub struct Send {
    #[command(flatten)]
    one: One,
    /// The payload as text
    #[arg(long, value_name = "TEXT", conflicts_with = "file", required_unless_present = "file")]
    payload: Option<String>,
    /// Read the payload from a file instead
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Content type; by default application/json for what is JSON
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// A property, passed on in MQTT 5; may be given several times
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
    /// Time until it expires undelivered, such as 30s or 2h
    #[arg(long, value_name = "TIME", value_parser = ttl_secs)]
    ttl: Option<u32>,
    /// Its id; the same one sent again is queued once
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// What waits or is on its way
    List,
    /// One message
    Get,
    /// Dead letters, with their reasons
    Dead,
    /// What became of messages
    Feedback,
    /// Queue dead letters again
    Replay,
    /// Take messages out of the queue; they become dead letters
    Purge,
    /// Forget dead letters for good
    Drop,
}

#[derive(Args, Clone, Debug)]
pub struct Queue {
    /// Device id
    #[arg(value_name = "ID")]
    id: String,
    /// What to do
    #[arg(value_enum, default_value = "list")]
    action: Action,
    /// Which message: for get, replay, purge and drop
    #[arg(value_name = "MESSAGE_ID")]
    message_id: Option<String>,
    /// Every message instead: for replay, purge and drop
    #[arg(long, conflicts_with = "message_id")]
    all: bool,
    /// With replay: time until it expires again
    #[arg(long, value_name = "TIME", value_parser = ttl_secs)]
    ttl: Option<u32>,
    /// At most so many, 1..=1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on where an earlier page ended
    #[arg(long, value_name = "NUMBER")]
    cursor: Option<u64>,
    #[command(flatten)]
    target: super::device::Target,
}

/// # Errors
/// What went wrong, with its exit code.
pub async fn send(send: Send, output: Output) -> Result<(), Failure> {
    let bytes = match (&send.file, send.payload) {
        (Some(file), _) => std::fs::read(file).map_err(|error| {
            Failure::new(Exit::BadInput, format!("{} cannot be read", file.display())).because(error)
        })?,
        (None, text) => text.unwrap_or_default().into_bytes(),
    };
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
    let content_type = send.content_type.or(is_json.then(|| JSON.to_owned()));
    let mut body = Map::new();
    // As bytes, so that the device gets exactly what was given.
    body.insert("payload_base64".into(), STANDARD.encode(bytes).into());
    body.extend(content_type.map(|text| ("content_type".to_owned(), text.into())));
    body.extend(send.ttl.map(|secs| ("ttl_secs".to_owned(), secs.into())));
    body.extend(send.message_id.map(|id| ("message_id".to_owned(), id.into())));
    body.insert("properties".into(), grouped(send.properties));
    let path = device_path(&send.one.id, "/messages");
    let body = Some((JSON, Value::Object(body)));
    let answer = call(&send.one.target, Method::POST, &path, vec![], body).await?.body;
    show_stored(output, &answer);
    Ok(())
}

/// A name that came several times has an array.
fn grouped(properties: Vec<(String, String)>) -> Value {
    let mut object = Map::new();
    for (name, value) in properties {
        let values = object.entry(name).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(value.into());
        }
    }
    Value::Object(object)
}

fn show_stored(output: Output, answer: &Value) {
    if output == Output::Json {
        return output::json(answer);
    }
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, expires) = (text("id"), text("expires_at"));
    output::line(&match (text("state").as_str(), answer.get("repeated").is_some()) {
        ("queued", false) => format!("message {id} is queued until {expires}"),
        ("queued", true) => format!("message {id} was queued already, until {expires}"),
        _ => format!("message {id} was queued before, and has ended: see `messages … feedback`"),
    });
}

/// # Errors
/// What went wrong, with its exit code.
pub async fn queue(queue: Queue, output: Output) -> Result<(), Failure> {
    match queue.action {
        Action::List => page(&queue, "", output).await,
        Action::Dead => page(&queue, "/dead", output).await,
        Action::Feedback => page(&queue, "/feedback", output).await,
        Action::Get => {
            let id = one_message(&queue)?;
            let answer = call(&queue.target, Method::GET, &path(&queue, "", Some(id)), vec![], None).await?;
            super::device::show_device(output, &answer.body);
            Ok(())
        }
        Action::Purge => end(&queue, "", output).await,
        Action::Drop => end(&queue, "/dead", output).await,
        Action::Replay if queue.all => replay_all(&queue, output).await,
        Action::Replay => {
            let answer = replay(&queue, one_message(&queue)?).await?;
            show_stored(output, &answer);
            Ok(())
        }
    }
}

fn path(queue: &Queue, list: &str, message_id: Option<&str>) -> String {
    let message = message_id.map(|id| format!("/{}", escape(id))).unwrap_or_default();
    device_path(&queue.id, &format!("/messages{list}{message}"))
}

fn one_message(queue: &Queue) -> Result<&str, Failure> {
    queue.message_id.as_deref().ok_or_else(|| {
        Failure::new(Exit::Usage, "no message is named")
            .advise("write its id behind the action, or --all where every message is meant")
    })
}

async fn page(queue: &Queue, list: &str, output: Output) -> Result<(), Failure> {
    let parameters = query(&[
        ("limit", Some(queue.limit.to_string())),
        ("cursor", queue.cursor.map(|cursor| cursor.to_string())),
    ]);
    let path = format!("{}{parameters}", path(queue, list, None));
    let page = call(&queue.target, Method::GET, &path, vec![], None).await?.body;
    if output == Output::Json {
        output::json(&page);
        return Ok(());
    }
    let payload = Some(("/payload", "payload"));
    match queue.action {
        Action::Feedback => show_rows(&page, &["seq", "message_id", "outcome", "delivery_count", "at"], None),
        Action::Dead => show_rows(
            &page,
            &["id", "reason", "delivery_count", "enqueued_at", "dead_at"],
            payload,
        ),
        _ => show_rows(
            &page,
            &["id", "state", "delivery_count", "enqueued_at", "expires_at"],
            payload,
        ),
    }
    if let Some(next) = page.get("next").filter(|next| !next.is_null()) {
        output::line(&format!("there are more: go on with --cursor {next}"));
    }
    Ok(())
}

async fn end(queue: &Queue, list: &str, output: Output) -> Result<(), Failure> {
    let id = if queue.all { None } else { Some(one_message(queue)?) };
    let answer = call(&queue.target, Method::DELETE, &path(queue, list, id), vec![], None).await?;
    let count = |name: &str| answer.body.get(name).and_then(Value::as_u64);
    match (output, count("purged"), count("dropped")) {
        (Output::Json, ..) => output::json(&answer.body),
        (_, Some(purged), _) => output::line(&format!("{purged} purged; `replay` brings them back")),
        (_, _, dropped) => output::line(&format!("{} dropped", dropped.unwrap_or(0))),
    }
    Ok(())
}

async fn replay(queue: &Queue, id: &str) -> Result<Value, Failure> {
    let body = queue.ttl.map(|secs| (JSON, json!({ "ttl_secs": secs })));
    let path = format!("{}/replay", path(queue, "/dead", Some(id)));
    Ok(call(&queue.target, Method::POST, &path, vec![], body).await?.body)
}

/// Those that were dead when it began, in the order in which they were queued.
async fn replay_all(queue: &Queue, output: Output) -> Result<(), Failure> {
    let list = format!("{}?limit=1000", path(queue, "/dead", None));
    let page = call(&queue.target, Method::GET, &list, vec![], None).await?.body;
    let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut replayed = Vec::new();
    for id in items.iter().filter_map(|item| item.get("id").and_then(Value::as_str)) {
        replayed.push(replay(queue, id).await?);
    }
    match output {
        Output::Json => output::json(&json!({ "items": replayed })),
        Output::Table => output::line(&format!("{} queued again", replayed.len())),
    }
    Ok(())
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

fn ttl_secs(text: &str) -> Result<u32, String> {
    let secs = match text.parse::<u64>() {
        Ok(secs) => secs,
        Err(_) => duration::parse(text)?.as_millis().div_ceil(1000) as u64,
    };
    u32::try_from(secs).map_err(|_| "is too long".to_owned())
}
