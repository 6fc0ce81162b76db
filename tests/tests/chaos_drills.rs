#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // real processes
//! A drill from its file to its verdict: one that passes, one with a planted violation, one whose
//! injector dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_tests::harness::{client, eventually, eventually_true, program, Cluster};
use holdfast_tests::workload::{Plan, Workload};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);

/// One drill at a time: they share the machine's cores, and each wants a cluster that is well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Bench {
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            _turn: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Runs a drill to its verdict. A bench that broke says nothing about the product, so it is
    /// tried again.
    fn verdict(&self, drill: &Path, more: &[&str], token: &str) -> (String, Option<i32>) {
        let mut told = (String::new(), None);
        for _ in 0..3 {
            let _ = fs::remove_dir_all(self.out());
            let ran = self.command(drill, more).env("HOLDFAST_TOKEN", token).output().unwrap();
            told = (String::from_utf8_lossy(&ran.stdout).into_owned(), ran.status.code());
            if told.1 != Some(75) {
                break;
            }
            println!("{}\n{}", told.0, String::from_utf8_lossy(&ran.stderr));
        }
        told
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self, drill: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(["chaos", "run"])
            .arg(drill)
            .arg("--out")
            .arg(self.out())
            .args(more);
        command.env("HOLDFAST_WARDEN_STATE", self.state()).stdin(Stdio::null());
        command
    }

    /// A drill with one fault, twenty devices, and no more time than it needs.
    fn drill(&self, fault: &str) -> PathBuf {
        self.drill_for("10s", fault)
    }

    fn without_thresholds(&self, name: &str) -> PathBuf {
        let shipped = Command::new(program())
            .args(["chaos", "init", "-", "--drill", name])
            .output()
            .unwrap();
        let text = String::from_utf8(shipped.stdout).unwrap();
        let (mut kept, mut keep) = (String::new(), true);
        for line in text.lines() {
            if line.starts_with('[') {
                keep = !line.starts_with("[thresholds");
            }
            if keep {
                kept += line;
                kept.push('\n');
            }
        }
        let path = self.dir.path().join(format!("{name}.toml"));
        fs::write(&path, kept).unwrap();
        path
    }

    fn drill_for(&self, faults: &str, fault: &str) -> PathBuf {
        let text = format!(
            "name = \"short\"\ntitle = \"Short\"\n[workload]\n[[workload.fleet]]\nname = \"lamp\"\nprofile = \"constant\"\ncount = 20\nrate = 60\n\
             [workload.operator]\ndesired_rate = 2\nread_rate = 2\n[phases]\nramp = \"2s\"\nsteady = \"4s\"\nfaults = \"{faults}\"\nsettle = \"90s\"\n[[fault]]\n{fault}\n"
        );
        let path = self.dir.path().join("short.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn result(&self) -> Value {
        let bytes = fs::read(self.out().join("result.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Waits until the first fault is there.
    fn installed(&self, drill: &mut Child) {
        eventually("the fault is there", DEADLINE, || {
            if let Some(status) = drill.try_wait().unwrap() {
                panic!("the drill ended before: {status}");
            }
            let log = fs::read_to_string(self.out().join("faults.jsonl")).unwrap_or_default();
            log.contains("\"installed\"").then_some(()).ok_or(log)
        });
    }

    fn journals(&self) -> usize {
        fs::read_dir(self.state()).map_or(0, Iterator::count)
    }
}

#[track_caller]
fn ruling<'a>(result: &'a Value, name: &str) -> &'a Value {
    let rulings = result["rulings"].as_array().unwrap();
    let found = rulings.iter().find(|ruling| ruling["invariant"] == name);
    found.unwrap_or_else(|| panic!("{name} was not judged: {result:#}"))
}

/// A drill that ships, on a cluster of its own: it passes, says so in every form, and leaves nothing.
/// Its thresholds are left out: how fast a machine is that runs tests is no promise of anybody's.
#[test]
fn a_shipped_drill_passes_and_leaves_nothing_behind() {
    let bench = Bench::new();
    let drill = bench.without_thresholds("leader-churn");
    let (said, code) = bench.verdict(&drill, &["--brief"], "");
    assert_eq!(code, Some(0), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("verdict: pass"), "{said}");
    assert!(
        said.contains("again: holdfast chaos run ") && said.contains("--seed 1 --brief"),
        "{said}"
    );
    let result = bench.result();
    assert_eq!(result["verdict"], "pass");
    for invariant in [
        "acked_survive",
        "stored_once",
        "device_order",
        "replicas_agree",
        "one_owner_per_term",
    ] {
        assert_eq!(ruling(&result, invariant)["holds"], "yes", "{result:#}");
    }
    let faults = result["faults"].as_array().unwrap();
    let installed: Vec<&Value> = faults.iter().filter(|fault| fault["outcome"] == "installed").collect();
    assert!(!installed.is_empty(), "{faults:#?}");
    assert!(installed
        .iter()
        .all(|fault| fault["problem"].is_null() && fault["healed_by"].is_string()));
    let page = fs::read_to_string(bench.out().join("report.html")).unwrap();
    for text in ["Passed", "Availability of every shard", "process.kill", "acked_survive"] {
        assert!(page.contains(text), "the report does not say {text:?}");
    }
    assert!(
        !page.contains("src=\"http") && !page.contains("href=\"http"),
        "the report needs something from elsewhere"
    );
    assert_eq!(bench.journals(), 0, "a journal is left");
    let again = Command::new(program())
        .args(["chaos", "report"])
        .arg(bench.out())
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(0));
    // A verdict is not overwritten.
    let refused = bench.command(&drill, &["--brief"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
}

/// Somebody deletes a device behind the drill's back: what it was acknowledged is gone, and the
/// verdict is a violation that names invariant, device and receipt.
#[test]
fn a_planted_loss_is_a_violation() {
    let (bench, cluster) = (Bench::new(), Cluster::up(3));
    let drill = bench.drill("kind = \"process.pause\"\non = \"idlest\"\nat = \"2s\"\nfor = \"3s\"");
    let dir = cluster.dir().to_str().unwrap().to_owned();
    let mut running = bench
        .command(&drill, &["--dir", &dir])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    bench.installed(&mut running);
    let scenario = fs::read_to_string(bench.out().join("run/scenario.toml")).unwrap();
    let id = scenario.lines().find_map(|line| line.strip_prefix("id = \"")).unwrap();
    let victim = id.trim_end_matches('"').replace("${n}", "7");
    eventually("the device is deleted", DEADLINE, || {
        let node = cluster.http()[cluster.ids().len() - 1];
        let url = format!("http://{node}/api/v1/devices/{victim}");
        let request = client(Duration::from_secs(10))
            .delete(url)
            .bearer_auth(&cluster.file.token);
        let answer = cluster
            .runtime()
            .block_on(async { request.send().await?.error_for_status() });
        answer.map(drop).map_err(|error| error.to_string())
    });
    let status = running.wait().unwrap();
    let result = bench.result();
    assert_eq!(status.code(), Some(1), "{result:#}");
    assert_eq!(result["verdict"], "violation");
    let lost = ruling(&result, "acked_survive");
    assert_eq!(lost["holds"], "no", "{result:#}");
    let breaches = lost["breaches"].as_array().unwrap();
    assert!(
        breaches.iter().all(|breach| breach["device"] == victim.as_str()),
        "{breaches:#?}"
    );
    assert!(
        breaches.iter().any(|breach| breach["receipt"].is_string()),
        "{breaches:#?}"
    );
    assert!(
        result["reasons"][0].as_str().unwrap().contains("acked_survive"),
        "{result:#}"
    );
    assert_eq!(ruling(&result, "replicas_agree")["holds"], "yes");
}

/// `kill -9` of a drill in the middle of a fault: its warden mends and goes.
#[test]
fn a_killed_drill_heals() {
    let (bench, cluster) = (Bench::new(), Cluster::up(3));
    let drill = bench.drill_for(
        "50m",
        "kind = \"process.pause\"\non = \"node:2\"\nat = \"1s\"\nfor = \"50m\"",
    );
    let dir = cluster.dir().to_str().unwrap().to_owned();
    let mut running = bench
        .command(&drill, &["--dir", &dir])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    bench.installed(&mut running);
    let stat = format!("/proc/{}/stat", cluster.process(2).pid);
    eventually_true("node 2 is paused", DEADLINE, || {
        let line = fs::read_to_string(&stat).unwrap();
        line[line.rfind(')').unwrap() + 1..].trim_start().starts_with('T')
    });
    running.kill().unwrap();
    running.wait().unwrap();
    eventually("the paused node answers again", DEADLINE, || {
        cluster.status_of(2).map(drop)
    });
    eventually("the warden is done", DEADLINE, || {
        let left = bench.journals();
        (left == 0).then_some(()).ok_or(format!("{left} journals"))
    });
}

/// A cluster that is known by address only, and has traffic of its own: both hold.
#[test]
fn a_running_cluster_is_drilled_by_address_beside_its_own_traffic() {
    let (bench, cluster) = (Bench::new(), Cluster::up(3));
    let own = Workload::start(&cluster, Plan::busy("own"));
    own.acknowledge(500);
    let drill = bench.drill("kind = \"operator.drain\"\non = \"busiest\"\nat = \"1s\"\nfor = \"4s\"");
    let url = format!("http://{}", cluster.http()[0]);
    let (said, code) = bench.verdict(&drill, &["--url", &url], &cluster.file.token);
    assert_eq!(code, Some(0), "{said}");
    let result = bench.result();
    assert_eq!(result["faults"][0]["outcome"], "installed", "{result:#}");
    let judged = Command::new(program())
        .args(["chaos", "check"])
        .arg(bench.out())
        .output()
        .unwrap();
    assert_eq!(
        judged.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&judged.stdout)
    );
    own.finish_and_judge(&cluster);
}

/// Mistakes are found before anything is started; a dry run starts nothing.
#[test]
fn nothing_is_started_for_a_mistake_or_a_dry_run() {
    let bench = Bench::new();
    let wrong = bench.drill("kind = \"process.kil\"\nat = \"1s\"");
    let refused = bench.command(&wrong, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(
        said.contains("short.toml:18: fault[0].kind") && said.contains("process.kill"),
        "{said}"
    );
    let plan = bench
        .command(Path::new("kitchen-sink"), &["--dry-run", "--seed", "3"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&plan.stdout);
    assert_eq!(plan.status.code(), Some(0), "{said}");
    assert!(
        said.contains("predicted at worst") && said.contains("nothing was broken"),
        "{said}"
    );
    assert!(!bench.out().exists() && bench.journals() == 0);
}
