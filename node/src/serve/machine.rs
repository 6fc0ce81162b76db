//! What a node asks of its machine before it serves: a directory, its lock, file descriptors.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use super::lock::{self, DataLock, LockError};
use super::ServeError;
use crate::config::Listen;

/// How long the former process of this directory may take to disappear.
const DYING_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// More descriptors than this are not asked for.
pub const OPEN_FILES_MAX: u64 = 20_000;

/// Makes the last part of the path if need be, and locks the directory.
///
/// # Errors
/// No permission, no parent, a full disk, or another process works there.
pub fn claim(data_dir: &Path) -> Result<DataLock, ServeError> {
    let disk = |what: &str, source| ServeError::Disk {
        what: format!("{what} {}", data_dir.display()),
        source,
    };
    match DirBuilder::new().mode(0o700).create(data_dir) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && data_dir.is_dir() => {}
        Err(error) => return Err(disk("cannot make the data directory", error)),
    }
    take_patiently(data_dir).map_err(|error| match error {
        LockError::Held { pid } => ServeError::InUse {
            dir: data_dir.to_owned(),
            pid,
        },
        LockError::Disk(source) => disk("cannot work in the data directory", source),
    })
}

/// A process that was killed holds its lock until the kernel has cleaned up after it.
fn take_patiently(data_dir: &Path) -> Result<DataLock, LockError> {
    let deadline = Instant::now() + DYING_PATIENCE;
    loop {
        match lock::take(data_dir) {
            Err(LockError::Held { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            taken => return taken,
        }
    }
}

/// Finds a taken port before the shards are started, which takes longer.
///
/// # Errors
/// Names the first one that is taken.
pub fn check_ports(listen: &Listen) -> Result<(), ServeError> {
    let always = [("MQTT", listen.mqtt), ("HTTP", listen.http), ("peers", listen.peer)];
    for (what, addr) in always.into_iter().chain(listen.ws.map(|addr| ("WebSocket", addr))) {
        TcpListener::bind(addr).map_err(|source| ServeError::Listen { what, addr, source })?;
    }
    Ok(())
}

/// Raises the limit of open files as far as the system lets it, up to [`OPEN_FILES_MAX`].
///
/// Returns what is allowed now.
///
/// # Errors
/// The system's reason; the old limit stays.
pub fn raise_open_files() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.min(OPEN_FILES_MAX).max(soft);
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(wanted)
}
