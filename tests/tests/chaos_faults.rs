#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // real processes
//! Faults of the catalogue on a real cluster, one after the other: each is installed, is what it
//! says, and is undone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_tests::harness::{eventually, program, Cluster};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);

fn inject(cluster: &Cluster, state: &Path, fault: &str, on: &str, seconds: u32) -> Value {
    let length = format!("{seconds}s");
    let ran = Command::new(program())
        .args([
            "chaos", "inject", fault, "--on", on, "--for", &length, "--output", "json", "--dir",
        ])
        .arg(cluster.dir())
        .env("HOLDFAST_WARDEN_STATE", state)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("{fault}: {said}{}", String::from_utf8_lossy(&ran.stderr)))
}

/// Everybody runs, is up, and every shard is led.
fn well(cluster: &mut Cluster, after: &str) {
    eventually(&format!("after {after} all is well"), DEADLINE, || {
        cluster.reload();
        for id in cluster.ids() {
            let status = cluster.status_of(id)?;
            let bad = status.nodes.iter().find(|node| node.state != "up");
            if let Some(bad) = bad {
                return Err(format!("{bad:?}"));
            }
            if let Some(shard) = status
                .shards
                .iter()
                .find(|shard| shard.leader.is_none() || shard.fault.is_some())
            {
                return Err(format!("{shard:?}"));
            }
        }
        Ok(())
    });
}

/// Rows: the fault, whom, for how many seconds, and what it says of itself.
#[test]
fn faults_of_processes_and_operators_bite_and_heal() {
    let mut cluster = Cluster::up(3);
    let state = tempfile::tempdir().unwrap();
    let rows = [
        ("process.kill", "busiest", 2, "kill -9"),
        ("process.stop", "node:1", 2, "graceful stop"),
        ("process.pause", "catalog", 2, "SIGSTOP"),
        ("process.double_start", "node:2", 1, "was refused"),
        ("process.empty_disk", "node:3", 2, "empty directory"),
        ("process.crash_loop", "node:1", 8, "kill -9"),
        ("process.slow_start", "node:2", 5, "kill -9"),
        ("operator.drain", "idlest", 2, "is drained"),
        ("operator.leader_shuffle", "all", 5, "is drained"),
        ("operator.scrub", "all", 1, "read everything"),
    ];
    for (fault, on, seconds, says) in rows {
        let told = inject(&cluster, state.path(), fault, on, seconds);
        assert_eq!(told["outcome"], "installed", "{fault}: {told:#}");
        assert!(told["why"].as_str().unwrap().contains(says), "{fault}: {told:#}");
        assert_eq!(told["healed"], true, "{fault}: {told:#}");
        well(&mut cluster, fault);
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "a journal is left");
    cluster.digests_agree(DEADLINE);
}

/// What cannot be done here is skipped, with the reason, and nothing is touched.
#[test]
fn what_cannot_be_done_is_skipped_with_the_reason() {
    let mut cluster = Cluster::up(3);
    let state = tempfile::tempdir().unwrap();
    for (fault, why) in [
        ("power.cut", "cluster.power"),
        ("disk.fill", "small disk"),
        ("client.latency", "proxy"),
        ("operator.snapshot_purge", "no API"),
        ("operator.remove_readd", "three"),
    ] {
        let told = inject(&cluster, state.path(), fault, "node:1", 1);
        assert_eq!(told["outcome"], "skipped", "{fault}: {told:#}");
        assert!(told["why"].as_str().unwrap().contains(why), "{fault}: {told:#}");
    }
    assert_eq!(cluster.running(), cluster.ids());
    well(&mut cluster, "what was skipped");
}
