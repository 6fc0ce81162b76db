//! The names of all figures, and their rendering for Prometheus.
//!
//! [`ALL`] is the contract: `docs/reference/metrics.md` is checked against it, and whoever emits a
//! figure takes its name from [`names`] (crates below `node` repeat the text; the test of the
//! rendering finds names that are not in the table).

use std::fmt::Write as _;

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::process;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// `1` for plain numbers.
    pub unit: &'static str,
    pub meaning: &'static str,
}

macro_rules! metrics_table {
    ($( $constant:ident $kind:ident $name:literal [$($label:literal),*] $unit:literal $meaning:literal; )*) => {
        /// The names, for those who emit.
        pub mod names {
            $( #[doc = $meaning] pub const $constant: &str = $name; )*
        }
        /// Every figure there is.
        pub const ALL: &[Metric] = &[ $( Metric {
            name: $name, kind: Kind::$kind, labels: &[$($label),*], unit: $unit, meaning: $meaning,
        }, )* ];
    };
}

metrics_table! {
    INGEST_MESSAGES Counter "holdfast_ingest_messages_total" ["outcome"] "messages"
        "Telemetry messages taken in, by what became of them: acknowledged, repeated, refused, overloaded, not_leader or unknown.";
    STAGE_SECONDS Histogram "holdfast_stage_seconds" ["stage"] "seconds"
        "Time a write spends in each stage of its way: admission, route, decide, replicate, fsync, apply.";
    RAFT_LEADER Gauge "holdfast_raft_leader" ["shard"] "1"
        "1 where this node leads the shard, else 0.";
    RAFT_TERM Gauge "holdfast_raft_term" ["shard"] "1"
        "Term of the shard's group.";
    RAFT_APPLIED Gauge "holdfast_raft_applied" ["shard"] "entries"
        "Index this node has applied.";
    RAFT_ELECTIONS Counter "holdfast_raft_elections_total" ["shard"] "elections"
        "Times this node became the leader of the shard.";
    BATCH_ITEMS Histogram "holdfast_batch_items" [] "items"
        "Commands in one proposal of a shard.";
    LOG_FSYNCS Counter "holdfast_log_fsyncs_total" [] "fsyncs"
        "Syncs of the log store, shared by all shards.";
    LOG_BYTES Counter "holdfast_log_bytes_total" [] "bytes"
        "Bytes written to the log store.";
    LOG_SYNC_SECONDS Histogram "holdfast_log_sync_seconds" [] "seconds"
        "Time of one write and sync of the log store.";
    STATE_UNFLUSHED_BYTES Gauge "holdfast_state_unflushed_bytes" [] "bytes"
        "Bytes of state in memory that a flush would write.";
    STATE_FLUSHES Counter "holdfast_state_flushes_total" [] "flushes"
        "Flushes of the state store.";
    DISK_FREE Gauge "holdfast_disk_free_bytes" [] "bytes"
        "Bytes free on the data directory's disk; see docs/operations.md for what is refused when.";
    DISK_WAITS Counter "holdfast_disk_waits_total" ["store"] "waits"
        "Waits of a store for room on a full disk; nothing is written meanwhile.";
    MEMORY_LIMIT Gauge "holdfast_memory_limit_bytes" [] "bytes"
        "Resident memory that limits.memory_bytes_max allows; at seven eighths of it devices are let go, at fifteen sixteenths telemetry is refused.";
    MQTT_CONNECTIONS Gauge "holdfast_mqtt_connections" [] "connections"
        "Open device connections of this node.";
    DEVICES_ACTIVE Gauge "holdfast_devices_active" ["shard"] "devices"
        "Devices in memory on this node.";
    QUEUE_DEPTH Gauge "holdfast_queue_depth" ["queue", "shard"] "items"
        "Items that wait in a bounded queue.";
    DEVICE_PANICS Counter "holdfast_device_panics_total" [] "panics"
        "Panics contained in one device or shard host. Any is a fault of the program.";
    APPLY_MISMATCH Counter "holdfast_apply_mismatch_total" [] "items"
        "Log items that did not fit the device's version and changed nothing.";
    DEVICES_QUARANTINED Counter "holdfast_devices_quarantined_total" [] "devices"
        "Devices put into quarantine because an event could not be applied. Any needs a person.";
    PEER_CONNECTED Gauge "holdfast_peer_connected" ["peer"] "1"
        "1 while this node is connected to the peer, else 0.";
    PEER_REJECTED Counter "holdfast_peer_rejected_total" ["reason"] "connections"
        "Peer connections or frames refused, by reason.";
    DAMAGE_FOUND Counter "holdfast_damage_found_total" ["store"] "findings"
        "Damage this process found in its directory, or was told of by an earlier one: state, peers, or promises (log, identity, the whole directory). Any needs a look at the disk.";
    NODE_QUARANTINED Gauge "holdfast_node_quarantined" [] "1"
        "1 while this node takes no part in anything because what it promised is lost or in doubt, else 0.";
    REPLICAS_REBUILDING Gauge "holdfast_replicas_rebuilding" [] "replicas"
        "Replicas of this node that lost their state and are being given it by others.";
    REPLICAS_REBUILT Counter "holdfast_replicas_rebuilt_total" [] "replicas"
        "Replicas of this node that were given their state by others.";
    SCRUB_PASSES Counter "holdfast_scrub_passes_total" [] "passes"
        "Readings of everything this node has stored that found it whole.";
    SCRUB_BYTES Counter "holdfast_scrub_bytes_total" [] "bytes"
        "Bytes read by them.";
    HTTP_REQUESTS Counter "holdfast_http_requests_total" ["method", "route", "status"] "requests"
        "HTTP requests answered.";
    ARBITER_LATE Histogram "holdfast_arbiter_late_seconds" [] "seconds"
        "How much later than meant an arbiter's beat came: above 0.1, the node stands for no election against a leader it is connected to.";
    HTTP_REQUEST_SECONDS Histogram "holdfast_http_request_seconds" ["route"] "seconds"
        "Time from the head of an HTTP request to its answer.";
    CONFIG_RELOADS Counter "holdfast_config_reloads_total" ["result"] "reloads"
        "Reloads of the configuration: taken, or refused as a whole.";
    CONFIG_RESTART_KEYS Gauge "holdfast_config_restart_keys" [] "keys"
        "Keys of the configuration file whose change waits for a restart, as of the last reload.";
    METHOD_CALLS Counter "holdfast_method_calls_total" ["outcome"] "calls"
        "Method calls begun on this node, by what became of them: answered, refused, not_connected, not_subscribed, overloaded, not_delivered, unknown or bad_answer.";
    METHOD_SECONDS Histogram "holdfast_method_seconds" [] "seconds"
        "Round trip of an answered method call.";
    MESSAGES Counter "holdfast_messages_total" ["event"] "messages"
        "What leaders decided of messages to devices: queued, sent, completed, expired, rejected, max-deliveries, purged, replayed or dropped.";
    LIVE_SUBSCRIBERS Gauge "holdfast_live_subscribers" [] "subscribers"
        "Subscribers of live events on this node.";
    LIVE_EVENTS Counter "holdfast_live_events_total" [] "events"
        "Events and markers put into the outboxes of subscribers.";
    LIVE_MISSED Counter "holdfast_live_missed_total" [] "events"
        "Events and markers left out because a subscriber did not keep up; it was told how many.";
    LIVE_GAPS Counter "holdfast_live_gaps_total" [] "gaps"
        "Times the log did not reach back as far as a subscriber or a feed had come.";
    CHAOS_LEASES Gauge "holdfast_chaos_leases" [] "leases"
        "Fault leases in force on this node. Above 0, somebody is drilling.";
    CHAOS_HITS Counter "holdfast_chaos_hits_total" ["kind"] "hits"
        "Times a fault lease has acted, by its kind.";
    PROCESS_RESIDENT_MEMORY Gauge "process_resident_memory_bytes" [] "bytes"
        "Resident memory of the process.";
    PROCESS_CPU Counter "process_cpu_seconds_total" [] "seconds"
        "CPU time of the process, user and system.";
    PROCESS_OPEN_FDS Gauge "process_open_fds" [] "descriptors"
        "Open file descriptors of the process.";
    PROCESS_MAX_FDS Gauge "process_max_fds" [] "descriptors"
        "File descriptors that the process may open.";
    PROCESS_THREADS Gauge "process_threads" [] "threads"
        "Threads of the process.";
}

/// Upper bounds of the latency histograms, in seconds: 100 µs to 30 s.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Upper bounds of the batch histogram, in items.
pub const ITEMS_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0,
];

/// Reads all figures of the process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("metrics buckets: {0}")]
    Buckets(#[from] BuildError),
    /// Only one part of a process may set metrics up.
    #[error("metrics are set up already")]
    Twice,
}

impl Metrics {
    /// Sets metrics up for the whole process.
    ///
    /// # Errors
    /// `Twice` for the second call in a process.
    pub fn install() -> Result<Self, InstallError> {
        let (metrics, recorder) = Self::detached()?;
        metrics::set_global_recorder(recorder).map_err(|_| InstallError::Twice)?;
        describe();
        Ok(metrics)
    }

    /// Metrics that only those see who use the recorder; for tests.
    ///
    /// # Errors
    /// Never in practice: the buckets are constant.
    pub fn detached() -> Result<(Self, PrometheusRecorder), InstallError> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)?
            .set_buckets_for_metric(Matcher::Suffix("_items".into()), ITEMS_BUCKETS)?;
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Ok((Self { handle }, recorder))
    }

    /// Everything in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        let figures = process::read();
        for (name, value) in [
            (names::PROCESS_RESIDENT_MEMORY, figures.resident_bytes as f64),
            (names::PROCESS_CPU, figures.cpu_seconds),
            (names::PROCESS_OPEN_FDS, figures.open_fds as f64),
            (names::PROCESS_MAX_FDS, figures.max_fds as f64),
            (names::PROCESS_THREADS, figures.threads as f64),
        ] {
            let metric = find(name).expect("names come from the table");
            let kind = metric.kind.name();
            writeln!(
                text,
                "# HELP {name} {}\n# TYPE {name} {kind}\n{name} {value}\n",
                metric.meaning
            )
            .expect("writing to memory cannot fail");
        }
        text
    }

    /// Folds what histograms have collected; to be called every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// The row of a name.
pub fn find(name: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| metric.name == name)
}

/// Tells the recorder in force what each figure means.
fn describe() {
    for metric in ALL {
        // The names carry their units already, as Prometheus wants it.
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, Unit::Count, metric.meaning),
            Kind::Gauge => metrics::describe_gauge!(metric.name, Unit::Count, metric.meaning),
            Kind::Histogram => metrics::describe_histogram!(metric.name, Unit::Count, metric.meaning),
        }
    }
}

/// The table of `docs/reference/metrics.md`.
pub fn markdown() -> String {
    let mut text = String::from("| name | type | labels | unit | meaning |\n| --- | --- | --- | --- | --- |\n");
    for metric in ALL {
        let labels = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let (name, kind, unit) = (metric.name, metric.kind.name(), metric.unit);
        writeln!(text, "| `{name}` | {kind} | {labels} | {unit} | {} |", metric.meaning)
            .expect("writing to memory cannot fail");
    }
    // The gateway keeps the list of its own.
    for (name, kind, labels, meaning) in crate::gateway::metrics::METRICS {
        if find(name).is_some() {
            continue;
        }
        let labels: Vec<String> = labels
            .split(", ")
            .filter(|label| !label.is_empty())
            .map(|label| format!("`{label}`"))
            .collect();
        let unit = if name.ends_with("_seconds") { "seconds" } else { "1" };
        writeln!(
            text,
            "| `{name}` | {kind} | {} | {unit} | {meaning}. |",
            labels.join(", ")
        )
        .expect("writing to memory cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To write the table anew: HOLDFAST_BLESS=1.
    #[test]
    fn the_reference_page_lists_every_metric_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- table -->\n", "<!-- /table -->\n");
        let (before, rest) = page.split_once(begin).expect("the page marks its table");
        let (table, after) = rest.split_once(end).expect("the page marks the end of its table");
        if std::env::var_os("HOLDFAST_BLESS").is_some() {
            std::fs::write(path, format!("{before}{begin}{}{end}{after}", markdown())).unwrap();
            return;
        }
        assert_eq!(
            table,
            markdown(),
            "run this test with HOLDFAST_BLESS=1 and commit {path}"
        );
    }

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} appears twice", metric.name);
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{}",
                metric.name
            );
            assert_eq!(
                metric.name.ends_with("_seconds") || metric.name.ends_with("_items"),
                metric.kind == Kind::Histogram,
                "{}",
                metric.name
            );
            assert!(metric.meaning.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn what_is_emitted_is_rendered_with_its_buckets_and_the_process() {
        let (metrics, recorder) = Metrics::detached().unwrap();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!(names::INGEST_MESSAGES, "outcome" => "acknowledged").increment(2);
            metrics::histogram!(names::STAGE_SECONDS, "stage" => "fsync").record(0.003);
        });
        metrics.upkeep();
        let text = metrics.render();
        for line in [
            "# TYPE holdfast_ingest_messages_total counter",
            "holdfast_ingest_messages_total{outcome=\"acknowledged\"} 2",
            "holdfast_stage_seconds_bucket{stage=\"fsync\",le=\"0.005\"} 1",
            "holdfast_stage_seconds_bucket{stage=\"fsync\",le=\"0.0025\"} 0",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        for name in text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        {
            assert!(find(name).is_some(), "{name} is not in the table");
        }
    }
}
