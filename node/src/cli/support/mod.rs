//! `holdfast support-bundle`: one archive with what somebody needs who was not there.
//!
//! Takes what it can get: a node that is down, or does not answer, is described by what its
//! directory says, and what could not be collected is listed. Secrets never get in (`redact`).

mod archive;
mod collect;
mod redact;

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde_json::{json, Value};

use super::cluster::Directory;
use super::device::Target;
use super::failure::{Exit, Failure};
use super::output::{self, Output, Progress};
use archive::Archive;
use redact::Redactor;

/// Default and greatest size of one log.
const LOG_BYTES: u64 = 2 << 20;
const LOG_BYTES_MAX: u64 = 64 << 20;

const README: &str = "What is in this archive\n\
\n\
manifest.json        what was collected, when, with which version, and what could not be had and why\n\
machine.json         the machine that it was collected on\n\
status.txt, .json    `holdfast cluster status` (for a cluster in a directory)\n\
cluster.json         addresses and pids (for a cluster in a directory)\n\
nodes/ID/cluster.json      nodes and shards as this node sees them\n\
nodes/ID/node.json         its version, process, machine, disk, and what RocksDB says of itself\n\
nodes/ID/config.json       its configuration in force, every key with where its value comes from\n\
nodes/ID/metrics.txt       its figures at that moment, in the Prometheus text format\n\
nodes/ID/log-filter.json   its log filter\n\
nodes/ID/recent.log        the last lines it remembers itself\n\
nodes/ID/node.log          the end of its log file (for a cluster in a directory)\n\
nodes/ID/process/          what the kernel says of its process (as above)\n\
nodes/ID/disk.json         its data directory (as above)\n\
nodes/ID/rocksdb/          the end of RocksDB's own logs (as above)\n\
\n\
Tokens and secrets are replaced by [redacted]. Logs may name devices; no telemetry and no twin is in here.\n";

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast support-bundle --dir /tmp/hf",
    after_long_help = "Examples:\n  holdfast support-bundle --dir /tmp/hf\n  holdfast support-bundle --url http://127.0.0.1:8080 --token \"$TOKEN\" --file incident-17.tar.gz\n\nWith --url the other nodes are found through the first one and asked with the same token; what\nonly their machines know (log files, process, disk) is not collected then.\n\nNodes that are down are no obstacle: what could not be collected is said, and listed in\nmanifest.json. Tokens and secrets are left out. Bounds: 8 MiB per document, --log-bytes per log,\n256 MiB together before compression.\n\nExit codes: 0 the archive is written, also when something is missing in it; 65 the file exists;\n69 --url: the node does not answer; 74 the archive cannot be written."
)]
pub struct SupportArgs {
    /// Where the archive goes [default: ./holdfast-support-TIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// At most so many bytes of each log, from its end
    #[arg(long, value_name = "BYTES", default_value_t = LOG_BYTES, value_parser = clap::value_parser!(u64).range(0..=LOG_BYTES_MAX))]
    log_bytes: u64,
    #[command(flatten)]
    target: Target,
}

/// # Errors
/// The archive could not be written, or there is nothing to collect from.
pub async fn run(args: SupportArgs, output: Output) -> Result<(), Failure> {
    let now = SystemTime::now();
    let stamp = crate::serve::facts::stamp(now).unwrap_or_default();
    let name = format!("holdfast-support-{}", stamp.replace([':', '-'], ""));
    let file = args.file.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    let sources = sources(&args).await?;
    let mut archive = Archive::create(&file, &name, sources.redactor())?;
    let mut progress = Progress::new();
    archive.add("README.txt", README.as_bytes())?;
    archive.json("machine.json", &crate::serve::facts::machine())?;
    collect::all(&sources, args.log_bytes, &mut archive, &mut progress).await?;
    let about =
        json!({ "created_at": stamp, "holdfast": env!("CARGO_PKG_VERSION"), "collected_from": sources.origin() });
    let done = archive.finish(about)?;
    drop(progress);
    report(output, &done);
    Ok(())
}

/// Where everything comes from.
pub struct Sources {
    directory: Option<Directory>,
    /// Name, address of the HTTP API.
    nodes: Vec<(String, String)>,
    token: String,
}

impl Sources {
    fn origin(&self) -> Value {
        match &self.directory {
            Some(directory) => json!({ "dir": directory.path }),
            None => json!({ "url": self.nodes.first().map(|(_, url)| url) }),
        }
    }

    fn redactor(&self) -> Redactor {
        let mut redactor = Redactor::of_environment();
        redactor.hide(&self.token);
        if let Some(directory) = &self.directory {
            redactor.hide(&directory.file.token);
            redactor.hide_secrets_of(&directory.path);
            for node in &directory.file.nodes {
                redactor.hide_configured(&node.config);
            }
        }
        redactor
    }
}

async fn sources(args: &SupportArgs) -> Result<Sources, Failure> {
    let target = &args.target;
    let Some(url) = &target.url else {
        let directory = Directory::open(&target.dir)?;
        let node = |node: &super::cluster::NodeEntry| (node.id.to_string(), format!("http://{}", node.http));
        return Ok(Sources {
            nodes: directory.file.nodes.iter().map(node).collect(),
            token: target.token.clone().unwrap_or_else(|| directory.file.token.clone()),
            directory: Some(directory),
        });
    };
    // The first answer tells of the others; without it there is nothing to collect.
    let view = super::device::client(target)?.get("/api/v1/cluster").await?.body;
    let answered_by = view["answered_by"].as_u64();
    let node = |node: &Value| {
        let id = node["id"].as_u64()?;
        let address = match answered_by == Some(id) {
            true => url.trim_end_matches('/').to_owned(),
            false => format!("http://{}", node["http"].as_str()?),
        };
        Some((id.to_string(), address))
    };
    let nodes = view["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(Sources {
        directory: None,
        nodes: nodes.iter().filter_map(node).collect(),
        token: target.token.clone().unwrap_or_default(),
    })
}

fn report(output: Output, done: &archive::Done) {
    if output == Output::Json {
        return output::json(&json!({
            "file": done.file, "bytes": done.bytes, "files": done.files, "missing": done.missing,
        }));
    }
    output::line(&format!(
        "{} ({} files, {} KiB; tokens and secrets are left out)",
        done.file.display(),
        done.files,
        done.bytes.div_ceil(1024)
    ));
    for missing in &done.missing {
        output::warn(&format!(
            "not collected: {} ({})",
            missing["what"].as_str().unwrap_or_default(),
            missing["why"].as_str().unwrap_or_default()
        ));
    }
}

/// A file that is there already is somebody's.
fn taken(file: &std::path::Path) -> Failure {
    Failure::new(Exit::BadInput, format!("{} exists", file.display())).advise("name another --file, or remove it")
}
