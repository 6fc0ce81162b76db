//! Why a command was not carried out. Nothing was written in any of these cases.

use serde::{Deserialize, Serialize};

use super::Section;
use crate::id::DeviceId;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("the device is not registered")]
    NotRegistered,
    #[error("the device is registered already")]
    AlreadyRegistered,
    #[error("the device is disabled")]
    Disabled,
    /// The registration or twin has moved on; read it again.
    #[error("the condition names version {expected}, the current one is {current}")]
    StaleVersion { expected: u64, current: u64 },
    #[error("session generation {given} is not the live one ({live:?})")]
    StaleSession { given: u64, live: Option<u64> },
    /// The gateway must resend from `expected`.
    #[error("ordinal {given} came before {expected}")]
    OrdinalGap { given: u64, expected: u64 },
    #[error("section {} has {bytes} bytes, at most {max} are allowed", section.name())]
    SectionTooLarge { section: Section, bytes: u64, max: u64 },
    #[error("section {} nests deeper than {max} levels", section.name())]
    SectionTooDeep { section: Section, max: u64 },
    #[error("section {}: {reason}", section.name())]
    SectionInvalid { section: Section, reason: String },
    /// Devices write `reported`, operators `tags` and `desired`.
    #[error("section {} cannot be written from this side", section.name())]
    SectionForbidden { section: Section },
    #[error("more than {max} subscriptions")]
    TooManySubscriptions { max: u64 },
    #[error("the device's state was damaged and is quarantined; see docs/operations")]
    Quarantined,
    #[error("telemetry: {reason}")]
    TelemetryInvalid { reason: String },
    #[error("subscription filter: {reason}")]
    FilterInvalid { reason: String },
    #[error("{gateway} is not the gateway of this device")]
    NotGateway { gateway: DeviceId },
    #[error("gateway: {reason}")]
    GatewayInvalid { reason: String },
    #[error("message: {reason}")]
    MessageInvalid { reason: String },
    #[error("the message's payload has {bytes} bytes, at most {max} are allowed")]
    MessageTooLarge { bytes: u64, max: u64 },
    #[error("{max} messages wait for the device already")]
    MessageQueueFull { max: u64 },
    /// Another message has this id.
    #[error("the message id is taken by another message")]
    MessageIdTaken,
    #[error("there is no such message")]
    MessageNotFound,
}
