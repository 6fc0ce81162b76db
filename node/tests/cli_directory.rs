//! The files of a local cluster: the shape that tools outside rely on, who may read them, and that
//! the nodes accept what was written for them.
#![allow(clippy::disallowed_methods)] // real files and processes

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{eventually, holdfast, holdfast_with, run, text};
use node::cli::cluster::{look, running, Directory, Plan};
use serde_json::Value;

fn made(path: &Path, nodes: u16) -> Directory {
    let plan = Plan {
        nodes,
        base_port: 18_830,
        shards: 16,
    };
    let directory = Directory::design(path, plan).expect("a plan");
    let _lock = Directory::lock(path).expect("free");
    directory.save().expect("saved");
    directory.write_node_files().expect("written");
    directory
}

#[test]
fn cluster_json_has_the_shape_that_others_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    made(&path, 3);
    let file = path.join("cluster.json");
    let read: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    assert_eq!(
        (&read["shards"], &read["replication"]),
        (&Value::from(16), &Value::from(3))
    );
    assert!(read["token"].as_str().is_some_and(|token| token.len() >= 32));
    let second = &read["nodes"][1];
    let below = |name: &str| Value::from(path.join("node-2").join(name).to_str());
    for (key, expected) in [
        ("id", Value::from(2)),
        ("pid", Value::Null),
        ("mqtt", Value::from("127.0.0.1:18840")),
        ("http", Value::from("127.0.0.1:18841")),
        ("peer", Value::from("127.0.0.1:18842")),
        ("ws", Value::from("127.0.0.1:18843")),
        ("dir", Value::from(path.join("node-2").to_str())),
        ("config", below("node.toml")),
        ("log", below("node.log")),
    ] {
        assert_eq!(second[key], expected, "{key}");
    }
    assert_eq!(read["nodes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn secrets_are_for_their_owner_only() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    made(&path, 2);
    for name in [
        "cluster.json",
        "secret",
        "token",
        "node-1/node.toml",
        "node-2/node.toml",
    ] {
        let mode = fs::metadata(path.join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn the_nodes_accept_their_files_and_agree() {
    for (nodes, replication) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)] {
        let dir = tempfile::tempdir().expect("temp dir");
        let directory = made(&dir.path().join("c"), nodes);
        assert_eq!(directory.file.replication, replication, "{nodes} nodes");
        for node in &directory.file.nodes {
            let file = fs::read_to_string(&node.config).expect("read");
            let (config, _) = node::config::parse(&node.config, &file, BTreeMap::new()).expect("accepted");
            assert_eq!(config.node.id, Some(node.id));
            assert_eq!(config.cluster.id, directory.file.cluster_id);
            assert_eq!(config.cluster.members.len(), usize::from(nodes));
            assert_eq!(config.security.operator_token.0, directory.file.token.as_bytes());
            assert_eq!((config.listen.mqtt, config.listen.peer), (node.mqtt, node.peer));
            assert_eq!(config.node.data_dir, node.data_dir());
            assert!(config.devices.auto_register);
        }
    }
}

#[test]
fn what_an_operator_edited_stays_and_a_lost_secret_is_not_invented() {
    let dir = tempfile::tempdir().expect("temp dir");
    let directory = made(&dir.path().join("c"), 1);
    let config = &directory.file.nodes[0].config;
    fs::write(config, "# mine").expect("written");
    directory.write_node_files().expect("written");
    assert_eq!(fs::read_to_string(config).expect("read"), "# mine");
    fs::create_dir(directory.file.nodes[0].data_dir()).expect("the node was started once");
    fs::remove_file(directory.path.join("secret")).expect("removed");
    let refused = directory.write_node_files().expect_err("refused");
    assert!(refused.to_string().contains("secret is gone"), "{refused}");
}

#[test]
fn nodes_ports_and_shards_are_fixed_once_made() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    made(&path, 3);
    for (option, value) in [("--nodes", "5"), ("--base-port", "20000"), ("--shards", "8")] {
        let ended = holdfast_with(&["cluster", "up", "--dir", text(&path), option, value]);
        ended.with(65, &[option, "fixed when a cluster is made"]);
    }
}

#[test]
fn two_commands_do_not_work_on_one_directory_at_once() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    made(&path, 1);
    let _lock = Directory::lock(&path).expect("free");
    holdfast_with(&["cluster", "up", "--dir", text(&path)]).with(69, &["is being worked on"]);
    holdfast_with(&["cluster", "down", "--dir", text(&path)]).with(69, &["is being worked on"]);
}

#[test]
fn a_stopped_cluster_is_reported_as_such() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    made(&path, 3);
    let ended = holdfast_with(&["cluster", "status", "--dir", text(&path), "--output", "json"]).with(69, &[]);
    let status: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(status["healthy"], false);
    assert_eq!(status["nodes"][0]["state"], "stopped");
    let worries = status["worries"].to_string();
    assert!(worries.contains("holdfast cluster start 1 --dir"), "{worries}");
    holdfast_with(&["cluster", "stop", "1", "--dir", text(&path)]).with(0, &[]);
    holdfast_with(&["cluster", "down", "--dir", text(&path)]).with(0, &[]);
    holdfast_with(&["cluster", "stop", "4", "--dir", text(&path)]).with(64, &["there is no node 4", "1, 2, 3"]);
}

/// A process in place of node 1, as `cluster.json` would name it.
fn stand_in(directory: &mut Directory, program: &str, arguments: &[&str]) -> std::process::Child {
    let child = std::process::Command::new(program)
        .args(arguments)
        .spawn()
        .expect("started");
    let process = look(child.id()).expect("it runs");
    directory
        .record_process(1, Some((process.pid, process.started)))
        .expect("saved");
    child
}

fn recorded_pid(path: &Path) -> Option<u32> {
    Directory::open(path).expect("a cluster").file.nodes[0].pid
}

#[test]
fn stopping_a_node_ends_its_process_and_forgets_it() {
    for command in [&["stop", "1"][..], &["down"]] {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("c");
        let mut directory = made(&path, 1);
        let mut child = stand_in(&mut directory, "sleep", &["600"]);
        let ended = run(holdfast().arg("cluster").args(command).args(["--dir", text(&path)]));
        ended.with(0, &[]);
        assert!(!child.wait().expect("ended").success(), "by a signal");
        assert_eq!(recorded_pid(&path), None);
    }
}

#[test]
fn a_paused_node_is_stopped_too() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    let mut directory = made(&path, 1);
    let mut child = stand_in(&mut directory, "sleep", &["600"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("paused");
    holdfast_with(&["cluster", "stop", "1", "--dir", text(&path)]).with(0, &[]);
    assert!(!child.wait().expect("ended").success());
}

/// A pid of `cluster.json` may belong to somebody else by now: the start time tells.
#[test]
fn a_stranger_with_the_pid_of_a_node_is_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    let mut directory = made(&path, 1);
    let mut stranger = stand_in(&mut directory, "sleep", &["600"]);
    let process = look(stranger.id()).expect("it runs");
    directory
        .record_process(1, Some((process.pid, process.started - 1)))
        .expect("saved");
    let ended = holdfast_with(&["cluster", "stop", "1", "--dir", text(&path)]).with(0, &[]);
    assert!(ended.stdout.contains("does not run"), "{}", ended.stdout);
    holdfast_with(&["cluster", "down", "--dir", text(&path)]).with(0, &[]);
    assert!(look(process.pid).is_some(), "still there");
    stranger.kill().and_then(|()| stranger.wait()).expect("ended");
}

#[test]
fn a_running_node_is_not_started_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("c");
    let mut directory = made(&path, 1);
    let mut child = stand_in(&mut directory, "sleep", &["600"]);
    let ended = holdfast_with(&["cluster", "start", "1", "--dir", text(&path)]).with(0, &[]);
    assert!(
        ended.stdout.contains(&format!("runs already (pid {})", child.id())),
        "{}",
        ended.stdout
    );
    child.kill().and_then(|()| child.wait()).expect("ended");
}

/// `cluster.json` may have lost the pid (a crash between start and write): the lock tells.
#[test]
fn a_node_that_cluster_json_does_not_know_of_is_found_by_its_lock() {
    let dir = tempfile::tempdir().expect("temp dir");
    let directory = made(&dir.path().join("c"), 1);
    let node = &directory.file.nodes[0];
    assert_eq!(running(node), None);
    fs::create_dir(node.data_dir()).expect("made");
    let lock = node::serve::lock::take(&node.data_dir()).expect("free");
    assert_eq!(running(node).map(|found| found.pid), Some(std::process::id()));
    drop(lock);
    // A process that another test forks just now holds a copy of the lock until it has started.
    eventually(|| running(node).is_none());
}
