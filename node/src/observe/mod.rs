//! Seeing what the program does: logs, traces and metrics. Device data is telemetry, not this.

pub mod level;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod recent;
pub mod trace;
