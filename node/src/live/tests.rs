//! The hub over a log in memory: order, filters, slow readers, gaps, coming back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Addr};
use actors::device::{Event, Telemetry, TelemetryRecorded};
use actors::id::{DeviceId, DeviceKey, ShardId, TenantId};
use actors::ports::CallError;
use actors::time::Timestamp;
use cluster::api::{LiveEntry, LiveItem, LivePage, LiveQuery};
use futures::future::LocalBoxFuture;
use serde_json::Value;
use tokio::sync::Notify;

use super::filter::Filter;
use super::hub::{Hub, HubLimits, Stop};
use super::outbox::Bounds;
use super::session::{CannotWatch, Next, Watch};
use super::source::Source;

const SHARDS: u16 = 2;

#[derive(Default)]
struct Log {
    entries: BTreeMap<u64, LiveEntry>,
    /// Entries up to here are gone.
    purged: u64,
    term: u64,
}

/// Logs that are applied as soon as something is written.
#[derive(Default)]
struct Memory {
    shards: Mutex<BTreeMap<ShardId, Log>>,
    changed: Notify,
    seqs: Mutex<BTreeMap<String, u64>>,
}

fn key(id: &str) -> DeviceKey {
    DeviceKey::new(TenantId::DEFAULT, DeviceId::parse(id).unwrap())
}

impl Memory {
    /// One telemetry message; returns its seq.
    fn write(&self, id: &str) -> u64 {
        let key = key(id);
        let seq = {
            let mut seqs = self.seqs.lock().unwrap();
            let seq = seqs.entry(id.to_owned()).or_default();
            *seq += 1;
            *seq
        };
        let event = Event::TelemetryRecorded(Box::new(TelemetryRecorded {
            seq,
            ordinal: 0,
            will: false,
            packet: None,
            message_ids_max: 1,
            packet_ids_max: 1,
            telemetry: Telemetry {
                body: b"{}".to_vec(),
                ..Telemetry::default()
            },
        }));
        let item = LiveItem {
            position: 0,
            key: key.clone(),
            prev_version: seq - 1,
            at: Timestamp(0),
            events: vec![event],
        };
        self.append(self.shard_for(&key), vec![item]);
        seq
    }

    fn append(&self, shard: ShardId, items: Vec<LiveItem>) {
        let mut shards = self.shards.lock().unwrap();
        let log = shards.entry(shard).or_default();
        let index = log.entries.keys().next_back().copied().unwrap_or(log.purged) + 1;
        let term = log.term.max(1);
        log.entries.insert(index, LiveEntry { index, term, items });
        drop(shards);
        self.changed.notify_waiters();
    }

    /// Another leader begins its term with an entry of its own.
    fn elect(&self, id: &str) {
        let shard = self.shard_for(&key(id));
        {
            let mut shards = self.shards.lock().unwrap();
            let log = shards.entry(shard).or_default();
            log.term = log.term.max(1) + 1;
        }
        self.append(shard, Vec::new());
    }

    fn purge(&self, id: &str) {
        let mut shards = self.shards.lock().unwrap();
        let log = shards.entry(self.shard_for(&key(id))).or_default();
        log.purged = log.entries.keys().next_back().copied().unwrap_or(0);
        log.entries.clear();
    }

    fn look(&self, query: &LiveQuery) -> Option<LivePage> {
        let mut shards = self.shards.lock().unwrap();
        let log = shards.entry(query.shard).or_default();
        let applied = log.entries.keys().next_back().copied().unwrap_or(log.purged);
        let term_at = |index: u64| log.entries.range(..=index).next_back().map(|(_, e)| e.term);
        let Some(after) = query.after else {
            return Some(LivePage {
                through: applied,
                term_before: term_at(applied).or(Some(1)),
                ..LivePage::default()
            });
        };
        if applied <= after {
            return None;
        }
        let end = applied.min(query.through).min(after + 3);
        let mut term = term_at(after).or(Some(1));
        let mut page = LivePage {
            through: end.max(log.purged),
            term_before: term,
            gap: after < log.purged,
            leader: Some((log.term, 2)),
            ..LivePage::default()
        };
        for (_, entry) in log.entries.range(after + 1..=end) {
            let mut entry = entry.clone();
            entry.items.retain(|item| query.interest.wants(&item.key));
            if !entry.items.is_empty() || term != Some(entry.term) {
                term = Some(entry.term);
                page.entries.push(entry);
            }
        }
        Some(page)
    }
}

impl Source for Memory {
    fn shards(&self) -> u16 {
        SHARDS
    }

    fn shard_for(&self, device: &DeviceKey) -> ShardId {
        device.shard(SHARDS)
    }

    fn page(&self, query: LiveQuery, _: usize) -> LocalBoxFuture<'_, Result<LivePage, CallError>> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                if let Some(page) = self.look(&query) {
                    return Ok(page);
                }
                changed.await;
            }
        })
    }
}

struct Scene {
    memory: Arc<Memory>,
    hub: Addr<Hub>,
}

impl Scene {
    fn new(limits: HubLimits) -> Self {
        let memory = Arc::new(Memory::default());
        let hub = Hub::new(memory.clone(), limits).start();
        Self { memory, hub }
    }

    async fn watch(&self, devices: &str, cursor: Option<&str>) -> Result<Watch, CannotWatch> {
        let mut filter = Filter::all(TenantId::DEFAULT);
        filter.add_devices(devices).unwrap();
        let cursor = cursor.map(|text| text.parse().unwrap());
        Watch::begin(&self.hub, self.memory.clone(), filter, cursor).await
    }
}

/// The next thing that is told, in short, and the cursor that came with it.
async fn told(watch: &mut Watch) -> (String, Option<String>) {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), watch.next());
        match next
            .await
            .expect("something is told")
            .expect("the subscription goes on")
        {
            Next::KeepAlive { .. } => {}
            Next::Object { text, cursor } => {
                let event: Value = serde_json::from_str(&text).unwrap();
                let text = match event["kind"].as_str().unwrap() {
                    "telemetry" => format!("{} {}", event["device"].as_str().unwrap(), event["seq"]),
                    "missed" => format!("missed {}", event["count"]),
                    marker => marker.to_owned(),
                };
                return (text, cursor);
            }
        }
    }
}

async fn all_told<const N: usize>(watch: &mut Watch) -> [String; N] {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(told(watch).await.0);
    }
    all.try_into().unwrap()
}

#[actix_web::test]
async fn subscribers_hear_in_order_of_what_they_asked_for() {
    let scene = Scene::new(HubLimits::default());
    scene.memory.write("a");
    let mut one = scene.watch("a", None).await.unwrap();
    let mut both = scene.watch("a,b*", None).await.unwrap();
    for id in ["a", "b", "c", "a"] {
        scene.memory.write(id);
    }
    assert_eq!(all_told(&mut one).await, ["a 2", "a 3"]);
    let mut heard: [String; 3] = all_told(&mut both).await;
    // Shards have no order among one another.
    heard.sort();
    assert_eq!(heard, ["a 2", "a 3", "b 1"]);
}

/// Whoever comes later is not told less because an earlier one asked for something else.
#[actix_web::test]
async fn a_later_subscriber_misses_nothing() {
    let scene = Scene::new(HubLimits::default());
    let _first = scene.watch("a", None).await.unwrap();
    for round in 1..=50 {
        let mut later = scene.watch("b", None).await.unwrap();
        scene.memory.write("a");
        let seq = scene.memory.write("b");
        assert_eq!(told(&mut later).await.0, format!("b {seq}"), "round {round}");
    }
}

#[actix_web::test]
async fn a_change_of_leadership_is_marked_where_it_happened() {
    let scene = Scene::new(HubLimits::default());
    let mut watch = scene.watch("a", None).await.unwrap();
    scene.memory.write("a");
    scene.memory.elect("a");
    scene.memory.write("a");
    assert_eq!(all_told(&mut watch).await, ["a 1", "failover", "a 2"]);
}

/// A slow one is told how many it missed; what it is told and what it missed is all there was.
#[actix_web::test]
async fn a_slow_subscriber_is_told_how_many_it_missed() {
    let outbox = Bounds {
        frames: 5,
        bytes: 1 << 20,
    };
    let scene = Scene::new(HubLimits {
        outbox,
        ..HubLimits::default()
    });
    let mut slow = scene.watch("a", None).await.unwrap();
    let mut quick = scene.watch("a", None).await.unwrap();
    for seq in 1..=40 {
        scene.memory.write("a");
        assert_eq!(told(&mut quick).await.0, format!("a {seq}"));
    }
    assert_eq!(
        all_told(&mut slow).await,
        ["a 1", "a 2", "a 3", "a 4", "a 5", "missed 35"]
    );
    scene.memory.write("a");
    assert_eq!(told(&mut slow).await.0, "a 41");
}

#[actix_web::test]
async fn a_subscriber_that_comes_back_goes_on_where_it_was() {
    let scene = Scene::new(HubLimits::default());
    let mut watch = scene.watch("*", None).await.unwrap();
    let devices: Vec<String> = (0..6).map(|n| format!("d{n}")).collect();
    let write_all = || {
        for id in &devices {
            scene.memory.write(id);
        }
    };
    write_all();
    let mut heard = Vec::new();
    let mut cursor = watch.cursor();
    for _ in 0..4 {
        let (text, at) = told(&mut watch).await;
        heard.push(text);
        cursor = at.unwrap();
    }
    drop(watch);
    write_all();
    let mut again = scene.watch("*", Some(&cursor)).await.unwrap();
    write_all();
    for _ in 0..14 {
        heard.push(told(&mut again).await.0);
    }
    heard.sort();
    let mut all: Vec<String> = (1..=3)
        .flat_map(|seq| devices.iter().map(move |id| format!("{id} {seq}")))
        .collect();
    all.sort();
    assert_eq!(heard, all);
}

#[actix_web::test]
async fn what_the_log_no_longer_holds_is_a_gap() {
    let scene = Scene::new(HubLimits::default());
    let mut watch = scene.watch("a", None).await.unwrap();
    scene.memory.write("a");
    let cursor = told(&mut watch).await.1.unwrap();
    drop(watch);
    scene.memory.write("a");
    scene.memory.purge("a");
    scene.memory.write("a");
    let mut again = scene.watch("a", Some(&cursor)).await.unwrap();
    assert_eq!(all_told(&mut again).await, ["gap", "a 3"]);
    // A cursor of other shards says nothing of this one.
    let other = 1 - scene.memory.shard_for(&key("a")).0;
    let mut foreign = scene.watch("a", Some(&format!("{other}-1"))).await.unwrap();
    assert_eq!(told(&mut foreign).await.0, "gap");
}

#[actix_web::test]
async fn subscribers_are_bounded_and_end_with_the_hub() {
    let scene = Scene::new(HubLimits {
        subscribers_max: 2,
        ..HubLimits::default()
    });
    let first = scene.watch("a", None).await.unwrap();
    let mut second = scene.watch("a", None).await.unwrap();
    assert!(matches!(scene.watch("a", None).await, Err(CannotWatch::Full(_))));
    drop(first);
    let _third = scene.watch("a", None).await.unwrap();
    scene.hub.send(Stop).await.unwrap();
    assert!(second.next().await.is_none());
    assert!(scene.watch("a", None).await.is_err());
}
