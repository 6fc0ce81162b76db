//! The gateway's metrics: their names in one list, and one function per thing that is counted.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actors::time::Timestamp;
use metrics::{counter, gauge, histogram, Counter, Histogram};

use crate::observe::metrics::names::INGEST_MESSAGES;

/// `(name, kind, labels, meaning)`, for `docs/reference/metrics.md`.
pub const METRICS: &[(&str, &str, &str, &str)] = &[
    (CONNECTIONS, "gauge", "", "open MQTT connections"),
    (
        WAITING,
        "gauge",
        "",
        "connections and requests that wait for their turn: the shard has more to do than it can",
    ),
    (
        BUFFERED,
        "gauge",
        "",
        "bytes that MQTT connections buffer, against limits.buffer_bytes_max",
    ),
    (CONNECTS, "counter", "protocol, result", "CONNECT packets by outcome"),
    (ENDS, "counter", "reason", "connections ended after CONNACK, by reason"),
    (
        REJECTED,
        "counter",
        "reason",
        "connections closed before a CONNECT was decided",
    ),
    (
        VIOLATIONS,
        "counter",
        "reason",
        "what clients did against protocol or bounds",
    ),
    (
        WEBSOCKET_FAILURES,
        "counter",
        "reason",
        "WebSockets ended for what their frames were",
    ),
    (PUBLISHES, "counter", "qos", "PUBLISH packets received"),
    (
        PUBLISH_BYTES,
        "counter",
        "",
        "payload bytes of PUBLISH packets received",
    ),
    (PUBACKS, "counter", "reason", "answers to QoS 1 publishes"),
    (
        PUBLISHES_DROPPED,
        "counter",
        "reason",
        "QoS 0 publishes not carried out",
    ),
    (ACK_SECONDS, "histogram", "", "from a command's arrival to its answer"),
    (
        RESENDS,
        "counter",
        "reason",
        "times a connection went back and sent commands again",
    ),
    (DOWNLINKS, "counter", "kind", "PUBLISH packets sent to devices"),
    (DOWNLINKS_DROPPED, "counter", "reason", "downlinks not sent"),
    (
        CHILDREN,
        "gauge",
        "",
        "children that connections of gateway devices act for",
    ),
    (
        CHILDREN_REFUSED,
        "counter",
        "",
        "times a connection wanted to act for a device it may not act for",
    ),
    (
        METHOD_ANSWERS_IGNORED,
        "counter",
        "reason",
        "answers to method calls that nobody waits for: late, or unknown to the session",
    ),
    (
        MESSAGE_SECONDS,
        "histogram",
        "",
        "from a message being queued to its first PUBLISH being written",
    ),
    (
        CLOSES_PENDING,
        "gauge",
        "",
        "ended sessions whose end is not committed yet",
    ),
    (
        CLOSES_DROPPED,
        "counter",
        "",
        "ended sessions given up; presence shows them until the next CONNECT",
    ),
];

const CONNECTIONS: &str = "holdfast_mqtt_connections";
const WAITING: &str = "holdfast_mqtt_connections_waiting";
const BUFFERED: &str = "holdfast_mqtt_buffered_bytes";
const CONNECTS: &str = "holdfast_mqtt_connects_total";
const ENDS: &str = "holdfast_mqtt_ends_total";
const REJECTED: &str = "holdfast_mqtt_rejected_total";
const VIOLATIONS: &str = "holdfast_mqtt_violations_total";
const WEBSOCKET_FAILURES: &str = "holdfast_mqtt_websocket_failures_total";
const PUBLISHES: &str = "holdfast_mqtt_publishes_total";
const PUBLISH_BYTES: &str = "holdfast_mqtt_publish_bytes_total";
const PUBACKS: &str = "holdfast_mqtt_pubacks_total";
const PUBLISHES_DROPPED: &str = "holdfast_mqtt_publishes_dropped_total";
const ACK_SECONDS: &str = "holdfast_mqtt_ack_seconds";
const RESENDS: &str = "holdfast_mqtt_resends_total";
const DOWNLINKS: &str = "holdfast_mqtt_downlinks_total";
const DOWNLINKS_DROPPED: &str = "holdfast_mqtt_downlinks_dropped_total";
const CHILDREN: &str = "holdfast_mqtt_children";
const CHILDREN_REFUSED: &str = "holdfast_mqtt_children_refused_total";
const METHOD_ANSWERS_IGNORED: &str = "holdfast_mqtt_method_answers_ignored_total";
const MESSAGE_SECONDS: &str = "holdfast_mqtt_message_seconds";
const CLOSES_PENDING: &str = "holdfast_mqtt_closes_pending";
const CLOSES_DROPPED: &str = "holdfast_mqtt_closes_dropped_total";

/// What is counted with every message, looked up once: finding a metric by its labels costs more
/// than counting.
struct EveryMessage {
    admission_seconds: Histogram,
    ack_seconds: Histogram,
    publishes: [Counter; 2],
    publish_bytes: Counter,
    succeeded: Counter,
    acknowledged: Counter,
}

static EVERY_MESSAGE: LazyLock<EveryMessage> = LazyLock::new(|| EveryMessage {
    admission_seconds: histogram!("holdfast_stage_seconds", "stage" => "admission"),
    ack_seconds: histogram!(ACK_SECONDS),
    publishes: ["0", "1"].map(|qos| counter!(PUBLISHES, "qos" => qos)),
    publish_bytes: counter!(PUBLISH_BYTES),
    succeeded: counter!(PUBACKS, "reason" => SUCCESS),
    acknowledged: counter!(INGEST_MESSAGES, "outcome" => ACKNOWLEDGED),
});

/// The usual reason of a PUBACK.
pub(super) const SUCCESS: &str = "success";
/// The usual outcome of a message.
pub(super) const ACKNOWLEDGED: &str = "acknowledged";

/// What is waiting now.
pub(super) fn load(waiting: usize, buffered: usize) {
    gauge!(WAITING).set(waiting as f64);
    gauge!(BUFFERED).set(buffered as f64);
}

/// From the bytes of a turn being at hand to its last command being on its way.
pub(super) fn admitted(after: Duration) {
    EVERY_MESSAGE.admission_seconds.record(after.as_secs_f64());
}

pub(super) fn connection_opened() {
    gauge!(CONNECTIONS).increment(1.0);
}

pub(super) fn connection_closed() {
    gauge!(CONNECTIONS).decrement(1.0);
}

pub(super) fn connect(protocol: &'static str, result: &'static str) {
    counter!(CONNECTS, "protocol" => protocol, "result" => result).increment(1);
}

pub(super) fn ended(reason: &'static str) {
    counter!(ENDS, "reason" => reason).increment(1);
}

pub(super) fn rejected(reason: &'static str) {
    counter!(REJECTED, "reason" => reason).increment(1);
}

pub(super) fn websocket_failed(reason: &'static str) {
    counter!(WEBSOCKET_FAILURES, "reason" => reason).increment(1);
}

pub(super) fn violation(reason: &'static str) {
    counter!(VIOLATIONS, "reason" => reason).increment(1);
}

pub(super) fn publish(at_least_once: bool, bytes: usize) {
    EVERY_MESSAGE.publishes[usize::from(at_least_once)].increment(1);
    EVERY_MESSAGE.publish_bytes.increment(bytes as u64);
}

pub(super) fn puback(reason: &'static str) {
    match reason {
        SUCCESS => EVERY_MESSAGE.succeeded.increment(1),
        reason => counter!(PUBACKS, "reason" => reason).increment(1),
    }
}

pub(super) fn ingested(outcome: Option<&'static str>) {
    match outcome {
        Some(ACKNOWLEDGED) => EVERY_MESSAGE.acknowledged.increment(1),
        Some(outcome) => counter!(INGEST_MESSAGES, "outcome" => outcome).increment(1),
        None => {}
    }
}

pub(super) fn publish_dropped(reason: &'static str) {
    counter!(PUBLISHES_DROPPED, "reason" => reason).increment(1);
}

pub(super) fn answered(after: Duration) {
    EVERY_MESSAGE.ack_seconds.record(after.as_secs_f64());
}

pub(super) fn resend(reason: &'static str) {
    counter!(RESENDS, "reason" => reason).increment(1);
}

pub(super) fn downlink(kind: &'static str) {
    counter!(DOWNLINKS, "kind" => kind).increment(1);
}

pub(super) fn downlink_dropped(reason: &'static str) {
    counter!(DOWNLINKS_DROPPED, "reason" => reason).increment(1);
}

pub(super) fn child_lane_opened() {
    gauge!(CHILDREN).increment(1.0);
}

pub(super) fn child_lane_closed() {
    gauge!(CHILDREN).decrement(1.0);
}

pub(super) fn child_refused() {
    counter!(CHILDREN_REFUSED).increment(1);
}

pub(super) fn method_answer_ignored(reason: &'static str) {
    counter!(METHOD_ANSWERS_IGNORED, "reason" => reason).increment(1);
}

/// A message of the queue was put into the write buffer, or was too large for the client.
pub(super) fn message_sent(sent: bool, enqueued_at: Timestamp, resent: bool) {
    if !sent {
        return downlink_dropped("packet_too_large");
    }
    downlink("message");
    if !resent {
        let waited_ms = wall_clock_ms().saturating_sub(enqueued_at.0);
        histogram!(MESSAGE_SECONDS).record(Duration::from_millis(waited_ms).as_secs_f64());
    }
}

/// Milliseconds since 1970.
pub(super) fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn closes_pending(pending: usize) {
    gauge!(CLOSES_PENDING).set(pending as f64);
}

pub(super) fn close_dropped() {
    counter!(CLOSES_DROPPED).increment(1);
}
