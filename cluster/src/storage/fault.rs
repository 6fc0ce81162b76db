//! Where a drill or a test reaches into the disk: consulted by the stores before they act.
//!
//! Decides nothing itself; without an implementation the stores never ask.

use std::io;

/// Faults of one store's disk. Called on the thread that writes; blocking makes the disk slow,
/// an error is taken for the disk's own answer.
pub trait DiskFaults: Send + Sync + 'static {
    /// Whether any of the following may say something now; while not, the stores take their usual way.
    fn acts(&self) -> bool {
        true
    }

    /// Before bytes are read.
    ///
    /// # Errors
    /// What the read shall fail with.
    fn before_read(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether the disk shall look as if there were no room left on it.
    fn takes_the_room(&self) -> bool {
        false
    }

    /// Before bytes are handed to the disk.
    ///
    /// # Errors
    /// What the write shall fail with; nothing is written.
    fn before_write(&self) -> io::Result<()> {
        Ok(())
    }

    /// Before written bytes are made durable.
    ///
    /// # Errors
    /// What the sync shall fail with; what is durable is then unknown.
    fn before_sync(&self) -> io::Result<()> {
        Ok(())
    }
}
