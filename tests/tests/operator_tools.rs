#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests run in real time
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on ends
//! What an operator does to a running cluster: reloads, log levels, support bundles, pages.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use holdfast_tests::clients::tools;
use holdfast_tests::harness::{eventually_true, program, Cluster};
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

fn holdfast(arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .env_remove("HOLDFAST_TOKEN")
        .env_remove("HOLDFAST_DIR")
        .stdin(Stdio::null())
        .output()
        .expect("the program can be started")
}

#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// The command on this cluster, as JSON.
#[track_caller]
fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let dir = cluster.dir().to_str().expect("text").to_owned();
    let output = holdfast(&[arguments, &["--dir", &dir, "--output", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
}

fn configure(cluster: &Cluster, id: u64, from: &str, to: &str) {
    let file = cluster.node(id).dir.join("node.toml");
    let text = fs::read_to_string(&file).expect("a configuration");
    assert!(text.contains(from), "{from:?} in {text}");
    fs::write(&file, text.replace(from, to)).expect("written");
}

fn hang_up(cluster: &Cluster, id: u64) {
    cluster.process(id).signal(Signal::SIGHUP).expect("it runs");
}

fn reloads(cluster: &Cluster, id: u64, result: &str) -> f64 {
    cluster.counter(id, &format!("holdfast_config_reloads_total{{result=\"{result}\"}}"))
}

/// A subscriber that was connected before the reloads hears of what was published after them.
struct Listener(std::process::Child);

impl Listener {
    fn new(cluster: &Cluster, id: u64) -> Self {
        let at = cluster.node(id).mqtt;
        // By lines: into a pipe it would keep what it says to itself until it ends.
        let child = Command::new(tools::require("stdbuf", "coreutils"))
            .arg("-oL")
            .arg(tools::require("mosquitto_sub", "mosquitto-clients"))
            .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()])
            .args(["-V", "5", "-i", "listener", "-q", "1", "-C", "1", "-W", "300", "-d"])
            .args(["-t", "devices/listener/twin/desired"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosquitto_sub can be started");
        Self(child)
    }

    /// Waits until it is subscribed; its further output is read when it ends.
    fn subscribed(&mut self) -> BufReader<std::process::ChildStdout> {
        let mut lines = BufReader::new(self.0.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("SUBACK") && !line.contains("Subscribed") {
            line.clear();
            assert!(lines.read_line(&mut line).expect("text") > 0, "mosquitto_sub ended");
        }
        lines
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reload_takes_what_it_can_and_refuses_what_is_wrong() {
    let mut cluster = Cluster::up(1);
    let mut listener = Listener::new(&cluster, 1);
    let mut heard = listener.subscribed();

    // Taken: a filter, a quota, a token. Named: what needs a restart.
    let old_token = cluster.file.token.clone();
    configure(&cluster, 1, "[devices]\n", "[limits]\nconnections_max = 2\npacket_bytes_max = 4096\ntags_bytes_max = 16\n\n[log]\nfilter = \"info,openraft=error,cluster=debug\"\n\n[devices]\n");
    configure(
        &cluster,
        1,
        "operator_token_file = \"../token\"",
        "operator_token = \"another-token-of-the-test\"",
    );
    hang_up(&cluster, 1);
    eventually_true("the change is logged", PATIENCE, || {
        cluster.log_contains(1, "configuration read again")
    });
    assert!(cluster.log_contains(1, "this change needs a restart"));
    assert!(cluster.log_contains(1, "key=\"limits.packet_bytes_max\""));
    assert!(cluster.log_contains(1, "key=\"limits.connections_max\" from=\"18000\" to=\"2\""));
    assert!(
        !cluster.log_contains(1, "another-token-of-the-test"),
        "no secret is logged"
    );
    cluster.file.token = "another-token-of-the-test".to_owned();
    cluster.status_of(1).expect("the new token is valid");
    cluster.file.token.clone_from(&old_token);
    cluster.status_of(1).expect_err("the old token is not");
    cluster.file.token = "another-token-of-the-test".to_owned();
    assert_eq!(
        (reloads(&cluster, 1, "taken"), reloads(&cluster, 1, "refused")),
        (1.0, 0.0)
    );
    assert_eq!(cluster.counter(1, "holdfast_config_restart_keys"), 1.0);

    // The quota of devices holds, and the policy of twins does.
    let url = format!("http://{}", cluster.node(1).http);
    let tags = holdfast(&[
        "device",
        "twin",
        "listener",
        "--tags",
        "{\"place\":\"a long corridor\"}",
        "--url",
        &url,
        "--token",
        &cluster.file.token,
    ]);
    assert!(said(&tags, 65).contains("tags"));

    // Refused as a whole, with line and key; what was in force stays.
    configure(
        &cluster,
        1,
        "tags_bytes_max = 16",
        "tags_bytes_max = 8192\nhartbeat = 1",
    );
    hang_up(&cluster, 1);
    eventually_true("the refusal is logged", PATIENCE, || {
        reloads(&cluster, 1, "refused") == 1.0
    });
    let log = fs::read_to_string(&cluster.node(1).log).expect("a log");
    let refusal = log
        .lines()
        .find(|line| line.contains("limits.hartbeat"))
        .expect("the key is named");
    assert!(
        refusal.contains("node.toml:") && refusal.contains("unknown key"),
        "{refusal}"
    );
    let again = holdfast(&[
        "device",
        "twin",
        "listener",
        "--tags",
        "{\"place\":\"a long corridor\"}",
        "--url",
        &url,
        "--token",
        &cluster.file.token,
    ]);
    assert_eq!(again.status.code(), Some(65), "the former bound is in force");

    // By command, with the same words.
    let refused = holdfast(&["cluster", "reload", "--url", &url, "--token", &cluster.file.token]);
    assert!(said(&refused, 65).contains("limits.hartbeat: unknown key"));
    configure(&cluster, 1, "hartbeat = 1", "");
    let taken = holdfast(&[
        "cluster",
        "reload",
        "--url",
        &url,
        "--token",
        &cluster.file.token,
        "--output",
        "json",
    ]);
    let told: Value = serde_json::from_slice(&taken.stdout).expect("JSON");
    assert_eq!(told["nodes"][0]["changed"][0]["key"], "limits.tags_bytes_max", "{told}");
    assert_eq!(
        told["nodes"][0]["needs_restart"][0]["key"], "limits.packet_bytes_max",
        "{told}"
    );

    // The connection from before all that is still there.
    let patch = holdfast(&[
        "device",
        "twin",
        "listener",
        "--desired",
        "{\"lit\":true}",
        "--url",
        &url,
        "--token",
        &cluster.file.token,
    ]);
    said(&patch, 0);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut heard, &mut rest).expect("text");
    assert!(rest.contains("\"lit\":true"), "{rest}");
}

#[test]
fn log_levels_change_at_once_and_fall_back_by_themselves() {
    let cluster = Cluster::up(1);
    let filter = |view: Value| view["nodes"][0]["filter"].as_str().expect("a filter").to_owned();
    let configured = filter(json(&cluster, &["log", "level"]));
    json(&cluster, &["log", "level", "--filter", "trace"]);
    eventually_true("trace lines appear", PATIENCE, || cluster.log_contains(1, "TRACE"));
    assert_eq!(filter(json(&cluster, &["log", "level", "--reset"])), configured);
    let borrowed = json(
        &cluster,
        &["log", "level", "--filter", "info,cluster=debug", "--for", "1s"],
    );
    assert!(borrowed["nodes"][0]["until"].is_string(), "{borrowed}");
    eventually_true("the configured filter is back", PATIENCE, || {
        filter(json(&cluster, &["log", "level"])) == configured
    });
    assert!(cluster.log_contains(1, "the configured log filter is in force again"));
    let dir = cluster.dir().to_str().expect("text");
    let bad = holdfast(&["log", "level", "--filter", "x=y=z", "--dir", dir]);
    assert!(said(&bad, 65).contains("x=y=z"));
    assert_eq!(filter(json(&cluster, &["log", "level"])), configured);
    let lines = holdfast(&["log", "lines", "--dir", dir]);
    assert!(said(&lines, 0).contains("in force again"));
}

#[test]
fn a_support_bundle_is_made_while_a_node_is_down_and_holds_no_secret() {
    let mut cluster = Cluster::up(3);
    // A request with a token in a place where logs could pick it up.
    cluster.status_of(1).expect("it answers");
    cluster.stop(3);
    let place = tempfile::tempdir().expect("a temporary directory");
    let dir = cluster.dir().to_str().expect("text").to_owned();
    let file = place.path().join("bundle.tar.gz");
    let told = said(
        &holdfast(&["support-bundle", "--dir", &dir, "--file", file.to_str().unwrap()]),
        0,
    );
    assert!(
        told.contains("not collected: everything that node 3 knows itself"),
        "{told}"
    );
    let files = unpacked(&file, place.path());
    for wanted in [
        "manifest.json",
        "machine.json",
        "status.json",
        "cluster.json",
        "nodes/1/metrics.txt",
        "nodes/1/config.json",
        "nodes/1/cluster.json",
        "nodes/1/node.json",
        "nodes/1/recent.log",
        "nodes/1/node.log",
        "nodes/2/metrics.txt",
        "nodes/1/process/limits",
        "nodes/1/rocksdb/state.LOG",
        "nodes/3/node.log",
        "nodes/3/config-file.json",
    ] {
        let found = files.iter().find(|(name, _)| name == wanted);
        assert!(
            found.is_some_and(|(_, bytes)| !bytes.is_empty()),
            "{wanted} in {:?}",
            names(&files)
        );
    }
    no_secrets(&cluster, &files);
    let node: Value =
        serde_json::from_slice(&files.iter().find(|(name, _)| name == "nodes/1/node.json").unwrap().1).unwrap();
    assert!(node["storage"]["state"]["rocksdb.estimate-num-keys"].is_u64(), "{node}");
    assert!(node["disk"]["free_bytes"].as_u64() > Some(0) && node["version"].is_string());

    // The same file is not written twice, and by address the nodes are found through one of them.
    said(
        &holdfast(&["support-bundle", "--dir", &dir, "--file", file.to_str().unwrap()]),
        65,
    );
    let second = place.path().join("second.tar.gz");
    let url = format!("http://{}", cluster.node(2).http);
    let arguments = [
        "support-bundle",
        "--url",
        &url,
        "--token",
        &cluster.file.token,
        "--file",
        second.to_str().unwrap(),
    ];
    said(&holdfast(&arguments), 0);
    let files = unpacked(&second, place.path());
    assert!(names(&files).contains(&"nodes/1/metrics.txt") && names(&files).contains(&"nodes/2/recent.log"));
    no_secrets(&cluster, &files);
}

fn unpacked(archive: &Path, place: &Path) -> Vec<(String, Vec<u8>)> {
    let to = place.join(archive.file_stem().expect("a name"));
    fs::create_dir(&to).expect("made");
    let status = Command::new("tar")
        .arg("xzf")
        .arg(archive)
        .arg("-C")
        .arg(&to)
        .status()
        .expect("tar");
    assert!(status.success());
    let root = fs::read_dir(&to)
        .expect("read")
        .next()
        .expect("one directory")
        .expect("read")
        .path();
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).expect("read") {
        let path = entry.expect("read").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path
                .strip_prefix(root)
                .expect("below")
                .to_str()
                .expect("text")
                .to_owned();
            files.push((name, fs::read(&path).expect("read")));
        }
    }
}

fn names(files: &[(String, Vec<u8>)]) -> Vec<&str> {
    files.iter().map(|(name, _)| name.as_str()).collect()
}

fn no_secrets(cluster: &Cluster, files: &[(String, Vec<u8>)]) {
    let secret = fs::read_to_string(cluster.dir().join("secret")).expect("a secret");
    for (name, bytes) in files {
        for hidden in [cluster.file.token.as_str(), secret.trim()] {
            let found = bytes.windows(hidden.len()).any(|window| window == hidden.as_bytes());
            assert!(!found, "{name} holds a secret");
        }
    }
}

#[test]
fn a_node_is_drained_by_address() {
    let cluster = Cluster::up(3);
    let url = format!("http://{}", cluster.node(1).http);
    let drain = |verb: &str, more: &[&str]| {
        let arguments = [
            &["cluster", verb, "2", "--url", &url, "--token", &cluster.file.token][..],
            more,
        ]
        .concat();
        said(&holdfast(&arguments), 0);
    };
    drain("drain", &[]);
    let led = |id| {
        cluster
            .status()
            .map(|status| status.nodes.iter().find(|n| n.id == id).map(|n| n.leads))
    };
    assert_eq!(led(2), Ok(Some(0)));
    let ready = format!("http://{}", cluster.node(2).http);
    assert!(said(&holdfast(&["probe", "ready", "--url", &ready]), 69).contains("draining"));
    said(&holdfast(&["probe", "live", "--url", &ready]), 0);
    drain("undrain", &["--wait", "30s"]);
    eventually_true("it is ready again", PATIENCE, || {
        holdfast(&["probe", "ready", "--url", &ready]).status.success()
    });
}

#[test]
fn pages_and_completions_cover_every_command() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let man = dir.path().join("man");
    said(&holdfast(&["man", "--dir", man.to_str().unwrap()]), 0);
    for page in [
        "holdfast.1",
        "holdfast-cluster-up.1",
        "holdfast-device-telemetry.1",
        "holdfast-support-bundle.1",
    ] {
        let text = fs::read_to_string(man.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        for part in [".TH", "SH NAME", "SH SYNOPSIS", "SH DESCRIPTION", "SH OPTIONS"] {
            assert!(text.contains(part), "{page} has no {part}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = said(&holdfast(&["completions", shell]), 0);
        for word in ["support-bundle", "undrain", "telemetry", "show-effective"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
