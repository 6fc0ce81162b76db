//! The twin of a device: read it whole or by section, patch or replace what operators may write.

use actix_web::http::header::ETAG;
use actix_web::{web, HttpResponse};
use actors::device::{Answer, Command, Origin, Section, SectionView, SectionWrite, TwinMatch, TwinView, WriteMode};
use actors::id::DeviceKey;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{Body, JSON, MERGE_PATCH};
use super::context::{odd_answer, Context};
use super::etag::{self, IfMatch};
use super::problem::{Ask, Kind, Problem};
use super::respond::receipt;
use super::stamp;

/// The sections to write. Devices write `reported` themselves; naming it here is refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TwinBody {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    tags: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    desired: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Object>, read_only)]
    reported: Option<Box<RawValue>>,
}

/// `null` for a section is something that was given, and wrong; not the same as nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// The twin of a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Twin {
    pub id: String,
    /// Counts the changes of all sections; the ETag of the whole twin.
    pub version: u64,
    #[schema(value_type = Object)]
    pub tags: Box<RawValue>,
    #[schema(value_type = Object)]
    pub desired: Box<RawValue>,
    #[schema(value_type = Object)]
    pub reported: Box<RawValue>,
    pub versions: SectionVersions,
    pub updated_at: SectionTimes,
}

/// The ETag of each section.
#[derive(Debug, Serialize, ToSchema)]
pub struct SectionVersions {
    pub tags: u64,
    pub desired: u64,
    pub reported: u64,
}

/// When each section last changed; null before its first change.
#[derive(Debug, Serialize, ToSchema)]
pub struct SectionTimes {
    pub tags: Option<String>,
    pub desired: Option<String>,
    pub reported: Option<String>,
}

/// What a write of the twin led to.
#[derive(Debug, Serialize, ToSchema)]
pub struct TwinWritten {
    pub id: String,
    /// Of the whole twin.
    pub version: u64,
    pub versions: SectionVersions,
}

impl SectionVersions {
    fn new([tags, desired, reported]: [u64; 3]) -> Self {
        Self {
            tags,
            desired,
            reported,
        }
    }
}

impl Twin {
    fn new(view: &TwinView) -> Result<Self, Problem> {
        let [tags, desired, reported] = &view.sections;
        let time = |section: &SectionView| section.updated_at.map(stamp::text);
        Ok(Self {
            id: view.id.to_string(),
            version: view.twin_version,
            tags: document(tags)?,
            desired: document(desired)?,
            reported: document(reported)?,
            versions: SectionVersions::new([tags.version, desired.version, reported.version]),
            updated_at: SectionTimes {
                tags: time(tags),
                desired: time(desired),
                reported: time(reported),
            },
        })
    }
}

fn document(section: &SectionView) -> Result<Box<RawValue>, Problem> {
    RawValue::from_string(section.json.clone()).map_err(|e| {
        tracing::error!(section = section.section.name(), error = %e, "a stored twin section is not JSON");
        Problem::new(
            Kind::Internal,
            "a stored twin section is not JSON; this is a fault of the node, report it",
        )
    })
}

async fn read_twin(context: &Context, device: &DeviceKey) -> Result<TwinView, Problem> {
    let reply = context.call(device, Command::ReadTwin, Ask::Read).await?;
    match reply.answer {
        Answer::Twin(view) => Ok(*view),
        other => Err(odd_answer(&other)),
    }
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/twin", tag = "twin", operation_id = "getTwin",
    params(("id" = String, Path, description = "Device id"),
        ("If-None-Match" = Option<String>, Header, description = "ETags the reader holds")),
    responses((status = 200, description = "The twin; ETag is its version", body = Twin),
        (status = 304, description = "The reader holds this version")))]
pub async fn get(context: Context, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let view = read_twin(&context, &device).await?;
    let tag = (ETAG, etag::text(view.twin_version));
    if etag::reader_has(context.headers(), view.twin_version) {
        return Ok(HttpResponse::NotModified().insert_header(tag).finish());
    }
    Ok(HttpResponse::Ok().insert_header(tag).json(Twin::new(&view)?))
}

#[utoipa::path(patch, path = "/api/v1/devices/{id}/twin", tag = "twin", operation_id = "patchTwin",
    params(("id" = String, Path, description = "Device id"),
        ("If-Match" = Option<String>, Header, description = "The version the twin must have")),
    request_body(content((TwinBody = "application/merge-patch+json"), (TwinBody = "application/json")),
        description = "A merge patch (RFC 7396) of tags and desired: null deletes"),
    responses((status = 200, description = "All named sections were changed", body = TwinWritten)))]
pub async fn patch(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    write_sections(context, &id, body.object(&[MERGE_PATCH, JSON])?, WriteMode::Merge).await
}

#[utoipa::path(put, path = "/api/v1/devices/{id}/twin", tag = "twin", operation_id = "putTwin",
    params(("id" = String, Path, description = "Device id"),
        ("If-Match" = Option<String>, Header, description = "The version the twin must have")),
    request_body(content = TwinBody, description = "Replaces the named sections, leaves the others alone"),
    responses((status = 200, description = "All named sections were replaced", body = TwinWritten)))]
pub async fn put(context: Context, id: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    write_sections(context, &id, body.object(&[JSON])?, WriteMode::Replace).await
}

async fn write_sections(context: Context, id: &str, body: TwinBody, mode: WriteMode) -> Result<HttpResponse, Problem> {
    let device = context.device(id)?;
    let named = [
        (Section::Tags, body.tags),
        (Section::Desired, body.desired),
        (Section::Reported, body.reported),
    ];
    let writes: Vec<_> = named
        .into_iter()
        .filter_map(|(section, json)| json.map(|json| write(section, mode, &json)))
        .collect();
    if writes.is_empty() {
        return Err(Problem::new(
            Kind::InvalidBody,
            "the body names no section; name tags, desired or both",
        ));
    }
    let condition = condition(&context, TwinMatch::Twin)?;
    update(&context, &device, writes, condition, |written| written.version).await
}

fn write(section: Section, mode: WriteMode, json: &RawValue) -> SectionWrite {
    SectionWrite {
        section,
        mode,
        json: json.get().to_owned(),
    }
}

fn condition(context: &Context, of: impl Fn(u64) -> TwinMatch) -> Result<Option<TwinMatch>, Problem> {
    Ok(match etag::if_match(context.headers())? {
        // A registered device always has a twin, and an unregistered one is refused anyway.
        IfMatch::Unasked | IfMatch::Any => None,
        IfMatch::Version(version) => Some(of(version)),
    })
}

async fn update(
    context: &Context,
    device: &DeviceKey,
    writes: Vec<SectionWrite>,
    condition: Option<TwinMatch>,
    tag: impl Fn(&TwinWritten) -> u64,
) -> Result<HttpResponse, Problem> {
    let command = Command::UpdateTwin {
        origin: Origin::Operator,
        writes,
        condition,
    };
    let reply = context.call(device, command, Ask::Write).await?;
    let Answer::TwinUpdated { twin_version, versions } = reply.answer else {
        return Err(odd_answer(&reply.answer));
    };
    let written = TwinWritten {
        id: device.device.to_string(),
        version: twin_version,
        versions: SectionVersions::new(versions),
    };
    let mut response = HttpResponse::Ok();
    receipt(&mut response, reply.receipt);
    response.insert_header((ETAG, etag::text(tag(&written))));
    Ok(response.json(written))
}

fn section(name: &str) -> Result<Section, Problem> {
    Section::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            format!("a twin has no section {name}; there are tags, desired and reported"),
        )
    })
}

#[utoipa::path(get, path = "/api/v1/devices/{id}/twin/{section}", tag = "twin", operation_id = "getTwinSection",
    params(("id" = String, Path, description = "Device id"), ("section" = String, Path, description = "tags, desired or reported"),
        ("If-None-Match" = Option<String>, Header, description = "ETags the reader holds")),
    responses((status = 200, description = "The section's document; ETag is its version", body = Object),
        (status = 304, description = "The reader holds this version")))]
pub async fn get_section(context: Context, path: web::Path<(String, String)>) -> Result<HttpResponse, Problem> {
    let device = context.device(&path.0)?;
    let section = section(&path.1)?;
    let view = read_twin(&context, &device).await?;
    let view = &view.sections[section as usize];
    let tag = (ETAG, etag::text(view.version));
    if etag::reader_has(context.headers(), view.version) {
        return Ok(HttpResponse::NotModified().insert_header(tag).finish());
    }
    Ok(HttpResponse::Ok().insert_header(tag).json(document(view)?))
}

#[utoipa::path(patch, path = "/api/v1/devices/{id}/twin/{section}", tag = "twin", operation_id = "patchTwinSection",
    params(("id" = String, Path, description = "Device id"), ("section" = String, Path, description = "tags or desired"),
        ("If-Match" = Option<String>, Header, description = "The version the section must have")),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json")),
        description = "A merge patch (RFC 7396) of the section: null deletes"),
    responses((status = 200, description = "Changed; ETag is the section's version", body = TwinWritten)))]
pub async fn patch_section(
    context: Context,
    path: web::Path<(String, String)>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    let document = body.json(&[MERGE_PATCH, JSON])?;
    write_section(context, path.into_inner(), document, WriteMode::Merge).await
}

#[utoipa::path(put, path = "/api/v1/devices/{id}/twin/{section}", tag = "twin", operation_id = "putTwinSection",
    params(("id" = String, Path, description = "Device id"), ("section" = String, Path, description = "tags or desired"),
        ("If-Match" = Option<String>, Header, description = "The version the section must have")),
    request_body(content = Object, description = "The new document"),
    responses((status = 200, description = "Replaced; ETag is the section's version", body = TwinWritten)))]
pub async fn put_section(
    context: Context,
    path: web::Path<(String, String)>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    let document = body.json(&[JSON])?;
    write_section(context, path.into_inner(), document, WriteMode::Replace).await
}

async fn write_section(
    context: Context,
    (id, name): (String, String),
    document: Box<RawValue>,
    mode: WriteMode,
) -> Result<HttpResponse, Problem> {
    let device = context.device(&id)?;
    let section = section(&name)?;
    let writes = vec![write(section, mode, &document)];
    let condition = condition(&context, |version| TwinMatch::Section(section, version))?;
    update(&context, &device, writes, condition, |written| match section {
        Section::Tags => written.versions.tags,
        Section::Desired => written.versions.desired,
        Section::Reported => written.versions.reported,
    })
    .await
}
