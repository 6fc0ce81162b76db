//! Figures of a running fleet for Prometheus, served by one small thread.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::numbers::Latency;
use crate::run::View;

/// The page as it is served now.
#[derive(Clone, Default)]
pub struct Exposed(Arc<Mutex<String>>);

impl Exposed {
    /// Serves what was last set, at any path, until the process ends.
    ///
    /// # Errors
    /// The address is taken.
    pub fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        let page = self.0.clone();
        std::thread::Builder::new().name("metrics".into()).spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
                let mut request = [0u8; 4_096];
                let _ = stream.read(&mut request);
                let body = page.lock().map(|page| page.clone()).unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        })?;
        Ok(bound)
    }

    pub fn set(&self, view: &View<'_>) {
        if let Ok(mut page) = self.0.lock() {
            *page = text(view);
        }
    }
}

/// The page.
pub fn text(view: &View<'_>) -> String {
    let counts = &view.total.counts;
    let states = &view.states;
    let mut out = String::new();
    let counters = [
        ("sent", "Telemetry messages published for the first time.", counts.sent),
        ("acked", "Telemetry messages acknowledged.", counts.acked),
        ("refused", "Telemetry messages refused.", counts.refused),
        (
            "unknown",
            "Telemetry messages without an answer at the end.",
            counts.unknown,
        ),
        (
            "dropped",
            "Telemetry messages that fell due and were never sent.",
            counts.dropped,
        ),
        ("resent", "Publishes sent again.", counts.resent),
        ("reports_acked", "Twin reports acknowledged.", counts.reports_acked),
        ("connects", "Connections opened.", counts.connects),
        (
            "connects_failed",
            "Attempts to connect that failed.",
            counts.connects_failed,
        ),
        (
            "connections_lost",
            "Connections lost that nobody asked for.",
            counts.lost,
        ),
    ];
    for (name, help, value) in counters {
        let name = format!("holdfast_sim_{name}_total");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
    let _ = writeln!(
        out,
        "# HELP holdfast_sim_devices Devices by state.\n# TYPE holdfast_sim_devices gauge"
    );
    for (state, value) in [
        ("waiting", states.waiting),
        ("connecting", states.connecting),
        ("connected", states.connected),
        ("backing_off", states.backing_off),
        ("away", states.away),
        ("done", states.done),
    ] {
        let _ = writeln!(out, "holdfast_sim_devices{{state=\"{state}\"}} {value}");
    }
    for (name, help, latency) in [
        (
            "latency",
            "Latency of acknowledged telemetry from its intended time.",
            &view.total.latency,
        ),
        ("send_lag", "Delay of the generator itself.", &view.total.lag),
    ] {
        let figures = Latency::from(latency);
        let name = format!("holdfast_sim_{name}_seconds");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} summary");
        for (quantile, ms) in [
            ("0.5", figures.p50),
            ("0.9", figures.p90),
            ("0.99", figures.p99),
            ("0.999", figures.p999),
        ] {
            let _ = writeln!(out, "{name}{{quantile=\"{quantile}\"}} {:.6}", ms / 1e3);
        }
        let _ = writeln!(
            out,
            "{name}_sum {:.6}\n{name}_count {}",
            figures.mean / 1e3 * figures.count as f64,
            figures.count
        );
    }
    let _ = writeln!(
        out,
        "# HELP holdfast_sim_errors_total Errors by kind.\n# TYPE holdfast_sim_errors_total counter"
    );
    for (kind, count) in &view.total.errors {
        let _ = writeln!(
            out,
            "holdfast_sim_errors_total{{kind=\"{}\"}} {count}",
            kind.replace(['"', '\\', '\n'], " ")
        );
    }
    out
}
