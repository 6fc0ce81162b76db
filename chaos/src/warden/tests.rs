//! Faults end when their time is up, and when nobody is there any more: on a process that stands
//! for a node.

use std::io::Cursor;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;
use crate::deed::Deed;
use crate::proxy::Proxies;
use crate::site::Site;
use crate::warden::{leftovers, serve, Ask};

/// A process that pretends to be node 1 of a cluster in `dir`.
struct Node(Child);

impl Node {
    fn new(dir: &Path) -> Self {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let file = serde_json::json!({
            "token": "t", "shards": 1,
            "nodes": [{ "id": 1, "pid": child.id(), "mqtt": "127.0.0.1:1", "http": "127.0.0.1:1", "dir": dir, "config": "c", "log": "l" }],
        });
        std::fs::write(dir.join("cluster.json"), file.to_string()).unwrap();
        Self(child)
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat[stat.rfind(')').unwrap() + 1..].trim_start().starts_with('T')
    }

    /// The kernel takes a moment to stop a process.
    fn stops(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.is_stopped() {
            assert!(Instant::now() < end, "the fault does not bite");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pause(ttl_ms: u64) -> Order {
    Order {
        fault: "pause".into(),
        deeds: vec![Deed::Pause { node: 1 }],
        ttl_ms,
        stays: false,
    }
}

fn site(dir: &Path) -> Site {
    Site::local(Path::new("/bin/true"), dir, Vec::new()).unwrap()
}

fn ground(dir: &Path) -> (Mutex<Journal>, Arc<Context>) {
    let site = site(dir);
    let journal = Journal::begin(&dir.join("state"), &site).unwrap();
    let proxies = Proxies::new().unwrap();
    (Mutex::new(journal), Arc::new(Context { site, proxies }))
}

#[test]
fn a_fault_ends_when_its_time_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    let (journal, context) = ground(dir.path());
    let (_heal, healers) = channel();
    let (tell, told) = channel();
    let began = Instant::now();
    keep(&pause(300), &context, &journal, &healers, &|what| {
        if matches!(what, Tell::Outcome { .. }) {
            node.stops();
        }
        tell.send(what).unwrap();
    });
    assert!(began.elapsed() >= Duration::from_millis(300));
    let first = told.recv().unwrap();
    assert!(
        matches!(
            first,
            Tell::Outcome {
                outcome: Outcome::Installed(_),
                ..
            }
        ),
        "{first:?}"
    );
    let second = told.recv().unwrap();
    assert!(
        matches!(
            second,
            Tell::Healed {
                by: Healer::Lease,
                problem: None,
                ..
            }
        ),
        "{second:?}"
    );
    assert!(!node.is_stopped());
    let left = leftovers(&dir.path().join("state")).unwrap();
    assert!(left[0].faults.is_empty(), "{left:?}");
}

/// The injector's end of the pipe closes: everything is undone before the warden ends.
#[test]
fn everything_is_undone_when_the_injector_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    let me = crate::process::Process::of(std::process::id()).unwrap();
    let state = dir.path().join("state");
    let asks = [
        Ask::Begin {
            site: Box::new(site(dir.path())),
            injector: (me.pid, me.started_ticks()),
            state: state.clone(),
        },
        Ask::Inject(pause(3_600_000)),
    ];
    let lines: Vec<String> = asks
        .iter()
        .map(|ask| serde_json::to_string(ask).unwrap() + "\n")
        .collect();
    serve(Cursor::new(lines.concat()), &AtomicBool::new(false)).unwrap();
    assert!(!node.is_stopped());
    assert!(leftovers(&state).unwrap().is_empty(), "nothing is left to undo");
}

/// What cannot be done is skipped, and nothing is undone that somebody else may have done.
#[test]
fn what_is_skipped_is_not_undone() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    let (journal, context) = ground(dir.path());
    let (_heal, healers) = channel();
    for deed in [Deed::Fill, Deed::PowerCut { torn_seed: None }, Deed::Pause { node: 2 }] {
        let order = Order {
            deeds: vec![deed.clone()],
            ..pause(1_000)
        };
        let (tell, told) = channel();
        keep(&order, &context, &journal, &healers, &|what| tell.send(what).unwrap());
        drop(tell);
        let told: Vec<Tell> = told.iter().collect();
        assert!(
            matches!(
                &told[..],
                [Tell::Outcome {
                    outcome: Outcome::Skipped(_),
                    ..
                }]
            ),
            "{deed:?}: {told:?}"
        );
    }
    assert!(!node.is_stopped());
}
