//! The checker must catch what is planted, and nothing else.

use super::*;
use simulator::ledger::{Ack, Refusal, TwinAck};

fn ledger(sent: u32, acked: impl IntoIterator<Item = u32>) -> DeviceLedger {
    let acks = acked
        .into_iter()
        .map(|n| Ack {
            n,
            at_ms: n,
            seq: 0,
            index: 0,
        })
        .collect();
    DeviceLedger {
        device: "dev-1".into(),
        run: 7,
        payload_bytes: 128,
        sent,
        acks,
        ..Default::default()
    }
}

fn body(n: u32) -> serde_json::Value {
    let mut bytes = BytesMut::new();
    payload::telemetry("dev-1", 7, n, 128, &mut bytes);
    serde_json::from_slice(&bytes).unwrap()
}

fn stored(numbers: &[u32]) -> Vec<StoredMessage> {
    (1u64..)
        .zip(numbers)
        .map(|(seq, n)| StoredMessage { seq, body: body(*n) })
        .collect()
}

#[track_caller]
fn expect(findings: &Findings, breaches: &[(Fact, u64)]) {
    let found: Vec<(Fact, u64)> = findings
        .breaches
        .iter()
        .map(|(fact, breach)| (*fact, breach.count))
        .collect();
    assert_eq!(found, breaches, "{:?}", findings.breaches);
}

/// Rows: acknowledged of five sent, stored, and which facts break.
#[test]
fn planted_faults_are_caught() {
    use Fact::{AckedSurvive, InOrder, StoredOnce};
    type Row = (&'static [u32], &'static [u32], &'static [(Fact, u64)]);
    let rows: [Row; 9] = [
        (&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[]),
        (&[1, 2, 3], &[1, 2, 3], &[]),
        (&[1, 2, 3], &[1, 2, 3, 4, 5], &[]),
        (&[1, 2, 3, 4, 5], &[1, 2, 4, 5], &[(AckedSurvive, 1)]),
        (&[1, 2, 3, 4, 5], &[], &[(AckedSurvive, 5)]),
        (&[1, 2, 3, 4, 5], &[1, 2, 3, 4], &[(AckedSurvive, 1)]),
        (&[1, 2, 3, 4, 5], &[1, 2, 3, 2, 4, 5], &[(StoredOnce, 1)]),
        (&[1, 2, 3, 4, 5], &[1, 3, 2, 4, 5], &[(InOrder, 1)]),
        (&[1, 2], &[1, 2, 5, 4, 5], &[(StoredOnce, 1), (InOrder, 1)]),
    ];
    for (acked, present, breaches) in rows {
        expect(
            &check_device(&ledger(5, acked.iter().copied()), &stored(present), None),
            breaches,
        );
    }
}

/// A message without an answer may be there or not.
#[test]
fn unknown_is_not_lost() {
    let mut ledger = ledger(4, [1, 2]);
    ledger.unknown = vec![3, 4];
    let findings = check_device(&ledger, &stored(&[1, 2, 3]), None);
    expect(&findings, &[]);
    assert_eq!((findings.unknown_stored, findings.unknown_absent), (1, 1));
    ledger.acks.push(Ack {
        n: 4,
        at_ms: 4,
        seq: 0,
        index: 0,
    });
    expect(
        &check_device(&ledger, &stored(&[1, 2, 3]), None),
        &[(Fact::AckedSurvive, 1)],
    );
}

#[test]
fn seq_gaps_are_caught() {
    for (at, seq) in [(0, 2), (1, 3), (2, 9), (1, 1)] {
        let mut messages = stored(&[1, 2, 3]);
        messages[at].seq = seq;
        let findings = check_device(&ledger(3, [1, 2, 3]), &messages, None);
        assert_eq!(findings.count(Fact::SeqGapFree), 1, "seq {seq} at {at}");
    }
}

#[test]
fn altered_and_foreign_bodies_are_caught() {
    let plant = |change: fn(&mut serde_json::Value)| {
        let mut messages = stored(&[1, 2, 3]);
        change(&mut messages[1].body);
        check_device(&ledger(3, [1, 3]), &messages, None)
    };
    expect(&plant(|body| body["p"] = "y".into()), &[(Fact::PayloadIntact, 1)]);
    expect(&plant(|body| body["d"] = "dev-2".into()), &[(Fact::PayloadIntact, 1)]);
    expect(&plant(|body| body["n"] = 99.into()), &[(Fact::PayloadIntact, 1)]);
    expect(
        &plant(|body| *body = serde_json::Value::Null),
        &[(Fact::PayloadIntact, 1)],
    );
    let other_run = plant(|body| body["r"] = 6.into());
    expect(&other_run, &[]);
    assert_eq!(other_run.other_runs, 1);
}

#[test]
fn false_receipts_and_stray_acks_are_caught() {
    let mut ledger = ledger(3, [1, 2, 3]);
    ledger.acks[1].seq = 3;
    ledger.acks[2].seq = 3;
    expect(
        &check_device(&ledger, &stored(&[1, 2, 3]), None),
        &[(Fact::ReceiptsTrue, 1)],
    );
    ledger.acks[1].seq = 2;
    ledger.acks_out_of_order = 2;
    expect(
        &check_device(&ledger, &stored(&[1, 2, 3]), None),
        &[(Fact::AcksInOrder, 1)],
    );
}

/// Refused for lack of room means not stored, unless an earlier send may have been.
#[test]
fn refused_and_stored_is_caught() {
    let mut ledger = ledger(2, [1]);
    for (code, resent, breaches) in [(0x97, false, 1), (0x97, true, 0), (0x80, false, 0)] {
        ledger.refused = vec![Refusal { n: 2, code, resent }];
        let findings = check_device(&ledger, &stored(&[1, 2]), None);
        assert_eq!(
            findings.count(Fact::RefusedAbsent),
            breaches,
            "code {code:#x} resent {resent}"
        );
    }
}

#[test]
fn twin_losses_are_caught() {
    let mut ledger = ledger(0, []);
    ledger.twin_acks = vec![
        TwinAck {
            k: 1,
            at_ms: 1,
            version: 4,
        },
        TwinAck {
            k: 2,
            at_ms: 2,
            version: 0,
        },
        TwinAck {
            k: 3,
            at_ms: 3,
            version: 6,
        },
    ];
    ledger.twin_unknown = vec![4];
    let twin = |k: u32, run: u32, version: u64| StoredTwin {
        reported: serde_json::json!({"k": k, "run": run}),
        version,
    };
    let count = |ledger: &DeviceLedger, twin: Option<&StoredTwin>| {
        check_device(ledger, &[], twin).count(Fact::AckedTwinVersionsSurvive)
    };
    assert_eq!(count(&ledger, Some(&twin(3, 7, 6))), 0);
    assert_eq!(
        count(&ledger, Some(&twin(4, 7, 7))),
        0,
        "an unknown report may have been stored"
    );
    assert_eq!(count(&ledger, Some(&twin(5, 7, 7))), 1, "never sent");
    assert_eq!(count(&ledger, Some(&twin(2, 7, 6))), 1, "lost");
    assert_eq!(count(&ledger, Some(&twin(3, 6, 6))), 1, "of another run");
    assert_eq!(count(&ledger, Some(&twin(3, 7, 5))), 1, "version went back");
    assert_eq!(count(&ledger, None), 1);
    ledger.twin_acks[2].version = 4;
    assert_eq!(count(&ledger, Some(&twin(3, 7, 6))), 1, "two reports with one version");
}

/// Findings of devices add up, and examples stay few.
#[test]
fn findings_add_up() {
    let mut whole = Findings::default();
    for _ in 0..10 {
        whole.add(check_device(&ledger(3, [1, 2, 3]), &stored(&[1]), None));
    }
    assert_eq!((whole.lost(), whole.acknowledged, whole.devices), (20, 30, 10));
    assert_eq!(whole.breaches[&Fact::AckedSurvive].examples.len(), EXAMPLES_MAX);
}
