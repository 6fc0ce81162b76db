//! The log filter of a running node: the configured one, or another one for a while.
//!
//! Another filter falls back by itself when its time is over, so that nobody forgets a node that
//! writes gigabytes of debug lines.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tracing::info;

use super::logs::{self, LogError, LogHandle};

/// Longest filter, in bytes.
pub const FILTER_BYTES_MAX: usize = 1024;
/// Longest time another filter may be in force.
pub const BORROW_MAX: Duration = Duration::from_secs(24 * 3600);

/// Clones share one filter.
#[derive(Clone)]
pub struct LogLevel {
    handle: LogHandle,
    state: Arc<Mutex<State>>,
}

struct State {
    configured: String,
    other: Option<Other>,
    /// Counts changes, so that a timer knows whether it still speaks of the present one.
    change: u64,
}

#[derive(Clone)]
struct Other {
    filter: String,
    until: Option<SystemTime>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogView {
    pub filter: String,
    /// What the configuration says.
    pub configured: String,
    /// When the configured one is in force again; `None`: it is, or nothing but a reset or a
    /// restart ends the other one.
    pub until: Option<SystemTime>,
}

impl LogLevel {
    pub fn new(handle: LogHandle, configured: &str) -> Self {
        let state = State {
            configured: configured.to_owned(),
            other: None,
            change: 0,
        };
        Self {
            handle,
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub fn recent(&self, bytes_max: usize) -> String {
        self.handle.recent(bytes_max)
    }

    pub fn view(&self) -> LogView {
        let state = self.state();
        let other = state.other.clone();
        LogView {
            filter: other
                .as_ref()
                .map_or_else(|| state.configured.clone(), |other| other.filter.clone()),
            configured: state.configured.clone(),
            until: other.and_then(|other| other.until),
        }
    }

    /// Puts another filter in force, for `lasts` or until [`Self::reset`]. Must be called inside a
    /// runtime when it has an end.
    ///
    /// # Errors
    /// `Filter` when it cannot be read; what was in force stays.
    pub fn set(&self, filter: &str, lasts: Option<Duration>) -> Result<LogView, LogError> {
        if filter.trim().is_empty() || filter.len() > FILTER_BYTES_MAX {
            return Err(LogError::Filter {
                filter: filter.chars().take(60).collect(),
                reason: format!("must have 1 to {FILTER_BYTES_MAX} bytes"),
            });
        }
        logs::parse(filter)?;
        // Before it does: a quieter filter would hide this line.
        info!(filter, ?lasts, "log filter changes");
        let change = {
            let mut state = self.state();
            self.handle.set_filter(filter)?;
            state.other = Some(Other {
                filter: filter.to_owned(),
                until: lasts.map(|lasts| SystemTime::now() + lasts),
            });
            state.change += 1;
            state.change
        };
        if let Some(lasts) = lasts {
            let level = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(lasts).await;
                level.fall_back(Some(change));
            });
        }
        Ok(self.view())
    }

    /// Puts the configured filter in force.
    pub fn reset(&self) -> LogView {
        self.fall_back(None);
        self.view()
    }

    /// Takes the configured filter from now on; another one that is in force stays for its time.
    ///
    /// # Errors
    /// `Filter` when it cannot be read; the former one stays.
    pub fn configure(&self, filter: &str) -> Result<(), LogError> {
        let mut state = self.state();
        match state.other {
            Some(_) => drop(logs::parse(filter)?),
            None => self.handle.set_filter(filter)?,
        }
        filter.clone_into(&mut state.configured);
        Ok(())
    }

    /// `change`: only if nothing has changed since that one.
    fn fall_back(&self, change: Option<u64>) {
        let mut state = self.state();
        if change.is_some_and(|change| change != state.change) || state.other.is_none() {
            return;
        }
        state.other = None;
        state.change += 1;
        let filter = state.configured.clone();
        // It was accepted before, so it is now.
        let _ = self.handle.set_filter(&filter);
        drop(state);
        info!(filter, "the configured log filter is in force again");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}
