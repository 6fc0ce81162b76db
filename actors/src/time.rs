//! Time as a value. Who needs the time is handed a [`Clock`] or a [`Timestamp`].

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, by the clock of whoever stamped it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    #[must_use]
    pub fn minus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }
}

/// The only way time enters `actors` and `cluster`. `node` gives the real one, tests their own.
pub trait Clock: Send + Sync + 'static {
    /// Wall time; may step.
    fn now(&self) -> Timestamp;
    /// Milliseconds that never run backwards, from an arbitrary start.
    fn monotonic_ms(&self) -> u64;
}
