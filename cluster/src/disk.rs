//! Refuses writes before the disk is full: telemetry first, operations last.
//!
//! A reserve of real blocks is held while there is room, and given up when somebody fills the
//! disk: what it frees is what twins, operations and deletions go on with.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use actors::device::Command;

use crate::storage::fault::DiskFaults;
use crate::storage::reserve::{disk_free, disk_size, DiskLevel, Reserve, Watermarks};

/// What a refused caller is told.
pub const REFUSAL: &str = "the disk is nearly full; free some space";

pub struct DiskGuard {
    dir: PathBuf,
    /// May hide what room there is.
    faults: Option<Arc<dyn DiskFaults>>,
    marks: Watermarks,
    level: AtomicU8,
    /// Whether the reserve is held.
    reserve: Mutex<(Reserve, bool)>,
}

impl DiskGuard {
    /// Takes the reserve, if there is room for it.
    pub fn new(dir: PathBuf, faults: Option<Arc<dyn DiskFaults>>) -> Self {
        let marks = disk_size(&dir).map_or_else(|_| Watermarks::default(), Watermarks::for_disk_of);
        let reserve = Reserve::new(&dir, marks.reserve());
        let guard = Self {
            marks,
            dir,
            faults,
            level: AtomicU8::new(0),
            reserve: Mutex::new((reserve, true)),
        };
        {
            let mut reserve = guard.reserve.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = reserve.0.take() {
                reserve.1 = false;
                tracing::warn!(%error, dir = %guard.dir.display(), "no room for the disk reserve");
            }
        }
        guard.look(0);
        guard
    }

    pub fn level(&self) -> DiskLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => DiskLevel::Ample,
            1 => DiskLevel::Low,
            2 => DiskLevel::Critical,
            _ => DiskLevel::Full,
        }
    }

    /// Asks the disk; to be called several times a second. `owed` are bytes that were accepted and
    /// will be written anyway.
    pub fn look(&self, owed: u64) {
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.free(owed);
        if reserve.1 && free < self.marks.critical {
            reserve.1 = false;
            match reserve.0.release() {
                Ok(()) => tracing::warn!(dir = %self.dir.display(), "the disk is filling up: reserve given up"),
                Err(error) => tracing::error!(%error, "the disk reserve could not be given up"),
            }
            free = self.free(owed);
        } else if !reserve.1 && free >= self.marks.low + self.marks.low / 8 + self.marks.reserve() {
            match reserve.0.take() {
                Ok(()) => {
                    reserve.1 = true;
                    tracing::info!(dir = %self.dir.display(), "disk reserve taken back");
                }
                Err(error) => tracing::warn!(%error, "the disk reserve could not be taken back"),
            }
            free = self.free(owed);
        }
        metrics::gauge!("holdfast_disk_free_bytes").set(free as f64);
        let was = self.level();
        let mut is = self.marks.level(was, free);
        if !reserve.1 {
            // There is room only because the reserve was given up.
            is = is.max(DiskLevel::Low);
        }
        self.level.store(is as u8, Ordering::Relaxed);
        if is != was {
            tracing::warn!(free_bytes = free, ?was, ?is, dir = %self.dir.display(), "disk level changed");
        }
    }

    fn free(&self, owed: u64) -> u64 {
        if self.faults.as_ref().is_some_and(|faults| faults.takes_the_room()) {
            return 0;
        }
        disk_free(&self.dir).unwrap_or(0).saturating_sub(owed)
    }

    /// Whether a command may still be written.
    pub fn admits(&self, command: &Command) -> bool {
        match self.level() {
            DiskLevel::Ample => true,
            DiskLevel::Low => !is_telemetry(command),
            DiskLevel::Critical => matches!(
                command,
                Command::ReadDevice
                    | Command::ReadTwin
                    | Command::DeleteDevice { .. }
                    | Command::CloseSession { .. }
                    | Command::ExpireSession
                    | Command::TrimTelemetry { .. }
                    | Command::ReadMessages
                    | Command::TakeMessages { .. }
                    | Command::SettleMessages { .. }
                    | Command::PurgeMessages { .. }
                    | Command::DropDeadLetters { .. }
                    | Command::TendMessages
            ),
            DiskLevel::Full => matches!(command, Command::ReadDevice | Command::ReadTwin),
        }
    }
}

/// What is refused first when something runs out.
pub fn is_telemetry(command: &Command) -> bool {
    matches!(command, Command::RecordTelemetry { .. } | Command::RecordBatch { .. })
}
