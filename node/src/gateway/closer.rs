//! Commits the ends of sessions, however long it takes: presence must converge.

use std::sync::Arc;
use std::time::Duration;

use actors::device::{Answer, CloseCause, Command};
use actors::id::DeviceKey;
use actors::ports::{CallError, CallResult};

use super::metrics;
use super::port::ask;
use super::shared::Shared;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Says in the background that a session has ended. To be called on an arbiter.
pub fn close(shared: &Arc<Shared>, key: DeviceKey, generation: u64, cause: CloseCause) {
    in_background(shared, move |shared| async move {
        let command = Command::CloseSession { generation, cause };
        // A refusal means that the session has ended already, or belongs to somebody else.
        until_answered(&shared, &key, command).await.ok();
    });
}

/// Carries out in the background what a connection that has ended still owes its device.
pub fn carry_out(shared: &Arc<Shared>, key: DeviceKey, command: Command) {
    in_background(shared, move |shared| async move {
        // A refusal means that the device is gone.
        until_answered(&shared, &key, command).await.ok();
    });
}

/// After an `OpenSession` whose outcome stayed unknown: if it did commit, a session is held in
/// this gateway's name that no connection knows of. Finds it by reading, and ends it.
pub fn settle(shared: &Arc<Shared>, key: DeviceKey) {
    in_background(shared, move |shared| async move {
        let Ok(reply) = until_answered(&shared, &key, Command::ReadDevice).await else {
            return;
        };
        let Answer::Device(view) = reply.answer else {
            return;
        };
        let orphan = view
            .connection
            .filter(|c| c.connected && c.gateway == shared.devices.gateway())
            .filter(|c| !shared.registry.holds(&key, c.generation));
        if let Some(orphan) = orphan {
            let command = Command::CloseSession {
                generation: orphan.generation,
                cause: CloseCause::Abrupt,
            };
            until_answered(&shared, &key, command).await.ok();
        }
    });
}

fn in_background<F: std::future::Future<Output = ()> + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(Arc<Shared>) -> F,
) {
    if !shared.closes.take(1) {
        metrics::close_dropped();
        return;
    }
    let shared = shared.clone();
    let work = work(shared.clone());
    actix_rt::spawn(async move {
        metrics::closes_pending(shared.closes.used());
        work.await;
        shared.closes.give_back(1);
        metrics::closes_pending(shared.closes.used());
    });
}

async fn until_answered(shared: &Shared, key: &DeviceKey, command: Command) -> CallResult {
    let mut pause = PAUSE_MIN;
    let gate = shared.gates.of(shared.devices.shard_of(key));
    loop {
        // Held for one attempt; nobody closes the semaphore.
        let permit = gate.closing.acquire().await.ok();
        let asked = ask(&*shared.devices, key, command.clone()).await;
        drop(permit);
        match asked {
            Ok(reply) => return Ok(reply),
            Err(CallError::Refused(refusal)) => return Err(CallError::Refused(refusal)),
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
