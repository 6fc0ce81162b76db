//! How the real program ends when something is wrong: the exit code that scripts rely on, and
//! words that say what, why, and what to do.
#![allow(clippy::disallowed_methods)] // real processes

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use common::{free_base_port, holdfast, holdfast_with, run, text};

/// A node file that is accepted, with its data directory below `dir`.
fn node_toml(dir: &Path, port: u16) -> String {
    let (mqtt, http, peer) = (port, port + 1, port + 2);
    format!(
        "[node]\nid = 1\ndata_dir = \"{}\"\n[cluster]\nid = \"c\"\nsecret = \"0123456789abcdef\"\nshards = 2\n\
         replication = 1\nmembers = [{{ id = 1, peer = \"127.0.0.1:{peer}\", mqtt = \"127.0.0.1:{mqtt}\", http = \"127.0.0.1:{http}\" }}]\n\
         [listen]\nmqtt = \"127.0.0.1:{mqtt}\"\nhttp = \"127.0.0.1:{http}\"\npeer = \"127.0.0.1:{peer}\"\n\
         [security]\noperator_token = \"0123456789abcdef\"\n",
        text(dir)
    )
}

#[test]
fn a_mistyped_command_is_a_usage_error_with_a_suggestion() {
    holdfast_with(&["clustre", "up"]).with(64, &["similar subcommand exists: 'cluster'"]);
    holdfast_with(&["cluster", "up", "--node", "3"]).with(64, &["similar argument exists: '--nodes'"]);
    holdfast_with(&["cluster", "up", "--nodes", "0"]).with(64, &["1..=64"]);
    holdfast_with(&["device", "twin", "a", "--desired", "[1]"]).with(64, &["must be a JSON object"]);
    holdfast_with(&["node"]).with(64, &["--config"]);
    holdfast_with(&[]).with(64, &["Usage"]);
}

#[test]
fn help_is_an_answer_with_an_example() {
    for command in [
        &["--help"][..],
        &["cluster", "up", "--help"],
        &["node", "--help"],
        &["device", "twin", "--help"],
    ] {
        let ended = holdfast_with(command).with(0, &[]);
        assert!(ended.stdout.contains("Example"), "{command:?}: {}", ended.stdout);
    }
}

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("node.toml");
    fs::write(
        &file,
        node_toml(&dir.path().join("data"), 2000).replace("shards", "shrads"),
    )
    .expect("written");
    let place = format!("{}:7: cluster.shrads: unknown key; did you mean `shards`?", text(&file));
    holdfast_with(&["node", "--config", text(&file)]).with(65, &[&place, "what to do"]);
    holdfast_with(&["config", "check", text(&file)]).with(65, &[&place]);
    let ended = holdfast_with(&["config", "check", text(&file), "--output", "json"]).with(65, &[]);
    let answer: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(answer["accepted"], false);
    assert_eq!(answer["problems"][0]["line"], 7);
    assert!(!dir.path().join("data").exists(), "nothing was touched");
}

#[test]
fn an_override_is_named_like_a_key() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("node.toml");
    fs::write(&file, node_toml(&dir.path().join("data"), 2000)).expect("written");
    let mut command = holdfast();
    command.args(["config", "check", text(&file)]);
    run(&mut command).with(0, &[]);
    run(command.env("HOLDFAST_RAFT_HEARTBEAT_MS", "1")).with(65, &["HOLDFAST_RAFT_HEARTBEAT_MS", "10..=10000"]);
}

#[test]
fn a_missing_file_is_named() {
    holdfast_with(&["node", "--config", "/no/such/node.toml"]).with(65, &["/no/such/node.toml", "No such file"]);
}

#[test]
fn a_directory_that_cannot_be_made_is_a_disk_error() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("node.toml");
    let below_nothing = dir.path().join("missing/data");
    fs::write(&file, node_toml(&below_nothing, 2000)).expect("written");
    holdfast_with(&["node", "--config", text(&file)]).with(74, &[text(&below_nothing), "check the path"]);
    let below_a_file = file.join("data");
    fs::write(&file, node_toml(&below_a_file, 2000)).expect("written");
    holdfast_with(&["node", "--config", text(&file)]).with(74, &[text(&below_a_file)]);
}

#[test]
fn no_permission_is_a_disk_error() {
    let dir = tempfile::tempdir().expect("temp dir");
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    set_mode(dir.path(), 0o755);
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).expect("made");
    let file = dir.path().join("node.toml");
    fs::write(&file, node_toml(&locked.join("data"), 2000)).expect("written");
    set_mode(&file, 0o644);
    set_mode(&locked, 0o500);
    // Root may do everything, so that the program runs as nobody then, from where nobody can read it.
    let program = dir.path().join("holdfast");
    fs::copy(env!("CARGO_BIN_EXE_holdfast"), &program).expect("copied");
    set_mode(&program, 0o755);
    let as_user = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.args(arguments).env_clear();
        if nix::unistd::Uid::effective().is_root() {
            command.uid(65_534).gid(65_534);
        }
        run(&mut command)
    };
    as_user(&["node", "--config", text(&file)])
        .with(74, &[text(&locked), "Permission denied", "give this user access"]);
    let cluster = locked.join("cluster");
    as_user(&["cluster", "up", "--dir", text(&cluster)]).with(74, &[text(&cluster), "Permission denied"]);
}

#[test]
fn a_data_directory_in_use_is_refused_with_the_process_that_uses_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("made");
    let _lock = node::serve::lock::take(&data).expect("free");
    let file = dir.path().join("node.toml");
    fs::write(&file, node_toml(&data, 2000)).expect("written");
    let me = format!("process {}", std::process::id());
    holdfast_with(&["node", "--config", text(&file)]).with(69, &[text(&data), &me]);
}

#[test]
fn a_taken_port_is_found_before_anything_is_started() {
    let dir = tempfile::tempdir().expect("temp dir");
    let cluster = dir.path().join("cluster");
    let (base, mut held) = free_base_port(30);
    let taken = held.remove(11); // node 2, HTTP
    drop(held);
    let up = [
        "cluster",
        "up",
        "--dir",
        text(&cluster),
        "--base-port",
        &base.to_string(),
        "--detach",
    ];
    let words = [
        &format!("node 2 cannot listen on 127.0.0.1:{}", base + 11),
        "nothing was started",
        "--base-port",
    ];
    holdfast_with(&up).with(69, &words);
    assert!(
        !cluster.join("cluster.json").exists(),
        "another base port may be chosen"
    );
    assert!(!cluster.join("node-1").exists());
    drop(taken);
}

#[test]
fn a_node_whose_port_is_taken_names_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("node.toml");
    let (base, mut held) = free_base_port(3);
    fs::write(&file, node_toml(&dir.path().join("data"), base)).expect("written");
    let taken = held.remove(1);
    drop(held);
    let words = [
        &format!("cannot listen on 127.0.0.1:{} (HTTP)", base + 1),
        "Address already in use",
        "stop what uses",
    ];
    holdfast_with(&["node", "--config", text(&file)]).with(69, &words);
    drop(taken);
}

#[test]
fn a_directory_of_something_else_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    fs::write(dir.path().join("thesis.txt"), "years of work").expect("written");
    let ended = holdfast_with(&["cluster", "up", "--dir", text(dir.path())]);
    ended.with(65, &["no cluster directory", "thesis.txt", "--dir"]);
    fs::write(dir.path().join("cluster.json"), "{").expect("written");
    for command in ["up", "down", "status"] {
        holdfast_with(&["cluster", command, "--dir", text(dir.path())]).with(65, &["describes no cluster"]);
    }
    assert_eq!(
        fs::read_dir(dir.path()).expect("listed").count(),
        2,
        "nothing was written"
    );
}

#[test]
fn commands_without_a_cluster_say_how_to_get_one() {
    let dir = tempfile::tempdir().expect("temp dir");
    let missing = dir.path().join("none");
    for command in [
        &["cluster", "status"][..],
        &["cluster", "down"],
        &["cluster", "stop", "1"],
        &["device", "get", "a"],
    ] {
        let ended = run(holdfast().args(command).args(["--dir", text(&missing)]));
        ended.with(69, &["there is no cluster", "holdfast cluster up"]);
    }
    assert!(!missing.exists());
}

#[test]
fn nobody_listening_is_unavailable() {
    let (base, held) = free_base_port(1);
    drop(held);
    let url = format!("http://127.0.0.1:{base}");
    let ended = holdfast_with(&["device", "get", "a", "--url", &url, "--token", "t"]);
    ended.with(69, &["no node answers", "Connection refused"]);
    holdfast_with(&["device", "get", "a", "--url", "nonsense", "--token", "t"]).with(64, &["is no URL"]);
}
