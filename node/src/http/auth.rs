//! Who may ask: one bearer token for operators until there are identities and roles.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::AUTHORIZATION;
use actix_web::middleware::Next;
use actix_web::{web, Error, HttpMessage as _, ResponseError as _};
use actors::id::TenantId;

use super::context::{App, Principal};
use super::problem::{Kind, Problem};

/// A join token, which is good for one path only and judged by the catalog.
#[derive(Clone, Debug)]
pub struct JoinBearer(pub String);

const JOIN_PATH: &str = "/api/v1/cluster/nodes";
const JOIN_PREFIX: &[u8] = b"hfj-";

/// Lets a request through that carries the token; everything else is answered with 401.
pub async fn require_token(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse, Error> {
    match principal(&request) {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            Ok(next.call(request).await?.map_into_boxed_body())
        }
        Err(problem) => Ok(request.into_response(problem.error_response())),
    }
}

/// For probes, metrics and the API's description: open to this machine, to others with the token.
pub async fn open_on_loopback(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse, Error> {
    let local = request
        .peer_addr()
        .is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    if local {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    require_token(request, next).await
}

fn principal(request: &ServiceRequest) -> Result<Principal, Problem> {
    let app = request.app_data::<web::Data<App>>().expect("the server registers it");
    let mut values = request.headers().get_all(AUTHORIZATION);
    let refused = |why: &str| {
        Problem::new(
            Kind::Unauthenticated,
            format!("{why}; send `Authorization: Bearer <token>` with the token of this cluster"),
        )
    };
    let value = values
        .next()
        .ok_or_else(|| refused("no Authorization header came with the request"))?;
    if values.next().is_some() {
        return Err(refused("more than one Authorization header came with the request"));
    }
    let given =
        bearer(value.as_bytes()).ok_or_else(|| refused("the Authorization header is not of the Bearer kind"))?;
    if given.starts_with(JOIN_PREFIX) && request.path() == JOIN_PATH {
        let text = String::from_utf8_lossy(given).into_owned();
        request.extensions_mut().insert(JoinBearer(text));
    } else if !app.live.is_token(given) {
        return Err(refused("the token is not valid here (it may have been replaced)"));
    }
    Ok(Principal {
        tenant: TenantId::DEFAULT,
    })
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}
