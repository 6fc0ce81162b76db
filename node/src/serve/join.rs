//! Which node this is: as the file says, as the data directory remembers, or as the cluster answers
//! that is asked to let it in.

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::storage::book::Book;
use cluster::storage::identity::Identity;
use serde_json::{json, Value};
use tracing::{info, warn};

use super::ServeError;
use crate::config::{NodeConfig, Who};

/// How long the cluster may take to let this node in.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
const ASK_DEADLINE: Duration = Duration::from_secs(12);
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// # Errors
/// The directory cannot be read, or nobody lets this node in.
pub async fn who(config: &NodeConfig) -> Result<Who, ServeError> {
    let dir = &config.node.data_dir;
    let known = match Identity::read(dir) {
        Ok(known) => known,
        // What a damaged identity means is decided where the directory is opened.
        Err(error) => {
            let id = config.node.id.ok_or_else(|| ServeError::Join(error.to_string()))?;
            return Ok(Who {
                id,
                shards: config.cluster.shards,
                fresh_uuid: None,
            });
        }
    };
    if let Some(known) = known {
        // A file that says something else is refused where the directory is opened.
        let joined = !config.cluster.join.is_empty();
        return Ok(Who {
            id: config.node.id.unwrap_or(known.node_id),
            shards: if joined { known.shards } else { config.cluster.shards },
            fresh_uuid: None,
        });
    }
    match config.node.id {
        Some(id) if config.cluster.join.is_empty() => Ok(Who {
            id,
            shards: config.cluster.shards,
            fresh_uuid: None,
        }),
        _ => join(config, dir).await,
    }
}

/// Asks until it is let in. What it is called is written down first: asked for again after a
/// crash, it is given the same id.
async fn join(config: &NodeConfig, dir: &Path) -> Result<Who, ServeError> {
    let disk = |what: &'static str| {
        move |source| ServeError::Disk {
            what: what.into(),
            source,
        }
    };
    let mut book = Book::read(dir).map_err(disk("cannot read what this node knows of the others"))?;
    let uuid = match book.joining_as {
        Some(uuid) => uuid,
        None => {
            let uuid = rand::random::<u128>() | 1;
            book.joining_as = Some(uuid);
            book.write(dir).map_err(disk("cannot write down who this node is"))?;
            uuid
        }
    };
    if book.admitted.is_none() {
        let answer = ask_until_let_in(config, uuid).await?;
        (book.admitted, book.peers) =
            read(&answer).ok_or_else(|| ServeError::Join(format!("the cluster's answer makes no sense: {answer}")))?;
        book.write(dir).map_err(disk("cannot write down who this node is"))?;
    }
    let (id, shards) = book.admitted.expect("it was just let in, or before");
    info!(node = id, "let in by the cluster");
    Ok(Who {
        id,
        shards,
        fresh_uuid: Some(uuid),
    })
}

type Admission = (
    Option<(u64, u16)>,
    std::collections::BTreeMap<u64, std::net::SocketAddr>,
);

fn read(answer: &Value) -> Option<Admission> {
    let id = answer["id"].as_u64()?;
    let shards = u16::try_from(answer["shards"].as_u64()?).ok()?;
    let peers = answer["peers"].as_array()?.iter();
    let peers = peers.map(|peer| Some((peer["id"].as_u64()?, peer["peer"].as_str()?.parse().ok()?)));
    Some((Some((id, shards)), peers.collect::<Option<_>>()?))
}

async fn ask_until_let_in(config: &NodeConfig, uuid: u128) -> Result<Value, ServeError> {
    let client = reqwest::Client::builder().no_proxy().timeout(ASK_DEADLINE).build();
    let client = client.map_err(|error| ServeError::internal("no HTTP client", error))?;
    let token = config
        .cluster
        .join_token
        .as_ref()
        .unwrap_or(&config.security.operator_token);
    let token = String::from_utf8_lossy(&token.0).into_owned();
    let body = json!({
        "uuid": format!("{uuid:032x}"),
        "id": config.node.id,
        "zone": config.node.zone,
        "version": env!("CARGO_PKG_VERSION"),
        "mqtt": config.listen.mqtt.to_string(),
        "http": config.listen.http.to_string(),
        "peer": config.listen.peer.to_string(),
    });
    let end = Instant::now() + JOIN_DEADLINE;
    let (mut last, mut told) = (String::new(), String::new());
    while Instant::now() < end {
        for address in &config.cluster.join {
            let url = format!("http://{address}/api/v1/cluster/nodes");
            match ask(&client, &url, &token, &body).await {
                Ok(answer) => return Ok(answer),
                Err(Refused::ForGood(reason)) => return Err(ServeError::Join(reason)),
                Err(Refused::ForNow(reason)) => last = format!("{address}: {reason}"),
            }
        }
        if told != last {
            warn!(reason = last, "not let into the cluster yet, going on to ask");
            told.clone_from(&last);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Err(ServeError::Join(format!(
        "nobody let this node in for {} s; {last}",
        JOIN_DEADLINE.as_secs()
    )))
}

/// The innermost one; reqwest's own text only repeats the address.
fn reason(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(inner) => reason(inner),
        None => error.to_string(),
    }
}

enum Refused {
    ForNow(String),
    ForGood(String),
}

async fn ask(client: &reqwest::Client, url: &str, token: &str, body: &Value) -> Result<Value, Refused> {
    let request = client
        .post(url)
        .bearer_auth(token)
        .header("content-type", "application/json")
        .body(body.to_string());
    let for_now = |error: reqwest::Error| Refused::ForNow(reason(&error));
    let response = request.send().await.map_err(for_now)?;
    let status = response.status().as_u16();
    let text = response.text().await.map_err(for_now)?;
    let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    match status {
        200..=299 => Ok(answer),
        400..=499 if status != 408 && status != 429 => Err(Refused::ForGood(format!(
            "the cluster refuses this node: {}",
            answer["detail"].as_str().unwrap_or(&text)
        ))),
        _ => Err(Refused::ForNow(format!("status {status}"))),
    }
}
