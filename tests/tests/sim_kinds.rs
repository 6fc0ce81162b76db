#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // a fleet lives in real time
//! Each way to be a device, against a real cluster: children of gateways, WebSocket, HTTP, devices
//! that update themselves, and what an operator does to them.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast_tests::harness::Cluster;
use holdfast_tests::sim::{drive, judged, operations, plan, went_well};
use serde_json::Value;
use simulator::history::{Kind, Op, Outcome};
use simulator::report::{Report, Verdict};

/// A scenario of `fleets` on `cluster`, `secs` long.
fn scenario(cluster: &Cluster, head: &str, fleets: &str, secs: u32) -> String {
    format!(
        "name = \"kinds\"\nseed = 3\n{head}\n[target]\ncluster = \"{}\"\n[run]\nconnect_rate = 1000\nack_timeout = \"20s\"\ndrain = \"60s\"\n{fleets}\n[[phase]]\nkind = \"steady\"\nduration = \"{secs}s\"\n",
        cluster.dir().display()
    )
}

#[track_caller]
fn passes(out: &Path) -> Report {
    let report = judged(out);
    assert_eq!(report.verdict, Verdict::Pass, "{:?} {:?}", report.reasons, report.audit);
    report
}

/// Children publish through their gateway, each with order and sequence of its own, over both
/// versions of MQTT; the cluster knows whose they are.
#[test]
fn children_of_gateways_keep_order_and_sequence_of_their_own() {
    let cluster = Cluster::up(3);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let fleets = "[[fleet]]\nname = \"hub\"\nprofile = \"gateway\"\ncount = 4\ninterval = \"500ms\"\nprotocols = { mqtt5 = 1, mqtt311 = 1 }";
    drive(&scenario(&cluster, "", fleets, 8), &out);
    let report = passes(&out);
    assert_eq!(report.audit.as_ref().unwrap().acked, report.counts.acked);
    let plan = plan(&out);
    let spoken: BTreeSet<&str> = (0..4).map(|n| plan.device(n).protocol.name()).collect();
    assert_eq!(spoken, BTreeSet::from(["mqtt311", "mqtt5"]));
    let operations = operations(&out);
    for (gateway, child) in (1..=4).flat_map(|gateway| (1..=10).map(move |child| (gateway, child))) {
        let (gateway, child) = (format!("hub-{gateway}"), format!("hub-{gateway}-c{child}"));
        let sent = &operations[&child];
        assert!(went_well(sent, Kind::Telemetry) >= 3, "{child}: {sent:?}");
        let numbers: Vec<u64> = sent.iter().map(|op| op.n).collect();
        assert!(numbers.is_sorted(), "{child} answers out of order: {numbers:?}");
        let known: Value = cluster.get(1, &format!("/api/v1/devices/{child}")).unwrap();
        assert_eq!(known["gateway"], gateway.as_str(), "{known}");
    }
}

/// WebSocket in both versions and HTTP ingest, mixed with plain MQTT in one fleet: each protocol
/// is really spoken, and everything is stored once and in order.
#[test]
fn one_fleet_speaks_every_protocol() {
    let cluster = Cluster::up(1);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let fleets = "[[fleet]]\nname = \"any\"\nprofile = \"constant\"\ncount = 20\nrate = 100\nprotocols = { mqtt5 = 1, mqtt311 = 1, mqtt5-ws = 1, mqtt311-ws = 1, http = 1 }";
    drive(&scenario(&cluster, "", fleets, 8), &out);
    let report = passes(&out);
    assert_eq!((report.counts.unknown, report.counts.refused), (0, 0));
    let (plan, operations) = (plan(&out), operations(&out));
    let mut spoken = BTreeSet::new();
    for number in 0..20 {
        let device = plan.device(number);
        let acked: Vec<&Op> = operations[&device.id].iter().collect();
        assert!(acked.len() >= 20, "{} sent {}", device.id, acked.len());
        assert!(acked.iter().all(|op| op.outcome == Outcome::Ok && op.has_id));
        spoken.insert(device.protocol.name());
    }
    assert_eq!(spoken.len(), 5, "{spoken:?}");
}

/// A rollout while time is compressed: devices that can, end with the new version and say so; a
/// device whose downloads break off says that, and keeps the old one.
#[test]
fn firmware_is_rolled_out_and_failures_are_told() {
    let cluster = Cluster::up(1);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let profile = |name: &str, fails: &str| {
        format!(
            "[profile.{name}]\ntitle = \"x\"\n[profile.{name}.firmware]\ndownload_secs = 20\ninstall_secs = 10\nreboot_secs = 20\n{fails}\n\
             [profile.{name}.twin]\nreport_interval = \"5m\"\n"
        )
    };
    let fleets = format!(
        "[operator]\nfirmware_share = 1.0\n[[fleet]]\nname = \"good\"\nprofile = \"good\"\ncount = 6\n[[fleet]]\nname = \"torn\"\nprofile = \"torn\"\ncount = 3\n{}{}",
        profile("good", ""),
        profile("torn", "fail_download = 1.0")
    );
    // Ten minutes in twenty seconds; the last is asked in the middle.
    drive(&scenario(&cluster, "compression = 30", &fleets, 600), &out);
    let report = passes(&out);
    assert!(report.counts.left >= 6, "nobody rebooted: {:?}", report.counts);
    let update = |device: String| -> Value {
        let twin: Value = cluster.get(1, &format!("/api/v1/devices/{device}/twin")).unwrap();
        let update = &twin["reported"]["update"];
        assert_eq!(update["target"], twin["desired"]["firmware"], "{twin}");
        update.clone()
    };
    for number in 1..=6 {
        let update = update(format!("good-{number}"));
        assert_eq!(update["state"], "updated", "{update}");
        assert_eq!(update["version"], update["target"], "{update}");
    }
    for number in 1..=3 {
        let update = update(format!("torn-{number}"));
        assert_eq!(
            (&update["state"], &update["why"]),
            (&"failed".into(), &"download".into())
        );
        assert_eq!(update["version"], "1.0.0", "{update}");
    }
}

/// What an operator desires reaches the device, which obeys and says so; reads at any node are
/// never stale; calls are answered.
#[test]
fn what_an_operator_does_reaches_the_devices() {
    let cluster = Cluster::up(3);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let fleets = "[operator]\ndesired_rate = 10\nread_rate = 20\nmethod_rate = 5\n[[fleet]]\nname = \"t\"\nprofile = \"thermostat\"\ncount = 8\ninterval = \"1s\"\nprotocols = { mqtt5 = 1, mqtt311 = 1 }";
    drive(&scenario(&cluster, "", fleets, 12), &out);
    let report = passes(&out);
    assert!(
        report.audit.as_ref().unwrap().twin_operations > 200,
        "{:?}",
        report.audit
    );
    let (mut reads, mut calls) = (0, 0);
    for (device, ops) in operations(&out) {
        let newest = |kind| {
            ops.iter()
                .filter(|op| op.kind == kind && op.outcome == Outcome::Ok)
                .map(|op| op.version)
                .max()
        };
        let (written, seen) = (newest(Kind::DesiredWrite), newest(Kind::DesiredSeen));
        assert!(
            written.is_some() && seen >= written,
            "{device}: {written:?} was written, {seen:?} seen"
        );
        let twin: Value = cluster.get(2, &format!("/api/v1/devices/{device}/twin")).unwrap();
        assert_eq!(
            twin["reported"]["setpoint"], twin["desired"]["setpoint"],
            "{device} does not obey: {twin}"
        );
        reads += went_well(&ops, Kind::OperatorRead);
        calls += ops
            .iter()
            .filter(|op| op.kind == Kind::Method && op.version == 200)
            .count();
    }
    assert!(reads > 100 && calls > 20, "{reads} reads, {calls} calls");
}
