//! Whether the simulator measures without fooling itself, against servers that do as they are told.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use simulator::history::summary::summarise;
use simulator::report::{compute, Report, Verdict};
use support::{drive, Manner, Quiet, Stub};

fn report(dir: &std::path::Path) -> Report {
    compute(dir, None, Some("test".into())).unwrap().0
}

fn scenario(stub: &Stub, run: &str, fleet: &str, seconds: u32) -> String {
    format!(
        "name = \"test\"\nseed = 3\n[target]\nkind = \"mqtt\"\nmqtt = [\"{}\"]\n[run]\nconnect_rate = 2000\n{run}\n[[fleet]]\nname = \"a\"\nprofile = \"constant\"\n{fleet}\n[[phase]]\nkind = \"steady\"\nduration = \"{seconds}s\"\n",
        stub.address
    )
}

/// A server that does nothing for 400 ms of each 2 s: a fifth of all messages meets a stall. With
/// an open loop the 99th percentile says so; a closed loop sends less meanwhile and hides it.
#[test]
fn a_stall_is_in_the_percentiles_of_an_open_loop_only() {
    let manner = Manner {
        stall: Some((Duration::from_millis(2_000), Duration::from_millis(400))),
        ..Default::default()
    };
    let stub = Stub::start(manner);
    let dir = tempfile::tempdir().unwrap();
    // A machine that does much else delays the generator too; it gets more chances to be calm.
    let calm_run = |name: &str, run: &str, fleet: &str, is_calm: &dyn Fn(&Report) -> bool| {
        let attempts = (0..5).map(|attempt| {
            let out = dir.path().join(format!("{name}-{attempt}"));
            drive(&scenario(&stub, run, fleet, 8), &out, &mut Quiet::default());
            report(&out)
        });
        let mut seen = Vec::new();
        for report in attempts {
            if is_calm(&report) {
                return report;
            }
            seen.push((report.send_lag_ms.p99, report.latency_ms.p90, report.latency_ms.p99));
        }
        panic!("{name}: send lag p99, latency p90 and p99 in ms: {seen:?}")
    };
    // What waits for the server is the server's delay, not the generator's.
    let open = calm_run("open", "", "count = 20\nrate = 500\nwindow = 2", &|open| {
        open.send_lag_ms.p99 < open.latency_ms.p99 / 2.0
    });
    assert!(
        open.latency_ms.p99 >= 250.0,
        "p99 of the open loop is {} ms",
        open.latency_ms.p99
    );
    // Counted from when they could be sent, only those within the window would have waited.
    assert!(
        open.latency_ms.p90 >= 100.0,
        "p90 of the open loop is {} ms",
        open.latency_ms.p90
    );
    assert_eq!(open.run.loop_mode, "open");

    let closed = calm_run("closed", "loop = \"closed\"", "count = 20\nwindow = 1", &|closed| {
        closed.latency_ms.p90 < open.latency_ms.p90 / 2.0
    });
    assert!(
        closed.latency_ms.max >= 250.0,
        "the stall itself was met: {} ms",
        closed.latency_ms.max
    );
    assert_eq!(closed.run.loop_mode, "closed");
    assert!(
        closed.warnings.iter().any(|warning| warning.contains("closed loop")),
        "{:?}",
        closed.warnings
    );
}

/// What was outstanding when a device went into a tunnel is answered behind it; the tunnel is not
/// in its latency.
#[test]
fn an_absence_is_not_the_servers_delay() {
    let manner = Manner {
        stall: Some((Duration::from_millis(1_000), Duration::from_millis(300))),
        ..Default::default()
    };
    let stub = Stub::start(manner);
    let dir = tempfile::tempdir().unwrap();
    let text = scenario(&stub, "", "count = 60\nrate = 600", 14).replace("\"constant\"", "\"tunnels\"")
        + "[profile.tunnels]\ntitle = \"x\"\n[profile.tunnels.connectivity]\nonline_secs = { uniform = [1, 3] }\noffline_secs = 9\n\
           [[profile.tunnels.stream]]\ninterval = \"1s\"\npayload = \"${n}\"\n";
    let out = dir.path().join("run");
    drive(&text, &out, &mut Quiet::default());
    let report = report(&out);
    assert!(
        report.counts.left >= 60 && report.counts.resent > 0,
        "{:?}",
        report.counts
    );
    assert_eq!(report.counts.acked, report.counts.sent);
    assert!(report.latency_ms.max < 7_000.0, "{} ms", report.latency_ms.max);
    assert!(report.longest_wait_ms < 7_000.0, "{} ms", report.longest_wait_ms);
}

/// Devices without a queue drop what falls due while a stalled server holds their window, and
/// count it; the others send it all, later. Both account for the same plan.
#[test]
fn devices_without_a_queue_drop_what_finds_no_room() {
    let manner = Manner {
        stall: Some((Duration::from_millis(2_000), Duration::from_millis(600))),
        ..Default::default()
    };
    let stub = Stub::start(manner);
    let dir = tempfile::tempdir().unwrap();
    let counts = |overflow: &str| {
        let out = dir.path().join(overflow);
        let fleet = format!("count = 10\nrate = 300\nwindow = 2\noverflow = \"{overflow}\"");
        drive(&scenario(&stub, "", &fleet, 7), &out, &mut Quiet::default());
        report(&out).counts
    };
    let (wait, drop) = (counts("wait"), counts("drop"));
    assert_eq!((wait.dropped, wait.acked), (0, wait.sent));
    assert_eq!(drop.sent + drop.dropped, wait.sent);
    assert_eq!(drop.acked, drop.sent);
    // Three stalls of 600 ms, of which the windows hold 20 messages each.
    assert!(drop.dropped > 300, "{} dropped", drop.dropped);
}

/// An open loop sends what was planned, when it was planned, and every number of the report is in
/// the history.
#[test]
fn what_was_planned_is_sent_and_what_is_reported_is_recorded() {
    let stub = Stub::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let file = drive(
        &scenario(
            &stub,
            "threads = 2",
            "count = 50\nrate = 1000\nprotocols = { mqtt5 = 1, mqtt311 = 1 }",
            4,
        ),
        &out,
        &mut Quiet::default(),
    );
    assert_eq!(file.incomplete, None);
    let report = report(&out);
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.reasons);
    // 50 devices begin within 25 ms, each at a place of its own within its 50 ms.
    assert!((3_900..=4_000).contains(&report.counts.sent), "{}", report.counts.sent);
    assert_eq!(report.counts.acked, report.counts.sent);
    assert_eq!(stub.publishes.load(Ordering::Relaxed), report.counts.sent);
    let summary = summarise(&out.join("history")).unwrap();
    assert_eq!(summary.counts.acked, report.counts.acked);
    assert_eq!(
        summary.latency.value_at_quantile(0.99) as f64 / 1e3,
        report.latency_ms.p99
    );
    assert_eq!((summary.counts.connects, report.counts.connects), (50, 50));
}

/// A server that refuses half of the devices for good: the others are not held up, the refusals are
/// counted by their code, and the threshold that asks for it fails the run.
#[test]
fn half_of_the_devices_refused() {
    let stub = Stub::start(Manner {
        refuse_odd: Some(0x87),
        ..Default::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = scenario(&stub, "", "count = 40\nrate = 200", 3) + "[thresholds]\nconnected_share_min = 0.9\n";
    drive(&text, &out, &mut Quiet::default());
    let report = report(&out);
    assert_eq!(report.run.connected_at_end, 20);
    assert_eq!(report.verdict, Verdict::Violation);
    assert!(report.reasons[0].contains("50.0 %"), "{:?}", report.reasons);
    assert!(
        report.errors.keys().any(|kind| kind.contains("0x87")),
        "{:?}",
        report.errors
    );
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.starts_with("20 of 40 devices were not connected")),
        "{:?}",
        report.warnings
    );
    // What the refused ones could not send is nobody's loss: it was never sent.
    assert_eq!(report.counts.unknown, 0);
    assert!(report.counts.dropped > 0 && report.counts.acked > 200);
}

/// Stopped in the middle: what is outstanding is awaited, the report says what is missing, and
/// there is no verdict.
#[test]
fn a_stopped_run_says_so() {
    let stub = Stub::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut watcher = Quiet {
        stop_after_us: Some(1_000_000),
        ..Default::default()
    };
    let file = drive(&scenario(&stub, "", "count = 10\nrate = 100", 600), &out, &mut watcher);
    assert!(
        file.incomplete.as_deref().unwrap().contains("of 600 s"),
        "{:?}",
        file.incomplete
    );
    let report = report(&out);
    assert_eq!(report.verdict, Verdict::HarnessFailure);
    assert_eq!((report.counts.unknown, report.counts.acked), (0, report.counts.sent));
    assert!(report.counts.acked > 20);
}

/// A reconnect storm takes the connections of its share; devices come back and nothing is lost.
#[test]
fn storms_take_connections_and_give_them_back() {
    let stub = Stub::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = scenario(&stub, "backoff = \"10ms\"", "count = 60\nrate = 300", 1)
        + "[[phase]]\nkind = \"reconnect-storm\"\nshare = 0.5\nduration = \"3s\"\n";
    drive(&text, &out, &mut Quiet::default());
    let report = report(&out);
    assert!((20..=40).contains(&report.counts.left), "{}", report.counts.left);
    assert_eq!(report.counts.connects, 60 + report.counts.left);
    assert_eq!((report.counts.lost, report.counts.unknown), (0, 0));
    assert_eq!(report.counts.acked, report.counts.sent);
}

/// What one core drives. Prints figures; run it alone: `--ignored measure`. On a busy machine the
/// CPU per message is what counts: 16.6 µs of the fleet's thread are 60,000 a second on one core.
#[test]
#[ignore = "measures the machine"]
fn measure_what_one_thread_drives() {
    for (title, fleet, run) in [
        (
            "QoS 1, open loop, 10,000/s",
            "count = 1000\nrate = 10000\nwindow = 64\npayload_bytes = 128",
            "",
        ),
        (
            "QoS 1, open loop, 60,000/s",
            "count = 1000\nrate = 60000\nwindow = 64\npayload_bytes = 128",
            "",
        ),
        (
            "QoS 1, closed loop, window 16",
            "count = 1000\nwindow = 16\npayload_bytes = 128",
            "loop = \"closed\"",
        ),
        (
            "QoS 0, open loop, 100,000/s",
            "count = 1000\nrate = 100000\nqos = 0\npayload_bytes = 128",
            "",
        ),
    ] {
        let stub = Stub::start(Manner::default());
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let cpu = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (sink, done) = (
            cpu.clone(),
            std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)),
        );
        let ended = done.clone();
        let sampler = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                sink.fetch_max(fleet_cpu_us(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        drive(&scenario(&stub, run, fleet, 10), &out, &mut Quiet::default());
        done.store(true, Ordering::Relaxed);
        sampler.join().unwrap();
        let report = report(&out);
        let sent = report.counts.sent;
        println!(
            "{title}: {:.0}/s sent, {:.0}/s acked, send lag p50 {:.2} p99 {:.2} ms, latency p99 {:.2} ms, fleet thread {:.2} us of CPU per message",
            sent as f64 / 10.0,
            report.counts.acked as f64 / 10.0,
            report.send_lag_ms.p50,
            report.send_lag_ms.p99,
            report.latency_ms.p99,
            cpu.load(Ordering::Relaxed) as f64 / sent as f64
        );
    }
}

/// CPU time of the living threads named fleet-*, in µs, by the kernel's ticks of 10 ms.
fn fleet_cpu_us() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let one = |path: std::path::PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        head.contains("(fleet-").then_some(ticks * 10_000)
    };
    tasks.filter_map(|task| one(task.path())).sum()
}

/// Five million operations, and memory stays where it was after the first one.
#[test]
#[ignore = "takes minutes: --ignored"]
fn memory_is_flat_over_five_million_operations() {
    let stub = Stub::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = scenario(&stub, "", "count = 500\nrate = 40000\nwindow = 16", 130);
    let samples = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (sink, publishes) = (samples.clone(), stub.publishes.clone());
    let watcher = std::thread::spawn(move || loop {
        let done = publishes.load(Ordering::Relaxed);
        sink.lock().unwrap().push((done, support::resident()));
        if done >= 5_000_000 {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    });
    drive(&text, &out, &mut Quiet::default());
    watcher.join().unwrap();
    let samples = samples.lock().unwrap();
    // The machine's other work makes the fleet catch up in bursts, so single samples say little.
    let middle = |from: u64, to: u64| {
        let mut inside: Vec<u64> = samples
            .iter()
            .filter(|s| (from..to).contains(&s.0))
            .map(|s| s.1)
            .collect();
        inside.sort_unstable();
        inside[inside.len() / 2]
    };
    let (early, late) = (middle(1_500_000, 2_500_000), middle(4_000_000, 5_000_000));
    println!(
        "resident around 2 M: {} KiB, around 4.5 M: {} KiB",
        early / 1024,
        late / 1024
    );
    // Three bytes kept of each operation would be more.
    assert!(late < early + (8 << 20), "grew from {early} to {late} bytes");
    assert!(report(&out).counts.acked >= 5_000_000);
}
