#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a second is a second
//! Somebody fills the disk under load: telemetry is refused, twins and operations go on in the
//! room that was held back, nothing is torn, and service resumes once there is room.
//!
//! On a small file system in memory, which takes the right to mount: there is nothing else to fill
//! but the machine's own disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_tests::harness::{count, eventually, eventually_true, Cluster};
use holdfast_tests::register::Operators;
use holdfast_tests::workload::{Plan, Workload};

const DISK: &str = "1g";

/// A small disk of its own, gone when the test ends.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "tmpfs"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    fn free(&self) -> u64 {
        let disk = nix::sys::statvfs::statvfs(self.path()).unwrap();
        disk.blocks_available() * disk.fragment_size()
    }

    /// Takes all room there is, at once.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        let block = vec![0; 1 << 20];
        while file.write_all(&block).is_ok() {}
    }

    /// How many nodes hold room back.
    fn reserves(&self) -> usize {
        let below = |dir: PathBuf| dir.read_dir().into_iter().flatten().flatten().map(|e| e.path());
        // <test>/cluster/node-N/data/reserve
        let nodes = below(self.path().to_owned())
            .flat_map(below)
            .flat_map(below)
            .flat_map(below);
        nodes.flat_map(below).filter(|path| path.ends_with("reserve")).count()
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_telemetry_and_serves_the_rest() {
    let disk = SmallDisk::mount().expect("the right to mount a file system in memory: run the tests as root");
    // Where the harness makes the cluster's directory.
    std::env::set_var("TMPDIR", disk.path());
    let cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("full"));
    let operators = Operators::start(&cluster, "twin", 32, 9);
    work.acknowledge(2_000);
    println!("{} MiB free before", disk.free() >> 20);

    for round in 1..=count("DISK_FILLS", 2, 20) {
        // Taken back some time after there is room again; a disk that is filled sooner serves reads.
        eventually_true("room is held back", Duration::from_secs(30), || {
            disk.reserves() == cluster.ids().len()
        });
        disk.fill();
        eventually("telemetry is refused", Duration::from_secs(30), || {
            let before = work.acknowledged();
            std::thread::sleep(Duration::from_secs(1));
            let more = work.acknowledged() - before;
            (more == 0).then_some(()).ok_or(format!("{more} were acknowledged"))
        });
        println!("round {round}: refused with {} MiB free", disk.free() >> 20);
        let done = operators.done();
        eventually_true("twins are served", Duration::from_secs(30), || {
            cluster.assert_all_run();
            operators.done() > done + 100
        });
        cluster.assert_all_run();
        disk.empty();
        work.acknowledge(2_000);
    }
    let history = operators.finish();
    history.assert_linearizable();
    work.finish_and_judge(&cluster);
    cluster.digests_agree(Duration::from_secs(60));
    cluster.assert_all_run();
}
