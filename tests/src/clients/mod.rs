//! What the client tests share: started programs, a small HTTP client, raw MQTT sockets, tools.
//!
//! Everything here sees the product from outside: processes, sockets, files, text.

pub mod deploy;
pub mod dev;
pub mod events;
pub mod http;
pub mod mailbox;
pub mod python;
pub mod raw;
pub mod tools;

use std::time::{Duration, Instant};

/// How long a condition may take to become true. No test asserts that something is fast.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `probe` gives something.
///
/// # Panics
/// After [`PATIENCE`], with `what` was expected.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
