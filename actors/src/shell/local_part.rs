//! Lets the house supervise what must stay on one arbiter: a shard's host and its Raft tasks.
//!
//! The house's actors are Send; a shard is not. Its part waits here, and the body runs there.

use std::future::Future;

use actix_rt::ArbiterHandle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::house::{PartError, StopSignal};

type Ended = Result<(), PartError>;

/// Runs `body` on `arbiter` and says how it ended; its panic becomes an error. Dropped, it drops
/// the body at its next await.
///
/// # Errors
/// Those of `body`, its panic, or that the arbiter has stopped.
pub async fn run_on<F, B>(arbiter: ArbiterHandle, stop: StopSignal, body: F) -> Result<(), PartError>
where
    F: FnOnce(StopSignal) -> B + Send + 'static,
    B: Future<Output = Result<(), PartError>> + 'static,
{
    let (tell, ended) = oneshot::channel();
    let start = move || {
        let task = actix_rt::spawn(async move { body(stop).await });
        actix_rt::spawn(watch_over(task, tell));
    };
    if !arbiter.spawn_fn(start) {
        return Err("the arbiter has stopped".into());
    }
    ended
        .await
        .unwrap_or_else(|_| Err("the arbiter stopped while the part ran".into()))
}

async fn watch_over(mut task: JoinHandle<Ended>, mut tell: oneshot::Sender<Ended>) {
    let ended = tokio::select! {
        ended = &mut task => ended,
        () = tell.closed() => return task.abort(),
    };
    // Nobody to tell: the house is gone as well.
    let _ = tell.send(ended.unwrap_or_else(|panic| Err(panic.into())));
}
