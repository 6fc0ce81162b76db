#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // real processes
//! Whatever becomes of the injector, and of its warden: every fault heals.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chaos::process::Process;
use holdfast_tests::harness::{eventually, eventually_true, program, Cluster};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(90);
const VICTIM: u64 = 2;

struct Bench {
    cluster: Cluster,
    state: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            cluster: Cluster::up(3),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn holdfast(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("HOLDFAST_WARDEN_STATE", self.state.path())
            .stdin(Stdio::null());
        command
    }

    /// Injects a fault for much longer than the test lasts, and returns once it is there.
    fn inject(&self, fault: &str) -> Child {
        let on = format!("node:{VICTIM}");
        let mut command = self.holdfast(&["chaos", "inject", fault, "--on", &on, "--for", "1h", "--dir"]);
        let mut child = command
            .arg(self.cluster.dir())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said: Vec<String> = lines.map(Result::unwrap).take(1).collect();
        assert!(said[0].contains("Ctrl-C heals"), "{said:?}");
        child
    }

    fn journals(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The warden of the only journal.
    fn warden(&self) -> Process {
        let left = chaos::warden::leftovers(self.state.path()).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        left[0].warden.expect("a fault has a warden")
    }

    fn is_paused(&self) -> bool {
        let pid = self.cluster.process(VICTIM).pid;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat[stat.rfind(')').unwrap() + 1..].trim_start().starts_with('T')
    }

    /// The kernel takes a moment to stop every thread of a busy process.
    fn bites(&self) {
        eventually_true("the victim is paused", DEADLINE, || self.is_paused());
    }

    fn heals(&self, what: &str) {
        eventually(what, DEADLINE, || {
            if self.cluster.running().contains(&VICTIM) && !self.is_paused() {
                return Ok(());
            }
            Err("the victim is still paused or away".to_owned())
        });
        eventually(&format!("{what}: no journal is left"), DEADLINE, || {
            let left = self.journals();
            left.is_empty().then_some(()).ok_or(format!("{left:?}"))
        });
    }
}

fn end(mut child: Child) {
    child.kill().unwrap(); // SIGKILL: the injector has no say in it
    child.wait().unwrap();
}

/// `kill -9` of the injector: the warden sees it and mends, a paused node as well as a dead one.
#[test]
fn faults_heal_when_the_injector_is_killed() {
    let mut bench = Bench::new();
    let injector = bench.inject("process.pause");
    bench.bites();
    end(injector);
    bench.heals("the paused node goes on");
    let injector = bench.inject("process.kill");
    assert!(!bench.cluster.running().contains(&VICTIM), "the fault bites");
    end(injector);
    eventually("the killed node runs again", DEADLINE, || {
        bench.cluster.reload();
        let running = bench.cluster.running();
        running.contains(&VICTIM).then_some(()).ok_or(format!("{running:?}"))
    });
    bench.heals("the killed node is back");
}

/// Ctrl-C in a terminal reaches the injector alone.
#[test]
fn faults_heal_on_ctrl_c() {
    let bench = Bench::new();
    let mut injector = bench.inject("process.pause");
    bench.bites();
    Process::of(injector.id()).unwrap().signal(Signal::SIGINT).unwrap();
    assert!(injector.wait().unwrap().success());
    bench.heals("the paused node goes on");
}

/// Injector and warden killed together: the journal knows, and `chaos heal` finishes.
#[test]
fn what_a_killed_warden_leaves_is_finished_from_its_journal() {
    let bench = Bench::new();
    let injector = bench.inject("process.pause");
    bench.bites();
    bench.warden().kill().unwrap();
    end(injector);
    assert!(bench.is_paused(), "nobody is there to mend");
    assert_eq!(bench.journals().len(), 1);
    let healed = bench.holdfast(&["chaos", "heal"]).output().unwrap();
    let said = String::from_utf8_lossy(&healed.stdout);
    assert!(healed.status.success() && said.contains("process.pause"), "{said}");
    bench.heals("the paused node goes on");
    let again = bench.holdfast(&["chaos", "heal"]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("nothing was left behind"));
}
