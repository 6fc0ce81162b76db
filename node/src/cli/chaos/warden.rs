//! The warden's process: a session of its own, so that no terminal ends it, and healing on SIGTERM.

use std::io::BufReader;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use tokio::signal::unix::{signal, SignalKind};

use crate::cli::failure::{Exit, Failure};

pub fn serve() -> Result<u8, Failure> {
    // It fails only for the leader of a group, which then has a terminal of its own anyway.
    let _ = nix::unistd::setsid();
    let ended = Arc::new(AtomicBool::new(false));
    follow(ended.clone())?;
    let served = chaos::warden::serve(BufReader::new(std::io::stdin()), &ended);
    served.map_err(|error| Failure::new(Exit::Harness, "the warden cannot begin").because(error))?;
    Ok(Exit::Success as u8)
}

fn follow(ended: Arc<AtomicBool>) -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::Internal, "signals cannot be followed").because(error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(entered);
    let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                    _ = terminate.recv() => ended.store(true, Ordering::Relaxed),
                }
            }
        });
    });
    spawned.map(drop).map_err(failed)
}
