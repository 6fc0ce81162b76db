//! The lock of a data directory: one process at a time, and a way for others to learn which.
//!
//! The kernel releases it when the process ends, however it ends, so it never goes stale.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "node.pid";

/// Held for as long as the node runs.
#[derive(Debug)]
pub struct DataLock(#[allow(dead_code)] File);

#[derive(Debug)]
pub enum LockError {
    /// A living process works in this directory.
    Held {
        pid: Option<u32>,
    },
    Disk(io::Error),
}

/// # Errors
/// See [`LockError`]; nothing was changed.
pub fn take(data_dir: &Path) -> Result<DataLock, LockError> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(data_dir.join(NAME));
    let mut file = open.map_err(LockError::Disk)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(LockError::Held {
                pid: read_pid(&mut file),
            })
        }
        Err(TryLockError::Error(error)) => return Err(LockError::Disk(error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(LockError::Disk)?;
    Ok(DataLock(file))
}

/// The process that holds the lock now, if one does.
pub fn holder(data_dir: &Path) -> Option<u32> {
    let mut file = File::open(data_dir.join(NAME)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read_pid(&mut file),
        _ => None,
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_learns_who_holds_it_until_it_is_released() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(holder(dir.path()), None);
        let lock = take(dir.path()).expect("free");
        assert!(matches!(take(dir.path()), Err(LockError::Held { pid }) if pid == Some(std::process::id())));
        assert_eq!(holder(dir.path()), Some(std::process::id()));
        drop(lock);
        // A process that another test forks just now holds a copy of the lock until it has started.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while take(dir.path()).is_err() {
            assert!(std::time::Instant::now() < deadline, "free again");
            std::thread::yield_now();
        }
        assert_eq!(holder(dir.path()), None);
    }

    #[test]
    fn a_missing_directory_is_a_disk_error() {
        assert!(matches!(take(Path::new("/nowhere/at/all")), Err(LockError::Disk(_))));
    }
}
