//! The topics of the native dialect and of Azure, parsed and built in one place.

/// Longest topic or filter taken, in bytes.
pub const TOPIC_LEN_MAX: usize = 1024;
