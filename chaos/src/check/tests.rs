//! Each invariant catches what is planted, and nothing else.

use std::collections::BTreeMap;

use simulator::audit::Violation;
use simulator::history::{Kind, Note, NoteKind, Op, Outcome, Place, Record};

use super::*;

fn acked(subject: u32, n: u64, at_ms: u64, term: u64, index: u64) -> Record {
    let mut op = Op::new(subject, Kind::Telemetry, n);
    (op.intended_us, op.sent_us, op.done_us) = (at_ms * 1_000, at_ms * 1_000, at_ms * 1_000 + 5_000);
    op.place = Some(Place {
        shard: subject as u16 % 4,
        term,
        index,
    });
    Record::Op(op)
}

fn request(kind: Kind, subject: u32, n: u64, at_ms: u64, took_ms: u64, outcome: Outcome) -> Record {
    let mut op = Op::new(subject, kind, n);
    (op.intended_us, op.sent_us, op.done_us) = (at_ms * 1_000, at_ms * 1_000, (at_ms + took_ms) * 1_000);
    op.outcome = outcome;
    Record::Op(op)
}

/// Four shards, twenty seconds, ten messages a second each, a fault of one node in the middle.
fn records() -> Vec<Record> {
    let mut all = Vec::new();
    for subject in 0..4u32 {
        all.push(Record::Note(Note {
            subject,
            kind: NoteKind::Connected,
            at_us: 10,
            code: 0,
        }));
        for n in 1..=200u64 {
            all.push(acked(subject, n, n * 100, 1 + n / 120, n));
        }
        all.push(request(Kind::DesiredWrite, subject, 7, 5_000, 20, Outcome::Ok));
        all.push(request(Kind::DesiredSeen, subject, 7, 5_100, 0, Outcome::Ok));
        all.push(request(Kind::Method, subject, 9, 6_000, 40, Outcome::Ok));
    }
    all
}

fn sound() -> Evidence {
    evidence(&records())
}

fn evidence(records: &[Record]) -> Evidence {
    let sighting = |at_us, node, leader, term| Sighting {
        at_us,
        node,
        shard: 1,
        leader,
        term,
    };
    Evidence {
        facts: Facts::of(records),
        findings: Some(Findings {
            subjects: 4,
            acked: 800,
            stored: 801,
            twin_operations: 12,
            ..Default::default()
        }),
        sightings: vec![
            sighting(1, 1, Some(1), 1),
            sighting(2, 2, Some(1), 1),
            sighting(9_000_000, 2, None, 2),
            sighting(9_100_000, 2, Some(3), 2),
        ],
        faults: vec![Active {
            id: "1-process.kill".into(),
            kind: "process.kill".into(),
            nodes: vec![1],
            from_us: 8_000_000,
            to_us: 14_000_000,
            shards: vec![1],
            is_contained: true,
        }],
        digests: vec![ShardDigest {
            shard: 1,
            replicas: vec![(1, 10, "a".into()), (2, 10, "a".into()), (3, 11, "b".into())],
            missing: None,
        }],
        presence: Some(Presence {
            connected: 4,
            listed: 4,
            listed_after_leaving: Some(0),
        }),
        memory: vec![(1, 100 << 20)],
        bounds: Bounds {
            memory_bytes: 1 << 30,
            unaffected_gap_us: 2_000_000,
            sending_ended_us: 20_000_000,
            ..Default::default()
        },
        ..Default::default()
    }
}

fn broken(evidence: &Evidence) -> BTreeMap<String, u64> {
    let rulings = judge(evidence, &[]);
    let broken = rulings.iter().filter(|ruling| ruling.holds == Holds::No);
    broken.map(|ruling| (ruling.invariant.clone(), ruling.count)).collect()
}

#[track_caller]
fn breaks(evidence: &Evidence, invariant: &str) {
    assert_eq!(
        broken(evidence).keys().collect::<Vec<_>>(),
        [invariant],
        "{:?}",
        broken(evidence)
    );
}

#[test]
fn sound_evidence_breaks_nothing_and_everything_is_judged() {
    let rulings = judge(&sound(), &[]);
    assert_eq!(rulings.len(), names().len());
    for ruling in rulings {
        assert_eq!(ruling.holds, Holds::Yes, "{ruling:?}");
    }
    let without = judge(&sound(), &["no_hang".into()]);
    assert_eq!(without.len(), names().len() - 1);
}

#[test]
fn nothing_observed_is_not_judged() {
    for ruling in judge(&Evidence::default(), &[]) {
        assert_eq!(ruling.holds, Holds::NotJudged, "{ruling:?}");
    }
}

/// What the audit found goes to the invariant it belongs to, with the fault that was active.
#[test]
fn planted_findings_are_told_with_their_fault() {
    let rows = [
        (Fact::AckedSurvive, "acked_survive"),
        (Fact::TwinWritesSurvive, "acked_survive"),
        (Fact::StoredOnce, "stored_once"),
        (Fact::InOrder, "device_order"),
        (Fact::TwinVersionsGrow, "twin_linearizable"),
        (Fact::TwinReadsFresh, "no_stale_read"),
    ];
    for (fact, invariant) in rows {
        let mut evidence = sound();
        if let Some(findings) = &mut evidence.findings {
            findings.violate(Violation {
                fact,
                device: "d".into(),
                n: 1,
                seq: 1,
                at_us: 9_000_000,
                receipt: Some("1-1-1-1".into()),
                what: "planted".into(),
            });
        }
        breaks(&evidence, invariant);
        let rulings = judge(&evidence, &[]);
        let breach = &rulings
            .iter()
            .find(|ruling| ruling.holds == Holds::No)
            .unwrap()
            .breaches[0];
        assert_eq!(breach.during.as_deref(), Some("1-process.kill"));
        assert_eq!(breach.receipt.as_deref(), Some("1-1-1-1"));
    }
}

#[test]
fn two_leaders_of_a_term_are_caught() {
    let mut evidence = sound();
    evidence.sightings.push(Sighting {
        at_us: 9_200_000,
        node: 1,
        shard: 1,
        leader: Some(1),
        term: 2,
    });
    breaks(&evidence, "one_owner_per_term");
}

#[test]
fn a_place_with_two_terms_or_a_falling_one_is_caught() {
    for (term, index) in [(9, 50), (1, 199)] {
        let mut records = records();
        records.push(acked(0, 201, 20_100, term, index));
        breaks(&evidence(&records), "one_owner_per_term");
    }
}

#[test]
fn planted_state_is_caught() {
    let mut differs = sound();
    differs.digests[0].replicas[1].2 = "x".into();
    breaks(&differs, "replicas_agree");
    let mut ghosts = sound();
    ghosts.presence = Some(Presence {
        connected: 4,
        listed: 4,
        listed_after_leaving: Some(2),
    });
    breaks(&ghosts, "presence_converges");
    let mut large = sound();
    large.memory.push((2, 2 << 30));
    breaks(&large, "memory_bounded");
}

#[test]
fn planted_requests_are_caught() {
    let with = |record: Record| {
        let mut all = records();
        all.push(record);
        evidence(&all)
    };
    breaks(
        &with(request(Kind::OperatorRead, 1, 3, 100, 30_000, Outcome::Unknown)),
        "no_hang",
    );
    breaks(
        &with(request(Kind::Method, 1, 9, 7_000, 10, Outcome::Ok)),
        "one_method_answer",
    );
    breaks(
        &with(request(Kind::DesiredWrite, 1, 8, 7_000, 10, Outcome::Ok)),
        "desired_arrives",
    );
    // Unknown may have happened or not; a change of the last moment need not have arrived.
    for record in [
        request(Kind::DesiredWrite, 1, 8, 7_000, 10, Outcome::Unknown),
        request(Kind::DesiredWrite, 1, 8, 19_000, 10, Outcome::Ok),
        request(Kind::Method, 1, 9, 7_000, 10, Outcome::Unknown),
    ] {
        assert_eq!(broken(&with(record)), BTreeMap::new());
    }
}

#[test]
fn a_silent_shard_that_no_fault_touched_is_caught() {
    let silent = |shard: u32| {
        let mut all = records();
        for record in &mut all {
            if let Record::Op(op) = record {
                let is_its = op.kind == Kind::Telemetry && op.subject == shard;
                if is_its && (9_000_000..13_000_000).contains(&op.done_us) {
                    (op.outcome, op.place) = (Outcome::Unknown, None);
                }
            }
        }
        evidence(&all)
    };
    breaks(&silent(2), "unaffected_undisturbed");
    assert_eq!(broken(&silent(1)), BTreeMap::new(), "the fault led this shard");
    let availability = silent(2).facts.availability(9_000_000, 13_000_000).unwrap();
    assert!((0.7..0.8).contains(&availability), "{availability}");
}
