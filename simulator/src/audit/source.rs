//! Where stored messages and twins are read from: the operator's API, or whatever a test brings.

use std::future::Future;
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::telemetry::Stored;
use super::twin::Final;
use crate::drive::ingest::escape;
use crate::drive::Endpoints;
use crate::run::api::{Api, ApiError};

/// Messages per page; the API allows no more.
const PAGE: usize = 1_000;

/// What a device's registration says of its telemetry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Registration {
    /// 1 unless retention removed the beginning.
    pub first_seq: u64,
}

/// Both sections of a twin in the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Twins {
    pub desired: Final,
    pub reported: Final,
}

/// What is stored.
pub trait Source: Send + Sync {
    /// `None`: nobody knows the device.
    fn registration(&self, device: &str) -> impl Future<Output = Result<Option<Registration>, ApiError>> + Send;

    /// Messages behind `after`, in the order of `seq`; an empty page is the end.
    fn telemetry(&self, device: &str, after: u64) -> impl Future<Output = Result<Vec<Stored>, ApiError>> + Send;

    fn twins(&self, device: &str) -> impl Future<Output = Result<Option<Twins>, ApiError>> + Send;
}

/// A cluster, over HTTP.
pub struct HttpSource {
    api: Api,
    deadline: Duration,
}

impl HttpSource {
    /// # Errors
    /// There is nobody to ask.
    pub fn new(endpoints: &Endpoints, deadline: Duration) -> Result<Self, ApiError> {
        Ok(Self {
            api: Api::new(endpoints)?,
            deadline,
        })
    }
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    telemetry: Option<DeviceTelemetry>,
}

#[derive(Deserialize)]
struct DeviceTelemetry {
    #[serde(default)]
    first_seq: u64,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    seq: u64,
    #[serde(default)]
    message_id: Option<String>,
    #[serde(default)]
    body: Option<Box<RawValue>>,
    #[serde(default)]
    body_base64: Option<String>,
}

#[derive(Deserialize)]
struct Twin {
    desired: serde_json::Value,
    reported: serde_json::Value,
    versions: Versions,
}

#[derive(Deserialize)]
struct Versions {
    desired: u64,
    reported: u64,
}

impl From<Item> for Stored {
    fn from(item: Item) -> Self {
        let digest = match (&item.body, &item.body_base64) {
            (Some(body), _) => crc32c::crc32c(body.get().as_bytes()),
            (None, Some(text)) => crc32c::crc32c(&STANDARD.decode(text).unwrap_or_default()),
            (None, None) => 0,
        };
        Self {
            seq: item.seq,
            message_id: item.message_id,
            digest,
        }
    }
}

/// The mark that a write of the simulator's leaves in a section.
pub fn mark(section: &serde_json::Value) -> Option<(u32, u64)> {
    let number = |name: &str| section.pointer(&format!("/sim/{name}"))?.as_u64();
    Some((u32::try_from(number("run")?).ok()?, number("k")?))
}

impl Source for HttpSource {
    async fn registration(&self, device: &str) -> Result<Option<Registration>, ApiError> {
        let path = format!("/api/v1/devices/{}", escape(device));
        let found = self.api.get::<Device>(&path, self.deadline).await?;
        Ok(found.map(|device| Registration {
            first_seq: device.telemetry.map_or(1, |telemetry| telemetry.first_seq.max(1)),
        }))
    }

    async fn telemetry(&self, device: &str, after: u64) -> Result<Vec<Stored>, ApiError> {
        let path = format!(
            "/api/v1/devices/{}/telemetry?after_seq={after}&limit={PAGE}",
            escape(device)
        );
        let page = self.api.get::<Page>(&path, self.deadline).await?;
        Ok(page.map_or_else(Vec::new, |page| page.items.into_iter().map(Stored::from).collect()))
    }

    async fn twins(&self, device: &str) -> Result<Option<Twins>, ApiError> {
        let path = format!("/api/v1/devices/{}/twin", escape(device));
        let twin = self.api.get::<Twin>(&path, self.deadline).await?;
        Ok(twin.map(|twin| Twins {
            desired: Final {
                version: twin.versions.desired,
                mark: mark(&twin.desired),
            },
            reported: Final {
                version: twin.versions.reported,
                mark: mark(&twin.reported),
            },
        }))
    }
}
