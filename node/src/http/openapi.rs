//! The API's own description: OpenAPI 3.1, put together from what the handlers say of themselves.

use std::sync::OnceLock;

use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{Modify, OpenApi, ToSchema};

use super::context::TIMEOUT_HEADER;
use super::problem::PROBLEM_JSON;
use super::{cluster, devices, events, ingest, leases, membership, messages, methods, node, probes, telemetry, twin};

/// The text served at `/openapi.json`.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        document()
            .to_json()
            .expect("the document is made of strings and numbers")
    })
}

pub fn document() -> Document {
    Api::openapi()
}

/// RFC 9457. Further members depend on `type`.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[allow(dead_code)] // the shape of `problem::Problem::to_json`, for the description only
struct ProblemSchema {
    /// `urn:holdfast:problem:<name>`; 429 and 503: nothing was committed, `…:unknown`: it may have been.
    #[schema(rename = "type")]
    r#type: String,
    title: String,
    status: u16,
    /// What happened, why, and what to do.
    detail: String,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Holdfast", description = "Devices, twins, telemetry and the cluster that keeps them"),
    paths(
        devices::list, devices::put, devices::get, devices::patch, devices::delete,
        twin::get, twin::patch, twin::put, twin::get_section, twin::patch_section, twin::put_section,
        telemetry::get, ingest::post, ingest::batch,
        node::get, node::config, node::reload, node::log, node::put_log, node::reset_log, node::lines,
        methods::post,
        messages::list, messages::send, messages::purge, messages::get, messages::purge_one,
        messages::list_dead, messages::drop_dead, messages::drop_dead_one, messages::replay, messages::feedback,
        events::get,
        cluster::receipt, cluster::get, cluster::digest, cluster::drain, cluster::undrain, cluster::scrub,
        membership::add, membership::remove, membership::rebalance,
        membership::create_token, membership::list_tokens, membership::revoke_token,
        leases::list, leases::put, leases::heal, leases::heal_all,
        probes::livez, probes::readyz, probes::metrics, probes::openapi,
    ),
    components(schemas(ProblemSchema)),
    modifiers(&Common),
)]
struct Api;

/// What every operation has in common: the token, the deadline, and the errors anything may end in.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", scheme);
        for (path, item) in &mut document.paths.paths {
            let api = path.starts_with("/api/");
            let device = path.contains("{id}") && path.starts_with("/api/v1/devices/");
            for (operation, method) in [
                (&mut item.get, "get"),
                (&mut item.put, "put"),
                (&mut item.post, "post"),
                (&mut item.patch, "patch"),
                (&mut item.delete, "delete"),
            ] {
                if let Some(operation) = operation {
                    complete(
                        operation,
                        Nature {
                            api,
                            device,
                            write: method != "get",
                            body: method != "delete",
                        },
                    );
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Nature {
    api: bool,
    device: bool,
    write: bool,
    /// Of a write: whether it carries a body.
    body: bool,
}

fn complete(operation: &mut Operation, nature: Nature) {
    let mut errors = vec![
        (401, "No valid token"),
        (503, "Nothing was committed; try again after Retry-After"),
    ];
    if nature.api {
        operation.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
        operation.parameters.get_or_insert_default().push(
            ParameterBuilder::new()
                .name(TIMEOUT_HEADER)
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some("Deadline in milliseconds, 100..=60000; default 10000"))
                .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).build()))
                .build()
                .into(),
        );
        errors.extend([
            (400, "The request is wrong; `detail` says where"),
            (404, "No such thing"),
            (
                429,
                "Too much is waiting; nothing was committed, try again after Retry-After",
            ),
            (500, "The node failed, or the device is quarantined"),
        ]);
    }
    if nature.api && nature.write {
        errors.push((
            504,
            "Unknown: it may have been committed; read back before trying again",
        ));
        if nature.body {
            errors.extend([
                (408, "The body came too slowly"),
                (413, "Too large"),
                (415, "Another content type"),
            ]);
        }
    }
    if nature.device && nature.write {
        errors.extend([
            (403, "The section is not yours to write"),
            (409, "The device is disabled, or its state does not allow this"),
            (412, "The condition does not hold"),
        ]);
    }
    for (status, description) in errors {
        operation
            .responses
            .responses
            .entry(status.to_string())
            .or_insert_with(|| problem(description));
    }
    operation
        .responses
        .responses
        .insert("default".into(), problem("Any other error"));
}

fn problem(description: &str) -> RefOr<utoipa::openapi::Response> {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    RefOr::T(
        ResponseBuilder::new()
            .description(description)
            .content(PROBLEM_JSON, content)
            .build(),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::routes::{API, OPEN};
    use super::*;

    fn json() -> Value {
        serde_json::from_str(text()).unwrap()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let registered: BTreeSet<_> = API
            .iter()
            .chain(OPEN)
            .map(|(method, path)| format!("{} {path}", method.as_str().to_lowercase()))
            .collect();
        let document = json();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, item)| {
                item.as_object()
                    .unwrap()
                    .keys()
                    .map(move |method| format!("{method} {path}"))
            })
            .collect();
        assert_eq!(registered, described);
    }

    #[test]
    fn the_document_is_openapi_3_1_and_every_reference_leads_somewhere() {
        let document = json();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let mut references = Vec::new();
        collect_references(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').expect("only local references");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    #[test]
    fn every_operation_has_an_id_a_success_and_its_errors() {
        let document = json();
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let responses = operation["responses"].as_object().unwrap();
                let has = |status: &str| responses.contains_key(status);
                assert!(
                    ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
                    "{method} {path}"
                );
                assert!(
                    responses.keys().any(|status| status.starts_with('2')),
                    "{method} {path}"
                );
                assert!(has("401") && has("default"), "{method} {path}");
                let needed = path.matches('{').count();
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                let given = parameters.iter().filter(|p| p["in"] == "path").count();
                assert_eq!(needed, given, "path parameters of {method} {path}");
                if path.starts_with("/api/") {
                    assert!(has("400") && has("404") && has("429") && has("503"), "{method} {path}");
                    assert_eq!(has("504"), method != "get", "{method} {path}");
                    assert!(operation["security"].is_array(), "{method} {path}");
                }
            }
        }
    }

    fn collect_references(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match member.as_str() {
                        Some(text) if name == "$ref" => into.push(text.to_owned()),
                        _ => collect_references(member, into),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect_references(item, into)),
            _ => {}
        }
    }
}
