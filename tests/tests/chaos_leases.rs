#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // real processes
//! Faults inside nodes, ordered from outside: they bite, they end when they should, and a node that
//! does not allow drills is left alone.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast_tests::harness::{eventually, program, Cluster, Plan};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

struct Bench {
    cluster: Cluster,
    state: tempfile::TempDir,
}

impl Bench {
    fn new(allow: bool) -> Self {
        let env = vec![("HOLDFAST_CHAOS_ALLOW_DRILLS".to_owned(), allow.to_string())];
        Self {
            cluster: Cluster::start_plan(Plan { nodes: 3, env }),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn inject(&self, fault: &str, with: &[&str], length: &str) -> Command {
        let mut command = Command::new(program());
        command.args([
            "chaos", "inject", fault, "--on", "node:2", "--for", length, "--output", "json",
        ]);
        for pair in with {
            command.args(["--with", pair]);
        }
        command.arg("--dir").arg(self.cluster.dir());
        command
            .env("HOLDFAST_WARDEN_STATE", self.state.path())
            .stdin(Stdio::null());
        command
    }

    fn told(&self, fault: &str, with: &[&str], length: &str) -> Value {
        let ran = self.inject(fault, with, length).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        serde_json::from_str(&said)
            .unwrap_or_else(|_| panic!("{fault}: {said}{}", String::from_utf8_lossy(&ran.stderr)))
    }

    /// A fault for much longer than the test lasts, once it is there.
    fn begin(&self, fault: &str) -> Child {
        let mut child = self
            .inject(fault, &[], "1h")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines.next().unwrap().unwrap();
        assert!(said.contains("Ctrl-C heals"), "{said}");
        child
    }

    fn leases(&self) -> Result<Value, String> {
        self.cluster.get(2, "/api/v1/chaos/leases")
    }

    fn no_leases(&self, what: &str) {
        eventually(what, DEADLINE, || {
            let leases = self.leases()?;
            let none = leases["leases"].as_array().is_some_and(Vec::is_empty);
            none.then_some(()).ok_or(leases.to_string())
        });
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Each is taken by the node, acts, and is gone afterwards.
#[test]
fn leases_bite_and_are_healed() {
    let bench = Bench::new(true);
    let rows: [(&str, &[&str]); 12] = [
        ("link.cut", &["peer=1"]),
        ("link.drop", &["percent=50", "direction=in"]),
        ("link.latency", &["ms=30"]),
        ("link.duplicate", &["percent=50"]),
        ("link.reorder", &["percent=50"]),
        ("link.corrupt", &["percent=50"]),
        ("link.bandwidth", &["bytes_per_second=5000"]),
        ("link.reset", &["percent=50"]),
        ("link.half_open", &["peer=3"]),
        ("clock.strobe", &["ms=60000", "period_ms=100"]),
        ("cpu.hog", &["threads=1"]),
        ("memory.squeeze", &["bytes=10000000"]),
    ];
    for (fault, with) in rows {
        let told = bench.told(fault, with, "2s");
        assert_eq!(told["outcome"], "installed", "{fault}: {told:#}");
        assert_eq!(told["healed"], true, "{fault}: {told:#}");
        bench.no_leases(fault);
        let leases = bench.leases().unwrap();
        let past = leases["past"].as_array().unwrap().last().cloned().unwrap();
        assert_eq!(past["kind"], fault, "{leases:#}");
        assert!(past["hits"].as_u64() > Some(0), "{fault} did nothing: {past:#}");
    }
    bench.cluster.digests_agree(DEADLINE);
}

/// The warden deletes the lease of a dead injector; without a warden it expires by itself.
#[test]
fn leases_end_with_their_injector_and_without_a_warden() {
    let bench = Bench::new(true);
    end(bench.begin("link.cut"));
    bench.no_leases("the warden deletes the lease of an injector that was killed");
    let injector = bench.begin("link.cut");
    let left = chaos::warden::leftovers(bench.state.path()).unwrap();
    left.last()
        .and_then(|left| left.warden)
        .expect("there is a warden")
        .kill()
        .unwrap();
    end(injector);
    bench.no_leases("the lease expires by itself");
    let healed = Command::new(program())
        .args(["chaos", "heal"])
        .env("HOLDFAST_WARDEN_STATE", bench.state.path())
        .output()
        .unwrap();
    assert!(healed.status.success(), "{healed:?}");
    bench.cluster.digests_agree(DEADLINE);
}

#[test]
fn a_node_that_does_not_allow_drills_is_left_alone() {
    let bench = Bench::new(false);
    let told = bench.told("link.cut", &[], "1s");
    assert_eq!(told["outcome"], "skipped", "{told:#}");
    assert!(
        told["why"].as_str().unwrap().contains("does not allow drills"),
        "{told:#}"
    );
}
