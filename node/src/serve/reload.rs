//! SIGHUP: reads the configuration again and takes over what can change while the node runs.
//!
//! That is the log filter so far. Anything else in the file waits for the next start; a file that
//! is refused changes nothing.

use std::path::PathBuf;

use tokio::signal::unix::{signal, SignalKind};
use tracing::{info, warn};

use crate::config;
use crate::observe::logs::LogHandle;

/// Follows SIGHUP for as long as the node runs. Must be called inside a runtime.
pub fn follow(file: PathBuf, log: LogHandle) {
    match signal(SignalKind::hangup()) {
        Ok(mut hangups) => {
            tokio::spawn(async move {
                while hangups.recv().await.is_some() {
                    reload(&file, &log);
                }
            });
        }
        Err(error) => warn!(%error, "SIGHUP cannot be followed; the log filter changes at the next start only"),
    }
}

fn reload(file: &std::path::Path, log: &LogHandle) {
    let read = config::load(file).map_err(|error| error.to_string());
    let taken = read.and_then(|config| {
        log.set_filter(&config.log.filter).map_err(|error| error.to_string())?;
        Ok(config.log.filter)
    });
    match taken {
        Ok(filter) => info!(filter, "configuration read again"),
        Err(reason) => warn!(reason, "the configuration is refused; everything stays as it was"),
    }
}
