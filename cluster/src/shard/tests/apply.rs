//! The same log gives the same rows on every replica, however it is cut into writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use actors::device::{Event, TelemetryRecorded};
use actors::id::DeviceKey;
use actors::time::Timestamp;
use openraft::storage::RaftStateMachine;
use proptest::prelude::*;

use super::stories;
use crate::background::Background;
use crate::raft::machine::{GroupMachine, GroupShared, PAYLOAD_APP};
use crate::raft::types::Entry;
use crate::shard::apply::ShardApply;
use crate::shard::batch::Item;
use crate::shard::packs;
use crate::storage::keys::{DueKind, DueRow};
use crate::storage::memory::MemoryState;
use crate::testing::fleet::{device, payload, register, telemetry, Fleet};
use crate::testing::replicas::{propose, Replica, Replicas};
use crate::testing::{normal, rows_of, run, stored, SHARD};

const DEVICES: [&str; 3] = ["a", "ab", "b"];

async fn replica(entries: &[Entry], cuts: &[usize]) -> (Arc<GroupShared>, Arc<MemoryState>) {
    let state = Arc::new(MemoryState::new());
    let background = Arc::new(Background::start("test background").unwrap());
    let shared = Arc::new(GroupShared::open(SHARD, state.clone(), background.clone(), background).unwrap());
    let new = || GroupMachine::new(shared.clone(), Box::new(ShardApply::new(&shared)));
    let mut machine = new();
    let (mut rest, mut cuts) = (entries, cuts.iter().cycle());
    while !rest.is_empty() {
        let cut = (*cuts.next().unwrap()).clamp(1, rest.len());
        let (chunk, after) = rest.split_at(cut);
        let chunk: Vec<_> = chunk.iter().cloned().map(|entry| Ok((entry, None))).collect();
        machine.apply(futures::stream::iter(chunk)).await.unwrap();
        rest = after;
        if cut % 5 == 0 {
            // A restarted replica has nothing cached.
            shared.settle().unwrap();
            machine = new();
        }
    }
    shared.settle().unwrap();
    (shared, state)
}

/// The index rows that the devices' states call for.
fn expected_index(fleet: &Fleet, shared: &GroupShared) -> Vec<(Vec<u8>, Vec<u8>)> {
    let space = shared.space();
    let mut expected = BTreeMap::new();
    for (key, state) in &fleet.states {
        let due = state.due();
        let dues = [
            (DueKind::SessionExpiry, due.session_expiry),
            (DueKind::Will, due.will),
            (DueKind::Telemetry, due.telemetry_oldest),
            (DueKind::Messages, due.messages),
        ];
        for (what, at) in dues {
            if let Some(at) = at {
                let row = DueRow {
                    at,
                    what,
                    device: key.clone(),
                };
                expected.insert(space.due(&row), Vec::new());
            }
        }
        if let Some(gateway) = state.connected_via() {
            let generation = state.session.as_deref().unwrap().generation;
            expected.insert(space.gateway(gateway, key), generation.to_be_bytes().to_vec());
        }
    }
    expected.into_iter().collect()
}

fn index(shared: &GroupShared) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let space = shared.space();
    for range in [space.due_all(), space.gateways()] {
        shared
            .store
            .view()
            .scan(&range.from, &range.to, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                true
            })
            .unwrap();
    }
    rows.sort();
    rows
}

fn seqs(shared: &GroupShared, key: &DeviceKey) -> Vec<u64> {
    let mut seqs = Vec::new();
    let first = stored(shared, key).telemetry.first_seq;
    packs::messages(&*shared.store.view(), shared.space(), key, first, &mut |row| {
        seqs.push(row.seq);
        true
    })
    .unwrap();
    seqs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_history_gives_the_same_rows_and_the_index_they_call_for(
        story in proptest::collection::vec((0..3usize, stories::command(), 0..5_000u64), 1..60),
        per_entry in 1..5usize,
        cuts in proptest::collection::vec(1..20usize, 1..4),
    ) {
        let mut fleet = Fleet { policy: stories::tight_policy(), ..Fleet::default() };
        let mut items = Vec::new();
        for (who, mut command, pause) in story {
            fleet.now = fleet.now.plus_millis(pause);
            let key = device(DEVICES[who]);
            stories::aim(&mut command, fleet.states.entry(key.clone()).or_default());
            items.extend(fleet.decide(&key, &command));
        }
        let entries: Vec<Entry> = (1..).zip(items.chunks(per_entry)).map(|(i, items)| normal(1, i, payload(items))).collect();
        run(async {
            let (one, first) = replica(&entries, &[1]).await;
            let (_, second) = replica(&entries, &cuts).await;
            prop_assert_eq!(rows_of(&*first, 0), rows_of(&*second, 0));
            prop_assert_eq!(one.meta().applied_index(), entries.len() as u64);
            for (key, state) in &fleet.states {
                prop_assert_eq!(&stored(&one, key), state);
                let kept: Vec<u64> = (state.telemetry.first_seq..=state.telemetry.last_seq).collect();
                prop_assert_eq!(seqs(&one, key), kept);
            }
            prop_assert_eq!(index(&one), expected_index(&fleet, &one));
            Ok(())
        })?;
    }

    /// Total: whatever bytes the log holds, every replica does the same with them.
    #[test]
    fn bytes_that_are_no_batch_are_reported_and_skipped_alike(bytes in proptest::collection::vec(any::<u8>(), 0..60), good in any::<bool>()) {
        run(async {
            let mut fleet = Fleet::default();
            let mut payload = if good { fleet.report("a", vec![1]).to_vec() } else { vec![PAYLOAD_APP] };
            payload.extend(bytes);
            let entries = vec![normal(1, 1, payload.into()), normal(1, 2, fleet.report("b", vec![2]))];
            let (_, first) = replica(&entries, &[1]).await;
            let (_, second) = replica(&entries, &[2]).await;
            prop_assert_eq!(rows_of(&*first, 0), rows_of(&*second, 0));
            Ok(())
        })?;
    }
}

async fn committed(replica: &Replica, items: &[Item]) -> Vec<u32> {
    propose(&replica.group, payload(items))
        .await
        .await
        .unwrap()
        .unwrap()
        .misfits
}

#[test]
fn an_item_that_does_not_fit_is_reported_and_changes_nothing() {
    run(async {
        let replicas = Replicas::start(1).await;
        let one = &replicas.all[0];
        let mut fleet = Fleet::default();
        let (a, b) = (device("a"), device("b"));
        let first = [
            fleet.decide(&a, &register()).unwrap(),
            fleet.decide(&b, &register()).unwrap(),
        ];
        assert!(committed(one, &first).await.is_empty());
        let before = one.rows();
        assert_eq!(committed(one, &first).await, vec![0, 1], "committed twice");
        assert_eq!(one.rows(), before);

        let good = fleet.decide(&a, &telemetry(vec![1])).unwrap();
        let mut early = fleet.decide(&b, &telemetry(vec![1])).unwrap();
        early.prev_version += 1;
        assert_eq!(
            committed(one, &[early, good]).await,
            vec![0],
            "the others of its batch fit"
        );
        let version = |key| stored(&one.group.shared, key).version;
        assert_eq!((version(&a), version(&b)), (2, 1));
    });
}

#[test]
fn an_event_that_cannot_be_applied_quarantines_its_device_alike_everywhere() {
    let mut fleet = Fleet::default();
    let (bad, good) = (device("bad"), device("good"));
    let start = [
        fleet.decide(&bad, &register()).unwrap(),
        fleet.decide(&good, &register()).unwrap(),
    ];
    let wrong = Item {
        key: bad.clone(),
        prev_version: 1,
        at: Timestamp(5),
        events: vec![Event::TelemetryRecorded(Box::new(TelemetryRecorded {
            seq: 77,
            ordinal: 0,
            will: false,
            packet: None,
            message_ids_max: 1,
            packet_ids_max: 1,
            telemetry: Default::default(),
        }))],
    };
    let after = fleet.decide(&good, &telemetry(vec![1])).unwrap();
    let late = Item {
        prev_version: 1,
        ..fleet.decide(&bad, &telemetry(vec![2])).unwrap()
    };
    let batches = [payload(&start), payload(&[wrong, after]), payload(&[late])];
    let entries: Vec<Entry> = (1..).zip(batches).map(|(i, payload)| normal(1, i, payload)).collect();
    run(async {
        let (shared, first) = replica(&entries, &[1]).await;
        // Cut after the quarantine, with nothing cached, as after a restart.
        let (_, second) = replica(&entries, &[2, 5]).await;
        assert_eq!(rows_of(&*first, 0), rows_of(&*second, 0));
        let load = |key| stored(&shared, key);
        assert!(load(&bad).quarantined);
        assert_eq!(load(&bad).telemetry.last_seq, 0);
        assert!(!load(&good).quarantined);
        assert_eq!(load(&good).telemetry.last_seq, 1, "the shard goes on");
    });
}
