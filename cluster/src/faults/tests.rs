//! Each fault bites, says so, and is over when its lease is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Duration;

use actors::time::{Clock, Timestamp};
use serde_json::{json, Value};

use super::*;
use crate::storage::fault::DiskFaults as _;

/// Goes when it is told to.
#[derive(Default)]
struct Hand(AtomicU64);

impl Hand {
    fn forward(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

const NOON: u64 = 1_700_000_000_000;

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp(NOON + self.monotonic_ms())
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn table() -> (Arc<Hand>, Arc<Faults>) {
    let hand = Arc::<Hand>::default();
    (hand.clone(), Faults::new(1, true, hand))
}

fn wanted(fault: Value, ttl_ms: u64) -> Wanted {
    Wanted::parse(&json!({ "fault": fault, "ttl_ms": ttl_ms })).unwrap()
}

fn install(faults: &Arc<Faults>, id: &str, fault: Value) {
    faults.install(id, wanted(fault, 1_000)).unwrap();
}

fn hits(faults: &Faults, id: &str) -> u64 {
    let leases = faults.leases();
    let here = leases.iter().find(|lease| lease.id == id).map(|lease| lease.hits);
    here.or_else(|| {
        faults
            .past()
            .iter()
            .rev()
            .find(|past| past.id == id)
            .map(|past| past.hits)
    })
    .unwrap()
}

/// Waits for a condition that threads bring about.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let (tx, rx) = mpsc::channel::<()>();
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        let _ = rx.recv_timeout(Duration::from_millis(10));
    }
    drop(tx);
    panic!("did not come true: {what}");
}

fn examples() -> Vec<Value> {
    vec![
        json!({ "kind": "link.drop", "peer": 2, "direction": "in", "percent": 10.5 }),
        json!({ "kind": "link.cut", "peer": "2" }),
        json!({ "kind": "link.latency", "peer": "*", "ms": 50, "jitter_ms": 10 }),
        json!({ "kind": "link.duplicate", "peer": 2, "percent": 1 }),
        json!({ "kind": "link.reorder", "peer": 2, "percent": 1, "ms": 20 }),
        json!({ "kind": "link.corrupt", "peer": 2, "percent": 1 }),
        json!({ "kind": "link.bandwidth", "peer": 2, "bytes_per_second": 1000 }),
        json!({ "kind": "link.reset", "peer": 2, "percent": 1 }),
        json!({ "kind": "link.half_open", "peer": 2 }),
        json!({ "kind": "disk.latency", "on": "sync", "ms": 20 }),
        json!({ "kind": "disk.stall", "on": "write" }),
        json!({ "kind": "disk.full" }),
        json!({ "kind": "disk.read_only" }),
        json!({ "kind": "disk.eio", "on": "read", "percent": 100 }),
        json!({ "kind": "disk.sync_fails_once" }),
        json!({ "kind": "clock.step", "ms": -5000 }),
        json!({ "kind": "clock.drift", "ppm": 100_000 }),
        json!({ "kind": "clock.strobe", "ms": 200, "period_ms": 100 }),
        json!({ "kind": "clock.freeze" }),
        json!({ "kind": "cpu.hog", "threads": 1, "seed": 7 }),
        json!({ "kind": "memory.squeeze", "bytes": 1_000_000 }),
        json!({ "kind": "descriptors.exhaust", "leave": 10 }),
    ]
}

#[test]
fn every_kind_is_read_shown_again_and_in_the_reference() {
    let page = include_str!("../../../docs/reference/chaos-leases.md");
    let kinds: Vec<&str> = examples().iter().map(|e| wanted(e.clone(), 100).fault.kind()).collect();
    assert_eq!(kinds, KINDS);
    for example in examples() {
        let wanted = wanted(example, 100);
        let shown = json!(wanted.fault);
        assert_eq!(shown["kind"], wanted.fault.kind());
        let again = Wanted::parse(&json!({ "fault": shown, "ttl_ms": 100 })).unwrap();
        assert_eq!(again.fault, wanted.fault, "what is shown can be installed");
        assert!(page.contains(&format!("`{}`", wanted.fault.kind())), "{shown}");
    }
}

#[test]
fn a_bad_body_is_refused_by_the_key_that_is_wrong() {
    let cut = json!({ "kind": "link.cut", "peer": 2 });
    let cases = [
        (json!([]), ""),
        (json!({ "fault": cut }), "ttl_ms"),
        (json!({ "fault": cut, "ttl_ms": 99 }), "ttl_ms"),
        (json!({ "fault": cut, "ttl_ms": 600_001 }), "ttl_ms"),
        (json!({ "fault": cut, "ttl_ms": "1s" }), "ttl_ms"),
        (json!({ "fault": cut, "ttl_ms": 100, "why": 1 }), "why"),
        (json!({ "ttl_ms": 100 }), "fault"),
        (json!({ "fault": "link.cut", "ttl_ms": 100 }), "fault"),
    ];
    let of_faults = [
        (json!({}), "fault.kind"),
        (json!({ "kind": "link.melt" }), "fault.kind"),
        (json!({ "kind": "disk.sync_lies" }), "fault.kind"),
        (json!({ "kind": "link.cut" }), "fault.peer"),
        (json!({ "kind": "link.cut", "peer": "two" }), "fault.peer"),
        (json!({ "kind": "link.cut", "peer": 2, "percent": 3 }), "fault.percent"),
        (json!({ "kind": "link.drop", "peer": 2, "percent": 0 }), "fault.percent"),
        (
            json!({ "kind": "link.drop", "peer": 2, "percent": 101 }),
            "fault.percent",
        ),
        (
            json!({ "kind": "link.drop", "peer": 2, "direction": "up" }),
            "fault.direction",
        ),
        (json!({ "kind": "link.latency", "peer": 2, "ms": -1 }), "fault.ms"),
        (
            json!({ "kind": "link.bandwidth", "peer": 2, "bytes_per_second": 1 }),
            "fault.bytes_per_second",
        ),
        (json!({ "kind": "disk.stall", "on": "read" }), "fault.on"),
        (json!({ "kind": "disk.full", "hard": 1 }), "fault.hard"),
        (json!({ "kind": "clock.step", "ms": 0 }), "fault.ms"),
        (json!({ "kind": "clock.drift", "ppm": 500_001 }), "fault.ppm"),
        (
            json!({ "kind": "clock.strobe", "ms": 1, "period_ms": 0 }),
            "fault.period_ms",
        ),
        (json!({ "kind": "cpu.hog", "threads": 65 }), "fault.threads"),
        (json!({ "kind": "cpu.hog", "threads": 1, "seed": -1 }), "fault.seed"),
    ];
    let of_faults = of_faults.map(|(fault, key)| (json!({ "fault": fault, "ttl_ms": 100 }), key));
    for (body, key) in cases.into_iter().chain(of_faults) {
        assert_eq!(Wanted::parse(&body).unwrap_err().key, key, "{body}");
    }
}

#[test]
fn nothing_is_installed_without_permission_and_nothing_bad_with_it() {
    let hand = Arc::<Hand>::default();
    let faults = Faults::new(1, false, hand);
    let full = || wanted(json!({ "kind": "disk.full" }), 1_000);
    assert!(matches!(faults.install("a", full()), Err(InstallError::NotAllowed)));
    assert!(!faults.acts() && !faults.takes_the_room());

    let (_, faults) = table();
    for id in ["", "a b", "ü", &"x".repeat(65)] {
        assert!(matches!(faults.install(id, full()), Err(InstallError::Bad(bad)) if bad.key == "id"));
    }
    let itself = wanted(json!({ "kind": "link.cut", "peer": 1 }), 1_000);
    assert!(matches!(faults.install("a", itself), Err(InstallError::Bad(bad)) if bad.key == "fault.peer"));
    for n in 0..LEASES_MAX {
        faults.install(&format!("lease-{n}"), full()).unwrap();
    }
    assert!(matches!(faults.install("one-more", full()), Err(InstallError::Full)));
    faults.install("lease-3", full()).expect("renewing takes no room");
    assert_eq!(faults.heal_all(), LEASES_MAX);
    assert_eq!(faults.past().len(), PAST_MAX);
}

#[test]
fn a_lease_ends_by_itself_unless_it_is_renewed() {
    let (hand, faults) = table();
    install(&faults, "full", json!({ "kind": "disk.full" }));
    assert!(faults.takes_the_room());
    hand.forward(900);
    install(&faults, "full", json!({ "kind": "disk.full" }));
    assert_eq!(hits(&faults, "full"), 1, "it is the same lease");
    hand.forward(999);
    assert!(faults.takes_the_room());
    assert_eq!(faults.expire(), Some(Duration::from_millis(1)));
    hand.forward(1);
    assert!(!faults.takes_the_room(), "nobody has to tell it that its time is up");
    assert_eq!(faults.leases(), []);
    let past = faults.past();
    assert_eq!((past[0].reason, past[0].hits), ("expired", 2));
    assert_eq!(faults.expire(), None);
    assert!(!faults.acts(), "nobody asks any more");
}

#[test]
fn another_fault_under_the_same_name_replaces_the_first() {
    let (_, faults) = table();
    install(&faults, "x", json!({ "kind": "disk.full" }));
    install(&faults, "x", json!({ "kind": "disk.read_only" }));
    assert!(!faults.takes_the_room());
    assert_eq!(faults.before_write().unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(faults.heal("x") && !faults.heal("x"));
    assert!(faults.before_write().is_ok());
    let past: Vec<_> = faults.past().iter().map(|past| (past.kind, past.reason)).collect();
    assert_eq!(past, [("disk.full", "healed"), ("disk.read_only", "healed")]);
}

#[test]
fn chance_is_the_same_for_the_same_seed() {
    let struck = |seed: u64| -> Vec<bool> {
        let (_, faults) = table();
        install(
            &faults,
            "x",
            json!({ "kind": "disk.eio", "on": "read", "percent": 30, "seed": seed }),
        );
        (0..200).map(|_| faults.before_read().is_err()).collect()
    };
    assert_eq!(struck(1), struck(1));
    assert_ne!(struck(1), struck(2));
    let share = struck(3).iter().filter(|struck| **struck).count();
    assert!((20..120).contains(&share), "{share} of 200 at 30 %");
}

#[test]
fn disk_faults_strike_what_they_name() {
    let code = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    type Outcome = [Option<i32>; 3];
    let rows: [(Value, Outcome); 6] = [
        (json!({ "kind": "disk.full" }), [None, None, None]),
        (
            json!({ "kind": "disk.full", "hard": true }),
            [None, Some(libc::ENOSPC), Some(libc::ENOSPC)],
        ),
        (json!({ "kind": "disk.read_only" }), [None, Some(libc::EROFS), None]),
        (
            json!({ "kind": "disk.eio", "on": "read" }),
            [Some(libc::EIO), None, None],
        ),
        (
            json!({ "kind": "disk.eio", "on": "write" }),
            [None, Some(libc::EIO), None],
        ),
        (
            json!({ "kind": "disk.eio", "on": "sync" }),
            [None, None, Some(libc::EIO)],
        ),
    ];
    for (fault, expected) in rows {
        let (_, faults) = table();
        install(&faults, "x", fault.clone());
        let met = [faults.before_read(), faults.before_write(), faults.before_sync()].map(code);
        assert_eq!(met, expected, "{fault}");
        assert_eq!(faults.takes_the_room(), fault["kind"] == "disk.full", "{fault}");
        assert!(hits(&faults, "x") > 0, "{fault}");
        faults.heal("x");
        let after = [faults.before_read(), faults.before_write(), faults.before_sync()].map(code);
        assert_eq!(after, [None; 3], "{fault}");
    }
}

#[test]
fn a_sync_that_fails_once_succeeds_afterwards() {
    let (_, faults) = table();
    install(&faults, "x", json!({ "kind": "disk.sync_fails_once" }));
    assert!(faults.before_sync().is_err());
    assert!(faults.before_sync().is_ok() && faults.before_sync().is_ok());
    assert_eq!(hits(&faults, "x"), 1);
}

/// Runs `before` on a thread and says when it is through.
fn on_a_thread(faults: &Arc<Faults>, before: fn(&Faults) -> std::io::Result<()>) -> mpsc::Receiver<()> {
    let (tx, rx) = mpsc::channel();
    let faults = faults.clone();
    std::thread::spawn(move || {
        before(&faults).unwrap();
        tx.send(()).unwrap();
    });
    rx
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_stalled_disk_goes_on_when_the_lease_is_over_or_healed() {
    let (hand, faults) = table();
    for heal in [false, true] {
        install(&faults, "x", json!({ "kind": "disk.stall", "on": "sync" }));
        faults.before_write().expect("writes are not concerned");
        let through = on_a_thread(&faults, |faults| faults.before_sync());
        eventually("the sync is stuck", || hits(&faults, "x") == 1);
        assert!(through.try_recv().is_err());
        if heal {
            faults.heal("x");
        } else {
            hand.forward(1_000);
        }
        through.recv_timeout(PATIENCE).expect("the sync goes on");
        faults.before_sync().expect("and later ones are not held up");
        faults.expire();
    }
}

#[test]
fn a_slow_disk_takes_the_time_that_was_asked_for() {
    let (hand, faults) = table();
    faults
        .install(
            "x",
            wanted(json!({ "kind": "disk.latency", "on": "write", "ms": 300 }), 60_000),
        )
        .unwrap();
    let through = on_a_thread(&faults, |faults| faults.before_write());
    eventually("the write waits", || hits(&faults, "x") == 1);
    hand.forward(299);
    assert!(through.try_recv().is_err());
    // The thread may have looked at the clock only after it had gone on.
    hand.forward(300);
    through.recv_timeout(PATIENCE).expect("the write goes on");
}

#[test]
fn the_time_of_day_is_bent_and_straight_again() {
    let (hand, faults) = table();
    let clock = DrillClock::new(hand.clone(), faults.clone());
    let off = || clock.now().0 as i64 - hand.now().0 as i64;
    let rows = [
        (json!({ "kind": "clock.step", "ms": 5_000 }), [5_000, 5_000, 5_000]),
        (json!({ "kind": "clock.step", "ms": -5_000 }), [-5_000, -5_000, -5_000]),
        (
            json!({ "kind": "clock.strobe", "ms": 700, "period_ms": 100 }),
            [700, 0, 700],
        ),
        (json!({ "kind": "clock.freeze" }), [0, -100, -200]),
    ];
    for (fault, expected) in rows {
        let monotonic = clock.monotonic_ms();
        install(&faults, "x", fault.clone());
        let mut met = [0; 3];
        for met in &mut met {
            *met = off();
            hand.forward(100);
        }
        assert_eq!(met, expected, "{fault}");
        assert!(hits(&faults, "x") >= 3, "{fault}");
        assert_eq!(
            clock.monotonic_ms() - monotonic,
            300,
            "{fault} bends the time of day only"
        );
        hand.forward(700);
        assert_eq!(off(), 0, "{fault} is over");
    }
    faults.expire();
}

#[test]
fn a_drift_bends_both_clocks_and_the_monotonic_one_never_goes_back() {
    for ppm in [100_000_i64, -100_000] {
        let (hand, faults) = table();
        let clock = DrillClock::new(hand.clone(), faults.clone());
        hand.forward(5_000);
        faults
            .install("x", wanted(json!({ "kind": "clock.drift", "ppm": ppm }), 10_000))
            .unwrap();
        let mut last = clock.monotonic_ms();
        for step in 0..30 {
            hand.forward(500);
            let now = clock.monotonic_ms();
            assert!(now >= last, "{ppm} at step {step}");
            last = now;
        }
        assert_eq!(clock.now(), hand.now(), "the time of day is right again");
        let gained = clock.monotonic_ms() as i64 - hand.monotonic_ms() as i64;
        assert_eq!(gained, ppm / 100, "what ten seconds of drift have added stays");
        assert!(hits(&faults, "x") > 0);
        faults.expire();
        assert_eq!(clock.monotonic_ms() as i64 - hand.monotonic_ms() as i64, gained);
    }
}

#[test]
fn leases_go_by_the_clock_that_no_fault_bends() {
    let (hand, faults) = table();
    let clock = DrillClock::new(hand.clone(), faults.clone());
    install(&faults, "drift", json!({ "kind": "clock.drift", "ppm": -500_000 }));
    install(&faults, "freeze", json!({ "kind": "clock.freeze" }));
    hand.forward(1_000);
    assert_eq!(clock.now(), hand.now());
    assert_eq!(faults.leases(), []);
}

#[test]
fn a_hog_burns_cores_only_while_its_lease_lasts() {
    let (hand, faults) = table();
    install(&faults, "x", json!({ "kind": "cpu.hog", "threads": 2 }));
    eventually("it works", || hits(&faults, "x") > 2);
    hand.forward(1_000);
    faults.expire();
    eventually("its threads are gone", || Arc::strong_count(&faults) == 1);
}

#[test]
fn memory_is_taken_and_given_back() {
    let (_, faults) = table();
    install(&faults, "x", json!({ "kind": "memory.squeeze", "bytes": 64 << 20 }));
    eventually("it is taken", || hits(&faults, "x") == 4);
    assert!(Arc::strong_count(&faults) > 1, "and held");
    faults.heal("x");
    eventually("it is given back", || Arc::strong_count(&faults) == 1);
}

#[test]
fn descriptors_are_taken_and_given_back() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let nulls = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files
            .filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.ends_with("null")))
            .count()
    };
    let (most, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let (_, faults) = table();
    let before = nulls();
    let fault = Fault::DescriptorsExhaust {
        leave: most - open() - 100,
    };
    let wanted = Wanted {
        fault,
        ttl_ms: 60_000,
        seed: None,
    };
    faults.install("x", wanted).unwrap();
    eventually("they are taken", || nulls() > before);
    assert!(hits(&faults, "x") > 0);
    faults.heal("x");
    eventually("they are given back", || nulls() <= before);
}

/// The real store takes its leases seriously, and its usual way once they are over.
#[test]
fn the_log_meets_the_faults_of_its_disk() {
    use crate::storage::rocks::{BlockCache, LogOptions, RocksLog};
    use crate::storage::{LogOp, LogRecord, LogStore};
    let dir = tempfile::tempdir().unwrap();
    let (_, faults) = table();
    let (fatal_tx, fatal) = mpsc::channel();
    let options = LogOptions {
        faults: Some(faults.clone()),
        ..LogOptions::new(BlockCache::new(1 << 20))
    };
    let log = RocksLog::open(
        dir.path(),
        options,
        Box::new(move |reason| fatal_tx.send(reason).unwrap()),
    )
    .unwrap();
    let write = || {
        let (tx, rx) = mpsc::channel();
        let op = LogOp::Put {
            shard: actors::id::ShardId(0),
            record: LogRecord::Vote,
            value: bytes::Bytes::from_static(b"vote"),
        };
        log.submit(op, Box::new(move |result| tx.send(result).unwrap()));
        rx
    };
    write().recv_timeout(PATIENCE).unwrap().unwrap();
    install(&faults, "stall", json!({ "kind": "disk.stall", "on": "sync" }));
    let stalled = write();
    eventually("the sync is stuck", || hits(&faults, "stall") == 1);
    assert!(stalled.try_recv().is_err());
    faults.heal("stall");
    stalled.recv_timeout(PATIENCE).unwrap().unwrap();

    install(&faults, "eio", json!({ "kind": "disk.eio", "on": "read" }));
    assert!(log.record(actors::id::ShardId(0), LogRecord::Vote).is_err());
    faults.heal("eio");
    assert!(log.record(actors::id::ShardId(0), LogRecord::Vote).unwrap().is_some());

    install(&faults, "once", json!({ "kind": "disk.sync_fails_once" }));
    write().recv_timeout(PATIENCE).unwrap().unwrap_err();
    fatal.recv_timeout(PATIENCE).expect("a failed sync ends the process");
    write()
        .recv_timeout(PATIENCE)
        .unwrap()
        .expect_err("and no later success hides it");
}
