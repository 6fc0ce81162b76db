//! What a scenario may ask for. Every refusal names the limit it met.

/// Devices of all fleets together, children of gateways included. Each is about 1 KiB of memory,
/// and each connection a descriptor.
pub const DEVICES_MAX: u64 = 1_000_000;
pub const FLEETS_MAX: usize = 64;
pub const PHASES_MAX: usize = 256;
pub const STREAMS_MAX: usize = 8;
pub const VARIABLES_MAX: usize = 32;
/// Messages a second of real time over all fleets at factor 1.
pub const RATE_MAX: f64 = 10_000_000.0;
pub const COMPRESSION_MAX: f64 = 100_000.0;
pub const FACTOR_MAX: f64 = 10_000.0;
pub const WORKERS_MAX: u16 = 64;
pub const THREADS_MAX: u16 = 64;
pub const WINDOW_MAX: u16 = 1_024;
pub const PAYLOAD_BYTES_MAX: u32 = 262_144;
pub const OFFLINE_QUEUE_MAX: u32 = 1_000_000;
pub const CHILDREN_MAX: u32 = 1_000;
pub const OPERATOR_RATE_MAX: f64 = 1_000.0;
/// Bytes of a scenario file.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
