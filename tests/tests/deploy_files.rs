#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests run in real time
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on ends
//! The deployment files under `deploy/`, checked by those who will read them: systemd, hadolint,
//! the schemas of Kubernetes, and the program itself.

use std::fs;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::clients::{deploy, tools};
use holdfast_tests::harness::{self, Cluster, Plan};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The unit with the program under test in place of the installed one.
fn unit(change: impl Fn(String) -> String) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("holdfast.service");
    let text = deploy::text("deploy/systemd/holdfast.service");
    let text = text.replace("/usr/bin/holdfast", harness::program().to_str().expect("text"));
    fs::write(&file, change(text)).expect("written");
    (dir, file)
}

/// What systemd has to say about our unit; other units of the machine are not our business.
fn verify(file: &std::path::Path) -> Vec<String> {
    let program = tools::require("systemd-analyze", "systemd");
    let (_, said) = deploy::run(Command::new(program).args(["verify", "--man=no"]).arg(file));
    said.lines()
        .filter(|line| line.contains("holdfast"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn systemd_accepts_the_unit() {
    let (_dir, file) = unit(|text| text);
    assert_eq!(verify(&file), [] as [&str; 0]);
    // It does look: a misspelt key is told of.
    let (_dir, wrong) = unit(|text| text.replace("LimitNOFILE", "LimitNOFILES"));
    assert!(verify(&wrong).iter().any(|line| line.contains("LimitNOFILES")));
}

#[test]
fn systemd_calls_the_unit_well_confined() {
    let (_dir, file) = unit(|text| text);
    let program = tools::require("systemd-analyze", "systemd");
    // 0 is a program in a vault, 100 one without any confinement.
    let (confined, said) = deploy::run(
        Command::new(program)
            .args(["security", "--offline=true", "--no-pager", "--threshold=20"])
            .arg(&file),
    );
    let verdict = said.lines().last().unwrap_or_default().to_owned();
    assert!(confined, "{verdict}");
}

/// The unit waits longer for the end than the node allows itself.
#[test]
fn systemd_waits_for_a_graceful_stop() {
    let unit = deploy::text("deploy/systemd/holdfast.service");
    let seconds = |text: &str, before: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(before)).expect(before);
        line.trim_matches(['"', 's']).parse().expect("seconds")
    };
    let stop = seconds(&unit, "TimeoutStopSec=");
    let deadline = seconds(&deploy::text("deploy/config/node.toml"), "stop_deadline = ");
    assert!(
        stop > deadline + 2,
        "{stop} s are too few for a deadline of {deadline} s"
    );
}

#[test]
fn hadolint_accepts_the_dockerfile() {
    let hadolint = deploy::tool("venv/bin", "hadolint");
    let (accepted, said) = deploy::run(Command::new(&hadolint).arg(deploy::file("deploy/docker/Dockerfile")));
    assert!(accepted, "{said}");
    let dockerfile = deploy::text("deploy/docker/Dockerfile");
    assert!(
        dockerfile.lines().any(|line| line.starts_with("USER 10001")),
        "not as root"
    );
    assert!(dockerfile.contains("HEALTHCHECK"), "its health can be seen");
}

#[test]
fn kubernetes_manifests_fit_their_schemas() {
    let python = deploy::tool("venv/bin", "python");
    let script = deploy::file("tests/python/kubernetes.py");
    let manifests = deploy::file("deploy/kubernetes/holdfast.yaml");
    let (accepted, said) = deploy::run(Command::new(&python).arg(&script).arg(&manifests));
    assert!(accepted, "{said}");
    // It does look: an unknown field is refused.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wrong = dir.path().join("wrong.yaml");
    let text = deploy::text("deploy/kubernetes/holdfast.yaml");
    fs::write(&wrong, text.replace("maxUnavailable: 1", "maxUnavailables: 1")).expect("written");
    let (accepted, said) = deploy::run(Command::new(&python).arg(&script).arg(&wrong));
    assert!(!accepted && said.contains("maxUnavailables"), "{said}");
}

/// The commands in hooks and probes are commands of this program.
#[test]
fn hooks_and_probes_name_real_commands() {
    for command in [
        &["probe", "live", "--url", "http://127.0.0.1:8080"][..],
        &["probe", "ready"],
        &[
            "cluster",
            "drain",
            "1",
            "--url",
            "http://127.0.0.1:8080",
            "--token",
            "t",
        ],
        &[
            "cluster",
            "undrain",
            "1",
            "--url",
            "http://127.0.0.1:8080",
            "--token",
            "t",
            "--wait",
            "5m",
        ],
        &["config", "check", "/etc/holdfast/node.toml"],
        &["node", "--config", "/etc/holdfast/node.toml"],
    ] {
        let (accepted, said) = deploy::run(Command::new(harness::program()).args(command).arg("--help"));
        assert!(accepted && said.contains("Usage"), "{command:?}: {said}");
    }
}

/// The configuration in the ConfigMap holds no key that a node would not know, and no value out of
/// range. Addresses are refused as long as development is the only mode.
#[test]
fn the_config_map_is_understood_by_a_node() {
    let text = deploy::text("deploy/kubernetes/holdfast.yaml");
    let (_, after) = text.split_once("  node.toml: |\n").expect("the ConfigMap");
    let (toml, _) = after.split_once("---\n").expect("its end");
    let toml: String = toml.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("node.toml");
    fs::write(&file, toml).expect("written");
    let ended = Command::new(harness::program())
        .args(["config", "check", "--output", "json"])
        .arg(&file)
        .output()
        .expect("the program can be started");
    let told: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    for problem in told["problems"].as_array().expect("a list") {
        let reason = problem["reason"].as_str().expect("a reason");
        for mistake in ["unknown", "out of range", "no duration", "is no ", "must be"] {
            assert!(!reason.contains(mistake), "{problem}");
        }
    }
}

/// What `Type=notify` is about: the node says when its doors are open, when it reads its
/// configuration again, and that it is on its way out.
#[test]
fn the_node_tells_systemd_how_it_fares() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let mut heard = String::new();
    let mut until = |wanted: &str| {
        let mut bytes = [0; 4096];
        while !heard.contains(wanted) {
            let length = socket
                .recv(&mut bytes)
                .unwrap_or_else(|error| panic!("{wanted}: {error}; {heard}"));
            heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
            heard.push('\n');
        }
        heard.clear();
    };
    let env = vec![("NOTIFY_SOCKET".to_owned(), path.to_str().expect("text").to_owned())];
    let mut cluster = Cluster::start_plan(Plan { nodes: 1, env });
    until("READY=1");
    cluster.process(1).signal(Signal::SIGHUP).expect("it runs");
    until("RELOADING=1\nMONOTONIC_USEC=");
    until("READY=1");
    cluster.stop(1);
    until("STOPPING=1");
}
