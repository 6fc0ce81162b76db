//! SIGHUP: the configuration is read again, and what can change while the node runs is taken over.

use std::sync::Arc;

use tokio::signal::unix::{signal, SignalKind};
use tracing::warn;

use super::control::Control;
use super::notify;

/// Follows SIGHUP for as long as the node runs. Must be called inside a runtime.
pub fn follow(control: Arc<Control>) {
    match signal(SignalKind::hangup()) {
        Ok(mut hangups) => {
            tokio::spawn(async move {
                while hangups.recv().await.is_some() {
                    notify::reloading();
                    // Logged and counted there; there is nobody else to tell.
                    let _ = control.reload();
                    notify::ready();
                }
            });
        }
        Err(error) => warn!(%error, "SIGHUP cannot be followed; changes wait for the next start"),
    }
}
