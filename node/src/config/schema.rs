//! Every key, its type, its default and its range. Mirrors `deploy/config/node.toml`.
//!
//! Ranges of one key are here; what two keys say about each other is in [`super::check`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actors::device::Policy;

use super::reader::Reader;
use super::{
    members, messages, security, Chaos, ClusterSection, Devices, Limits, Listen, Log, Node, NodeConfig, Raft,
    Retention, Storage,
};
use crate::observe::logs::LogFormat;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DAY: u64 = 24 * 3600;

/// Reads every key. Where one is refused, its default stands in, so that all problems of a file
/// are found in one go.
pub fn read(reader: &mut Reader<'_>, file: &Path) -> NodeConfig {
    let directory = file.parent().unwrap_or(Path::new("")).to_owned();
    NodeConfig {
        file: file.to_owned(),
        node: node(reader, &directory),
        cluster: cluster(reader, &directory),
        listen: listen(reader),
        limits: limits(reader),
        retention: Retention {
            telemetry_age: reader.duration("retention", "telemetry_age", secs(30 * DAY), secs(1)..=secs(3650 * DAY)),
            telemetry_count: reader.integer(
                "retention",
                "telemetry_count",
                Some(Policy::default().telemetry_count_max),
                1..=1 << 40,
            ),
        },
        raft: Raft {
            heartbeat: millis(reader.integer("raft", "heartbeat_ms", Some(100), 10..=10_000)),
            election_min: millis(reader.integer("raft", "election_min_ms", Some(400), 50..=60_000)),
            election_max: millis(reader.integer("raft", "election_max_ms", Some(600), 60..=120_000)),
        },
        storage: Storage {
            block_cache_bytes: size(reader, "storage", "block_cache_bytes", 128 * MIB, MIB, 1 << 40),
            flush_interval: reader.duration("storage", "flush_interval", secs(30), secs(1)..=secs(600)),
            scrub_interval: reader.duration("storage", "scrub_interval", secs(DAY), secs(60)..=secs(30 * DAY)),
            unsafe_skip_log_fsync: reader.boolean("storage", "unsafe_skip_log_fsync", false),
            unsafe_skip_vote_fsync: reader.boolean("storage", "unsafe_skip_vote_fsync", false),
        },
        messages: messages::read(reader),
        security: security::read(reader, &directory),
        log: log(reader),
        devices: Devices {
            auto_register: reader.boolean("devices", "auto_register", false),
        },
        chaos: Chaos {
            allow_drills: reader.boolean("chaos", "allow_drills", false),
        },
        settings: Vec::new(),
    }
}

fn node(reader: &mut Reader<'_>, directory: &Path) -> Node {
    let id = reader.optional_integer("node", "id", 1..=u64::from(u32::MAX));
    let data_dir = directory.join(reader.text("node", "data_dir"));
    let zone = reader.text_or("node", "zone", "zone-1");
    check_name(reader, "node", "zone", &zone);
    let workers = match size(reader, "node", "workers", 0, 0, 256) {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(256),
        workers => workers,
    };
    Node {
        id,
        data_dir,
        zone,
        workers,
        stop_deadline: reader.duration("node", "stop_deadline", secs(10), secs(1)..=secs(600)),
    }
}

fn cluster(reader: &mut Reader<'_>, directory: &Path) -> ClusterSection {
    let id = reader.text("cluster", "id");
    check_name(reader, "cluster", "id", &id);
    let secret = security::secret(reader, "cluster", "secret", "secret_file", directory);
    let join = join(reader);
    // A node that joins is told of the others.
    let members = if join.is_empty() {
        members::read(reader)
    } else {
        members::none(reader)
    };
    ClusterSection {
        join_token: security::optional_secret(reader, "cluster", "join_token", "join_token_file", directory),
        join,
        id,
        secret,
        members,
        shards: size(reader, "cluster", "shards", 64, 1, 1024) as u16,
        replication: size(reader, "cluster", "replication", 3, 1, 7) as u8,
    }
}

/// HTTP addresses of nodes that may let this one in.
fn join(reader: &mut Reader<'_>) -> Vec<SocketAddr> {
    let texts = reader.texts("cluster", "join");
    let mut addresses = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                let reason = format!("{text:?} is no address; write IP:PORT, such as \"127.0.0.1:8080\"");
                reader.refuse("cluster", "join", reason);
            }
        }
    }
    addresses
}

fn listen(reader: &mut Reader<'_>) -> Listen {
    Listen {
        mqtt: address(reader, "mqtt", "127.0.0.1:1883"),
        http: address(reader, "http", "127.0.0.1:8080"),
        peer: address(reader, "peer", "127.0.0.1:7400"),
        ws: optional_address(reader, "ws", "127.0.0.1:8083"),
        ws_origins: origins(reader),
    }
}

fn limits(reader: &mut Reader<'_>) -> Limits {
    let policy = Policy::default();
    let section = "limits";
    let mut count = |name, default: usize, low, high| size(reader, section, name, default as u64, low, high);
    let connections_max = count("connections_max", 18_000, 1, 1_000_000);
    let packet_bytes_max = count("packet_bytes_max", 256 * KIB as usize, 1024, 16 * MIB);
    let receive_maximum = count("receive_maximum", policy.packet_ids_max, 1, 65_535) as u16;
    let gateway_children_max = count("gateway_children_max", 1_000, 1, 65_536);
    let memory_bytes_max = count("memory_bytes_max", 4096 * MIB as usize, 256 * MIB, 1 << 44);
    let inflight_bytes_max = count("inflight_bytes_max", 256 * MIB as usize, MIB, 1 << 36);
    let buffer_bytes_max = count("buffer_bytes_max", 256 * MIB as usize, MIB, 1 << 36);
    let http_body_bytes_max = count("http_body_bytes_max", 256 * KIB as usize, 1024, 2 * MIB);
    let http_answer_bytes_max = count("http_answer_bytes_max", 128 * MIB as usize, 16 * MIB, 1 << 36);
    let http_connections_max = count("http_connections_max", 1024, 8, 65_536);
    let event_subscribers_max = count("event_subscribers_max", 128, 1, 10_000);
    let shard_queue_max = count("shard_queue_max", 10_000, 1, 1_000_000);
    let active_devices_max = count("active_devices_max", 100_000, 1, 10_000_000);
    let tags_bytes_max = count("tags_bytes_max", policy.tags_bytes_max, 2, MIB);
    let section_bytes_max = count("section_bytes_max", policy.section_bytes_max, 2, MIB);
    let twin_depth_max = count("twin_depth_max", policy.twin_depth_max, 1, 64);
    let message_ids_max = count("message_ids_max", policy.message_ids_max, 1, 4096);
    let packet_ids_max = count("packet_ids_max", policy.packet_ids_max, 1, 4096);
    let subscriptions_max = count("subscriptions_max", policy.subscriptions_max, 1, 1024);
    let mut time = |name, default, low, high| reader.duration(section, name, default, low..=high);
    Limits {
        connections_max,
        connect_timeout: time("connect_timeout", secs(5), millis(100), secs(300)),
        packet_bytes_max,
        receive_maximum,
        gateway_children_max,
        inflight_bytes_max,
        buffer_bytes_max,
        slow_reader_timeout: time("slow_reader_timeout", secs(30), secs(1), secs(3600)),
        memory_bytes_max: memory_bytes_max as u64,
        http_body_bytes_max,
        http_answer_bytes_max,
        http_connections_max,
        event_subscribers_max,
        http_request_deadline: time("http_request_deadline", secs(10), millis(100), secs(60)),
        shard_queue_max,
        active_devices_max,
        passivate_after: time("passivate_after", secs(300), millis(100), secs(DAY)),
        gateway_grace: time("gateway_grace", secs(10), secs(1), secs(3600)),
        session_expiry_max: time(
            "session_expiry_max",
            secs(u64::from(policy.session_expiry_secs_max)),
            secs(1),
            secs(365 * DAY),
        ),
        tags_bytes_max,
        section_bytes_max,
        twin_depth_max,
        message_ids_max,
        packet_ids_max,
        subscriptions_max,
    }
}

fn log(reader: &mut Reader<'_>) -> Log {
    let filter = reader.text_or("log", "filter", "info,openraft=error");
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&filter) {
        reader.refuse("log", "filter", format!("{filter:?} is no log filter: {error}"));
    }
    let text = reader.text_or("log", "format", "text");
    let format = text.parse().unwrap_or_else(|_| {
        reader.refuse(
            "log",
            "format",
            format!("{text:?} is unknown, \"text\" or \"json\" is allowed"),
        );
        LogFormat::Text
    });
    Log { filter, format }
}

/// Reads a number that fits the machine's memory.
pub(super) fn size(
    reader: &mut Reader<'_>,
    section: &'static str,
    name: &'static str,
    default: u64,
    low: u64,
    high: u64,
) -> usize {
    let number = reader.integer(section, name, Some(default), low..=high);
    usize::try_from(number).expect("ranges stay below the address space")
}

fn address(reader: &mut Reader<'_>, name: &'static str, default: &str) -> SocketAddr {
    let text = reader.text_or("listen", name, default);
    text.parse().unwrap_or_else(|_| {
        let reason = format!("{text:?} is no address; write IP:PORT, such as \"{default}\"");
        reader.refuse("listen", name, reason);
        default.parse().expect("defaults are addresses")
    })
}

fn optional_address(reader: &mut Reader<'_>, name: &'static str, example: &str) -> Option<SocketAddr> {
    let text = reader.optional_text("listen", name)?;
    let address = text.parse().ok();
    if address.is_none() {
        let reason = format!("{text:?} is no address; write IP:PORT, such as \"{example}\"");
        reader.refuse("listen", name, reason);
    }
    address
}

/// Separated by commas.
fn origins(reader: &mut Reader<'_>) -> Vec<String> {
    let text = reader.optional_text("listen", "ws_origins").unwrap_or_default();
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let origins: Vec<String> = items.map(str::to_owned).collect();
    let odd = |origin: &&String| *origin != "*" && !(origin.contains("://") && !origin.ends_with('/'));
    if let Some(odd) = origins.iter().find(odd) {
        let reason = format!("{odd:?} is no origin; write SCHEME://HOST, such as \"https://app.example\", or \"*\"");
        reader.refuse("listen", "ws_origins", reason);
    }
    origins
}

/// Names end up in logs, metrics and file names: short, printable, without spaces.
fn check_name(reader: &mut Reader<'_>, section: &'static str, name: &'static str, text: &str) {
    let fine = text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !fine {
        reader.refuse(
            section,
            name,
            format!("{text:?} is no name; 1 to 64 letters, digits, - _ . are allowed"),
        );
    }
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A path of the file, relative to the file's directory.
pub fn resolve(directory: &Path, path: &str) -> PathBuf {
    directory.join(path)
}
