//! The registry: create, read, change, delete and list devices.

use actix_web::http::header::ETAG;
use actix_web::{web, HttpResponse};
use actors::device::Refusal;
use actors::device::{Answer, Command, DeviceView, Precondition, Status};
use actors::id::{DeviceId, DeviceKey, ShardId};
use actors::ports::{CallError, Reply};
use cluster::api::ListQuery;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::body::{Body, JSON, MERGE_PATCH};
use super::context::{odd_answer, params, Context};
use super::etag::{self, IfMatch};
use super::problem::{Ask, Kind, Problem};
use super::respond::{limit, receipt};
use super::{cursor, filter, stamp};

/// Devices a page holds when the query does not say.
const LIMIT_DEFAULT: u32 = 100;

/// What an operator may set of a device.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceBody {
    /// `enabled` if left out of a PUT; unchanged if left out of a PATCH.
    #[serde(default)]
    #[schema(value_type = Option<DeviceStatus>)]
    pub status: Option<Status>,
    /// The gateway device that may act for this one; null, or left out of a PUT: none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Option<DeviceId>>,
}

/// Tells null, which takes away, from nothing, which leaves alone.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<DeviceId>>, D::Error> {
    Option::<DeviceId>::deserialize(deserializer).map(Some)
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceStatus {
    Enabled,
    Disabled,
}

/// A registered device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Device {
    pub id: String,
    #[schema(value_type = DeviceStatus)]
    pub status: Status,
    /// For `If-Match`, in quotes. Names the registration, not what the device does.
    pub etag: String,
    /// Counts everything that ever happened to the device.
    pub version: u64,
    pub shard: u16,
    /// RFC 3339 with milliseconds, UTC, like every time here.
    pub created_at: String,
    pub updated_at: String,
    /// Registered by its first connection.
    pub automatic: bool,
    /// The gateway device that may act for it; null: none.
    pub gateway: Option<String>,
    pub connection: ConnectionState,
    pub telemetry: TelemetryState,
    pub twin_version: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ConnectionState {
    /// `connected` or `disconnected`.
    pub state: &'static str,
    /// The node that holds, or last held, the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// When `state` last changed; absent for a device that never connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_secs: Option<u16>,
    /// The gateway device over whose connection it is connected; absent: over its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TelemetryState {
    /// Seq of the oldest row kept.
    pub first_seq: u64,
    /// Seq of the newest row; 0 before the first.
    pub last_seq: u64,
    pub last_at: Option<String>,
}

/// One page of devices, in the order of their ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceList {
    pub items: Vec<Device>,
    /// `cursor` of the next page; null on the last.
    pub next: Option<String>,
}

impl Device {
    pub fn new(view: &DeviceView, shard: ShardId) -> Self {
        Self {
            id: view.id.to_string(),
            status: view.status,
            etag: view.etag.to_string(),
            version: view.version,
            shard: shard.0,
            created_at: stamp::text(view.created_at),
            updated_at: stamp::text(view.updated_at),
            automatic: view.automatic,
            gateway: view.gateway.as_ref().map(ToString::to_string),
            connection: ConnectionState::new(view),
            telemetry: TelemetryState {
                first_seq: view.first_seq,
                last_seq: view.last_seq,
                last_at: view.last_telemetry_at.map(stamp::text),
            },
            twin_version: view.twin_version,
        }
    }
}

impl ConnectionState {
    fn new(view: &DeviceView) -> Self {
        let connection = view.connection.as_ref();
        let connected = connection.is_some_and(|c| c.connected);
        Self {
            state: if connected { "connected" } else { "disconnected" },
            node: connection.map(|c| c.gateway.node),
            since: connection.map(|c| stamp::text(c.since)),
            protocol: connection.map(|c| protocol_name(c.protocol)),
            generation: connection.map(|c| c.generation),
            keep_alive_secs: connection.map(|c| c.keep_alive_secs),
            via: connection.and_then(|c| c.via.as_ref()).map(ToString::to_string),
        }
    }
}

fn protocol_name(level: u8) -> String {
    match level {
        4 => "mqtt-3.1.1".into(),
        5 => "mqtt-5.0".into(),
        other => format!("mqtt-level-{other}"),
    }
}

#[utoipa::path(put, path = "/api/v1/devices/{id}", tag = "devices", operation_id = "putDevice",
    params(("id" = String, Path, description = "Device id"),
        ("If-Match" = Option<String>, Header, description = "The etag the registration must have, or *"),
        ("If-None-Match" = Option<String>, Header, description = "* : the device must not exist yet")),
    request_body(content = DeviceBody, description = "May be empty"),
    responses((status = 200, description = "Replaced", body = Device), (status = 201, description = "Created", body = Device)))]
pub async fn put(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let body: DeviceBody = if body.bytes.is_empty() {
        DeviceBody::default()
    } else {
        body.object(&[JSON])?
    };
    let put = |condition| Command::PutDevice {
        status: body.status.unwrap_or_default(),
        condition,
        gateway: body.gateway.clone().flatten(),
    };
    let (reply, created) = match put_condition(&context)? {
        Precondition::None => create_or_replace(&context, &device, put).await?,
        condition => {
            let created = condition == Precondition::Absent;
            let command = put(condition);
            (context.call(&device, command, Ask::Put).await?, created)
        }
    };
    let mut response = if created {
        HttpResponse::Created()
    } else {
        HttpResponse::Ok()
    };
    if created {
        response.insert_header(("Location", context.request.path().to_owned()));
    }
    answer_device(&context, &device, response, reply)
}

/// Says exactly whether the device was created: creation is tried first, and refused without a
/// trace when there is one already. The device may come and go in between, hence the few rounds.
async fn create_or_replace(
    context: &Context,
    device: &DeviceKey,
    put: impl Fn(Precondition) -> Command,
) -> Result<(Reply, bool), Problem> {
    const ROUNDS: usize = 3;
    for _ in 0..ROUNDS {
        for (condition, created) in [(Precondition::Absent, true), (Precondition::Exists, false)] {
            let command = put(condition);
            let call = context.app.backend.call(device, command, context.left());
            let call = async {
                match call.await {
                    Err(CallError::Refused(Refusal::AlreadyRegistered | Refusal::NotRegistered)) => Ok(None),
                    other => other.map(Some),
                }
            };
            if let Some(reply) = context.finish(call, Ask::Put).await? {
                return Ok((reply, created));
            }
        }
    }
    Err(Problem::new(
        Kind::Conflict,
        "others kept creating and deleting this device; nothing was written, try again",
    ))
}

fn put_condition(context: &Context) -> Result<Precondition, Problem> {
    let condition = if_match(context)?;
    if !etag::must_be_absent(context.headers())? {
        return Ok(condition);
    }
    if condition != Precondition::None {
        return Err(Problem::new(
            Kind::BadHeader,
            "If-Match and If-None-Match contradict each other; send one",
        ));
    }
    Ok(Precondition::Absent)
}

fn if_match(context: &Context) -> Result<Precondition, Problem> {
    Ok(match etag::if_match(context.headers())? {
        IfMatch::Unasked => Precondition::None,
        IfMatch::Any => Precondition::Exists,
        IfMatch::Version(etag) => Precondition::Etag(etag),
    })
}

#[utoipa::path(get, path = "/api/v1/devices/{id}", tag = "devices", operation_id = "getDevice",
    params(("id" = String, Path, description = "Device id")),
    responses((status = 200, description = "The device; ETag names its registration", body = Device)))]
pub async fn get(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let reply = context.call(&device, Command::ReadDevice, Ask::Read).await?;
    answer_device(&context, &device, HttpResponse::Ok(), reply)
}

#[utoipa::path(patch, path = "/api/v1/devices/{id}", tag = "devices", operation_id = "patchDevice",
    params(("id" = String, Path, description = "Device id"),
        ("If-Match" = Option<String>, Header, description = "The etag the registration must have, or *")),
    request_body(content((DeviceBody = "application/merge-patch+json"), (DeviceBody = "application/json"))),
    responses((status = 200, description = "The device after the change", body = Device)))]
pub async fn patch(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let body: DeviceBody = body.object(&[MERGE_PATCH, JSON])?;
    let command = Command::PatchDevice {
        status: body.status,
        condition: if_match(&context)?,
        gateway: body.gateway,
    };
    let reply = context.call(&device, command, Ask::Write).await?;
    answer_device(&context, &device, HttpResponse::Ok(), reply)
}

#[utoipa::path(delete, path = "/api/v1/devices/{id}", tag = "devices", operation_id = "deleteDevice",
    params(("id" = String, Path, description = "Device id"),
        ("If-Match" = Option<String>, Header, description = "The etag the registration must have, or *")),
    responses((status = 204, description = "Deleted, with its twin and telemetry")))]
pub async fn delete(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let condition = if_match(&context)?;
    let reply = context
        .call(&device, Command::DeleteDevice { condition }, Ask::Write)
        .await?;
    let mut response = HttpResponse::NoContent();
    receipt(&mut response, reply.receipt);
    Ok(response.finish())
}

fn answer_device(
    context: &Context,
    device: &DeviceKey,
    mut response: actix_web::HttpResponseBuilder,
    reply: Reply,
) -> Result<HttpResponse, Problem> {
    let Answer::Device(view) = &reply.answer else {
        return Err(odd_answer(&reply.answer));
    };
    receipt(&mut response, reply.receipt);
    response.insert_header((ETAG, etag::text(view.etag)));
    Ok(response.json(Device::new(view, context.app.backend.shard_of(device))))
}

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Terms joined by `and`: `status=enabled|disabled`, `connected=true|false`, `id=prefix*`,
    /// `gateway=id`.
    filter: Option<String>,
    /// 1..=1000, default 100.
    limit: Option<String>,
    /// `next` of the page before, with the same filter.
    cursor: Option<String>,
    /// Deadline in milliseconds, 100..=60000.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/devices", tag = "devices", operation_id = "listDevices", params(ListParams),
    responses((status = 200, description = "One page, in the order of the ids", body = DeviceList)))]
pub async fn list(context: Context) -> Result<HttpResponse, Problem> {
    let params: ListParams = params(&context.request)?;
    let filter = filter::parse(params.filter.as_deref().unwrap_or_default())
        .map_err(|e| Problem::new(Kind::BadFilter, e.to_string()).with("position", e.position as u64))?;
    let after = match params.cursor.as_deref() {
        None | Some("") => None,
        Some(text) => Some(cursor::read(context.tenant, &filter, text).ok_or_else(|| {
            Problem::new(
                Kind::BadCursor,
                "a cursor is the `next` of the page before, with the same filter; start again without one",
            )
        })?),
    };
    let query = ListQuery {
        tenant: context.tenant,
        after,
        limit: limit(params.limit.as_deref(), LIMIT_DEFAULT)?,
        id_prefix: filter.id_prefix.clone(),
        status: filter.status,
        connected: filter.connected,
        gateway: filter.gateway.clone(),
    };
    context.page_room().await?;
    let page = context.app.backend.list_devices(query, context.left());
    let page = context.finish(page, Ask::Read).await?;
    let shard = |view: &DeviceView| {
        let key = DeviceKey::new(context.tenant, view.id.clone());
        context.app.backend.shard_of(&key)
    };
    Ok(HttpResponse::Ok().json(DeviceList {
        items: page.devices.iter().map(|view| Device::new(view, shard(view))).collect(),
        next: page.next.map(|after| cursor::write(context.tenant, &filter, after)),
    }))
}
