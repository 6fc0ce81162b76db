//! How full the disk is, and a file that holds back room for the moment when it is.
//!
//! Decides the level, refuses nothing itself.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use super::file;

const FILE: &str = "reserve";
/// Size of the placeholder; on a small disk a fortieth of it.
const RESERVE_BYTES: u64 = 64 << 20;

/// Bytes an ordinary process may still write on the disk of `dir`.
///
/// # Errors
/// The disk cannot be asked; treat it as full.
pub fn disk_free(dir: &Path) -> io::Result<u64> {
    let disk = statvfs(dir)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Bytes of the whole disk of `dir`.
///
/// # Errors
/// The disk cannot be asked.
pub fn disk_size(dir: &Path) -> io::Result<u64> {
    let disk = statvfs(dir)?;
    Ok(disk.blocks().saturating_mul(disk.fragment_size()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskLevel {
    Ample,
    /// New telemetry is refused.
    Low,
    /// Only what frees room, and what keeps the cluster together, is accepted.
    Critical,
    /// Nothing is written any more.
    Full,
}

/// Free bytes below which a level begins. `critical` is at most `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Default 512 MiB.
    pub low: u64,
    /// Default 128 MiB.
    pub critical: u64,
    /// Default 16 MiB.
    pub full: u64,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            low: 512 << 20,
            critical: 128 << 20,
            full: 16 << 20,
        }
    }
}

impl Watermarks {
    /// The defaults, on a small disk a tenth, a fortieth and a hundred-and-sixtieth of it.
    pub fn for_disk_of(bytes: u64) -> Self {
        let most = Self::default();
        Self {
            low: most.low.min(bytes / 10),
            critical: most.critical.min(bytes / 40),
            full: most.full.min(bytes / 160),
        }
    }

    /// Bytes to hold back.
    pub fn reserve(&self) -> u64 {
        RESERVE_BYTES.min(self.critical)
    }

    /// The level after `free` bytes were seen at level `now`. A level is left only with an eighth
    /// more than where it began, so that it does not flap.
    pub fn level(&self, now: DiskLevel, free: u64) -> DiskLevel {
        let below = |mark: u64, level| {
            let slack = if now >= level { mark / 8 } else { 0 };
            free < mark.saturating_add(slack)
        };
        if below(self.full, DiskLevel::Full) {
            DiskLevel::Full
        } else if below(self.critical, DiskLevel::Critical) {
            DiskLevel::Critical
        } else if below(self.low, DiskLevel::Low) {
            DiskLevel::Low
        } else {
            DiskLevel::Ample
        }
    }
}

/// A file of real blocks. Given up when the disk is full, it is the room to compact and to stop in.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// A file in `dir`, which [`Self::take`] makes of `bytes` (0: none).
    pub fn new(dir: &Path, bytes: u64) -> Self {
        Self {
            path: dir.join(FILE),
            bytes,
        }
    }

    /// Gives the room to whoever needs it now.
    ///
    /// # Errors
    /// The file could not be removed.
    pub fn release(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => file::sync_dir(self.dir()),
        }
    }

    /// Allocates the room, or adjusts what an earlier run left.
    ///
    /// # Errors
    /// The disk has no room for it; nothing is left behind.
    pub fn take(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return self.release();
        }
        let mut open = OpenOptions::new();
        let file = open.write(true).create(true).truncate(false).open(&self.path)?;
        let len = libc::off_t::try_from(self.bytes).map_err(io::Error::other)?;
        let allocate = || {
            // Asked first: an allocation that fails half-way has filled the disk for a moment.
            let held = file.metadata()?.blocks().saturating_mul(512);
            if disk_free(self.dir())? < self.bytes.saturating_sub(held) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.set_len(self.bytes)?;
            posix_fallocate(&file, 0, len)?;
            file.sync_all()
        };
        if let Err(error) = allocate() {
            self.release()?;
            return Err(error);
        }
        file::sync_dir(self.dir())
    }

    fn dir(&self) -> &Path {
        self.path.parent().expect("the path was joined to a directory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_holds_real_blocks_until_released() {
        let dir = tempfile::tempdir().unwrap();
        let blocks = || {
            fs::metadata(dir.path().join(FILE))
                .map(|m| m.blocks() * 512)
                .unwrap_or(0)
        };
        let reserve = Reserve::new(dir.path(), 1 << 20);
        reserve.take().unwrap();
        assert!(blocks() >= 1 << 20);
        reserve.release().unwrap();
        reserve.release().unwrap();
        assert_eq!(blocks(), 0);
        reserve.take().unwrap();
        assert!(blocks() >= 1 << 20);
        Reserve::new(dir.path(), 0).take().unwrap();
        assert_eq!(blocks(), 0);
    }

    #[test]
    fn a_reserve_that_does_not_fit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = Reserve::new(dir.path(), 1 << 60).take().unwrap_err();
        assert_eq!(refusal.kind(), io::ErrorKind::StorageFull);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn levels_follow_the_free_bytes_without_flapping() {
        use DiskLevel::{Ample, Critical, Full, Low};
        let marks = Watermarks {
            low: 800,
            critical: 80,
            full: 8,
        };
        for (now, free, next) in [
            (Ample, 800, Ample),
            (Ample, 799, Low),
            (Low, 800, Low),
            (Low, 899, Low),
            (Low, 900, Ample),
            (Low, 79, Critical),
            (Ample, 79, Critical),
            (Critical, 89, Critical),
            (Critical, 90, Low),
            (Critical, 900, Ample),
            (Critical, 7, Full),
            (Full, 8, Full),
            (Full, 9, Critical),
        ] {
            assert_eq!(marks.level(now, free), next, "{now:?} with {free} free");
        }
    }
}
