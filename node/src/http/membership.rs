//! Who belongs to the cluster and where replicas shall be: nodes come and go, replicas move.
//!
//! Each call only starts something; `GET /api/v1/cluster` shows how far it is.

use actix_web::{web, HttpMessage as _, HttpResponse};
use actors::id::NodeId;
use cluster::admin::{AdminAsk, AdminDone, Denied, DeniedKind, Newcomer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::JoinBearer;
use super::body::{Body, JSON};
use super::context::Context;
use super::problem::{Ask, Kind, Problem};
use super::stamp;

/// A node that asks to be let in. Nodes send it themselves; see `cluster.join` in the configuration.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// Of its data directory: asked for again with the same, it gets the same id. 32 hexadecimal digits.
    uuid: String,
    /// The only id it will take.
    #[serde(default)]
    id: Option<u64>,
    zone: String,
    version: String,
    mqtt: String,
    http: String,
    peer: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AdmittedView {
    pub id: u64,
    pub shards: u16,
    /// Everybody's peer address.
    pub peers: Vec<PeerView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PeerView {
    pub id: u64,
    pub peer: String,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveBody {
    /// The node does not run and never will: its replicas are made anew from the others.
    #[serde(default)]
    dead: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RemovingView {
    pub node: u64,
    /// `leaving`; the node is no longer listed once it has left.
    pub state: &'static str,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebalanceBody {
    /// Replicas each shard shall have from now on, 1 to 7; as many as there are nodes for.
    #[serde(default)]
    replication: Option<u8>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RebalancingView {
    /// Replicas that are to be moved.
    pub replicas: u32,
    /// Replicas each shard shall have.
    pub replication: u8,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBody {
    /// How long it admits nodes, 60 to 604800 seconds. Default one hour.
    #[serde(default)]
    ttl_secs: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    /// Shown once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    pub expires_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenList {
    pub items: Vec<TokenView>,
}

const TOKEN_LIFE_SECS: u64 = 3_600;

#[utoipa::path(post, path = "/api/v1/cluster/nodes", tag = "cluster", operation_id = "addNode", request_body = NewNode,
    responses((status = 201, description = "Let in under this id; the operator's token or a join token vouches for it", body = AdmittedView),
        (status = 403, description = "The join token admits nobody"), (status = 409, description = "Its id or an address is taken")))]
pub async fn add(context: Context, body: Body) -> Result<HttpResponse, Problem> {
    let new: NewNode = body.object(&[JSON])?;
    let uuid = u128::from_str_radix(&new.uuid, 16).unwrap_or(0);
    let token = context
        .request
        .extensions()
        .get::<JoinBearer>()
        .map(|bearer| bearer.0.clone());
    let ask = AdminAsk::Admit(Newcomer {
        uuid,
        wanted: new.id,
        zone: new.zone,
        version: new.version,
        mqtt: new.mqtt,
        http: new.http,
        peer: new.peer,
        token,
    });
    match ask_for(&context, ask).await? {
        AdminDone::Admitted(admitted) => Ok(HttpResponse::Created().json(AdmittedView {
            id: admitted.node,
            shards: admitted.shards,
            peers: admitted
                .peers
                .into_iter()
                .map(|(id, peer)| PeerView { id, peer })
                .collect(),
        })),
        other => Err(odd(&other)),
    }
}

#[utoipa::path(post, path = "/api/v1/cluster/nodes/{id}/remove", tag = "cluster", operation_id = "removeNode",
    params(("id" = u64, Path, description = "Node id")), request_body(content = RemoveBody, description = "May be empty"),
    responses((status = 202, description = "Its replicas move away. Repeating it changes nothing", body = RemovingView),
        (status = 409, description = "Too few nodes would be left, or it is up and was called dead, or down and was not")))]
pub async fn remove(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let RemoveBody { dead } = optional(&body)?;
    let node: NodeId = id
        .parse()
        .map_err(|_| Problem::new(Kind::NodeNotFound, format!("there is no node {id}")))?;
    match ask_for(&context, AdminAsk::Remove { node, dead }).await? {
        AdminDone::Removing { node } => Ok(HttpResponse::Accepted().json(RemovingView { node, state: "leaving" })),
        other => Err(odd(&other)),
    }
}

#[utoipa::path(post, path = "/api/v1/cluster/rebalance", tag = "cluster", operation_id = "rebalance",
    request_body(content = RebalanceBody, description = "May be empty"),
    responses((status = 202, description = "Replicas move until they are even; see GET /api/v1/cluster", body = RebalancingView)))]
pub async fn rebalance(context: Context, body: Body) -> Result<HttpResponse, Problem> {
    let RebalanceBody { replication } = optional(&body)?;
    match ask_for(&context, AdminAsk::Rebalance { replication }).await? {
        AdminDone::Rebalancing { replicas, replication } => {
            Ok(HttpResponse::Accepted().json(RebalancingView { replicas, replication }))
        }
        other => Err(odd(&other)),
    }
}

#[utoipa::path(post, path = "/api/v1/cluster/tokens", tag = "cluster", operation_id = "createJoinToken",
    request_body(content = TokenBody, description = "May be empty"),
    responses((status = 201, description = "A token that lets nodes join; it cannot be shown again", body = TokenView)))]
pub async fn create_token(context: Context, body: Body) -> Result<HttpResponse, Problem> {
    let TokenBody { ttl_secs } = optional(&body)?;
    let life_ms = ttl_secs.unwrap_or(TOKEN_LIFE_SECS).saturating_mul(1_000);
    match ask_for(&context, AdminAsk::CreateToken { life_ms }).await? {
        AdminDone::TokenCreated { id, token, expires } => Ok(HttpResponse::Created().json(TokenView {
            id,
            token: Some(token),
            created_at: None,
            expires_at: stamp::text(expires),
        })),
        other => Err(odd(&other)),
    }
}

#[utoipa::path(get, path = "/api/v1/cluster/tokens", tag = "cluster", operation_id = "listJoinTokens",
    responses((status = 200, description = "Without the tokens themselves", body = TokenList)))]
pub async fn list_tokens(context: Context) -> Result<HttpResponse, Problem> {
    let status = context.app.backend.status();
    let status = context.finish(async { Ok(status.await) }, Ask::Read).await?;
    let items = status.tokens.into_iter().map(|token| TokenView {
        id: token.id,
        token: None,
        created_at: Some(stamp::text(token.created)),
        expires_at: stamp::text(token.expires),
    });
    Ok(HttpResponse::Ok().json(TokenList { items: items.collect() }))
}

#[utoipa::path(delete, path = "/api/v1/cluster/tokens/{id}", tag = "cluster", operation_id = "revokeJoinToken",
    params(("id" = String, Path, description = "Token id")),
    responses((status = 204, description = "It admits nobody any more")))]
pub async fn revoke_token(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    match ask_for(&context, AdminAsk::RevokeToken { id: id.into_inner() }).await? {
        AdminDone::TokenRevoked => Ok(HttpResponse::NoContent().finish()),
        other => Err(odd(&other)),
    }
}

async fn ask_for(context: &Context, ask: AdminAsk) -> Result<AdminDone, Problem> {
    let node = matches!(ask, AdminAsk::Remove { .. });
    let call = context.app.backend.admin(ask, context.left());
    let done = context.finish(call, Ask::Write).await?;
    done.map_err(|denied| problem(denied, node))
}

fn problem(denied: Denied, of_node: bool) -> Problem {
    let kind = match denied.kind {
        DeniedKind::NotFound if of_node => Kind::NodeNotFound,
        DeniedKind::NotFound => Kind::TokenNotFound,
        DeniedKind::Conflict => Kind::ClusterConflict,
        DeniedKind::Forbidden => Kind::JoinRefused,
        DeniedKind::Invalid => Kind::InvalidBody,
    };
    Problem::new(kind, denied.reason)
}

fn optional<T: DeserializeOwned + Default>(body: &Body) -> Result<T, Problem> {
    if body.bytes.is_empty() {
        return Ok(T::default());
    }
    body.object(&[JSON])
}

fn odd(done: &AdminDone) -> Problem {
    tracing::error!(?done, "the answer does not fit the question");
    Problem::new(Kind::Internal, "the catalog gave an answer of another kind; report it")
}
