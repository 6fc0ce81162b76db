//! What the nodes of a local cluster say about it (`GET /api/v1/cluster`), read leniently: a
//! newer node may say more.

use serde::Deserialize;
use serde_json::Value;

use super::directory::{Directory, NodeEntry};
use crate::cli::api::Client;
use crate::cli::failure::Failure;

#[derive(Clone, Debug, Default, Deserialize)]
pub struct View {
    #[serde(default)]
    pub nodes: Vec<NodeView>,
    #[serde(default)]
    pub shards: Vec<ShardView>,
    #[serde(default)]
    pub catalog: Option<ShardView>,
    #[serde(default)]
    pub replication: u8,
    #[serde(default)]
    pub rebalance: Option<RebalanceView>,
    #[serde(default)]
    pub moves: Vec<MoveView>,
    #[serde(default)]
    pub next_node: u64,
    #[serde(default)]
    pub answered_by: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct RebalanceView {
    #[serde(default)]
    pub replicas_total: u32,
    #[serde(default)]
    pub replicas_done: u32,
    pub seconds_left: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct MoveView {
    /// `None`: the catalog.
    pub shard: Option<u64>,
    #[serde(default)]
    pub add: Vec<u64>,
    #[serde(default)]
    pub remove: Vec<u64>,
    #[serde(default)]
    pub state: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NodeView {
    pub id: u64,
    #[serde(default)]
    pub state: String,
    #[serde(default)]
    pub version: String,
    /// `host:port` of its HTTP API.
    #[serde(default)]
    pub http: String,
    #[serde(default)]
    pub fault: Option<String>,
    #[serde(default)]
    pub repaired: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ShardView {
    #[serde(default)]
    pub id: Value,
    pub leader: Option<u64>,
    #[serde(default)]
    pub term: u64,
    #[serde(default)]
    pub applied: u64,
    /// `[[node, entries]]`, `{"node": entries}` or `[{"node":…,"entries":…}]`.
    #[serde(default)]
    pub lag: Value,
    #[serde(default)]
    pub fault: Option<String>,
}

impl ShardView {
    /// Entries each replica is behind, as far as this node knows.
    pub fn lags(&self) -> Vec<(u64, u64)> {
        let pair = |node: Option<u64>, lag: Option<u64>| node.zip(lag);
        match &self.lag {
            Value::Array(rows) => rows
                .iter()
                .filter_map(|row| match row {
                    Value::Array(two) => pair(two.first()?.as_u64(), two.get(1)?.as_u64()),
                    Value::Object(map) => {
                        let lag = ["entries", "lag", "behind"].iter().find_map(|name| map.get(*name));
                        pair(map.get("node")?.as_u64(), lag?.as_u64())
                    }
                    _ => None,
                })
                .collect(),
            Value::Object(map) => map
                .iter()
                .filter_map(|(node, lag)| pair(node.parse().ok(), lag.as_u64()))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// # Errors
/// The token cannot be sent.
pub fn client(directory: &Directory, node: &NodeEntry) -> Result<Client, Failure> {
    Client::new(vec![format!("http://{}", node.http)], &directory.file.token)
}

/// Asks every node at once; `None` for one that does not answer. In the order of `cluster.json`.
///
/// # Errors
/// The token cannot be sent.
pub async fn ask_all(directory: &Directory) -> Result<Vec<Option<View>>, Failure> {
    let clients: Result<Vec<Client>, Failure> = directory
        .file
        .nodes
        .iter()
        .map(|node| client(directory, node))
        .collect();
    let clients = clients?;
    Ok(futures::future::join_all(clients.iter().map(ask)).await)
}

/// `None` when it does not answer.
pub async fn ask(client: &Client) -> Option<View> {
    let answer = client.get("/api/v1/cluster").await.ok()?;
    serde_json::from_value(answer.body).ok()
}

pub fn led_shards(view: &View) -> usize {
    view.shards.iter().filter(|shard| shard.leader.is_some()).count()
}

pub fn all_led(view: &View, shards: usize) -> bool {
    led_shards(view) == shards && view.catalog.as_ref().is_none_or(|catalog| catalog.leader.is_some())
}

/// One line for the foreground of `cluster up`.
pub fn summary(views: &[Option<View>], directory: &Directory) -> String {
    let answering = views.iter().flatten().count();
    let led = views.iter().flatten().map(led_shards).max().unwrap_or(0);
    let leads: Vec<String> = directory
        .file
        .nodes
        .iter()
        .map(|node| {
            let count = |view: &View| view.shards.iter().filter(|shard| shard.leader == Some(node.id)).count();
            format!(
                "node {} leads {}",
                node.id,
                views.iter().flatten().map(count).max().unwrap_or(0)
            )
        })
        .collect();
    format!(
        "{answering} of {} nodes answer, {led} of {} shards led ({})",
        views.len(),
        directory.file.shards,
        leads.join(", ")
    )
}
