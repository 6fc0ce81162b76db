//! Fault leases inside the nodes, over their HTTP API. A node that does not allow drills says so,
//! and then nothing was done.

use std::time::Duration;

use serde_json::{json, Value};

use super::{http, Outcome, Undo};
use crate::site::{HttpError, Site, SiteError};

const DEADLINE: Duration = Duration::from_secs(5);

pub fn undo(site: &Site, node: u64, lease: &str) -> Result<Undo, SiteError> {
    Ok(Undo::DeleteLease {
        node,
        http: site.node(node)?.http,
        lease: lease.to_owned(),
    })
}

pub fn put(site: &Site, node: u64, lease: &str, fault: &Value, ttl_ms: u64) -> Outcome {
    let asked = || -> Result<Outcome, SiteError> {
        let body = json!({ "fault": fault, "ttl_ms": ttl_ms });
        let path = format!("/api/v1/chaos/leases/{lease}");
        Ok(
            match http(site)?.call("PUT", &site.node(node)?.http, &path, Some(&body), DEADLINE) {
                Ok(_) => Outcome::Installed(format!("lease {lease} on node {node}")),
                Err(HttpError::Status(403, why)) => {
                    Outcome::Skipped(format!("node {node} does not allow drills: {why}"))
                }
                Err(HttpError::Status(404, _)) => Outcome::Skipped(format!("node {node} knows no fault leases")),
                Err(HttpError::Status(status, why)) => {
                    Outcome::Skipped(format!("node {node} refuses ({status}): {why}"))
                }
                Err(HttpError::Closed(_)) => Outcome::Skipped(format!("node {node} does not listen")),
                Err(HttpError::Unknown(why)) => Outcome::Indeterminate(format!("node {node}: {why}")),
            },
        )
    };
    asked().unwrap_or_else(|error| Outcome::Skipped(error.to_string()))
}

pub fn delete(site: &Site, node: u64, lease: &str) -> Result<(), SiteError> {
    let path = format!("/api/v1/chaos/leases/{lease}");
    let deleted = http(site)?.call("DELETE", &site.node(node)?.http, &path, None, DEADLINE);
    deleted.map(drop).map_err(|error| SiteError::Unknown(error.to_string()))
}
