//! Refuses writes before the disk is full: telemetry first, operations last.
//!
//! A reserve of real blocks is held while there is room, and given up when somebody fills the
//! disk: what it frees is what twins, operations and deletions go on with.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use actors::device::Command;

use crate::storage::fault::DiskFaults;
use crate::storage::reserve::{disk_free, disk_size, DiskLevel, Reserve, Watermarks};

/// What a refused caller is told.
pub const REFUSAL: &str = "the disk is nearly full; free some space";

/// Looks at the disk for which the reserve is kept while somebody is still filling it, and would
/// take its room as well.
const FALLING_LOOKS_MAX: u8 = 20;
/// What the log wants to find free before it writes: one batch, or the last mark on a small disk.
const LOG_ROOM: u64 = 8 << 20;

pub struct DiskGuard {
    dir: PathBuf,
    /// May hide what room there is.
    faults: Option<Arc<dyn DiskFaults>>,
    marks: Watermarks,
    level: AtomicU8,
    /// Bytes that will be written anyway, as of the last look.
    owed: AtomicU64,
    held: Mutex<Held>,
}

struct Held {
    /// None in a directory that may not be ours.
    reserve: Option<Reserve>,
    /// Whether it is there.
    taken: bool,
    /// Free bytes at the last look, and for how many looks on end they have become fewer.
    free: u64,
    falling: u8,
}

impl DiskGuard {
    /// Takes the reserve, if there is room for it.
    pub fn new(dir: PathBuf, faults: Option<Arc<dyn DiskFaults>>) -> Self {
        let mut guard = Self::of(dir);
        guard.faults = faults;
        {
            let held = guard.held.get_mut().unwrap_or_else(PoisonError::into_inner);
            held.reserve = Some(Reserve::new(&guard.dir, guard.marks.reserve()));
            held.take_back(&guard.dir);
        }
        guard.look(0);
        guard
    }

    /// Only looks, for a node that writes nothing.
    pub fn watching(dir: PathBuf) -> Self {
        let guard = Self::of(dir);
        guard.look(0);
        guard
    }

    fn of(dir: PathBuf) -> Self {
        let held = Held {
            reserve: None,
            taken: false,
            free: 0,
            falling: 0,
        };
        Self {
            marks: disk_size(&dir).map_or_else(|_| Watermarks::default(), Watermarks::for_disk_of),
            dir,
            faults: None,
            level: AtomicU8::new(0),
            owed: AtomicU64::new(0),
            held: Mutex::new(held),
        }
    }

    pub fn level(&self) -> DiskLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => DiskLevel::Ample,
            1 => DiskLevel::Low,
            2 => DiskLevel::Critical,
            _ => DiskLevel::Full,
        }
    }

    /// Asks the disk; to be called many times a second. `owed` are bytes that were accepted and will
    /// be written anyway.
    pub fn look(&self, owed: u64) {
        self.owed.store(owed, Ordering::Relaxed);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.free();
        let back = self.marks.low + self.marks.low / 8 + self.marks.reserve();
        if held.taken && seen.saturating_sub(owed) < self.marks.critical {
            held.give_up(seen, &self.dir);
        } else {
            held.falling = 0;
            if !held.taken && seen.saturating_sub(owed) >= back {
                held.take_back(&self.dir);
            }
        }
        held.free = seen;
        let free = self.free().saturating_sub(owed);
        metrics::gauge!("holdfast_disk_free_bytes").set(free as f64);
        let was = self.level();
        let mut is = self.marks.level(was, free);
        if !held.taken && held.reserve.is_some() {
            // There is room only because the reserve was given up.
            is = is.max(DiskLevel::Low);
        }
        self.level.store(is as u8, Ordering::Relaxed);
        if is != was {
            tracing::warn!(free_bytes = free, ?was, ?is, dir = %self.dir.display(), "disk level changed");
        }
    }

    /// Whether the log may write: an entry that was accepted, a vote. Makes room if it can.
    pub fn has_room(&self) -> bool {
        let wanted = LOG_ROOM.min(self.marks.full);
        if self.free() >= wanted {
            return true;
        }
        self.look(self.owed.load(Ordering::Relaxed));
        self.free() >= wanted
    }

    /// Whether what is owed could be written now.
    pub fn can_flush(&self) -> bool {
        self.free() >= self.owed.load(Ordering::Relaxed)
    }

    /// What may be owed before it is flushed: no more than the reserve makes room for.
    pub fn owed_max(&self) -> u64 {
        self.marks.reserve()
    }

    fn free(&self) -> u64 {
        if self.faults.as_ref().is_some_and(|faults| faults.takes_the_room()) {
            return 0;
        }
        disk_free(&self.dir).unwrap_or(0)
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

impl Held {
    fn give_up(&mut self, free: u64, dir: &Path) {
        if free < self.free && self.falling < FALLING_LOOKS_MAX {
            self.falling += 1;
            return;
        }
        (self.taken, self.falling) = (false, 0);
        let released = self.reserve.as_ref().map_or(Ok(()), Reserve::release);
        match released {
            Ok(()) => tracing::warn!(dir = %dir.display(), "the disk is filling up: reserve given up"),
            Err(error) => tracing::error!(%error, "the disk reserve could not be given up"),
        }
    }

    fn take_back(&mut self, dir: &Path) {
        let Some(reserve) = &self.reserve else { return };
        match reserve.take() {
            Ok(()) => {
                self.taken = true;
                tracing::info!(dir = %dir.display(), "disk reserve taken");
            }
            Err(error) => tracing::warn!(%error, dir = %dir.display(), "no room for the disk reserve"),
        }
    }
}

/// What is refused first when something runs out.
pub fn is_telemetry(command: &Command) -> bool {
    matches!(command, Command::RecordTelemetry { .. } | Command::RecordBatch { .. })
}
