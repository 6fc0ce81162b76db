//! What each node says of itself at `/metrics`, sample by sample.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::drive::{Clock, Endpoints};
use crate::run::api::runtime;
use crate::run::directory::Lines;

/// One node at one time. Times are real µs since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSample {
    pub at_us: u64,
    /// Its id where the cluster file told, else its place in the list, from 1.
    pub node: u64,
    /// Whether it answered.
    pub up: bool,
    /// Figures by name: `memory`, `descriptors`, `threads`, `cpu`, `disk_free`, `connections`, …
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
    /// Stages of a write since the last sample: mean and 99th percentile, seconds.
    #[serde(default)]
    pub stages: BTreeMap<String, (f64, f64)>,
}

const FIGURES: [(&str, &str); 11] = [
    ("process_resident_memory_bytes", "memory"),
    ("holdfast_memory_limit_bytes", "memory_limit"),
    ("process_open_fds", "descriptors"),
    ("process_max_fds", "descriptors_limit"),
    ("process_threads", "threads"),
    ("process_cpu_seconds_total", "cpu"),
    ("holdfast_disk_free_bytes", "disk_free"),
    ("holdfast_mqtt_connections", "connections"),
    ("holdfast_log_fsyncs_total", "fsyncs"),
    ("holdfast_log_bytes_total", "log_bytes"),
    ("holdfast_state_unflushed_bytes", "unflushed"),
];
const STAGES: &str = "holdfast_stage_seconds";

/// Bucket bounds with cumulative counts, and the sum.
type Histogram = (Vec<(f64, f64)>, f64);
/// Those of each stage.
type Buckets = BTreeMap<String, Histogram>;

/// Reads the text format. Lines that make no sense are passed over: the figures are for charts.
pub fn parse(text: &str) -> (BTreeMap<String, f64>, Buckets) {
    let (mut figures, mut stages) = (BTreeMap::new(), Buckets::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        if let Some((_, short)) = FIGURES.iter().find(|(known, _)| *known == name) {
            *figures.entry((*short).to_owned()).or_insert(0.0) += value;
        } else if let Some(part) = name.strip_prefix(STAGES) {
            let label = |wanted: &str| {
                let at = labels.find(&format!("{wanted}=\""))? + wanted.len() + 2;
                labels[at..].split('"').next()
            };
            let Some(stage) = label("stage") else { continue };
            let entry = stages.entry(stage.to_owned()).or_default();
            match (part, label("le")) {
                ("_bucket", Some(le)) => entry.0.push((le.parse().unwrap_or(f64::INFINITY), value)),
                ("_sum", _) => entry.1 = value,
                _ => {}
            }
        }
    }
    (figures, stages)
}

/// Mean and 99th percentile of what was added between two samples.
fn between(before: Option<&Histogram>, now: &Histogram) -> Option<(f64, f64)> {
    let old = |at: usize| {
        before
            .and_then(|before| before.0.get(at))
            .map_or(0.0, |bucket| bucket.1)
    };
    let added: Vec<(f64, f64)> = now
        .0
        .iter()
        .enumerate()
        .map(|(at, (le, count))| (*le, count - old(at)))
        .collect();
    let total = added.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let mean = (now.1 - before.map_or(0.0, |before| before.1)) / total;
    let mut below = (0.0, 0.0);
    for (le, count) in added {
        if count >= total * 0.99 {
            // Within a bucket, as if evenly spread.
            let upper = if le.is_finite() { le } else { below.0 };
            let part = (total * 0.99 - below.1) / (count - below.1).max(1e-9);
            return Some((mean, below.0 + (upper - below.0) * part));
        }
        below = (le, count);
    }
    None
}

/// A running scraper; dropping it ends it.
pub struct Scraper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Scraper {
    /// Appends samples of every node to `path` until it is stopped.
    ///
    /// # Errors
    /// The file or the thread cannot be made.
    pub fn start(endpoints: &Endpoints, clock: Clock, every: Duration, path: &Path) -> std::io::Result<Self> {
        let lines = Lines::append(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, endpoints) = (stop.clone(), endpoints.clone());
        let thread = std::thread::Builder::new().name("scraper".into()).spawn(move || {
            if let Ok(runtime) = runtime() {
                runtime.block_on(scrape(&endpoints, clock, every, lines, &stopped));
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn scrape(endpoints: &Endpoints, clock: Clock, every: Duration, mut lines: Lines, stop: &AtomicBool) {
    let Ok(client) = reqwest::Client::builder()
        .timeout(Duration::from_secs(3))
        .no_proxy()
        .build()
    else {
        return;
    };
    let mut before: BTreeMap<usize, Buckets> = BTreeMap::new();
    let mut next = tokio::time::Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for (at, address) in endpoints.http.iter().enumerate() {
            let mut request = client.get(format!("http://{address}/metrics"));
            if let Some(token) = &endpoints.token {
                request = request.bearer_auth(token);
            }
            let answer = async { request.send().await?.error_for_status()?.text().await };
            let mut sample = NodeSample {
                at_us: clock.now_us(),
                node: endpoints.nodes.get(at).copied().unwrap_or(at as u64 + 1),
                ..Default::default()
            };
            if let Ok(text) = answer.await {
                let (figures, stages) = parse(&text);
                let old = before.get(&at);
                let of = |(name, now): (&String, &Histogram)| {
                    let old = old.and_then(|old| old.get(name));
                    Some((name.clone(), between(old, now)?))
                };
                sample.stages = stages.iter().filter_map(of).collect();
                (sample.up, sample.figures) = (true, figures);
                before.insert(at, stages);
            }
            if lines.put(&sample).is_err() {
                return;
            }
        }
        next += every;
        while tokio::time::Instant::now() < next && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100).min(every)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP x y\nprocess_resident_memory_bytes 1000\nholdfast_log_fsyncs_total 7\nother 3\nholdfast_stage_seconds_bucket{stage=\"fsync\",le=\"0.001\"} 90\nholdfast_stage_seconds_bucket{stage=\"fsync\",le=\"0.01\"} 100\nholdfast_stage_seconds_bucket{stage=\"fsync\",le=\"+Inf\"} 100\nholdfast_stage_seconds_sum{stage=\"fsync\"} 0.2\nholdfast_stage_seconds_count{stage=\"fsync\"} 100\nnonsense\n";

    #[test]
    fn figures_and_stages_are_read() {
        let (figures, stages) = parse(TEXT);
        assert_eq!(
            figures,
            BTreeMap::from([("memory".into(), 1000.0), ("fsyncs".into(), 7.0)])
        );
        let (mean, p99) = between(None, &stages["fsync"]).unwrap();
        assert!(
            (mean - 0.002).abs() < 1e-9 && (p99 - 0.0091).abs() < 1e-6,
            "{mean} {p99}"
        );
        assert_eq!(between(Some(&stages["fsync"]), &stages["fsync"]), None);
    }
}
