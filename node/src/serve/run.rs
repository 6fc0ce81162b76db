//! The life of a node process, from start to end.

use std::sync::Arc;

use cluster::api::DownlinkSink;
use cluster::Cluster;
use tracing::{error, info, warn};

use super::clock::SystemClock;
use super::{machine, signals, ServeError};
use crate::config::{LogFormat, NodeConfig};

/// What the caller wants to hear of.
#[derive(Default)]
pub struct Events {
    /// Called once, when the node serves.
    pub serving: Option<Box<dyn FnOnce(&NodeConfig)>>,
}

/// Runs the node until it is asked to stop (SIGTERM, SIGINT). Blocks; owns the actix `System`.
///
/// # Errors
/// It did not start, or a part failed that it cannot go on without.
pub fn run(config: NodeConfig, events: Events) -> Result<(), ServeError> {
    log(&config);
    log_panics();
    let _lock = machine::claim(&config.node.data_dir)?;
    match machine::raise_open_files() {
        Ok(files) => info!(files, "open files allowed"),
        Err(error) => warn!(%error, "the limit of open files stays as it is"),
    }
    let ended = actix_rt::System::new().block_on(serve(config, events));
    if let Err(error) = &ended {
        error!("{} {error}", super::FATAL_MARK);
    }
    ended
}

async fn serve(config: NodeConfig, events: Events) -> Result<(), ServeError> {
    let stop = signals::stop_requested();
    let downlinks: Arc<dyn DownlinkSink> = Arc::new(Nobody);
    let cluster = Cluster::start(config.cluster_config(), Arc::new(SystemClock::new()), downlinks).await?;
    announce(&config);
    if let Some(serving) = events.serving {
        serving(&config);
    }
    tokio::select! {
        () = stop => {}
        reason = cluster.fatal() => return Err(ServeError::Fatal(reason)),
    }
    info!(deadline = ?config.node.stop_deadline, "stopping; a second signal ends at once");
    tokio::select! {
        () = cluster.shutdown(config.node.stop_deadline) => info!("stopped"),
        () = signals::stop_requested() => std::process::exit(70),
    }
    Ok(())
}

fn announce(config: &NodeConfig) {
    info!(
        node = config.node.id,
        cluster = config.cluster.id,
        mqtt = %config.listen.mqtt,
        http = %config.listen.http,
        peer = %config.listen.peer,
        "serving"
    );
    warn!("development mode: devices connect without credentials; only this machine can reach them");
}

fn log(config: &NodeConfig) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log.filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let set = match config.log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Somebody set a subscriber before: a test, whose own one is then the right one.
    let _ = set;
}

/// A panic is a bug; its place and message go to the log like everything else.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        error!(place, message, "panic");
    }));
}

struct Nobody;

impl DownlinkSink for Nobody {
    fn deliver(&self, _note: actors::ports::Downlink) {}
}
