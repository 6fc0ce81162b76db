//! What a node knows of itself and its machine, for a support bundle and for whoever is called.

use std::path::Path;
use std::time::SystemTime;

use serde_json::{json, Map, Value};
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

use super::control::Control;
use crate::observe::process;

/// Files of a data directory that are counted; beyond, the sum is a lower bound.
const FILES_MAX: usize = 100_000;

/// Blocks: asks the file system and RocksDB.
pub fn gather(control: &Control) -> Value {
    let config = control.start();
    let figures = process::read();
    let data_dir = &config.node.data_dir;
    let (log, state) = match control.cluster.get().map(cluster::Cluster::store_properties) {
        Some([log, state]) => (object(log), object(state)),
        None => (Value::Null, Value::Null),
    };
    json!({
        "id": control.cluster.get().map(|cluster| cluster.gateway().node).or(config.node.id),
        "zone": config.node.zone,
        "cluster_id": config.cluster.id,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "started_at": stamp(control.started),
        "uptime_secs": control.since.elapsed().as_secs(),
        "config_file": config.file,
        "process": {
            "resident_bytes": figures.resident_bytes,
            "cpu_seconds": figures.cpu_seconds,
            "open_fds": figures.open_fds,
            "open_fds_max": open_files(),
            "threads": figures.threads,
        },
        "machine": machine(),
        "disk": disk(data_dir),
        "storage": { "log": log, "state": state },
    })
}

fn object(properties: Vec<(&'static str, String)>) -> Value {
    let number = |text: String| text.parse::<u64>().map_or(Value::String(text), Value::from);
    let members = properties
        .into_iter()
        .map(|(name, text)| (name.to_owned(), number(text)));
    Value::Object(members.collect::<Map<_, _>>())
}

/// What is true of the machine, whichever node runs on it. What cannot be read is null.
pub fn machine() -> Value {
    let line = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let memory = line("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
            .map(|kib| kib * 1024)
    };
    let system = line("/etc/os-release").and_then(|text| {
        let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches('"').to_owned())
    });
    json!({
        "os": system,
        "kernel": line("/proc/sys/kernel/osrelease"),
        "arch": std::env::consts::ARCH,
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "memory_bytes": field("MemTotal:"),
        "memory_available_bytes": field("MemAvailable:"),
        "load": line("/proc/loadavg"),
        "pressure_io": line("/proc/pressure/io"),
    })
}

/// Size and free bytes of a directory's disk, and what lies in the directory.
pub fn disk(dir: &Path) -> Value {
    let disk = nix::sys::statvfs::statvfs(dir).ok();
    let bytes =
        |blocks: fn(&nix::sys::statvfs::Statvfs) -> u64| disk.map(|d| blocks(&d).saturating_mul(d.fragment_size()));
    let mut left = FILES_MAX;
    let part = |name: &str, left: &mut usize| used(&dir.join(name), left);
    json!({
        "dir": dir,
        "size_bytes": bytes(nix::sys::statvfs::Statvfs::blocks),
        "free_bytes": bytes(nix::sys::statvfs::Statvfs::blocks_available),
        "log_bytes": part("log", &mut left),
        "state_bytes": part("state", &mut left),
        "used_bytes": used(dir, &mut FILES_MAX.clone()),
    })
}

/// Bytes below a directory, as far as it can be read.
fn used(dir: &Path, left: &mut usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        bytes += match entry.metadata() {
            Ok(found) if found.is_dir() => used(&entry.path(), left),
            Ok(found) => found.len(),
            // Compaction removed it meanwhile.
            Err(_) => 0,
        };
    }
    bytes
}

fn open_files() -> Option<u64> {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(soft, _)| soft)
}

pub fn stamp(at: SystemTime) -> Option<String> {
    let at = OffsetDateTime::from(at).replace_millisecond(0).ok()?;
    at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_and_a_disk_are_described() {
        let machine = machine();
        assert!(machine["cpus"].as_u64().is_some_and(|cpus| cpus > 0), "{machine}");
        assert!(machine["memory_bytes"].as_u64() > machine["memory_available_bytes"].as_u64());
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir(dir.path().join("log")).expect("made");
        std::fs::write(dir.path().join("log/a"), [0; 1000]).expect("written");
        let disk = disk(dir.path());
        assert_eq!(
            (disk["log_bytes"].as_u64(), disk["state_bytes"].as_u64()),
            (Some(1000), Some(0))
        );
        assert!(disk["used_bytes"].as_u64() >= Some(1000) && disk["size_bytes"].as_u64() > disk["free_bytes"].as_u64());
    }
}
