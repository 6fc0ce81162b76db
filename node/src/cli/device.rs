//! `holdfast device …`: the everyday calls on devices, over the HTTP API.

mod invoke;
mod watch;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{json, Value};

use super::api::{Answer, Client, Request};
use super::cluster::Directory;
use super::failure::{Exit, Failure};
use super::messages;
use super::output::{self, Output};

pub(super) const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// Which cluster is asked, and as whom.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Directory of a local cluster; address and token come from its cluster.json
    #[arg(long, env = "HOLDFAST_DIR", default_value = "./holdfast-cluster", value_name = "DIR")]
    pub dir: PathBuf,
    /// Address of a node's HTTP API instead, such as http://127.0.0.1:8080
    #[arg(long, env = "HOLDFAST_URL", value_name = "URL", requires = "token")]
    pub url: Option<String>,
    /// Operator token, with --url
    #[arg(long, env = "HOLDFAST_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(super) token: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StatusArg {
    Enabled,
    Disabled,
}

impl StatusArg {
    fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub struct One {
    /// Device id
    #[arg(value_name = "ID")]
    pub(super) id: String,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Args, Clone, Debug)]
pub struct Conditional {
    #[command(flatten)]
    one: One,
    /// Only if the registration still has this etag
    #[arg(long)]
    etag: Option<String>,
}

#[derive(Subcommand, Clone, Debug)]
pub enum DeviceCommand {
    /// Register a new device
    #[command(after_help = "Example:\n  holdfast device create lamp-1 --dir /tmp/hf")]
    Create {
        #[command(flatten)]
        one: One,
        /// Whether it may connect
        #[arg(long, value_enum, default_value = "enabled")]
        status: StatusArg,
        /// The gateway device that may act for it
        #[arg(long, value_name = "ID")]
        gateway: Option<String>,
    },
    /// Show one device
    #[command(after_help = "Example:\n  holdfast device get lamp-1 --output json")]
    Get(One),
    /// List devices in the order of their ids
    #[command(after_help = "Example:\n  holdfast device list --filter 'connected=true and id=pump-*' --limit 20")]
    List {
        /// Which ones, as the HTTP API's `filter`
        #[arg(long)]
        filter: Option<String>,
        /// At most so many, 1..=1000
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Go on where an earlier list ended
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Change a device's registration
    #[command(
        after_help = "Example:\n  holdfast device update lamp-1 --status disabled --etag 3\n  holdfast device update meter-7 --gateway hub-1"
    )]
    Update {
        #[command(flatten)]
        device: Conditional,
        /// Whether it may connect
        #[arg(long, value_enum, required_unless_present_any = ["gateway", "no_gateway"])]
        status: Option<StatusArg>,
        /// The gateway device that may act for it
        #[arg(long, value_name = "ID", conflicts_with = "no_gateway")]
        gateway: Option<String>,
        /// No gateway device may act for it any more
        #[arg(long)]
        no_gateway: bool,
    },
    /// Remove a device with its twin and telemetry
    #[command(after_help = "Example:\n  holdfast device delete lamp-1")]
    Delete(Conditional),
    /// Let a device connect
    #[command(after_help = "Example:\n  holdfast device enable lamp-1")]
    Enable(Conditional),
    /// Disconnect a device and refuse it from now on
    #[command(after_help = "Example:\n  holdfast device disable lamp-1")]
    Disable(Conditional),
    /// Show a device's twin, or change its tags and desired properties
    #[command(
        after_help = "Example:\n  holdfast device twin lamp-1\n  holdfast device twin lamp-1 --desired '{\"lit\": true, \"colour\": null}'\n\nPatches are JSON merge patches: null deletes."
    )]
    Twin {
        #[command(flatten)]
        one: One,
        /// Merge patch for the desired properties
        #[arg(long, value_name = "JSON", value_parser = json_object)]
        desired: Option<Value>,
        /// Merge patch for the tags
        #[arg(long, value_name = "JSON", value_parser = json_object)]
        tags: Option<Value>,
        /// Only if the twin still has this etag
        #[arg(long)]
        etag: Option<String>,
    },
    /// Call a method of a connected device and print its answer
    Invoke(invoke::Invoke),
    /// Print what happens to devices, as it happens
    Watch(watch::Watch),
    /// Read stored telemetry in order
    #[command(after_help = "Example:\n  holdfast device telemetry lamp-1 --after-seq 100 --limit 10 --output json")]
    Telemetry {
        #[command(flatten)]
        one: One,
        /// Only what comes after this seq
        #[arg(long, value_name = "SEQ")]
        after_seq: Option<u64>,
        /// Only from this time on (RFC 3339)
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Only before this time (RFC 3339)
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
        /// At most so many, 1..=1000
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Queue a message for a device, whether it is connected or not
    #[command(
        after_help = "Example:\n  holdfast device send lamp-1 --payload '{\"blink\": 3}' --ttl 10m --property urgent=yes\n  holdfast device send lamp-1 --file firmware-note.txt --message-id note-7"
    )]
    Send(messages::Send),
    /// Look after a device's message queue, its dead letters and feedback
    #[command(
        after_help = "Example:\n  holdfast device messages lamp-1\n  holdfast device messages lamp-1 dead\n  holdfast device messages lamp-1 replay note-7 --ttl 1h\n  holdfast device messages lamp-1 purge --all\n  holdfast device messages lamp-1 feedback --limit 10"
    )]
    Messages(messages::Queue),
}

/// # Errors
/// What went wrong, with its exit code.
pub async fn run(command: DeviceCommand, output: Output) -> Result<(), Failure> {
    match command {
        DeviceCommand::Create { one, status, gateway } => {
            let headers = vec![("if-none-match", "*".to_owned())];
            let body = Some((JSON, json!({ "status": status.name(), "gateway": gateway })));
            let answer = call(&one.target, Method::PUT, &device_path(&one.id, ""), headers, body).await?;
            show_device(output, &answer.body);
        }
        DeviceCommand::Get(one) => {
            let answer = call(&one.target, Method::GET, &device_path(&one.id, ""), vec![], None).await?;
            show_device(output, &answer.body);
        }
        DeviceCommand::List {
            filter,
            limit,
            cursor,
            target,
        } => {
            let query = query(&[
                ("filter", filter),
                ("limit", Some(limit.to_string())),
                ("cursor", cursor),
            ]);
            let answer = call(&target, Method::GET, &format!("/api/v1/devices{query}"), vec![], None).await?;
            show_list(output, &answer.body);
        }
        DeviceCommand::Update {
            device,
            status,
            gateway,
            no_gateway,
        } => {
            let mut patch = serde_json::Map::new();
            patch.extend(status.map(|status| ("status".to_owned(), status.name().into())));
            if gateway.is_some() || no_gateway {
                patch.insert("gateway".to_owned(), gateway.into());
            }
            update(device, Value::Object(patch), output).await?;
        }
        DeviceCommand::Enable(device) => update(device, json!({ "status": "enabled" }), output).await?,
        DeviceCommand::Disable(device) => update(device, json!({ "status": "disabled" }), output).await?,
        DeviceCommand::Delete(Conditional { one, etag }) => {
            let answer = call(
                &one.target,
                Method::DELETE,
                &device_path(&one.id, ""),
                if_match(etag),
                None,
            )
            .await?;
            match output {
                Output::Table => output::line(&format!("device {} is deleted", one.id)),
                Output::Json => output::json(&json!({"id": one.id, "deleted": true, "receipt": answer.receipt})),
            }
        }
        DeviceCommand::Twin {
            one,
            desired,
            tags,
            etag,
        } => twin(one, desired, tags, etag, output).await?,
        DeviceCommand::Invoke(call) => call.run(output).await?,
        DeviceCommand::Watch(watch) => watch.run(output).await?,
        DeviceCommand::Telemetry {
            one,
            after_seq,
            from,
            to,
            limit,
        } => {
            let query = query(&[
                ("after_seq", after_seq.map(|seq| seq.to_string())),
                ("from", from),
                ("to", to),
                ("limit", Some(limit.to_string())),
            ]);
            let path = device_path(&one.id, &format!("/telemetry{query}"));
            let answer = call(&one.target, Method::GET, &path, vec![], None).await?;
            show_telemetry(output, &answer.body);
        }
        DeviceCommand::Send(send) => messages::send(send, output).await?,
        DeviceCommand::Messages(queue) => messages::queue(queue, output).await?,
    }
    Ok(())
}

async fn update(device: Conditional, patch: Value, output: Output) -> Result<(), Failure> {
    let Conditional { one, etag } = device;
    let body = Some((MERGE_PATCH, patch));
    let answer = call(
        &one.target,
        Method::PATCH,
        &device_path(&one.id, ""),
        if_match(etag),
        body,
    )
    .await?;
    show_device(output, &answer.body);
    Ok(())
}

async fn twin(
    one: One,
    desired: Option<Value>,
    tags: Option<Value>,
    etag: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let path = device_path(&one.id, "/twin");
    let mut patch = serde_json::Map::new();
    patch.extend(desired.map(|value| ("desired".to_owned(), value)));
    patch.extend(tags.map(|value| ("tags".to_owned(), value)));
    let answer = if patch.is_empty() {
        call(&one.target, Method::GET, &path, vec![], None).await?
    } else {
        let body = Some((MERGE_PATCH, Value::Object(patch)));
        call(&one.target, Method::PATCH, &path, if_match(etag), body).await?
    };
    if output == Output::Table {
        if let Some(etag) = &answer.etag {
            output::line(&format!("twin of {}, etag {etag}", one.id));
        }
    }
    // A document reads best as a document, also for people.
    output::json(&answer.body);
    Ok(())
}

pub(super) async fn call(
    target: &Target,
    method: Method,
    path: &str,
    headers: Vec<(&'static str, String)>,
    body: Option<(&'static str, Value)>,
) -> Result<Answer, Failure> {
    client(target)?.send(method, Request { path, headers, body }).await
}

pub fn client(target: &Target) -> Result<Client, Failure> {
    if let Some(url) = &target.url {
        if reqwest::Url::parse(url).is_err() {
            return Err(
                Failure::new(Exit::Usage, format!("{url:?} is no URL")).advise("write --url http://127.0.0.1:8080")
            );
        }
        return Client::new(vec![url.clone()], target.token.as_deref().unwrap_or_default());
    }
    let directory = Directory::open(&target.dir)?;
    let bases = directory
        .file
        .nodes
        .iter()
        .map(|node| format!("http://{}", node.http))
        .collect();
    Client::new(bases, target.token.as_deref().unwrap_or(&directory.file.token))
}

pub(super) fn device_path(id: &str, rest: &str) -> String {
    format!("/api/v1/devices/{}{rest}", escape(id))
}

pub(super) fn query(pairs: &[(&str, Option<String>)]) -> String {
    let given = pairs
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", escape(value.as_ref()?))));
    let given: Vec<String> = given.collect();
    if given.is_empty() {
        String::new()
    } else {
        format!("?{}", given.join("&"))
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(super) fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

fn if_match(etag: Option<String>) -> Vec<(&'static str, String)> {
    let quoted = |etag: String| {
        if etag == "*" || etag.starts_with('"') {
            etag
        } else {
            format!("\"{etag}\"")
        }
    };
    etag.map(|etag| ("if-match", quoted(etag))).into_iter().collect()
}

fn json_object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("must be a JSON object, such as '{\"lit\": true}'".to_owned()),
        Err(error) => Err(format!("is no JSON: {error}")),
    }
}

pub(super) fn show_device(output: Output, device: &Value) {
    if output == Output::Json {
        return output::json(device);
    }
    let Value::Object(fields) = device else {
        return output::line(&shown(device));
    };
    let rows = fields.iter().map(|(name, value)| vec![name.clone(), shown(value)]);
    output::table(&["field", "value"], rows.collect());
}

fn show_list(output: Output, page: &Value) {
    if output == Output::Json {
        return output::json(page);
    }
    show_rows(
        page,
        &["id", "status", "etag", "version", "shard"],
        Some(("/connection/state", "connection")),
    );
    let cursor = ["next", "cursor"]
        .iter()
        .find_map(|name| page.get(*name).and_then(Value::as_str));
    if let Some(cursor) = cursor {
        output::line(&format!("there are more: go on with --cursor {cursor}"));
    }
}

fn show_telemetry(output: Output, page: &Value) {
    if output == Output::Json {
        return output::json(page);
    }
    show_rows(
        page,
        &["seq", "enqueued_at", "stream", "content_type"],
        Some(("/body", "body")),
    );
    if let Some(next) = page.get("next").filter(|next| !next.is_null()) {
        output::line(&format!("there is more: go on with --after-seq {next}"));
    }
}

pub(super) fn show_rows(page: &Value, columns: &[&str], last: Option<(&str, &str)>) {
    let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let row = |item: &Value| {
        let mut cells: Vec<String> = columns
            .iter()
            .map(|name| item.get(*name).map(shown).unwrap_or_default())
            .collect();
        let body = last.map(|(pointer, _)| {
            item.pointer(pointer)
                .or_else(|| item.get("body_base64"))
                .or_else(|| item.get("payload_base64"))
                .map(shown)
        });
        cells.extend(body.map(Option::unwrap_or_default));
        cells
    };
    let header: Vec<&str> = columns.iter().copied().chain(last.map(|(_, name)| name)).collect();
    output::table(&header, items.iter().map(row).collect());
}

/// Text without its quotes; everything else as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_device_id_fits_into_a_path() {
        assert_eq!(device_path("a-1", ""), "/api/v1/devices/a-1");
        assert_eq!(
            device_path("a:b@c,d;e!f(g)'h$i*j%k=l", "/twin"),
            "/api/v1/devices/a%3Ab%40c%2Cd%3Be%21f%28g%29%27h%24i%2Aj%25k%3Dl/twin"
        );
        assert_eq!(query(&[("a", None)]), "");
        assert_eq!(
            query(&[
                ("from", Some("2026-01-01T00:00:00+01:00".into())),
                ("b", None),
                ("limit", Some("1".into()))
            ]),
            "?from=2026-01-01T00%3A00%3A00%2B01%3A00&limit=1"
        );
    }

    #[test]
    fn etags_are_quoted_once() {
        assert_eq!(if_match(Some("3".into())), [("if-match", "\"3\"".to_owned())]);
        assert_eq!(if_match(Some("\"3\"".into())), [("if-match", "\"3\"".to_owned())]);
        assert_eq!(if_match(Some("*".into())), [("if-match", "*".to_owned())]);
        assert!(if_match(None).is_empty());
    }
}
