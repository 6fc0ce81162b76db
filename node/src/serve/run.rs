//! The life of a node process, from start to end.

use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::device::Policy;
use cluster::api::StartError;
use cluster::Cluster;
use tracing::{error, info, warn};

use super::clock::SystemClock;
use super::control::Control;
use super::{anew, edges, join, machine, notify, reload, signals, ServeError};
use crate::config::NodeConfig;
use crate::gateway::{Gates, Gateway, Registry};
use crate::http::{HttpConfig, HttpServer};
use crate::observe::logs;
use crate::observe::metrics::{names, Metrics};

/// How much longer than its deadline a stop may take before the process just ends.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long devices get to hear that a node begins anew.
const ANEW_GRACE: Duration = Duration::from_secs(1);

/// How long a new node may take to have a leader for every shard before it says that it serves.
const SERVING_DEADLINE: Duration = Duration::from_secs(10);

pub type Serving = Box<dyn FnOnce(&NodeConfig)>;

/// What the caller wants to hear of.
#[derive(Default)]
pub struct Events {
    /// Called once, when the node serves.
    pub serving: Option<Serving>,
}

/// Runs the node until it is asked to stop (SIGTERM, SIGINT). Blocks; owns the actix `System`, the
/// log and the metrics of this process.
///
/// # Errors
/// It did not start, or a part failed that it cannot go on without.
pub fn run(config: NodeConfig, events: Events) -> Result<(), ServeError> {
    let log = logs::LogConfig {
        format: config.log.format,
        filter: config.log.filter.clone(),
        file: None,
    };
    let log = logs::init(&log).map_err(|error| ServeError::internal("the log cannot be set up", error))?;
    log_panics();
    let ended = catch_unwind(AssertUnwindSafe(|| run_logged(config, log, events)))
        .unwrap_or_else(|panic| Err(ServeError::internal("a part of the node panicked", message(&*panic))));
    let ended = match ended {
        Err(ServeError::BeginAnew(reason) | ServeError::Start(StartError::BeginAnew(reason))) => {
            Err(anew::begin(&reason))
        }
        ended => ended,
    };
    if let Err(error) = &ended {
        error!("{} {error}", super::FATAL_MARK);
    }
    ended
}

fn run_logged(config: NodeConfig, log: logs::LogHandle, events: Events) -> Result<(), ServeError> {
    let metrics = Metrics::install().map_err(|error| ServeError::internal("metrics cannot be set up", error))?;
    // Held until the kernel has closed everything: the stores keep locks of their own, and are let go
    // of with the last thread only.
    std::mem::forget(machine::claim(&config.node.data_dir)?);
    machine::check_ports(&config.listen)?;
    match machine::raise_open_files() {
        Ok(files) => warn_about_files(files, &config),
        Err(error) => warn!(%error, "the limit of open files stays as it is"),
    }
    let control = Control::new(&config, log);
    actix_rt::System::new().block_on(async {
        reload::follow(control.clone());
        serve(config, metrics, &control, events).await
    })
}

async fn serve(config: NodeConfig, metrics: Metrics, control: &Arc<Control>, events: Events) -> Result<(), ServeError> {
    let mut stop = std::pin::pin!(signals::stop_requested());
    let registry = Registry::new();
    let clock = Arc::new(SystemClock::new());
    let starting = async {
        let who = join::who(&config).await?;
        Ok::<_, ServeError>(Cluster::start(config.cluster_config(who), clock, registry.clone()).await?)
    };
    let cluster = tokio::select! {
        started = starting => started?,
        () = &mut stop => return Ok(()),
    };
    cluster.set_trace_source(Arc::new(|| {
        crate::observe::trace::current().map(|t| t.to_traceparent())
    }));
    // Set once, by this one call.
    let _ = control.cluster.set(cluster.clone());
    watch_memory(cluster.clone(), control);
    let (gateway, http) = match edges(&config, &cluster, registry, metrics) {
        Ok((gateway, http)) => (Arc::new(gateway), Arc::new(http)),
        Err(error) => {
            cluster.shutdown(config.node.stop_deadline).await;
            return Err(error);
        }
    };
    take_over(control, &cluster, &gateway, &http);
    announce(&config, &cluster);
    notify::ready();
    actix_rt::spawn(say_when_serving(cluster.clone()));
    tokio::select! {
        biased;
        // First: what damage breaks is broken because of it.
        reason = cluster.must_begin_anew() => {
            gateway.shutdown(ANEW_GRACE).await;
            return Err(ServeError::BeginAnew(reason));
        }
        reason = cluster.fatal() => return Err(ServeError::Fatal(reason)),
        () = stopped(stop, &cluster, &config, events) => {}
    }
    notify::stopping();
    let deadline = config.node.stop_deadline;
    info!(?deadline, "stopping; a second signal ends at once");
    tokio::select! {
        () = end(&cluster, &gateway, &http, deadline) => info!("stopped"),
        () = tokio::time::sleep(deadline + STOP_GRACE) => warn!("not everything stopped in time; ending anyway"),
        reason = cluster.fatal() => return Err(ServeError::Fatal(reason)),
        () = signals::stop_requested() => {
            warn!("second signal: ending at once; nothing acknowledged is lost");
            std::process::exit(super::EXIT_FORCED);
        }
    }
    Ok(())
}

/// How often the resident memory is looked at.
const MEMORY_LOOK: Duration = Duration::from_millis(200);

/// Looks at the resident memory for as long as the node runs. At seven eighths of what it may be,
/// idle devices leave memory; at fifteen sixteenths new telemetry is refused until it is less.
fn watch_memory(cluster: Cluster, control: &Control) {
    let bound = Arc::new(AtomicU64::new(u64::MAX));
    let taken = bound.clone();
    control.on_reload(move |config| {
        let bytes_max = config.limits.memory_bytes_max;
        taken.store(bytes_max, Ordering::Relaxed);
        metrics::gauge!(names::MEMORY_LIMIT).set(bytes_max as f64);
    });
    actix_rt::spawn(async move {
        loop {
            tokio::time::sleep(MEMORY_LOOK).await;
            let (bytes_max, resident) = (bound.load(Ordering::Relaxed), crate::observe::process::resident_bytes());
            cluster.set_memory_pressure(resident > bytes_max / 8 * 7, resident > bytes_max / 16 * 15);
        }
    });
}

/// Tells of a node that serves, then waits until it is to stop.
async fn stopped(stop: impl Future<Output = ()>, cluster: &Cluster, config: &NodeConfig, events: Events) {
    let mut stop = std::pin::pin!(stop);
    if let Some(serving) = events.serving {
        tokio::select! {
            ready = cluster.wait_ready(SERVING_DEADLINE) => {
                if !ready {
                    warn!("some shards have no leader yet");
                }
                serving(config);
            }
            () = &mut stop => return,
        }
    }
    stop.await;
}

/// Opens the doors, devices first: `/readyz` is only asked of a node that could take them.
fn edges(
    config: &NodeConfig,
    cluster: &Cluster,
    registry: Arc<Registry>,
    metrics: Metrics,
) -> Result<(Gateway, HttpServer), ServeError> {
    let listen = |what, addr| move |source| ServeError::Listen { what, addr, source };
    let gates = Gates::new(config.cluster.shards);
    let mqtt = edges::gateway_config(config, cluster.policy(), registry, gates.clone());
    let gateway = Gateway::start(mqtt, Arc::new(cluster.clone()), cluster.arbiters())
        .map_err(listen("MQTT", config.listen.mqtt))?;
    let settings = HttpConfig {
        gates,
        ..edges::http_config(config)?
    };
    let (backend, source) = (Arc::new(cluster.clone()), Arc::new(cluster.clone()));
    let http = crate::http::serve(settings, backend, source, metrics).map_err(listen("HTTP", config.listen.http))?;
    Ok((gateway, http))
}

/// What each part takes from a configuration that is read again; see `config::settings::RELOADABLE`.
fn take_over(control: &Arc<Control>, cluster: &Cluster, gateway: &Arc<Gateway>, http: &Arc<HttpServer>) {
    let policy = cluster.policy();
    let start = control.start().policy();
    control.on_reload(move |config| {
        policy.set(Policy {
            // Announced to sessions that are open, so it stays until a restart.
            packet_ids_max: start.packet_ids_max,
            ..config.policy()
        });
    });
    let mqtt = gateway.clone();
    control.on_reload(move |config| {
        mqtt.set_bounds(config.limits.connections_max, config.limits.inflight_bytes_max);
    });
    let server = http.clone();
    control.on_reload(move |config| match edges::http_config(config) {
        Ok(config) => server.reconfigure(&config),
        Err(error) => warn!(%error, "the HTTP server goes on with its former settings"),
    });
    http.set_control(control.clone());
}

/// From the outside in: whoever was let in is answered before the shards go. The doors get the
/// larger part of the time, because everything that waits there was promised an answer.
async fn end(cluster: &Cluster, gateway: &Gateway, http: &HttpServer, deadline: Duration) {
    let until = Instant::now() + deadline;
    http.announce_stop();
    let doors = deadline * 6 / 10;
    let (gateway_done, http_done) = tokio::join!(gateway.shutdown(doors), http.stop(doors));
    if !(gateway_done && http_done) {
        warn!(gateway_done, http_done, "connections were cut at the deadline");
    }
    cluster.shutdown(until.saturating_duration_since(Instant::now())).await;
}

/// An empty disk that must be confirmed, or too few nodes: between listening and serving a lot may
/// happen, so that it is not called the same.
async fn say_when_serving(cluster: Cluster) {
    while !cluster.wait_ready(SERVING_DEADLINE).await {
        info!("waiting until every shard has a leader");
    }
    info!("serving");
}

fn announce(config: &NodeConfig, cluster: &Cluster) {
    if let Some(reason) = cluster.quarantine() {
        let node = cluster.gateway().node;
        let repair = format!("holdfast cluster repair {node}");
        warn!(node, reason, repair, "running in quarantine: no devices, no replicas");
        return;
    }
    info!(
        node = cluster.gateway().node,
        cluster = config.cluster.id,
        mqtt = %config.listen.mqtt,
        http = %config.listen.http,
        peer = %config.listen.peer,
        ws = config.listen.ws.map(tracing::field::display),
        "listening"
    );
    warn!("development mode: devices connect without credentials; only this machine can reach them");
}

/// Descriptors the node needs beside its connections: RocksDB, peers, log.
const FILES_BESIDE: u64 = 2_000;

fn warn_about_files(files: u64, config: &NodeConfig) {
    let connections = (config.limits.connections_max + config.limits.http_connections_max) as u64;
    if connections + FILES_BESIDE > files {
        warn!(
            files,
            connections, "fewer open files are allowed than the connection limits need; raise `ulimit -n`"
        );
    } else {
        info!(files, "open files allowed");
    }
}

/// A panic is a bug; its place and message go to the log like everything else.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        error!(place, thread, message = message(panic.payload()), "panic");
    }));
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
