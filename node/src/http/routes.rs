//! The one list of paths and methods. Paths under `/api` need the token, the others do not on loopback.

use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::{web, HttpRequest, HttpResponse};

use super::problem::{Kind, Problem};
use super::{
    auth, cluster, devices, events, ingest, leases, membership, messages, methods, node, probes, telemetry, twin,
};

macro_rules! resources {
    ($list:ident, $register:ident, $prefix:literal, $( $path:literal { $($method:ident => $handler:path),* $(,)? } )*) => {
        /// Method and path, as registered.
        pub const $list: &[(Method, &str)] = &[ $( $( (resources!(@$method), concat!($prefix, $path)), )* )* ];

        fn $register() -> Vec<actix_web::Resource> {
            vec![ $( web::resource($path)
                $( .route(web::$method().to($handler)) )*
                .default_service(web::to(method_not_allowed)), )* ]
        }
    };
    (@get) => { Method::GET };
    (@put) => { Method::PUT };
    (@post) => { Method::POST };
    (@patch) => { Method::PATCH };
    (@delete) => { Method::DELETE };
}

resources! { API, api, "/api",
    "/v1/devices" { get => devices::list }
    "/v1/devices/{id}" { put => devices::put, get => devices::get, patch => devices::patch, delete => devices::delete }
    "/v1/devices/{id}/twin" { get => twin::get, patch => twin::patch, put => twin::put }
    "/v1/devices/{id}/twin/{section}" {
        get => twin::get_section, patch => twin::patch_section, put => twin::put_section
    }
    "/v1/devices/{id}/telemetry" { get => telemetry::get, post => ingest::post }
    "/v1/devices/{id}/telemetry/batch" { post => ingest::batch }
    "/v1/devices/{id}/methods/{name}" { post => methods::post }
    "/v1/devices/{id}/messages" { get => messages::list, post => messages::send, delete => messages::purge }
    "/v1/devices/{id}/messages/dead" { get => messages::list_dead, delete => messages::drop_dead }
    "/v1/devices/{id}/messages/dead/{message_id}" { delete => messages::drop_dead_one }
    "/v1/devices/{id}/messages/dead/{message_id}/replay" { post => messages::replay }
    "/v1/devices/{id}/messages/feedback" { get => messages::feedback }
    "/v1/devices/{id}/messages/{message_id}" { get => messages::get, delete => messages::purge_one }
    "/v1/events" { get => events::get }
    "/v1/receipts/{receipt}" { get => cluster::receipt }
    "/v1/cluster" { get => cluster::get }
    "/v1/cluster/shards/{id}/digest" { get => cluster::digest }
    "/v1/cluster/nodes" { post => membership::add }
    "/v1/cluster/nodes/{id}/remove" { post => membership::remove }
    "/v1/cluster/rebalance" { post => membership::rebalance }
    "/v1/cluster/tokens" { get => membership::list_tokens, post => membership::create_token }
    "/v1/cluster/tokens/{id}" { delete => membership::revoke_token }
    "/v1/cluster/nodes/{id}/drain" { post => cluster::drain }
    "/v1/cluster/nodes/{id}/undrain" { post => cluster::undrain }
    "/v1/chaos/leases" { get => leases::list, delete => leases::heal_all }
    "/v1/chaos/leases/{id}" { put => leases::put, delete => leases::heal }
    "/v1/node" { get => node::get }
    "/v1/node/config" { get => node::config }
    "/v1/node/reload" { post => node::reload }
    "/v1/node/log" { get => node::log, put => node::put_log, delete => node::reset_log }
    "/v1/node/log/lines" { get => node::lines }
    "/v1/cluster/nodes/{id}/scrub" { post => cluster::scrub }
}

resources! { OPEN, open, "",
    "/livez" { get => probes::livez }
    "/readyz" { get => probes::readyz }
    "/metrics" { get => probes::metrics }
    "/openapi.json" { get => probes::openapi }
}

pub fn register(config: &mut web::ServiceConfig) {
    for resource in open() {
        config.service(resource.wrap(from_fn(auth::open_on_loopback)));
    }
    // The scope is matched on the decoded path, so no spelling of /api gets around the token.
    let mut scope = web::scope("/api").default_service(web::to(not_found));
    for resource in api() {
        scope = scope.service(resource);
    }
    config.service(scope.wrap(from_fn(auth::require_token)));
    config.default_service(web::to(not_found));
}

async fn not_found(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let detail = format!("nothing is at {}; /openapi.json lists the paths", request.path());
    Err(Problem::new(Kind::NotFound, detail))
}

async fn method_not_allowed(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let pattern = request.match_pattern().unwrap_or_default();
    let methods = API.iter().chain(OPEN).filter(|(_, path)| *path == pattern);
    let allow = methods
        .map(|(method, _)| method.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let detail = format!(
        "{} is not known at {}; allowed are {allow}",
        request.method(),
        request.path()
    );
    let mut problem = Problem::new(Kind::MethodNotAllowed, detail);
    problem.allow = Some(allow);
    Err(problem)
}
