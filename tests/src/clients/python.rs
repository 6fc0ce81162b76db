//! Scripts under `tests/python`, which speak to a cluster with paho-mqtt and may ask for faults.
//!
//! A script writes `kill N` or `start N` to its standard output and waits for `ok`; anything else
//! it writes is its report. It ends with 0 when every assertion held.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::dev::Cluster;

/// Runs one scenario of a script against the cluster.
///
/// # Panics
/// With what the script said, when it ends with anything but 0.
pub fn run(cluster: &Cluster, script: &str, scenario: &str) {
    let mut child = Command::new(interpreter())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script))
        .arg(scenario)
        .arg(cluster.path().join("cluster.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python can be started");
    let mut answers = child.stdin.take().expect("piped");
    let mut errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut errors, &mut text);
        text
    });
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("text");
        match line.split_once(' ') {
            Some(("kill", id)) => cluster.kill(id.parse().expect("a node id")),
            Some(("start", id)) => cluster.start(id.parse().expect("a node id")),
            _ => {
                said.push_str(&line);
                said.push('\n');
                continue;
            }
        }
        writeln!(answers, "ok").expect("the script listens");
    }
    let status = child.wait().expect("waited for");
    let errors = errors.join().expect("the reader does not panic");
    assert!(status.success(), "{script} {scenario}: {status}\n{said}{errors}");
}

fn interpreter() -> String {
    let python = std::env::var("HOLDFAST_PYTHON")
        .expect("HOLDFAST_PYTHON names a python with paho-mqtt; `make test` sets it, `.ci/setup.sh` prepares it");
    let has_paho = Command::new(&python).args(["-c", "import paho.mqtt.client"]).output();
    assert!(
        has_paho.is_ok_and(|output| output.status.success()),
        "{python} cannot import paho-mqtt; run .ci/setup.sh"
    );
    python
}
