//! Refuses writes before the disk is full: telemetry first, operations last.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use actors::device::Command;

use crate::storage::reserve::{disk_free, disk_size, DiskLevel, Watermarks};

/// What a refused caller is told.
pub const REFUSAL: &str = "the disk is nearly full; free some space";

pub struct DiskGuard {
    dir: PathBuf,
    marks: Watermarks,
    level: AtomicU8,
}

impl DiskGuard {
    pub fn new(dir: PathBuf) -> Self {
        let guard = Self {
            marks: disk_size(&dir).map_or_else(|_| Watermarks::default(), Watermarks::for_disk_of),
            dir,
            level: AtomicU8::new(0),
        };
        guard.look();
        guard
    }

    pub fn level(&self) -> DiskLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => DiskLevel::Ample,
            1 => DiskLevel::Low,
            _ => DiskLevel::Critical,
        }
    }

    /// Asks the disk; to be called every second or so.
    pub fn look(&self) {
        let free = disk_free(&self.dir).unwrap_or(0);
        let (was, is) = (self.level(), self.marks.level(self.level(), free));
        metrics::gauge!("holdfast_disk_free_bytes").set(free as f64);
        self.level.store(is as u8, Ordering::Relaxed);
        if is != was {
            tracing::warn!(free_bytes = free, ?was, ?is, dir = %self.dir.display(), "disk level changed");
        }
    }

    /// Whether a command may still be written.
    pub fn admits(&self, command: &Command) -> bool {
        match self.level() {
            DiskLevel::Ample => true,
            DiskLevel::Low => !matches!(command, Command::RecordTelemetry { .. }),
            DiskLevel::Critical => matches!(
                command,
                Command::ReadDevice
                    | Command::ReadTwin
                    | Command::DeleteDevice { .. }
                    | Command::CloseSession { .. }
                    | Command::ExpireSession
                    | Command::TrimTelemetry { .. }
            ),
        }
    }
}
