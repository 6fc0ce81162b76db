//! Asks every node and looks into every directory. Whatever fails becomes an entry of what is
//! missing; only the archive itself may fail.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{json, Value};

use super::archive::Archive;
use super::Sources;
use crate::cli::cluster::{running, Directory, NodeEntry};
use crate::cli::failure::Failure;
use crate::cli::output::Progress;
use crate::config::{self, Setting};
use crate::serve::facts;

/// Bytes of one document that a node sends.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const FETCH_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of each of RocksDB's own logs.
const ROCKSDB_LOG_BYTES: u64 = 256 << 10;

/// What each node is asked for, and as which file it is kept.
const DOCUMENTS: [(&str, &str); 6] = [
    ("/api/v1/cluster", "cluster.json"),
    ("/api/v1/node", "node.json"),
    ("/api/v1/node/config", "config.json"),
    ("/api/v1/node/log", "log-filter.json"),
    ("/api/v1/node/log/lines", "recent.log"),
    ("/metrics", "metrics.txt"),
];

/// # Errors
/// The archive cannot be written.
pub async fn all(
    sources: &Sources,
    log_bytes: u64,
    archive: &mut Archive,
    progress: &mut Progress,
) -> Result<(), Failure> {
    if let Some(directory) = &sources.directory {
        progress.say("looking at the cluster");
        cluster(directory, archive)?;
    }
    progress.say("asking the nodes");
    let asked = sources.nodes.iter().map(|(id, url)| ask(id, url, &sources.token));
    for (id, answers) in futures::future::join_all(asked).await {
        let silent = answers.iter().all(|(_, answer)| answer.is_err());
        if let (true, Some((_, Err(why)))) = (silent, answers.first()) {
            archive.miss(&format!("everything that node {id} knows itself"), why);
            continue;
        }
        for (name, answer) in answers {
            let path = format!("nodes/{id}/{name}");
            match answer {
                Ok(bytes) if name.ends_with(".json") => archive.add(&path, &indented(&bytes))?,
                Ok(bytes) => archive.add(&path, &bytes)?,
                Err(why) => archive.miss(&path, why),
            }
        }
    }
    for node in sources.directory.iter().flat_map(|directory| &directory.file.nodes) {
        progress.say(&format!("looking into the directory of node {}", node.id));
        local(node, log_bytes, archive)?;
    }
    Ok(())
}

fn cluster(directory: &Directory, archive: &mut Archive) -> Result<(), Failure> {
    let mut file = serde_json::to_value(&directory.file).expect("plain data becomes JSON");
    file["token"] = "[redacted]".into();
    archive.json("cluster.json", &file)?;
    for (format, name) in [("table", "status.txt"), ("json", "status.json")] {
        // A program of its own, so that whatever `status` meets cannot end this one.
        match status(directory, format) {
            Ok(text) => archive.add(name, &text)?,
            Err(why) => archive.miss(name, why),
        }
    }
    Ok(())
}

fn status(directory: &Directory, format: &str) -> Result<Vec<u8>, std::io::Error> {
    let ended = Command::new(std::env::current_exe()?)
        .args(["cluster", "status", "--output", format, "--dir"])
        .arg(&directory.path)
        .stdin(Stdio::null())
        .output()?;
    Ok([ended.stdout, ended.stderr].concat())
}

type Answers = Vec<(&'static str, Result<Vec<u8>, String>)>;

/// One after the other: a node in trouble is not to be hurried.
async fn ask(id: &str, url: &str, token: &str) -> (String, Answers) {
    let mut answers = Answers::new();
    let client = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(CONNECT_DEADLINE)
        .timeout(FETCH_DEADLINE)
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return (id.to_owned(), vec![("client", Err(error.to_string()))]),
    };
    for (path, name) in DOCUMENTS {
        let answer = fetch(&client, &format!("{url}{path}"), token).await;
        // Who does not take connections would only be waited for again and again.
        let gone = answers.is_empty() && answer.is_err();
        answers.push((name, answer));
        if gone {
            break;
        }
    }
    (id.to_owned(), answers)
}

async fn fetch(client: &reqwest::Client, url: &str, token: &str) -> Result<Vec<u8>, String> {
    let said = |error: reqwest::Error| {
        let mut source: &dyn std::error::Error = &error;
        while let Some(inner) = source.source() {
            source = inner;
        }
        format!("{url}: {source}")
    };
    let mut response = client.get(url).bearer_auth(token).send().await.map_err(said)?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(said)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(format!("{url}: more than {DOCUMENT_BYTES_MAX} bytes"));
        }
    }
    match status.is_success() {
        true => Ok(bytes),
        false => Err(format!(
            "{url}: {status}: {}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
        )),
    }
}

fn indented(bytes: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => format!("{value:#}\n").into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

/// What this machine knows of a node, whether it runs or not.
fn local(node: &NodeEntry, log_bytes: u64, archive: &mut Archive) -> Result<(), Failure> {
    let at = |name: &str| format!("nodes/{}/{name}", node.id);
    tail_into(&node.log, log_bytes, &at("node.log"), archive)?;
    archive.json(&at("disk.json"), &facts::disk(&node.data_dir()))?;
    for store in ["log", "state"] {
        let own_log = node.data_dir().join(store).join("LOG");
        tail_into(
            &own_log,
            ROCKSDB_LOG_BYTES,
            &at(&format!("rocksdb/{store}.LOG")),
            archive,
        )?;
    }
    match running(node) {
        Some(process) => {
            for name in ["status", "limits", "io", "sched"] {
                match std::fs::read(format!("/proc/{}/{name}", process.pid)) {
                    Ok(bytes) => archive.add(&at(&format!("process/{name}")), &bytes)?,
                    Err(error) => archive.miss(&at(&format!("process/{name}")), error),
                }
            }
        }
        None => {
            archive.miss(&at("process/"), "the node does not run");
            // It cannot say itself with what it would run.
            let read = match config::load(&node.config) {
                Ok(config) => json!({ "settings": config.settings.iter().map(Setting::json).collect::<Vec<_>>() }),
                Err(error) => json!({ "refused": error.to_string() }),
            };
            archive.json(&at("config-file.json"), &read)?;
        }
    }
    Ok(())
}

fn tail_into(file: &Path, bytes_max: u64, path: &str, archive: &mut Archive) -> Result<(), Failure> {
    match tail(file, bytes_max) {
        Ok(bytes) => archive.add(path, &bytes),
        Err(error) => {
            archive.miss(path, format!("{}: {error}", file.display()));
            Ok(())
        }
    }
}

/// The last bytes of a file, from the beginning of a line. The whole cut line goes, so that no
/// half of a secret gets past the redactor.
fn tail(file: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(file)?;
    let from = file.metadata()?.len().saturating_sub(bytes_max);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    if from > 0 {
        let line = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(bytes.len(), |at| at + 1);
        bytes.drain(..line);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_holds_whole_lines() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("log");
        std::fs::write(&file, "first\nsecond\nthird\n").expect("written");
        assert_eq!(tail(&file, 100).expect("read"), b"first\nsecond\nthird\n");
        assert_eq!(tail(&file, 10).expect("read"), b"third\n");
        assert_eq!(tail(&file, 3).expect("read"), b"");
        assert_eq!(tail(&file, 0).expect("read"), b"");
        assert!(tail(&dir.path().join("gone"), 10).is_err());
    }
}
