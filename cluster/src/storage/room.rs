//! Room on the disk for what was accepted: a store that finds none waits, and goes on when there is
//! some again. It fails for good only when the disk does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Between looks of a store that waits.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Whether the disk has room; asked before every write to the log, so it must be cheap. It may make
/// room itself.
pub type Room = Arc<dyn Fn() -> bool + Send + Sync>;

/// For stores whose disk nobody watches.
pub fn unwatched() -> Room {
    Arc::new(|| true)
}

/// Somebody who waits for room. Says so once, and once when there is some.
pub struct Waiting {
    what: &'static str,
    waited: bool,
}

impl Waiting {
    pub fn of(what: &'static str) -> Self {
        Self { what, waited: false }
    }

    /// Blocks for a moment: the disk is full, and nothing else can be done with what was accepted.
    #[allow(clippy::disallowed_methods)] // there is no timer in the threads that write
    pub fn pause(&mut self) {
        if !std::mem::replace(&mut self.waited, true) {
            tracing::error!(
                store = self.what,
                "the disk is full: nothing is written until there is room"
            );
            metrics::counter!("holdfast_disk_waits_total", "store" => self.what).increment(1);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.waited {
            tracing::warn!(store = self.what, "the wait for room on the disk has ended");
        }
    }
}

pub fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}
