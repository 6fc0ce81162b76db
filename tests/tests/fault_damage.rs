#![allow(clippy::unwrap_used)]
//! Damage to one node's directory: bytes flipped, files cut, a directory wiped, an older copy put
//! back. The damaged node says so and never counts towards a majority; the others serve; nothing
//! acknowledged is lost and all replicas agree in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_tests::harness::{eventually, Cluster, NodeStatus, Plan as ClusterPlan};
use holdfast_tests::workload::{Plan, Workload};

const STRETCH: u64 = 1_000;
const AGREE: Duration = Duration::from_secs(90);
const SEEN: Duration = Duration::from_secs(30);
const VICTIM: u64 = 2;

/// State is flushed, and the log below it let go of, every second.
fn cluster() -> Cluster {
    let env = vec![("HOLDFAST_STORAGE_FLUSH_INTERVAL".to_owned(), "1s".to_owned())];
    Cluster::start_plan(ClusterPlan { nodes: 3, env })
}

fn data(cluster: &Cluster, id: u64) -> PathBuf {
    cluster.node(id).dir.join("data")
}

fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let found = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().ends_with(end))
    };
    let mut found: Vec<PathBuf> = found.filter(named).collect();
    found.sort_by_key(|path| fs::metadata(path).unwrap().len());
    found
}

/// Flips a byte in every 200 of the file, but for its first and last hundred.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    assert!(
        bytes.len() > 400,
        "{} is too short to be damaged in the middle",
        file.display()
    );
    let end = bytes.len() - 100;
    for at in (100..end).step_by(200) {
        bytes[at] ^= 0x55;
    }
    fs::write(file, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The victim, as node 1 sees it.
fn seen(cluster: &Cluster) -> Result<NodeStatus, String> {
    let status = cluster.status_of(1)?;
    let victim = status.nodes.into_iter().find(|node| node.id == VICTIM);
    victim.ok_or_else(|| "node 1 does not know the victim".to_owned())
}

#[track_caller]
fn becomes(cluster: &Cluster, state: &str) -> NodeStatus {
    eventually(&format!("the victim is {state}"), SEEN, || {
        let node = seen(cluster)?;
        if node.state == state {
            Ok(node)
        } else {
            Err(format!("{node:?}\n{}", cluster.log_tail(VICTIM)))
        }
    })
}

/// Applied state can be had again: the node does it by itself, under load, and says what happened.
#[test]
fn damaged_state_is_rebuilt_by_itself() {
    let mut cluster = cluster();
    let work = Workload::start(&cluster, plan("state"));
    work.acknowledge(STRETCH);
    purged(&cluster, &work);
    let state = data(&cluster, VICTIM).join("state");
    for damage in ["flipped", "manifest", "missing"] {
        println!("damage: {damage}");
        work.acknowledge(STRETCH);
        cluster.stop(VICTIM);
        match damage {
            "flipped" => files(&state, ".sst").iter().for_each(|file| flip(file)),
            "manifest" => {
                let manifest = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path());
                let manifest = manifest
                    .filter(|p| p.to_string_lossy().contains("MANIFEST"))
                    .max()
                    .unwrap();
                fs::write(&manifest, &fs::read(&manifest).unwrap()[..40]).unwrap();
            }
            _ => fs::remove_dir_all(&state).unwrap(),
        }
        cluster.start(VICTIM);
        work.acknowledge(STRETCH);
        let healed = eventually("the victim is whole again", AGREE, || {
            let node = seen(&cluster)?;
            let healed = node.state == "up" && rebuilt(&cluster) > 0.0;
            healed
                .then_some(node.clone())
                .ok_or(format!("{node:?}\n{}", cluster.log_tail(VICTIM)))
        });
        // What is missing is no damage to tell of; what was told before is told on.
        assert!(healed.repaired.is_some() || damage == "missing", "{healed:?}");
        cluster.digests_agree(AGREE);
    }
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

fn rebuilt(cluster: &Cluster) -> f64 {
    cluster.counter(VICTIM, "holdfast_replicas_rebuilt_total")
}

fn plan(prefix: &str) -> Plan {
    Plan {
        payload_bytes: 64,
        ..Plan::busy(prefix)
    }
}

/// Waits until the victim has let go of the beginning of every loaded shard's log: what the state
/// says is then nowhere else on its disk.
fn purged(cluster: &Cluster, work: &Workload) {
    let shards = work.shards();
    eventually("every log has grown", Duration::from_secs(120), || {
        let status = cluster.status_of(VICTIM)?;
        let least = shards
            .iter()
            .map(|shard| status.shards[*shard].applied)
            .min()
            .unwrap_or(0);
        (least > 800).then_some(()).ok_or_else(|| format!("{least} entries"))
    });
    let flushes = cluster.counter(VICTIM, "holdfast_state_flushes_total");
    eventually("the victim flushes its state twice", Duration::from_secs(60), || {
        let now = cluster.counter(VICTIM, "holdfast_state_flushes_total");
        (now > flushes + 1.0)
            .then_some(())
            .ok_or_else(|| format!("{now} flushes"))
    });
}

/// What a replica has promised by is not repaired in place: the node says that it is damaged, takes
/// no part, and does not count: with a second node gone nothing more is acknowledged. It is replaced
/// by one command.
#[test]
fn a_damaged_log_takes_the_node_out_of_every_vote() {
    let mut cluster = cluster();
    let work = Workload::start(&cluster, plan("log"));
    work.acknowledge(STRETCH);
    cluster.kill(VICTIM);
    let log = data(&cluster, VICTIM).join("log");
    flip(files(&log, ".log").last().unwrap());
    cluster.start(VICTIM);
    let damaged = becomes(&cluster, "damaged");
    assert!(damaged.fault.is_some(), "{damaged:?}");
    work.acknowledge(STRETCH);
    let ready: Result<serde_json::Value, String> = cluster.get(VICTIM, "/readyz");
    assert!(ready.unwrap_err().contains("503"));
    cluster.kill(3);
    // One whole node of three: nothing can be committed, in any shard.
    for shard in 0..4 {
        let path = format!("/api/v1/cluster/shards/{shard}/digest?timeout_ms=1500");
        let marked: Result<serde_json::Value, String> = cluster.get(1, &path);
        assert!(marked.is_err(), "shard {shard} committed a marker: {marked:?}");
    }
    let acknowledged = work.acknowledged();
    cluster.stop(VICTIM);
    cluster.start(VICTIM);
    becomes(&cluster, "damaged");
    assert_eq!(work.acknowledged(), acknowledged, "acknowledged without a majority");
    cluster.start(3);
    work.acknowledge(STRETCH);
    assert_eq!(seen(&cluster).unwrap().leads, 0);
    // One command, under load: a node with a new id takes its place.
    cluster.command(&["cluster", "repair", &VICTIM.to_string()]);
    cluster.reload();
    assert_eq!(cluster.ids(), [1, 3, 4]);
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "status"]);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// What no checksum shows: an empty directory, an older copy, a log that is missing.
#[test]
fn a_directory_that_forgot_something_takes_no_part() {
    let mut cluster = cluster();
    let work = Workload::start(&cluster, plan("older"));
    work.acknowledge(STRETCH);
    cluster.stop(VICTIM);
    let data = data(&cluster, VICTIM);
    let (older, newer) = (data.with_extension("older"), data.with_extension("newer"));
    copy(&data, &older);
    cluster.start(VICTIM);
    work.acknowledge(STRETCH);
    cluster.stop(VICTIM);
    copy(&data, &newer);
    for damage in ["older", "wiped", "identity", "log files"] {
        println!("damage: {damage}");
        fs::remove_dir_all(&data).unwrap();
        match damage {
            "older" => copy(&older, &data),
            "wiped" => {}
            _ => copy(&newer, &data),
        }
        match damage {
            "identity" => fs::remove_file(data.join("identity")).unwrap(),
            "log files" => fs::remove_dir_all(data.join("log")).unwrap(),
            _ => {}
        }
        cluster.start(VICTIM);
        becomes(&cluster, "damaged");
        work.acknowledge(STRETCH / 4);
        cluster.stop(VICTIM);
    }
    // The directory as it was: nothing of it was lost, so nothing has to be repaired.
    fs::remove_dir_all(&data).unwrap();
    copy(&newer, &data);
    cluster.start(VICTIM);
    becomes(&cluster, "up");
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// Shortens a file to a part of what it holds, in thousandths, or by so many bytes.
enum Cut {
    Keep(u64),
    Less(u64),
}

fn cut(file: &Path, how: &Cut) {
    let len = fs::metadata(file).unwrap().len();
    let kept = match how {
        Cut::Keep(thousandths) => len * thousandths / 1_000,
        Cut::Less(bytes) => len.saturating_sub(*bytes),
    };
    assert!(kept < len, "{} holds nothing that could be cut off", file.display());
    let opened = fs::OpenOptions::new().write(true).open(file).unwrap();
    opened.set_len(kept).unwrap();
}

/// A file of the log that lost its end after a clean stop. Whatever checksums say: the node knows
/// how much it had written, and takes no part with less.
#[test]
fn a_log_that_lost_its_end_takes_no_part() {
    let mut cluster = cluster();
    let work = Workload::start(&cluster, plan("cut"));
    work.acknowledge(STRETCH);
    // A second run: what the first one left is in tables by then.
    cluster.stop(VICTIM);
    cluster.start(VICTIM);
    work.acknowledge(STRETCH);
    let data = data(&cluster, VICTIM);
    eventually("the victim has written enough to lose some", AGREE, || {
        let written: u64 = files(&data.join("log"), ".log")
            .iter()
            .map(|wal| fs::metadata(wal).map_or(0, |wal| wal.len()))
            .sum();
        (written > 10_000).then_some(()).ok_or(format!("{written} bytes"))
    });
    cluster.stop(VICTIM);
    let whole = data.with_extension("whole");
    copy(&data, &whole);
    let cuts = [
        (".log", Cut::Keep(500)),
        (".log", Cut::Keep(0)),
        (".log", Cut::Keep(990)),
        (".log", Cut::Less(1)),
        (".sst", Cut::Keep(500)),
        ("MANIFEST", Cut::Keep(500)),
    ];
    for (name, how) in cuts {
        fs::remove_dir_all(&data).unwrap();
        copy(&whole, &data);
        let log = data.join("log");
        let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains(name);
        let found: Vec<PathBuf> = files(&log, "").into_iter().filter(named).collect();
        assert!(!found.is_empty(), "there is no {name} in the log");
        for file in &found {
            println!("damage: {}", file.display());
            cut(file, &how);
        }
        let told = cluster.ask(&["cluster", "start", &VICTIM.to_string()]);
        cluster.reload();
        assert!(told.contains("takes no part") && !told.contains("serves"), "{told}");
        becomes(&cluster, "damaged");
        work.acknowledge(STRETCH / 4);
        cluster.stop(VICTIM);
    }
    fs::remove_dir_all(&data).unwrap();
    copy(&whole, &data);
    let told = cluster.ask(&["cluster", "start", &VICTIM.to_string()]);
    cluster.reload();
    assert!(told.contains("serves"), "{told}");
    becomes(&cluster, "up");
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// The first node of a cluster that has grown is configured as if it were alone. With its disk gone
/// it must not begin a cluster of its own.
#[test]
fn the_first_node_of_a_grown_cluster_does_not_begin_anew_without_its_disk() {
    let mut cluster = Cluster::up(1);
    cluster.command(&["cluster", "add", "--nodes", "2"]);
    cluster.reload();
    let work = Workload::start(&cluster, plan("first"));
    work.acknowledge(STRETCH);
    cluster.stop(1);
    fs::remove_dir_all(data(&cluster, 1)).unwrap();
    let told = cluster.ask(&["cluster", "start", "1"]);
    cluster.reload();
    assert!(told.contains("takes no part"), "{told}");
    let ready: Result<serde_json::Value, String> = cluster.get(1, "/readyz");
    assert!(ready.unwrap_err().contains("503"));
    work.acknowledge(STRETCH);
    cluster.command(&["cluster", "repair", "1"]);
    cluster.reload();
    assert_eq!(cluster.ids(), [2, 3, 4]);
    work.finish_and_judge(&cluster);
    cluster.digests_agree(AGREE);
}

/// By address only, as where a supervisor runs the nodes: the command says what must be run on the
/// damaged node's host, and does all the rest.
#[test]
fn a_damaged_node_is_replaced_on_its_own_host_by_address_and_token() {
    let mut cluster = cluster();
    let work = Workload::start(&cluster, plan("host"));
    work.acknowledge(STRETCH);
    cluster.stop(VICTIM);
    let log = data(&cluster, VICTIM).join("log");
    cut(files(&log, ".log").last().unwrap(), &Cut::Keep(500));
    cluster.start(VICTIM);
    becomes(&cluster, "damaged");
    let (url, token) = (format!("http://{}", cluster.node(1).http), cluster.file.token.clone());
    let victim = VICTIM.to_string();
    let repair = ["cluster", "repair", &victim, "--url", &url, "--token", &token];
    let at_itself = format!("http://{}", cluster.node(VICTIM).http);
    let refused = cluster.try_command(&["cluster", "repair", &victim, "--url", &at_itself, "--token", &token]);
    assert!(refused.unwrap_err().contains("is damaged itself"));
    let told = cluster.ask(&[&repair[..], &["--no-wait", "--output", "json"]].concat());
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["healthy"], false);
    let (join_token, join) = (told["token"].as_str().unwrap(), told["join"][0].as_str().unwrap());
    let command = told["commands"][0].as_str().unwrap();
    assert!(command.contains(join_token) && command.contains(join), "{command}");
    // What the command says, on the victim's host: same addresses, another id.
    let config = cluster.node(VICTIM).dir.join("node.toml");
    let path = config.display().to_string();
    let rejoin = [
        "cluster",
        "rejoin",
        "--config",
        &path,
        "--join",
        join,
        "--join-token",
        join_token,
    ];
    let runs = cluster.try_command(&rejoin).unwrap_err();
    assert!(runs.contains("stop the node first"), "{runs}");
    cluster.stop(VICTIM);
    cluster.command(&rejoin);
    cluster.supervise(&config);
    // Nobody can say any more how node 2 is: it is stopped.
    let unsure = cluster.try_command(&repair).unwrap_err();
    assert!(unsure.contains("--replace"), "{unsure}");
    cluster.command(&[&repair[..], &["--replace"]].concat());
    let status = cluster.status_of(1).unwrap();
    let ids: Vec<u64> = status.nodes.iter().map(|node| node.id).collect();
    assert_eq!(ids, [1, 3, 4]);
    for shard in &status.shards {
        assert_eq!(shard.voters.len(), 3, "{shard:?}");
        assert!(!shard.voters.contains(&VICTIM), "{shard:?}");
    }
    work.acknowledge(STRETCH);
    // Two of three are a majority: the new one counts.
    cluster.kill(3);
    work.every_shard_acknowledges();
    work.finish_and_judge(&cluster);
}
