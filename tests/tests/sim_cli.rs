#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! `holdfast sim` as a load tester meets it: its files, exit codes, and what it says of mistakes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_tests::clients::dev::{binary, free_ports, holdfast, told};
use serde_json::Value;

const PASS: i32 = 0;
const VIOLATION: i32 = 1;
const BAD_INPUT: i32 = 65;
const UNAVAILABLE: i32 = 69;
const DISK: i32 = 74;
const HARNESS: i32 = 75;

/// Debian's mosquitto on a port of its own.
struct Mosquitto {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Mosquitto {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address: SocketAddr = format!("127.0.0.1:{}", free_ports(1)).parse().unwrap();
        let config = dir.path().join("m.conf");
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000\n",
            address.port()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn();
        let broker = Self {
            child: child.expect("Debian's mosquitto is installed"),
            address,
            _dir: dir,
        };
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        broker
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SMALL: &str = "name = \"small\"\nseed = 5\n[target]\nmqtt = [\"127.0.0.1:1\"]\n[run]\nconnect_rate = 1000\n[[fleet]]\nname = \"a\"\nprofile = \"constant\"\ncount = 20\nrate = 200\nprotocols = { mqtt5 = 1, mqtt311 = 1 }\n[[phase]]\nkind = \"steady\"\nduration = \"3s\"\n";

fn write(dir: &Path, text: &str) -> PathBuf {
    let file = dir.join("s.toml");
    fs::write(&file, text).unwrap();
    file
}

fn sim(args: &[&str]) -> (i32, String) {
    told(&holdfast(&[&["sim"], args].concat()))
}

fn run(file: &Path, out: &Path, more: &[&str]) -> (i32, String) {
    let base = ["run", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
    sim(&[&base[..], more].concat())
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_start_is_written_checked_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fleet.toml");
    let path = file.to_str().unwrap();
    assert_eq!(sim(&["init", path]).0, PASS);
    assert_eq!(sim(&["init", path]).0, BAD_INPUT);
    let (code, text) = sim(&["check", path, "--digest"]);
    assert_eq!(code, PASS, "{text}");
    assert!(text.contains("is sound") && text.contains("digest "), "{text}");
    // The plan is its seed.
    assert_eq!(sim(&["check", path, "--digest"]).1, text);
    assert_ne!(sim(&["check", path, "--digest", "--seed", "7"]).1, text);
}

#[test]
fn profiles_are_listed_and_shown() {
    let (code, text) = sim(&["profiles"]);
    assert_eq!(code, PASS);
    for name in [
        "smart-meter",
        "thermostat",
        "vehicle",
        "vibration-sensor",
        "elevator",
        "gateway",
        "firmware-updater",
        "bad-citizen",
    ] {
        assert!(text.contains(name), "{name} is missing in {text}");
        assert!(sim(&["profiles", name]).1.contains("title ="), "{name}");
    }
    assert_eq!(sim(&["profiles", "nobody"]).0, BAD_INPUT);
    let schema: Value = serde_json::from_slice(&holdfast(&["sim", "schema"]).stdout).unwrap();
    assert!(schema["properties"]["fleet"].is_object());
}

/// Mistakes are named with file, line and key; absurd numbers with the limit they break.
#[test]
fn mistakes_have_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, parts) in [
        (
            "count = 20",
            "count = 90000000",
            &[":10: fleet[0].count", "1000000"][..],
        ),
        ("rate = 200", "rate = 1e300", &[":11: fleet[0].rate", "10000000"]),
        (
            "kind = \"steady\"",
            "kind = \"stedy\"",
            &[":14: phase[0].kind", "stedy"],
        ),
        (
            "profile = \"constant\"",
            "profil = \"constant\"",
            &[":9: fleet[0].profil", "unknown field"],
        ),
        (
            "duration = \"3s\"",
            "duration = \"soon\"",
            &[":15: phase[0].duration", "no length of time"],
        ),
    ] {
        let file = write(dir.path(), &SMALL.replace(from, to));
        for command in ["check", "run"] {
            let (code, text) = sim(&[command, file.to_str().unwrap()]);
            assert_eq!(code, BAD_INPUT, "{text}");
            parts
                .iter()
                .for_each(|part| assert!(text.contains(part), "{part} is missing in {text}"));
        }
    }
    assert_eq!(sim(&["check", "/nowhere/s.toml"]).0, DISK);
}

#[test]
fn nobody_there_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = run(&write(dir.path(), SMALL), &dir.path().join("out"), &[]);
    assert_eq!(code, UNAVAILABLE, "{text}");
    assert!(text.contains("127.0.0.1:1") && text.contains("what to do"), "{text}");
}

/// The telemetry part of a scenario against a broker of other people's making, by two workers that
/// act as one fleet with one history and one report.
#[test]
fn mosquitto_is_driven_by_two_workers_as_one_fleet() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let address = broker.address.to_string();
    let more = ["--broker", "--mqtt", &address, "--workers", "2", "--threads", "2"];
    // As it would drive a Holdfast: what only that can do is left out.
    let whole = SMALL.replace("mqtt311 = 1", "mqtt311 = 1, http = 1, mqtt5-ws = 1") + "[operator]\nread_rate = 5\n";
    let (code, text) = run(&write(dir.path(), &whole), &out, &more);
    assert_eq!(code, PASS, "{text}");
    assert!(text.contains("no audit: the target is a plain MQTT broker"), "{text}");
    let report = report(&out);
    let sent = report["counts"]["sent"].as_u64().unwrap();
    assert!((570..=600).contains(&sent), "{sent} messages of 600 were sent");
    assert_eq!(report["counts"]["acked"], report["counts"]["sent"]);
    let parts = fs::read_dir(out.join("history")).unwrap().count();
    assert_eq!(parts, 4, "two workers of two threads each leave four parts");
    // What is recorded can be read by others, and adds up to what is reported.
    let history = holdfast(&["sim", "history", out.to_str().unwrap()]);
    let lines = String::from_utf8(history.stdout).unwrap();
    let entries: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let acked = entries
        .iter()
        .filter(|entry| entry["kind"] == "telemetry" && entry["outcome"] == "ok");
    let late: Vec<u64> = acked
        .map(|entry| entry["done_us"].as_u64().unwrap() - entry["intended_us"].as_u64().unwrap())
        .collect();
    assert_eq!(Value::from(late.len()), report["counts"]["acked"]);
    let (most, told) = (
        *late.iter().max().unwrap() as f64 / 1e3,
        report["latency_ms"]["max"].as_f64().unwrap(),
    );
    assert!((most - told).abs() <= told * 0.002, "{most} ms, the report says {told}");
    // Made again from the directory alone, it says the same.
    fs::remove_file(out.join("report.json")).unwrap();
    assert_eq!(sim(&["report", out.to_str().unwrap()]).0, PASS);
    assert_eq!(self::report(&out)["latency_ms"], report["latency_ms"]);
    assert_eq!(
        run(&write(dir.path(), SMALL), &out, &more).0,
        BAD_INPUT,
        "a run is never written over another"
    );
}

#[test]
fn a_broken_threshold_fails_the_run_and_junit_says_so() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = write(
        dir.path(),
        &format!("{SMALL}[thresholds]\nthroughput_min = 100000\nlatency_p50 = \"1m\"\n"),
    );
    let (code, text) = run(&file, &out, &["--broker", "--mqtt", &broker.address.to_string()]);
    assert_eq!(code, VIOLATION, "{text}");
    assert!(text.contains("verdict: violation: throughput is"), "{text}");
    let junit = fs::read_to_string(out.join("junit.xml")).unwrap();
    assert!(
        junit.contains("failures=\"1\"") && junit.contains("name=\"throughput\""),
        "{junit}"
    );
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for foreign in ["http://", "https://", "src=", "<script"] {
        let found = page.match_indices(foreign).count();
        assert_eq!(found, 0, "the page wants {foreign} from elsewhere");
    }
}

/// Ctrl-C: nothing new is sent, what is outstanding is awaited, the report says what is missing.
/// Meanwhile the figures are served for Prometheus.
#[test]
fn an_interrupted_run_writes_its_report() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // Only a whole run can be held to these.
    let limits = "[thresholds]\nthroughput_min = 100000\nconnected_share_min = 1.0\n";
    let file = write(dir.path(), &(SMALL.replace("\"3s\"", "\"10m\"") + limits));
    let metrics = format!("127.0.0.1:{}", free_ports(1));
    let child = Command::new(binary())
        .args([
            "sim",
            "run",
            file.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--broker",
        ])
        .args(["--mqtt", &broker.address.to_string(), "--metrics", &metrics])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while scraped(&metrics).is_none_or(|acked| acked <= 100) {
        assert!(Instant::now() < end, "nothing is acknowledged");
        std::thread::sleep(Duration::from_millis(50));
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(HARNESS), "{text}");
    assert!(text.contains("incomplete: stopped after"), "{text}");
    assert!(text.contains("judged of whole runs only"), "{text}");
    let report = report(&out);
    assert_eq!(report["counts"]["acked"], report["counts"]["sent"]);
    assert!(report["counts"]["acked"].as_u64().unwrap() > 100);
}

/// `holdfast_sim_acked_total`, if somebody serves it.
fn scraped(address: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("holdfast_sim_acked_total "))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// No room under the history: sending stops, the report is written, and the exit code is the disk's.
#[test]
fn a_full_disk_under_the_history_ends_the_run_honestly() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = write(
        dir.path(),
        &SMALL.replace("\"3s\"", "\"10m\"").replace("rate = 200", "rate = 5000"),
    );
    // A limit on the size of a file is what a full disk looks like to whoever writes it.
    let script = format!(
        "trap '' XFSZ; ulimit -f 400; exec {} sim run {} --out {} --broker --mqtt {}",
        binary().display(),
        file.display(),
        out.display(),
        broker.address
    );
    let (code, text) = told(&Command::new("bash").args(["-c", &script]).output().unwrap());
    assert_eq!(code, DISK, "{text}");
    assert!(text.contains("the history cannot be written"), "{text}");
    assert!(out.join("report.html").exists(), "{text}");
}

/// A simulator that is killed leaves a history that can be judged and gone on with: what it
/// recorded before stays, and the run ends as if it had been one.
#[test]
fn a_killed_simulator_is_gone_on_with() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = write(dir.path(), &SMALL.replace("\"3s\"", "\"12s\""));
    let address = broker.address.to_string();
    let child = Command::new(binary())
        .args(["sim", "run", file.to_str().unwrap(), "--out", out.to_str().unwrap()])
        .args(["--broker", "--mqtt", &address])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    let recorded = || {
        let parts = fs::read_dir(out.join("history")).into_iter().flatten().flatten();
        parts.map(|part| part.metadata().unwrap().len()).sum::<u64>()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while recorded() < 8_000 {
        assert!(Instant::now() < end, "nothing is recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let path = out.to_str().unwrap();
    let (code, text) = sim(&["report", path]);
    assert_eq!(code, HARNESS, "{text}");
    assert!(text.contains("broken off"), "{text}");
    let before = report(&out)["counts"]["acked"].as_u64().unwrap();
    assert!(before > 100, "{before}");
    let (code, text) = sim(&["run", path, "--resume"]);
    assert_eq!(code, PASS, "{text}");
    let after = report(&out);
    assert!(after["counts"]["acked"].as_u64().unwrap() > before);
    assert_eq!(after["run"]["runs"].as_array().unwrap().len(), 2);
    assert_eq!(sim(&["run", path, "--resume"]).0, BAD_INPUT, "there is nothing left");
}
