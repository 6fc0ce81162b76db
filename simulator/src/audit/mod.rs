//! Reads the cluster back and proves what the history claims, device by device.
//!
//! Pure checkers (`telemetry`, `twin`) judge one subject at a time; `reading` brings both sides
//! together. What has no answer may be there or not: that is never a violation. What cannot be
//! read is not called lost: that is a failure of the audit. Memory: the history's operations of
//! up to two million messages at a time, and a page of each reader.

mod findings;
mod ledger;
mod reading;
mod source;
mod telemetry;
mod twin;

pub use findings::{Fact, Findings, Violation, TOLD_MAX};
pub use reading::{audit, sample, AuditError, Claims};
pub use source::{HttpSource, Registration, Source, Twins};
pub use telemetry::Stored;
pub use twin::Final;
