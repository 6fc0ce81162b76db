#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Live events while leaders die: everything acknowledged is told, once, in order, and marked.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_tests::clients::events::Feed;
use holdfast_tests::clients::http::Http;
use holdfast_tests::clients::raw::{connect, publish, Raw};
use holdfast_tests::harness::{eventually, Cluster};
use holdfast_tests::workload::{judge, Plan, Workload};
use serde_json::Value;

/// Messages told before and after the kill.
const STRETCH: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// What a feed told: the last seq of each device, each one more than the one before.
#[derive(Default)]
struct Told {
    last: BTreeMap<String, u64>,
    count: u64,
    failovers: Vec<Value>,
}

impl Told {
    fn take(&mut self, event: Value) {
        match event["kind"].as_str().unwrap() {
            "telemetry" => {
                let (device, seq) = (event["device"].as_str().unwrap(), event["seq"].as_u64().unwrap());
                let last = self.last.entry(device.to_owned()).or_default();
                assert_eq!(seq, *last + 1, "{device}");
                *last = seq;
                self.count += 1;
            }
            "failover" => self.failovers.push(event),
            _ => panic!("{event}"),
        }
    }
}

/// The subscriber is at another node than the leader that dies. Nothing is missing, nothing comes
/// twice, and each shard that got another leader says so.
#[test]
fn a_watcher_sees_all_that_is_acknowledged_once_across_a_leaders_death() {
    let cluster = Cluster::up(3);
    let victim = cluster.busiest_leader();
    let led: Vec<u64> = (0u64..)
        .zip(cluster.leaders())
        .filter_map(|(shard, leader)| (leader == victim).then_some(shard))
        .collect();
    let at = cluster.ids().into_iter().find(|id| *id != victim).unwrap();
    let mut feed = Feed::open(
        cluster.node(at).http,
        &cluster.file.token,
        "devices=live-*&kinds=telemetry",
        None,
    );
    let mut told = Told::default();
    let work = Workload::start(&cluster, Plan::busy("live"));
    while told.count < STRETCH {
        told.take(feed.next());
    }
    cluster.kill(victim);
    let marked = |told: &Told| {
        led.iter()
            .all(|shard| told.failovers.iter().any(|e| e["shard"] == *shard))
    };
    let before = told.count;
    while told.count < before + STRETCH || !marked(&told) {
        told.take(feed.next());
    }
    let ledger = work.finish();
    judge(&cluster, ledger);
    let http = Http::new(cluster.node(at).http, &cluster.file.token);
    let stored: BTreeMap<String, u64> = (1..=48)
        .map(|number| format!("live-{number}"))
        .map(|device| (device.clone(), http.telemetry(&device).len() as u64))
        .collect();
    while told.last != stored {
        told.take(feed.next());
    }
    for failover in &told.failovers {
        assert!(failover["term"].as_u64().unwrap() > 1, "{failover}");
    }
}

/// A node without a replica of the shard follows it at a peer, and at another when that dies.
#[test]
fn a_node_without_a_replica_tells_the_same() {
    let cluster = Cluster::up(5);
    let status: Value = cluster.get(1, "/api/v1/cluster").unwrap();
    // Any device will do: with three replicas on five nodes, two nodes have none.
    let http = Http::new(cluster.node(1).http, &cluster.file.token);
    let shard = http.send("PUT", "/api/v1/devices/afar", &[], "{}").expect(201).json()["shard"].clone();
    let shards = status["shards"].as_array().unwrap();
    let shard = shards.iter().find(|s| s["id"] == shard).unwrap();
    let voters: Vec<u64> = shard["voters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap())
        .collect();
    let without: Vec<u64> = cluster.ids().into_iter().filter(|id| !voters.contains(id)).collect();
    assert_eq!((voters.len(), without.len()), (3, 2), "{shard}");
    let (watching, publishing) = (without[0], without[1]);
    let query = "devices=afar&kinds=telemetry";
    let mut feed = Feed::open(cluster.node(watching).http, &cluster.file.token, query, None);
    let mut told = Told::default();
    let mut packet_id = 0;
    let mut stretch = |told: &mut Told, feed: &mut Feed| {
        // A connection that breaks off is no matter here: what counts is what was acknowledged.
        let mut raw = eventually("the device connects", PATIENCE, || {
            let mut raw = Raw::open(cluster.node(publishing).mqtt);
            raw.send(&connect(4, "afar", 60));
            match raw.next_packet() {
                Some((0x20, body)) if body[1] == 0 => Ok(raw),
                other => Err(format!("{other:?}")),
            }
        });
        for _ in 0..20 {
            packet_id += 1;
            raw.send(&publish(4, "devices/afar/telemetry", packet_id, false, b"1"));
            assert_eq!(raw.puback(packet_id), 0);
        }
        while told.count < u64::from(packet_id) {
            told.take(feed.next());
        }
    };
    stretch(&mut told, &mut feed);
    let leader = cluster.leaders()[shard["id"].as_u64().unwrap() as usize];
    cluster.kill(leader);
    stretch(&mut told, &mut feed);
    assert_eq!(told.failovers.len(), 1, "{:?}", told.failovers);
}
