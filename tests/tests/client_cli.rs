#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Wrong words, files and directories given to the shipped binary: each ends with the documented
//! code and a text that names what is wrong.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::clients::dev::{binary, free_ports, holdfast, told, Cluster};
use holdfast_tests::clients::{eventually, tools};
use tempfile::TempDir;

const USAGE: i32 = 64;
const BAD_INPUT: i32 = 65;
const UNAVAILABLE: i32 = 69;
const DISK: i32 = 74;

/// A node's directory with a configuration that is right but for what a test changes.
struct Lone {
    dir: TempDir,
    base: u16,
}

impl Lone {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self {
            dir,
            base: free_ports(3),
        }
    }

    fn text(&self) -> String {
        let base = self.base;
        let [mqtt, http, peer] = [base, base + 1, base + 2].map(|port| format!("127.0.0.1:{port}"));
        format!(
            "[node]\nid = 1\ndata_dir = \"data\"\n\n[cluster]\nid = \"lone\"\nsecret = \"0123456789abcdef\"\n\
             shards = 2\nreplication = 1\nmembers = [\n  {{ id = 1, peer = \"{peer}\", mqtt = \"{mqtt}\", http = \"{http}\" }},\n]\n\n\
             [listen]\nmqtt = \"{mqtt}\"\nhttp = \"{http}\"\npeer = \"{peer}\"\n\n\
             [security]\nmode = \"development\"\noperator_token = \"0123456789abcdef\"\n"
        )
    }

    fn write(&self, text: &str) -> PathBuf {
        let file = self.dir.path().join("node.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// Runs the node, which must end by itself.
    fn refused(&self, text: &str) -> (i32, String) {
        let file = self.write(text);
        told(&holdfast(&["node".as_ref(), "--config".as_ref(), file.as_os_str()]))
    }
}

fn check(what: (i32, String), code: i32, parts: &[&str]) {
    let (got, said) = what;
    assert_eq!(got, code, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn typing_errors_end_with_64_and_a_suggestion() {
    for (args, parts) in [
        (&["clutser", "up"][..], &["clutser", "cluster"][..]),
        (&["cluster", "statu"], &["status"]),
        (&["cluster", "up", "--node", "3"], &["--nodes"]),
        (&["cluster", "up", "--nodes", "0", "--dir", "x"], &["0"]),
        (&["device", "gett", "x"], &["get"]),
        (&["node"], &["--config"]),
        (&["dev", "--base-port", "70000"], &["70000"]),
        (&["--output", "xml", "cluster", "status"], &["json"]),
        (&[], &["Usage"]),
    ] {
        check(told(&holdfast(args)), USAGE, parts);
    }
}

/// DESIGN.md §7.1: every command has an example.
#[test]
fn help_of_every_command_has_an_example() {
    for args in [
        &["--help"][..],
        &["cluster", "--help"],
        &["cluster", "up", "--help"],
        &["node", "--help"],
    ] {
        check(told(&holdfast(args)), 0, &["xample"]);
    }
}

#[test]
fn bad_configuration_ends_with_65_and_names_file_line_and_key() {
    let lone = Lone::new();
    let text = lone.text();
    for (from, to, parts) in [
        ("id = 1\n", "id = 1\ncolour = \"red\"\n", &["node.toml:3", "colour"][..]),
        ("[listen]", "[lisen]", &["node.toml:", "lisen"]),
        ("shards = 2", "shards = 0", &["node.toml:8", "shards", "1..=1024"]),
        ("shards = 2", "shards = 5000", &["node.toml:8", "shards"]),
        ("shards = 2", "shards = \"many\"", &["node.toml:8", "shards"]),
        ("replication = 1", "replication = 3", &["replication"]),
        ("id = 1\n", "id = 9\n", &["node.id", "9"]),
        ("secret = \"0123456789abcdef\"", "secret = \"short\"", &["secret"]),
        ("mode = \"development\"", "mode = \"open\"", &["mode"]),
        ("[node]", "[node", &["node.toml:1"]),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = text.replacen(from, to, 1);
        check(lone.refused(&changed), BAD_INPUT, parts);
        let file = lone.dir.path().join("node.toml");
        let checked = told(&holdfast(&["config".as_ref(), "check".as_ref(), file.as_os_str()]));
        check(checked, BAD_INPUT, parts);
    }
    let open = text.replace("127.0.0.1:", "0.0.0.0:");
    check(
        lone.refused(&open),
        BAD_INPUT,
        &["listen", "0.0.0.0", "without credentials"],
    );
    let unsafe_fsync = format!("{text}\n[storage]\nunsafe_skip_log_fsync = true\n");
    check(lone.refused(&unsafe_fsync), BAD_INPUT, &["unsafe_skip_log_fsync"]);
    let missing = lone.dir.path().join("nowhere.toml");
    let said = told(&holdfast(&["node".as_ref(), "--config".as_ref(), missing.as_os_str()]));
    assert!([BAD_INPUT, DISK].contains(&said.0), "{said:?}");
    assert!(said.1.contains("nowhere.toml"), "{said:?}");
}

#[test]
fn missing_parent_directory_ends_with_74() {
    let lone = Lone::new();
    let text = lone
        .text()
        .replace("data_dir = \"data\"", "data_dir = \"no/such/place\"");
    check(lone.refused(&text), DISK, &["no/such/place"]);
}

#[test]
fn port_in_use_ends_with_69_and_names_it() {
    let lone = Lone::new();
    let port = lone.base + 1;
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    check(lone.refused(&lone.text()), UNAVAILABLE, &[&port.to_string()]);
}

/// Without the right to write into the data directory the node says so. Root has every right, so
/// that root becomes nobody first.
#[test]
fn no_permission_ends_with_74() {
    let lone = Lone::new();
    let data = lone.dir.path().join("data");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o500)).unwrap();
    let file = lone.write(&lone.text());
    let mut command = if tools::is_root() {
        for readable in [lone.dir.path(), &file] {
            fs::set_permissions(readable, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // The program may lie where nobody may look.
        let copy = lone.dir.path().join("holdfast");
        fs::copy(binary(), &copy).unwrap();
        let mut command = Command::new(tools::require("setpriv", "util-linux"));
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(copy);
        command
    } else {
        Command::new(binary())
    };
    let output = command.args(["node", "--config"]).arg(&file).output().unwrap();
    check(told(&output), DISK, &["data", "ermission denied"]);
}

/// A disk without room at start. A limit on the size of files stands in for the full disk: the
/// kernel refuses the write in the same place.
#[test]
fn full_disk_at_start_ends_with_74() {
    let lone = Lone::new();
    let file = lone.write(&lone.text());
    // SIGXFSZ is ignored, so that the write fails with EFBIG instead of ending the program.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" node --config \"$1\"";
    let mut command = Command::new("bash");
    let output = command.args(["-c", script]).arg(binary()).arg(&file).output().unwrap();
    check(told(&output), DISK, &["error"]);
}

/// The same on a real full disk: a file system of 512 KiB, which root may mount where only this
/// process sees it.
#[test]
fn full_file_system_at_start_ends_with_74() {
    let unshare = tools::require("unshare", "util-linux");
    let mount = "mount -t tmpfs -o size=512k holdfast-test \"$0\"";
    let lone = Lone::new();
    let data = lone.dir.path().join("data");
    let run = |script: &str, more: &[&Path]| {
        let mut command = Command::new(&unshare);
        command
            .args(["--mount", "bash", "-c", script])
            .arg(&data)
            .args(more)
            .output()
            .unwrap()
    };
    if !run(mount, &[]).status.success() {
        // Without that right the limit on file sizes above stands in for it.
        println!("mounting a file system is not allowed here");
        return;
    }
    let file = lone.write(&lone.text());
    let fill = format!(
        "{mount} && head -c 500000 /dev/zero > \"$0/filler\"; mkdir \"$0/node\"; exec \"$1\" node --config \"$2\""
    );
    let text = lone.text().replace("\"data\"", "\"data/node\"");
    fs::write(&file, text).unwrap();
    let (code, said) = told(&run(&fill, &[&binary(), &file]));
    assert_eq!(code, DISK, "{said}");
    assert!(said.contains("error") && !said.contains("panicked"), "{said}");
}

fn data_of(cluster: &Cluster, id: usize) -> PathBuf {
    cluster.node(id).dir.join("data")
}

/// Starts node `id` directly; it must refuse, with its own code.
fn refused(cluster: &Cluster, id: usize) -> (i32, String) {
    let config = cluster.node(id).config;
    told(&holdfast(&["node".as_ref(), "--config".as_ref(), config.as_os_str()]))
}

fn serves(cluster: &Cluster, id: usize, device: &str) {
    eventually("a write is acknowledged", || {
        let path = format!("/api/v1/devices/{device}");
        let answer = cluster.http(id).send("PUT", &path, &[], "");
        [200, 201].contains(&answer.status).then_some(())
    });
}

fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(&aside, b).unwrap();
}

/// Directories of another node and of another cluster: each is refused with the reason, and the
/// others keep serving. Damaged and wiped ones are in fault_damage.rs.
#[test]
fn foreign_directories_are_refused() {
    let cluster = Cluster::up(3);
    for n in 0..200 {
        let path = format!("/api/v1/devices/row-{n}/telemetry");
        cluster
            .http(1)
            .send("PUT", &format!("/api/v1/devices/row-{n}"), &[], "")
            .expect(201);
        cluster
            .http(1)
            .send("POST", &path, &[], format!("\"{}\"", "x".repeat(1000)))
            .expect(201);
    }
    let mut keys = 0..;
    let mut others_serve = || serves(&cluster, 1, &format!("still-{}", keys.next().unwrap()));

    cluster.kill(3);
    // Of another cluster.
    let other = Cluster::up(1);
    other.kill(1);
    swap(&data_of(&cluster, 3), &data_of(&other, 1));
    check(refused(&cluster, 3), DISK, &["belongs to cluster"]);
    others_serve();
    swap(&data_of(&cluster, 3), &data_of(&other, 1));

    // Of another node.
    let config = fs::read_to_string(cluster.node(3).config).unwrap();
    let stolen = config.replace("data_dir = \"data\"", "data_dir = \"stolen\"");
    let from = data_of(&cluster, 2);
    let to = cluster.node(3).dir.join("stolen");
    fs::create_dir(&to).unwrap();
    fs::copy(from.join("identity"), to.join("identity")).unwrap();
    fs::write(cluster.node(3).config, stolen).unwrap();
    check(refused(&cluster, 3), DISK, &["belongs to node 2"]);
    others_serve();
    fs::write(cluster.node(3).config, config).unwrap();

    // Unharmed again, it starts.
    cluster.start(3);
    cluster.assert_no_panic();
}
