//! Seeing what the program does: logs, traces and metrics. Device data is telemetry, not this.

pub mod logs;
pub mod metrics;
pub mod process;
pub mod trace;
