//! A local cluster of real processes through its commands: up, status, stop, start, drain, kill
//! everything, up again, down. What was acknowledged is there at the end.
#![allow(clippy::disallowed_methods)] // real processes

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use common::{free_base_port, holdfast, run, text, Ended};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

struct Local {
    // Declared before the directory: the nodes must be gone when it is removed.
    down: Down,
    dir: tempfile::TempDir,
}

/// Ends the nodes also when the test fails.
struct Down(std::path::PathBuf);

impl Drop for Down {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 1..=3 {
                let log = self.0.join(format!("node-{node}/node.log"));
                let log = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!(
                    "node {node} ends with\n{}",
                    lines[lines.len().saturating_sub(20)..].join("\n")
                );
            }
        }
        let _ = holdfast().args(["cluster", "down", "--dir", text(&self.0)]).output();
    }
}

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let down = Down(dir.path().join("c"));
        Self { down, dir }
    }

    fn path(&self) -> &Path {
        assert!(self.dir.path().exists());
        &self.down.0
    }

    fn cluster(&self, arguments: &[&str]) -> Ended {
        run(holdfast()
            .arg("cluster")
            .args(arguments)
            .args(["--dir", text(self.path())]))
    }

    fn device(&self, arguments: &[&str]) -> Ended {
        run(holdfast()
            .arg("device")
            .args(arguments)
            .args(["--dir", text(self.path())]))
    }

    fn pids(&self) -> Vec<Pid> {
        let file = fs::read(self.path().join("cluster.json")).expect("cluster.json");
        let file: Value = serde_json::from_slice(&file).expect("JSON");
        let nodes = file["nodes"].as_array().expect("nodes").iter();
        let pid = |node: &Value| node["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        nodes.filter_map(pid).map(Pid::from_raw).collect()
    }

    fn status(&self, code: i32) -> Value {
        let ended = self.cluster(&["status", "--output", "json"]).with(code, &[]);
        serde_json::from_str(&ended.stdout).expect("JSON")
    }
}

#[test]
fn a_cluster_lives_through_its_commands_and_keeps_what_it_acknowledged() {
    let local = Local::new();
    let (base, held) = free_base_port(30);
    drop(held);
    let base = base.to_string();
    local
        .cluster(&["up", "--nodes", "3", "--shards", "4", "--base-port", &base, "--detach"])
        .with(0, &[]);
    assert_eq!(local.status(0)["healthy"], true);
    local.device(&["create", "lamp"]).with(0, &[]);
    local
        .device(&["twin", "lamp", "--desired", r#"{"lit":true}"#])
        .with(0, &[]);

    local.cluster(&["drain", "2"]).with(0, &[]);
    let drained = local.status(0);
    assert_eq!(
        (&drained["nodes"][1]["state"], &drained["nodes"][1]["leads"]),
        (&"draining".into(), &0.into())
    );
    local.device(&["get", "lamp"]).with(0, &[]);
    local.cluster(&["undrain", "2"]).with(0, &[]);

    local.cluster(&["stop", "1"]).with(0, &[]);
    assert_eq!(local.pids().len(), 2);
    assert_eq!(local.status(69)["nodes"][0]["state"], "stopped");
    local.device(&["get", "lamp"]).with(0, &[]);
    local.cluster(&["start", "1"]).with(0, &[]);
    assert_eq!(local.pids().len(), 3);

    for pid in local.pids() {
        kill(pid, Signal::SIGKILL).expect("killed");
    }
    local.cluster(&["up", "--detach"]).with(0, &[]);
    let twin = local.device(&["twin", "lamp", "--output", "json"]).with(0, &[]);
    let twin: Value = serde_json::from_str(&twin.stdout).expect("JSON");
    assert_eq!(twin["desired"]["lit"], true);

    let before = local.pids();
    local.cluster(&["up", "--detach"]).with(0, &[]);
    assert_eq!(local.pids(), before, "what runs is not started again");
    local.cluster(&["down"]).with(0, &[]);
    assert!(local.pids().is_empty());
    assert!(before.iter().all(|pid| !runs(*pid)), "no process is left");
}

#[test]
fn a_data_directory_of_another_node_or_cluster_is_refused() {
    let local = Local::new();
    let (base, held) = free_base_port(10);
    drop(held);
    local
        .cluster(&[
            "up",
            "--nodes",
            "1",
            "--shards",
            "1",
            "--base-port",
            &base.to_string(),
            "--detach",
        ])
        .with(0, &[]);
    local.cluster(&["down"]).with(0, &[]);
    let config = local.path().join("node-1/node.toml");
    let other = fs::read_to_string(&config)
        .expect("read")
        .replacen("[cluster]\nid = \"", "[cluster]\nid = \"x", 1);
    fs::write(&config, other).expect("written");
    local
        .cluster(&["start", "1"])
        .with(74, &["node 1 ended while it was started", "cluster"]);
}

/// One node without a directory: serves, says where, stops when asked, leaves nothing behind.
#[test]
fn dev_serves_at_once_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().expect("temp dir");
    let (base, held) = free_base_port(10);
    drop(held);
    let mut dev = holdfast()
        .args(["dev", "--base-port", &base.to_string()])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(dev.stdout.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("mosquitto_pub") && lines.read_line(&mut said).expect("readable") > 0 {}
    assert!(said.contains(&format!("mqtt://127.0.0.1:{base}")), "{said}");
    let data = fs::read_dir(temporary.path())
        .expect("listed")
        .next()
        .expect("its directory")
        .expect("entry")
        .path();
    run(holdfast().args(["device", "create", "d", "--dir", text(&data)])).with(0, &[]);
    let pid = Pid::from_raw(i32::try_from(dev.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("asked");
    lines.read_to_string(&mut said).expect("readable");
    assert_eq!(dev.wait().expect("ended").code(), Some(0));
    assert_eq!(fs::read_dir(temporary.path()).expect("listed").count(), 0);
}

fn runs(pid: Pid) -> bool {
    u32::try_from(pid.as_raw()).is_ok_and(|pid| node::cli::cluster::look(pid).is_some())
}
