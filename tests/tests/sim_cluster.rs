#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // a fleet lives in real time
//! The simulator against real clusters: it drives, one node dies, and verdict, report and history
//! agree. And against mosquitto, with the same scenario.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::Duration;

use holdfast_tests::harness::{count, Cluster};
use holdfast_tests::sim::{drive, drive_and, judged, operations, went_well};
use simulator::audit::{audit, Claims, Fact, Final, Findings, HttpSource, Registration, Source, Stored, Twins};
use simulator::drive::Endpoints;
use simulator::history::Kind;
use simulator::plan::Plan;
use simulator::report::Verdict;
use simulator::run::api::{runtime, ApiError};
use simulator::scenario;

/// A fleet of every kind that Holdfast takes, `scale` of each.
fn mixed(cluster: &Path, scale: u64, seconds: u64) -> String {
    let fleets = [
        (
            "thermostats",
            "thermostat",
            4,
            "interval = \"1s\"\nprotocols = { mqtt5 = 2, mqtt311 = 1 }",
        ),
        ("meters", "smart-meter", 3, "interval = \"4s\""),
        ("cars", "vehicle", 4, "interval = \"1s\""),
        ("sensors", "vibration-sensor", 1, "interval = \"1s\""),
        (
            "lifts",
            "elevator",
            3,
            "interval = \"2s\"\nprotocols = { mqtt5-ws = 1 }",
        ),
        ("hubs", "gateway", 1, "interval = \"2s\""),
        ("updaters", "firmware-updater", 2, ""),
        ("bad", "bad-citizen", 1, ""),
        ("posts", "constant", 1, "protocols = { http = 1 }\ninterval = \"1s\""),
    ];
    let mut text = format!(
        "name = \"mixed\"\nseed = 11\n[target]\ncluster = \"{}\"\n[run]\nack_timeout = \"5s\"\nbackoff_max = \"2s\"\ndrain = \"30s\"\n\
         [operator]\ndesired_rate = 5\nread_rate = 5\nmethod_rate = 2\nfirmware_share = 0.5\n[audit]\nsample_interval = \"5s\"\n",
        cluster.display()
    );
    for (name, profile, share, more) in fleets {
        text += &format!(
            "[[fleet]]\nname = \"{name}\"\nprofile = \"{profile}\"\ncount = {}\n{more}\n",
            share * scale
        );
    }
    text + &format!(
        "[[phase]]\nkind = \"ramp\"\nduration = \"{}s\"\n[[phase]]\nkind = \"steady\"\nduration = \"{}s\"\n",
        seconds / 5,
        seconds - seconds / 5
    )
}

/// Devices of mixed profiles on three nodes, one of which is killed and comes back: nothing that
/// was acknowledged is missing, and the report's numbers are the history's.
#[test]
fn a_mixed_fleet_survives_a_killed_node_and_all_numbers_agree() {
    let (scale, seconds) = (count("SIM_SCALE", 3, 50), count("SIM_SECONDS", 30, 600));
    let mut cluster = Cluster::up(3);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = mixed(cluster.dir(), scale, seconds);
    let victim = cluster.busiest_leader();
    let file = drive_and(&text, &out, Duration::from_secs(seconds / 2), "node killed", || {
        cluster.kill(victim);
    });
    cluster.start(victim);
    assert_eq!(file.incomplete, None);
    let report = judged(&out);
    let audit = report.audit.as_ref().unwrap();
    assert!(audit.is_clean(), "{:#?}", audit.violations);
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.reasons);
    let acked: usize = operations(&out)
        .values()
        .map(|ops| went_well(ops, Kind::Telemetry))
        .sum();
    assert_eq!(
        (report.counts.acked, report.latency_ms.count),
        (acked as u64, acked as u64)
    );
    // The audit judged every acknowledged message of the history, and read back at least as many.
    assert_eq!(audit.acked, report.counts.acked, "{:?}", audit.remarks);
    assert!(audit.stored >= audit.acked);
    assert!(
        report.counts.reports_acked > 0 && report.counts.desired_seen > 0,
        "{:?}",
        report.counts
    );
    assert!(report.counts.lost > 0, "nobody noticed that a node died");
    assert!(report.run.notes.iter().any(|note| note.text == "node killed"));
    for name in ["report.html", "report.json", "junit.xml"] {
        assert!(out.join(name).metadata().unwrap().len() > 500, "{name}");
    }
}

/// What was planted into what is read back.
#[derive(Clone, Copy, Debug)]
enum Plant {
    Delete,
    Duplicate,
    Swap,
    LostDesired,
}

/// A cluster that lies about one device.
struct Tampered {
    inner: HttpSource,
    device: String,
    plant: Plant,
}

impl Source for Tampered {
    async fn registration(&self, device: &str) -> Result<Option<Registration>, ApiError> {
        self.inner.registration(device).await
    }

    async fn telemetry(&self, device: &str, after: u64) -> Result<Vec<Stored>, ApiError> {
        let mut page = self.inner.telemetry(device, after).await?;
        if device == self.device && after == 0 {
            match self.plant {
                Plant::Delete => drop(page.remove(2)),
                Plant::Duplicate => {
                    let seq = page.last().unwrap().seq + 1;
                    page.push(Stored { seq, ..page[2].clone() });
                }
                Plant::Swap => {
                    page.swap(2, 3);
                    (page[2].seq, page[3].seq) = (page[3].seq, page[2].seq);
                }
                Plant::LostDesired => {}
            }
        }
        Ok(page)
    }

    async fn twins(&self, device: &str) -> Result<Option<Twins>, ApiError> {
        let mut twins = self.inner.twins(device).await?;
        if let (Plant::LostDesired, Some(twins), true) = (self.plant, &mut twins, device == self.device) {
            twins.desired = Final {
                version: twins.desired.version - 1,
                mark: None,
            };
        }
        Ok(twins)
    }
}

/// Faults planted into what a real cluster stored: each is found, named with its device, and nothing else is.
#[test]
fn planted_faults_in_a_real_cluster_are_found() {
    let cluster = Cluster::up(1);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = format!(
        "name = \"planted\"\n[target]\ncluster = \"{}\"\n[run]\nconnect_rate = 1000\n[operator]\ndesired_rate = 20\nread_rate = 10\n[[fleet]]\nname = \"t\"\nprofile = \"thermostat\"\ncount = 5\ninterval = \"200ms\"\n[[phase]]\nkind = \"steady\"\nduration = \"6s\"\n",
        cluster.dir().display()
    );
    drive(&text, &out);
    let report = judged(&out);
    assert_eq!(report.verdict, Verdict::Pass, "{:?} {:?}", report.reasons, report.audit);
    let found = |plant| -> Findings {
        let loaded = scenario::load(&out.join("scenario.toml")).unwrap();
        let endpoints = Endpoints::resolve(&loaded).unwrap();
        let plan = Plan::new(Arc::new(loaded));
        let source = Tampered {
            inner: HttpSource::new(&endpoints, Duration::from_secs(10)).unwrap(),
            device: "t-3".into(),
            plant,
        };
        let claims = Claims {
            plan: &plan,
            history: &out.join("history"),
            runs: &report.run.runs,
            sending_ended_us: report.run.sending_ended_us.unwrap(),
            scratch: out.join("scratch"),
            read: &AtomicU64::new(0),
        };
        runtime().unwrap().block_on(audit(&claims, &source)).unwrap()
    };
    for (plant, fact) in [
        (Plant::Delete, Fact::AckedSurvive),
        (Plant::Duplicate, Fact::StoredOnce),
        (Plant::Swap, Fact::InOrder),
        (Plant::LostDesired, Fact::TwinWritesSurvive),
    ] {
        let findings = found(plant);
        assert_eq!(findings.count(fact), 1, "{plant:?}: {:?}", findings.violations);
        assert!(
            findings.violations.iter().all(|violation| violation.device == "t-3"),
            "{plant:?}"
        );
        let told = findings
            .violations
            .iter()
            .find(|violation| violation.fact == fact)
            .unwrap();
        assert!(matches!(plant, Plant::LostDesired) || told.receipt.is_some(), "{told}");
    }
}

/// The whole cluster is killed and comes back: devices wait, return, send what they kept, and
/// nothing is missing.
#[test]
fn a_cluster_that_is_gone_for_a_while_costs_nothing_but_time() {
    let mut cluster = Cluster::up(3);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = format!(
        "name = \"gone\"\n[target]\ncluster = \"{}\"\n[run]\nconnect_rate = 1000\nbackoff_max = \"1s\"\ndrain = \"60s\"\n[[fleet]]\nname = \"g\"\nprofile = \"constant\"\ncount = 30\nrate = 150\n[[phase]]\nkind = \"steady\"\nduration = \"24s\"\n",
        cluster.dir().display()
    );
    drive_and(&text, &out, Duration::from_secs(6), "all killed", || {
        cluster.kill_all();
        cluster.start_all();
    });
    let report = judged(&out);
    assert_eq!(report.verdict, Verdict::Pass, "{:?} {:?}", report.reasons, report.audit);
    assert!(
        report.counts.lost >= 30 && report.counts.resent > 0,
        "{:?}",
        report.counts
    );
    assert_eq!((report.counts.unknown, report.counts.dropped), (0, 0));
    assert_eq!(report.counts.acked, report.counts.sent);
}
