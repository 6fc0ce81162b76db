//! The cluster as operators see it: nodes, shards, digests, drains, and what became of a receipt.

use actix_web::{web, HttpResponse};
use actors::id::{NodeId, ShardId};
use actors::wire::receipt::Receipt;
use cluster::api::{ClusterStatus, NodeState, NodeStatus, ReceiptState, ReplicaDigest, ScrubReport, ShardStatus};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::context::{params, Context};
use super::problem::{Ask, Kind, Problem};
use super::respond::{bad_param, number};
use super::stamp;

/// All nodes and shards, as the answering node knows them.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterView {
    /// Version of the shard map.
    pub epoch: u64,
    pub cluster_id: String,
    pub answered_by: u64,
    pub nodes: Vec<NodeView>,
    pub shards: Vec<ShardView>,
    pub catalog: ShardView,
    pub replication: u8,
    /// Replicas that are being moved, while there are any.
    pub rebalance: Option<RebalanceView>,
    /// What is still to be done, shard by shard.
    pub moves: Vec<MoveView>,
    /// The id the next node gets.
    pub next_node: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RebalanceView {
    pub started_at: String,
    /// Replicas to be brought to other nodes, and how many are there.
    pub replicas_total: u32,
    pub replicas_done: u32,
    /// An estimate from those that are; null before the first.
    pub seconds_left: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct MoveView {
    /// Null for the catalog.
    pub shard: Option<u16>,
    /// Nodes that shall become voters.
    pub add: Vec<u64>,
    /// Voters that shall have no replica.
    pub remove: Vec<u64>,
    /// `waiting`, or `copying` while a node takes in what there is.
    pub state: &'static str,
    /// Entries the nodes to be added are behind.
    #[schema(value_type = Vec<Vec<u64>>)]
    pub lag: Vec<(u64, u64)>,
}

fn moves(status: &ClusterStatus) -> Vec<MoveView> {
    let shards = status.shards.iter().map(|shard| (Some(shard.id.0), shard));
    shards
        .chain([(None, &status.catalog)])
        .filter_map(|(id, shard)| move_of(id, shard))
        .collect()
}

fn move_of(id: Option<u16>, shard: &ShardStatus) -> Option<MoveView> {
    let missing =
        |from: &[u64], of: &[u64]| -> Vec<u64> { of.iter().copied().filter(|id| !from.contains(id)).collect() };
    let add = missing(&shard.voters, &shard.target);
    let remove = missing(&shard.target, &shard.voters);
    if shard.target.is_empty() || (add.is_empty() && remove.is_empty()) {
        return None;
    }
    let copying = add.iter().any(|id| shard.learners.contains(id));
    Some(MoveView {
        shard: id,
        lag: shard.lag.iter().copied().filter(|(id, _)| add.contains(id)).collect(),
        state: if copying { "copying" } else { "waiting" },
        add,
        remove,
    })
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NodeView {
    pub id: u64,
    pub zone: String,
    /// `up`, `draining`, `joining`, `leaving`, `rebuilding` (replicas that lost their state are given it by
    /// others), `damaged` (it takes no part until it is repaired), or `down` when it does not answer
    /// its peers.
    #[schema(value_type = String)]
    pub state: NodeState,
    pub version: String,
    pub mqtt: String,
    pub http: String,
    pub peer: String,
    /// Shards it leads.
    pub leads: u32,
    /// Shards of which it has a replica, or is getting one.
    pub replicas: u32,
    /// Why it is not as it should be, if it is not.
    pub fault: Option<String>,
    /// What there is to know of damage that is repaired: what it was, and where the damaged copy is.
    pub repaired: Option<String>,
    /// How it comes along with reading everything it has stored; null when it does not answer.
    pub scrub: Option<ScrubView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ScrubView {
    pub running: bool,
    /// Passes since its start that found everything whole.
    pub passes: u64,
    /// Bytes read since its start.
    pub bytes: u64,
}

impl From<ScrubReport> for ScrubView {
    fn from(report: ScrubReport) -> Self {
        let ScrubReport { running, passes, bytes } = report;
        Self { running, passes, bytes }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ShardView {
    pub id: u16,
    pub leader: Option<u64>,
    pub term: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// Where its voters shall be, the preferred leader first.
    pub target: Vec<u64>,
    /// Index applied on the node that answers.
    pub applied: u64,
    pub committed: u64,
    /// Pairs of node and entries behind the leader; known to the leader only.
    #[schema(value_type = Vec<Vec<u64>>)]
    pub lag: Vec<(u64, u64)>,
    /// Which replica does not take part and why, if one does not: `node 2: rebuilding …`.
    pub fault: Option<String>,
}

impl From<ClusterStatus> for ClusterView {
    fn from(status: ClusterStatus) -> Self {
        let moves = moves(&status);
        let rebalance = status.moving.map(|moving| RebalanceView {
            started_at: stamp::text(moving.since),
            replicas_total: moving.total,
            replicas_done: moving.done,
            seconds_left: moving.left_ms.map(|ms| ms.div_ceil(1_000)),
        });
        Self {
            rebalance,
            moves,
            next_node: status.next_node,
            epoch: status.epoch,
            cluster_id: status.cluster_id,
            answered_by: status.answered_by,
            nodes: status.nodes.into_iter().map(NodeView::from).collect(),
            shards: status.shards.into_iter().map(ShardView::from).collect(),
            catalog: status.catalog.into(),
            replication: status.replication,
        }
    }
}

impl From<NodeStatus> for NodeView {
    fn from(node: NodeStatus) -> Self {
        Self {
            id: node.id,
            zone: node.zone,
            state: node.state,
            version: node.version,
            mqtt: node.mqtt,
            http: node.http,
            peer: node.peer,
            leads: node.leads,
            replicas: node.replicas,
            fault: node.fault,
            repaired: node.repaired,
            scrub: node.scrub.map(ScrubView::from),
        }
    }
}

impl From<ShardStatus> for ShardView {
    fn from(shard: ShardStatus) -> Self {
        Self {
            id: shard.id.0,
            leader: shard.leader,
            term: shard.term,
            voters: shard.voters,
            learners: shard.learners,
            target: shard.target,
            applied: shard.applied,
            committed: shard.committed,
            lag: shard.lag,
            fault: shard.fault,
        }
    }
}

#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster", operation_id = "getCluster",
    responses((status = 200, description = "Nodes and shards", body = ClusterView)))]
pub async fn get(context: Context) -> Result<HttpResponse, Problem> {
    let status = status(&context).await?;
    Ok(HttpResponse::Ok().json(ClusterView::from(status)))
}

async fn status(context: &Context) -> Result<ClusterStatus, Problem> {
    let status = context.app.backend.status();
    context.finish(async { Ok(status.await) }, Ask::Read).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DigestParams {
    /// Log index at which to compare; without it the call writes a marker and takes that.
    index: Option<String>,
    /// Deadline in milliseconds, 100..=60000.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<String>,
}

/// One digest per replica, all of the same log index.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShardDigest {
    pub shard: u16,
    /// Null when no replica answered.
    pub index: Option<u64>,
    pub replicas: Vec<DigestView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DigestView {
    pub node: u64,
    /// The index the digest was taken at.
    pub applied: Option<u64>,
    /// Hex of xxh3-128 over every row of the shard.
    pub digest: Option<String>,
    /// Why there is none.
    pub error: Option<String>,
}

impl From<ReplicaDigest> for DigestView {
    fn from(replica: ReplicaDigest) -> Self {
        Self {
            node: replica.node,
            applied: replica.applied,
            digest: replica.digest,
            error: replica.error,
        }
    }
}

#[utoipa::path(get, path = "/api/v1/cluster/shards/{id}/digest", tag = "cluster", operation_id = "getShardDigest",
    params(("id" = u16, Path, description = "Shard id"), DigestParams),
    responses((status = 200, description = "Equal digests mean equal replicas", body = ShardDigest)))]
pub async fn digest(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let params: DigestParams = params(&context.request)?;
    let index = number("index", params.index.as_deref())?;
    let shard = shard(&context, &id).await?;
    let replicas = context.app.backend.digest(shard, index, context.left());
    let replicas = context.finish(replicas, Ask::Read).await?;
    Ok(HttpResponse::Ok().json(ShardDigest {
        shard: shard.0,
        index: index.or_else(|| replicas.iter().find_map(|r| r.applied)),
        replicas: replicas.into_iter().map(DigestView::from).collect(),
    }))
}

async fn shard(context: &Context, text: &str) -> Result<ShardId, Problem> {
    let count = context.app.shard_count().await;
    let known = text.parse::<u16>().ok().filter(|id| usize::from(*id) < count);
    known.map(ShardId).ok_or_else(|| {
        Problem::new(
            Kind::ShardNotFound,
            format!("there is no shard {text}; the shards are 0 to {}", count.max(1) - 1),
        )
    })
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DrainView {
    pub node: u64,
    pub draining: bool,
}

#[utoipa::path(post, path = "/api/v1/cluster/nodes/{id}/drain", tag = "cluster", operation_id = "drainNode",
    params(("id" = u64, Path, description = "Node id")),
    responses((status = 202, description = "Marked; its leaderships and connections move away. Repeating it changes nothing", body = DrainView)))]
pub async fn drain(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let node = set_draining(&context, &id, true).await?;
    Ok(HttpResponse::Accepted().json(DrainView { node, draining: true }))
}

#[utoipa::path(post, path = "/api/v1/cluster/nodes/{id}/undrain", tag = "cluster", operation_id = "undrainNode",
    params(("id" = u64, Path, description = "Node id")),
    responses((status = 200, description = "No longer marked. Repeating it changes nothing", body = DrainView)))]
pub async fn undrain(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let node = set_draining(&context, &id, false).await?;
    Ok(HttpResponse::Ok().json(DrainView { node, draining: false }))
}

#[utoipa::path(post, path = "/api/v1/cluster/nodes/{id}/scrub", tag = "cluster", operation_id = "scrubNode",
    params(("id" = u64, Path, description = "Node id")),
    responses((status = 202, description = "It reads everything it has stored; see `scrub` of the node", body = ScrubView)))]
pub async fn scrub(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let node = known_node(&context, &id).await?;
    let call = context.app.backend.scrub(node, context.left());
    let report = context.finish(call, Ask::Read).await?;
    Ok(HttpResponse::Accepted().json(ScrubView::from(report)))
}

async fn set_draining(context: &Context, text: &str, draining: bool) -> Result<NodeId, Problem> {
    let node = known_node(context, text).await?;
    let call = context.app.backend.set_draining(node, draining, context.left());
    context.finish(call, Ask::Write).await?;
    Ok(node)
}

async fn known_node(context: &Context, text: &str) -> Result<NodeId, Problem> {
    let nodes = status(context).await?.nodes;
    text.parse()
        .ok()
        .filter(|id| nodes.iter().any(|n| n.id == *id))
        .ok_or_else(|| {
            let known: Vec<_> = nodes.iter().map(|n| n.id.to_string()).collect();
            Problem::new(
                Kind::NodeNotFound,
                format!("there is no node {text}; the nodes are {}", known.join(", ")),
            )
        })
}

/// What became of an acknowledged write.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptView {
    /// `committed`, `absent` or `unknown` (too old to tell).
    #[schema(value_type = String)]
    pub state: ReceiptState,
    pub shard: u16,
    pub term: u64,
    pub index: u64,
    /// 0 for writes that are no telemetry.
    pub seq: u64,
}

#[utoipa::path(get, path = "/api/v1/receipts/{receipt}", tag = "receipts", operation_id = "getReceipt",
    params(("receipt" = String, Path, description = "As it came in X-Holdfast-Receipt: shard-term-index-seq")),
    responses((status = 200, description = "What became of it", body = ReceiptView)))]
pub async fn receipt(context: Context, text: web::Path<String>) -> Result<HttpResponse, Problem> {
    let receipt: Receipt = text
        .parse()
        .map_err(|e: actors::wire::receipt::BadReceipt| bad_param("receipt", &text, &e.to_string()))?;
    let state = if usize::from(receipt.shard.0) < context.app.shard_count().await {
        let state = context.app.backend.receipt(receipt, context.left());
        context.finish(state, Ask::Read).await?
    } else {
        // No shard ever had this id, so the receipt is not of this cluster.
        ReceiptState::Absent
    };
    Ok(HttpResponse::Ok().json(ReceiptView {
        state,
        shard: receipt.shard.0,
        term: receipt.term,
        index: receipt.index,
        seq: receipt.seq,
    }))
}
