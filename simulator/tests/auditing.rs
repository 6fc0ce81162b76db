//! The audit finds what is planted, names it, and accuses nobody else.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use simulator::audit::{audit, sample, Claims, Fact, Final, Findings, Registration, Source, Stored, Twins};
use simulator::history::{Header, Kind, Note, NoteKind, Op, Outcome, Place, Record, Writer};
use simulator::plan::Plan;
use simulator::run::api::ApiError;

const RUN: u32 = 77;
const MESSAGES: u64 = 50;

/// A cluster in memory.
#[derive(Default)]
struct Memory {
    devices: BTreeMap<String, Vec<Stored>>,
    twins: BTreeMap<String, Twins>,
}

impl Source for Memory {
    async fn registration(&self, device: &str) -> Result<Option<Registration>, ApiError> {
        let known = self.devices.get(device);
        Ok(known.map(|_| Registration { first_seq: 1 }))
    }

    async fn telemetry(&self, device: &str, after: u64) -> Result<Vec<Stored>, ApiError> {
        let stored = self.devices.get(device).into_iter().flatten();
        Ok(stored
            .filter(|stored| stored.seq > after)
            .take(1_000)
            .cloned()
            .collect())
    }

    async fn twins(&self, device: &str) -> Result<Option<Twins>, ApiError> {
        Ok(self.twins.get(device).copied())
    }
}

fn plan(profile: &str, count: u32) -> Plan {
    let text = format!(
        "name = \"t\"\n[target]\nmqtt = [\"h:1\"]\n[[fleet]]\nname = \"d\"\nprofile = \"{profile}\"\ncount = {count}\n[[phase]]\nkind = \"steady\"\nduration = \"10s\"\n"
    );
    Plan::new(Arc::new(simulator::scenario::parse(Path::new("x.toml"), text).unwrap()))
}

fn digest(subject: u32, n: u64) -> u32 {
    crc32c::crc32c(format!("{subject}-{n}").as_bytes())
}

fn sent(subject: u32, n: u64) -> Op {
    let mut op = Op::new(subject, Kind::Telemetry, n);
    (op.intended_us, op.sent_us, op.done_us) = (n * 1_000, n * 1_000 + 10, n * 1_000 + 900);
    (op.version, op.digest, op.has_id) = (n, digest(subject, n), true);
    op.place = Some(Place {
        shard: 3,
        term: 1,
        index: 100 + n,
    });
    op
}

fn stored(subject: u32, n: u64, seq: u64) -> Stored {
    Stored {
        seq,
        message_id: Some(format!("{RUN}-{n}")),
        digest: digest(subject, n),
    }
}

fn twin_op(kind: Kind, n: u64, version: u64, begin_ms: u64, end_ms: u64) -> Op {
    let mut op = Op::new(0, kind, n);
    (op.intended_us, op.sent_us, op.done_us) = (begin_ms * 1_000, begin_ms * 1_000, end_ms * 1_000);
    op.version = version;
    op
}

/// Three devices with fifty messages each, and the first one's twin: written twice, read, seen.
struct World {
    ops: Vec<Record>,
    memory: Memory,
}

impl World {
    fn sound() -> Self {
        let mut ops = Vec::new();
        let mut memory = Memory::default();
        for subject in 0..3u32 {
            ops.push(Record::Note(Note {
                subject,
                kind: NoteKind::Connected,
                at_us: 1,
                code: 0,
            }));
            let messages = 1..=MESSAGES;
            ops.extend(messages.clone().map(|n| Record::Op(sent(subject, n))));
            let id = format!("d-{}", subject + 1);
            memory
                .devices
                .insert(id, messages.map(|n| stored(subject, n, n)).collect());
        }
        ops.push(Record::Op(twin_op(Kind::DesiredWrite, 1, 1, 100, 110)));
        ops.push(Record::Op(twin_op(Kind::DesiredSeen, 1, 1, 112, 112)));
        ops.push(Record::Op(twin_op(Kind::DesiredWrite, 2, 2, 200, 210)));
        ops.push(Record::Op(twin_op(Kind::DesiredSeen, 2, 2, 212, 212)));
        ops.push(Record::Op(twin_op(Kind::OperatorRead, 3, 2, 300, 310)));
        let mark = |version, k| Final {
            version,
            mark: Some((RUN, k)),
        };
        let twins = Twins {
            desired: mark(2, 2),
            reported: mark(0, 0),
        };
        memory.twins.insert("d-1".into(), twins);
        Self { ops, memory }
    }

    fn op(&mut self, subject: u32, kind: Kind, n: u64) -> &mut Op {
        let found = self.ops.iter_mut().find_map(|record| match record {
            Record::Op(op) if (op.subject, op.kind, op.n) == (subject, kind, n) => Some(op),
            _ => None,
        });
        found.unwrap()
    }

    fn device(&mut self, id: &str) -> &mut Vec<Stored> {
        self.memory.devices.get_mut(id).unwrap()
    }

    fn renumber(&mut self, id: &str) {
        for (seq, stored) in (1..).zip(self.device(id)) {
            stored.seq = seq;
        }
    }

    fn write(&self, dir: &Path, close: bool) {
        let mut writer = Writer::create(dir, Header::new(RUN, "r0-w0-t0", "t", 1), None).unwrap();
        self.ops.iter().for_each(|record| writer.record(record));
        writer.flush();
        if close {
            writer.close().unwrap();
        }
    }

    fn audit(&self, profile: &str, close: bool) -> Findings {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path(), close);
        let plan = plan(profile, 3);
        let claims = Claims {
            plan: &plan,
            history: dir.path(),
            runs: &[RUN],
            sending_ended_us: 60_000_000,
            scratch: dir.path().join("scratch"),
            read: &AtomicU64::new(0),
        };
        block_on(audit(&claims, &self.memory)).unwrap()
    }
}

fn block_on<T>(work: impl std::future::Future<Output = T>) -> T {
    simulator::run::api::runtime().unwrap().block_on(work)
}

#[test]
fn a_sound_world_is_clean() {
    let findings = World::sound().audit("thermostat", true);
    assert!(findings.is_clean(), "{:?}", findings.violations);
    assert_eq!((findings.acked, findings.stored, findings.subjects), (150, 150, 3));
}

/// The faults that the issue names, and the others. Each is found and named, and nothing else is.
#[test]
fn planted_faults_are_found_and_named() {
    type Plant = fn(&mut World);
    type Row<'a> = (&'a str, Plant, &'a [(Fact, u64)], &'a str);
    let rows: [Row<'_>; 14] = [
        (
            "deleted behind the product's back",
            |w| {
                w.device("d-2").remove(9);
                w.renumber("d-2");
            },
            &[(Fact::AckedSurvive, 1), (Fact::ReceiptsTrue, 40)],
            "message 10 (seq 10)",
        ),
        (
            "deleted, with its seq",
            |w| drop(w.device("d-2").remove(9)),
            &[(Fact::AckedSurvive, 1), (Fact::SeqGapFree, 1)],
            "message 10 (seq 10)",
        ),
        (
            "the last one deleted",
            |w| drop(w.device("d-2").pop()),
            &[(Fact::AckedSurvive, 1)],
            "message 50",
        ),
        (
            "duplicated",
            |w| {
                let copy = Stored {
                    seq: 51,
                    ..w.device("d-3")[6].clone()
                };
                w.device("d-3").push(copy)
            },
            &[(Fact::StoredOnce, 1)],
            "message 7 has seq 7 and 51",
        ),
        (
            "two swapped",
            |w| {
                w.device("d-1").swap(3, 4);
                w.renumber("d-1")
            },
            &[(Fact::InOrder, 1), (Fact::ReceiptsTrue, 2)],
            "message 4 is stored after 5",
        ),
        (
            "altered",
            |w| w.device("d-1")[3].digest ^= 1,
            &[(Fact::PayloadIntact, 1)],
            "message 4 was altered",
        ),
        (
            "invented",
            |w| w.device("d-1").push(stored(0, 99, 51)),
            &[(Fact::NothingInvented, 1)],
            "message 99",
        ),
        (
            "refused and stored",
            |w| w.op(0, Kind::Telemetry, 8).outcome = Outcome::Refused(0x97),
            &[(Fact::RefusedAbsent, 1)],
            "message 8 was refused",
        ),
        (
            "acknowledged out of order",
            |w| w.op(0, Kind::Telemetry, 8).disordered = true,
            &[(Fact::AcksInOrder, 1)],
            "message 8",
        ),
        (
            "a stale twin read",
            |w| w.op(0, Kind::OperatorRead, 3).version = 1,
            &[(Fact::TwinReadsFresh, 1)],
            "version 1 after 2",
        ),
        (
            "a lost desired update",
            |w| {
                w.memory.twins.get_mut("d-1").unwrap().desired = Final {
                    version: 1,
                    mark: Some((RUN, 1)),
                }
            },
            &[(Fact::TwinWritesSurvive, 1)],
            "version 2 was there",
        ),
        (
            "a twin that is gone",
            |w| {
                w.memory.twins.remove("d-1");
            },
            &[(Fact::TwinWritesSurvive, 1)],
            "version 2 was there",
        ),
        (
            "a desired update overwritten under its version",
            |w| w.memory.twins.get_mut("d-1").unwrap().desired.mark = Some((RUN, 1)),
            &[(Fact::TwinWritesSurvive, 1)],
            "holds write 1",
        ),
        (
            "a desired update that never reached the device",
            |w| {
                w.ops
                    .retain(|r| !matches!(r, Record::Op(op) if op.kind == Kind::DesiredSeen && op.n == 2))
            },
            &[(Fact::DesiredReaches, 1)],
            "desired version 2",
        ),
    ];
    for (name, plant, expected, words) in rows {
        let mut world = World::sound();
        plant(&mut world);
        let findings = world.audit("thermostat", true);
        let found: Vec<(Fact, u64)> = findings.counts.iter().map(|(fact, count)| (*fact, *count)).collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{name}: {:?}", findings.violations);
        let told = findings
            .violations
            .iter()
            .find(|violation| violation.what.contains(words));
        let told = told.unwrap_or_else(|| panic!("{name}: {:?}", findings.violations));
        assert!(told.device.starts_with("d-"), "{name}");
    }
}

/// What a violation is told with: device, seq, time and receipt.
#[test]
fn a_violation_has_everything_to_look_into_it() {
    let mut world = World::sound();
    world.device("d-2").pop();
    let findings = world.audit("thermostat", true);
    let violation = &findings.violations[0];
    assert_eq!((violation.device.as_str(), violation.n, violation.seq), ("d-2", 50, 50));
    assert_eq!(
        (violation.at_us, violation.receipt.as_deref()),
        (50_900, Some("3-1-150-50"))
    );
}

/// Without an answer a message may be stored or not; refused for another reason it may be as well.
#[test]
fn unknown_outcomes_are_neither_success_nor_loss() {
    let mut world = World::sound();
    for n in [10, 20] {
        let op = world.op(1, Kind::Telemetry, n);
        (op.outcome, op.version, op.place) = (Outcome::Unknown, 0, None);
    }
    world.device("d-2").remove(19);
    for n in 21..=MESSAGES {
        world.op(1, Kind::Telemetry, n).version = n - 1;
    }
    world.renumber("d-2");
    let findings = world.audit("thermostat", true);
    assert!(findings.is_clean(), "{:?}", findings.violations);
    assert_eq!((findings.unknown_stored, findings.unknown_absent), (1, 1));
}

/// A simulator that was killed did not record its last acknowledgements: what is stored beyond is
/// not called invented.
#[test]
fn a_history_without_an_end_accuses_nobody_of_invention() {
    let mut world = World::sound();
    world.device("d-1").push(stored(0, 51, 51));
    let findings = world.audit("thermostat", false);
    assert!(findings.is_clean(), "{:?}", findings.violations);
    assert_eq!(findings.unrecorded, 1);
    assert!(!findings.remarks.is_empty());
}

/// Messages without ids are told by their content; what is there twice is counted apart.
#[test]
fn duplicates_without_ids_are_counted_apart() {
    let mut world = World::sound();
    for record in &mut world.ops {
        if let Record::Op(op) = record {
            op.has_id = false;
        }
    }
    for stored in world.memory.devices.values_mut().flatten() {
        stored.message_id = None;
    }
    let copy = Stored {
        seq: 51,
        ..world.device("d-3")[6].clone()
    };
    world.device("d-3").push(copy);
    world.device("d-1").pop();
    let findings = world.audit("no-ids", true);
    assert_eq!(findings.duplicates_without_ids, 1);
    assert_eq!(findings.counts, BTreeMap::from([(Fact::AckedSurvive, 1)]));
}

/// During a run some devices are judged by what the history has so far.
#[test]
fn a_sample_finds_a_loss_while_the_run_goes_on() {
    let mut world = World::sound();
    world.device("d-2").pop();
    let dir = tempfile::tempdir().unwrap();
    world.write(dir.path(), false);
    let plan = plan("thermostat", 3);
    let claims = Claims {
        plan: &plan,
        history: dir.path(),
        runs: &[RUN],
        sending_ended_us: 0,
        scratch: PathBuf::new(),
        read: &AtomicU64::new(0),
    };
    let judge = |subjects: &[u32]| block_on(sample(&claims, &world.memory, subjects)).unwrap();
    assert!(judge(&[0, 2]).is_clean());
    assert_eq!(judge(&[1]).count(Fact::AckedSurvive), 1);
}

/// What is stored, made up as it is asked for: nothing but the history is large.
struct Endless {
    per_device: u64,
}

impl Source for Endless {
    async fn registration(&self, _: &str) -> Result<Option<Registration>, ApiError> {
        Ok(Some(Registration { first_seq: 1 }))
    }

    async fn telemetry(&self, device: &str, after: u64) -> Result<Vec<Stored>, ApiError> {
        let subject: u32 = device.strip_prefix("d-").unwrap().parse::<u32>().unwrap() - 1;
        let last = (after + 1_000).min(self.per_device);
        Ok((after + 1..=last).map(|n| stored(subject, n, n)).collect())
    }

    async fn twins(&self, _: &str) -> Result<Option<Twins>, ApiError> {
        Ok(None)
    }
}

/// Ten million operations, in pieces that fit into memory. Prints how long it took.
#[test]
#[ignore = "writes 400 MB: --ignored"]
fn ten_million_operations_are_checked_in_pieces() {
    let (devices, per_device) = (1_000u32, 10_000u64);
    let dir = tempfile::tempdir().unwrap();
    let history = dir.path().join("history");
    let mut writer = Writer::create(&history, Header::new(RUN, "r0-w0-t0", "t", 1), None).unwrap();
    for n in 1..=per_device {
        (0..devices).for_each(|subject| writer.record(&Record::Op(sent(subject, n))));
    }
    writer.close().unwrap();
    let plan = plan("constant", devices);
    let claims = Claims {
        plan: &plan,
        history: &history,
        runs: &[RUN],
        sending_ended_us: 0,
        scratch: dir.path().join("scratch"),
        read: &AtomicU64::new(0),
    };
    let (began, cpu) = (std::time::Instant::now(), simulator::run::process::cpu_us());
    let findings = block_on(audit(&claims, &Endless { per_device })).unwrap();
    println!(
        "10 M operations: {:.1?}, {:.1} s of CPU",
        began.elapsed(),
        (simulator::run::process::cpu_us() - cpu) as f64 / 1e6
    );
    assert!(findings.is_clean(), "{:?}", findings.violations);
    assert_eq!((findings.acked, findings.stored), (10_000_000, 10_000_000));
    assert!(!claims.scratch.exists());
}
