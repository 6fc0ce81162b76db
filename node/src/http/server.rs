//! The HTTP server: sockets, workers, limits, and how it stops.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{web, App as WebApp, HttpServer as WebServer};

use super::config::HttpConfig;
use super::context::App;
use super::events::LiveEdge;
use super::live::Live;
use super::port::Backend;
use super::room::Answers;
use super::{around, routes};
use crate::live::source::Source;
use crate::observe::metrics::Metrics;
use crate::serve::control::Control;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// What the kernel takes of an answer before the client reads it (it doubles this).
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// How often histograms are folded, so that they do not grow while nobody reads `/metrics`.
const UPKEEP: Duration = Duration::from_secs(5);

/// A running server. Dropped, it goes on; it ends with [`HttpServer::stop`] or the process.
pub struct HttpServer {
    addr: SocketAddr,
    handle: ServerHandle,
    app: web::Data<App>,
    upkeep: tokio::task::AbortHandle,
}

/// Binds and starts to serve, on worker threads of its own.
///
/// # Errors
/// `InvalidInput` for a setting out of range, otherwise why the address cannot be listened on.
pub fn serve(
    config: HttpConfig,
    backend: Arc<dyn Backend>,
    source: Arc<dyn Source>,
    metrics: Metrics,
) -> io::Result<HttpServer> {
    config
        .check()
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let listener = listen(&config)?;
    let upkeep = tokio::spawn(keep_up(metrics.clone())).abort_handle();
    let events = LiveEdge::start(source, config.event_subscribers_max);
    let app = web::Data::new(App {
        live: Live::new(&config),
        control: std::sync::OnceLock::new(),
        config: config.clone(),
        backend,
        events,
        answers: Answers::new(config.answer_bytes_max),
        metrics,
        stopping: AtomicBool::new(false),
        shard_count: tokio::sync::OnceCell::new(),
    });
    let shared = app.clone();
    let factory = move || {
        WebApp::new()
            .app_data(shared.clone())
            .configure(routes::register)
            .wrap(from_fn(around::around))
    };
    let server = WebServer::new(factory)
        .workers(config.workers)
        .max_connections(config.connections_max.div_ceil(config.workers))
        .client_request_timeout(config.request_timeout)
        .client_disconnect_timeout(Duration::from_secs(1))
        .keep_alive(config.keep_alive)
        .tcp_nodelay(true)
        .shutdown_timeout(config.stop_timeout.as_secs().max(1))
        .disable_signals()
        .listen(listener)
        .inspect_err(|_| upkeep.abort())?;
    let addr = server
        .addrs()
        .first()
        .copied()
        .expect("bind succeeded, so there is an address");
    let server = server.run();
    let handle = server.handle();
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the http server ended");
        }
    });
    tracing::info!(%addr, "http listens");
    Ok(HttpServer {
        addr,
        handle,
        app,
        upkeep,
    })
}

/// Accepted connections inherit what is set here.
fn listen(config: &HttpConfig) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(config.listen);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // The library has no deadline for a client that does not read its answer. The kernel has: it
    // gives up a connection whose peer takes nothing for so long.
    socket.set_tcp_user_timeout(Some(config.slow_reader_timeout))?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(&config.listen.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn keep_up(metrics: Metrics) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.upkeep();
    }
}

impl HttpServer {
    /// Where it listens, with the port that was chosen.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves `/api/v1/node` from now on, and follows reloads.
    pub fn set_control(&self, control: Arc<Control>) {
        // Called once; a second one would be of the same process.
        let _ = self.app.control.set(control);
    }

    /// Takes token, body size and deadline of `config`; everything else was fixed at the start.
    pub fn reconfigure(&self, config: &HttpConfig) {
        self.app.live.set(config);
    }

    /// Makes `/readyz` fail from now on, while requests are still served.
    pub fn announce_stop(&self) {
        self.app.stopping.store(true, Ordering::Relaxed);
    }

    /// Takes no new connections, lets requests in flight finish, and closes. Says whether all of
    /// them finished within `deadline` (at most `HttpConfig::stop_timeout`).
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.announce_stop();
        let until = tokio::time::Instant::now() + deadline;
        self.app.events.end_watches(deadline).await;
        let deadline = until.saturating_duration_since(tokio::time::Instant::now());
        let graceful = tokio::time::timeout(deadline, self.handle.stop(true)).await.is_ok();
        if !graceful {
            tracing::warn!(?deadline, "http requests were still in flight at the deadline");
        }
        self.upkeep.abort();
        self.app.events.stop();
        graceful
    }
}
