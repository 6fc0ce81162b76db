//! What has to exist before the fleet speaks: children belong to their gateways, and devices that
//! only speak HTTP are registered, because no CONNECT does it for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::json;

use super::api::{Api, ApiError, Reply};
use crate::drive::ingest::escape;
use crate::plan::Plan;
use crate::scenario::{Protocol, TargetKind};

/// Requests at the same time.
const AT_ONCE: usize = 16;
const TRIES: u32 = 50;

/// Whether anything has to be registered.
pub fn is_needed(plan: &Plan) -> bool {
    let fleets = plan.loaded.scenario.fleet.iter().enumerate();
    plan.loaded.scenario.target.kind == TargetKind::Holdfast
        && fleets.into_iter().any(|(at, fleet)| {
            plan.loaded.profile(at).gateway.is_some() || fleet.protocols.contains_key(&Protocol::Http)
        })
}

/// Registers them; `done` counts. Registering what is registered changes nothing but the gateway.
///
/// # Errors
/// A node refused one for good, or none answered.
pub async fn provision(plan: &Plan, api: &Api, done: &AtomicU64) -> Result<(), ApiError> {
    let wanted = (0..plan.roster.devices()).flat_map(|number| {
        let device = plan.device(number);
        let itself = device.protocol == Protocol::Http || device.children > 0;
        let subjects = (u32::from(!itself)..=device.children).map(move |child| device.subject + child);
        subjects.collect::<Vec<_>>()
    });
    let requests = stream::iter(wanted).map(|subject| register(plan, api, subject, done));
    let mut requests = requests.buffer_unordered(AT_ONCE);
    while let Some(result) = requests.next().await {
        result?;
    }
    Ok(())
}

async fn register(plan: &Plan, api: &Api, subject: u32, done: &AtomicU64) -> Result<(), ApiError> {
    let (id, gateway) = plan.roster.subject_id(&plan.loaded, subject);
    let path = format!("/api/v1/devices/{}", escape(&id));
    let body = match gateway {
        Some(gateway) => json!({ "gateway": gateway }),
        None => json!({}),
    };
    let mut last = String::new();
    for _ in 0..TRIES {
        match api.once(reqwest::Method::PUT, &path, Some(&body)).await {
            Reply::Ok(_) => {
                done.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Reply::Refused(status @ (401 | 403)) => return Err(ApiError::Forbidden { path, status }),
            Reply::Refused(status) => last = format!("status {status}"),
            Reply::Unknown(why) => last = why,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(ApiError::Deadline {
        path,
        waited: Duration::from_millis(100) * TRIES,
        last,
    })
}
