//! After the load: audit, digests, presence, rulings, verdict, files.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use simulator::haul::NodeSample;
use simulator::report::conclude::{conclude as audit, Auditing};
use simulator::report::numbers::millis;
use simulator::report::Report;
use simulator::run::directory::{read_lines, RunDir, RunFile};

use super::course::{copy_logs, Course};
use super::measure;
use super::result::{DrillResult, FaultRecord, Verdict};
use super::DrillError;
use crate::check::{self, Active, Bounds, Breach, Evidence, Facts, Holds, Ruling, ShardDigest, Sighting};
use crate::drill::model::Hypothesis;
use crate::site::{Http, SiteNode};

/// How long replicas may take until all of them tell a digest.
const DIGESTS: Duration = Duration::from_secs(120);
/// One page of the registry.
const PAGE: usize = 1_000;
/// Devices that presence is counted over.
const DEVICES_MAX: u32 = 1_000_000;

pub(super) fn conclude(
    mut course: Course<'_>,
    ran: Result<RunFile, String>,
    sightings: Vec<Sighting>,
    began_unix_us: u64,
) -> Result<DrillResult, DrillError> {
    let out = course.options.out.clone();
    let run_dir = out.join("run");
    let mut not_audited = String::new();
    let mut report = None;
    let run = match ran {
        Err(why) => {
            course.failures.push(format!("the load could not be driven: {why}"));
            RunFile::default()
        }
        Ok(file) => {
            course.screen.say("reading everything back");
            match audit(&run_dir, Auditing::Now, &AtomicU64::new(0)) {
                Ok((found, problem)) => {
                    not_audited = problem.map_or_else(String::new, |error| error.to_string());
                    report = Some(found);
                }
                Err(error) => not_audited = error.to_string(),
            }
            file
        }
    };
    course.screen.say("comparing replicas");
    let digests = digests(&course.http, &course.ground.site.current(), course.view.shards.len());
    let _ = RunDir(out.clone()).write_json("digests.json", &digests);
    let facts = Facts::read(&run_dir.join("history")).unwrap_or_default();
    for record in &mut course.records {
        if record.outcome == "installed" {
            record.measured = Some(measure::measure(record, &sightings, &facts));
        }
    }
    let evidence = Evidence {
        findings: report.as_ref().and_then(|report| report.audit.clone()),
        not_audited,
        faults: active(&course.records),
        digests,
        presence: course.presence.clone(),
        memory: memory(&read_lines(&run_dir.join("nodes.jsonl")).unwrap_or_default()),
        bounds: bounds(&course, &run),
        sightings,
        facts,
    };
    let mut rulings = check::judge(&evidence, &course.drill.checks.without);
    rulings.extend(of_the_course(&course, &evidence, report.as_ref()));
    let (verdict, reasons) = verdict(&course, &rulings, &evidence);
    let _ = copy_logs(course.ground, &out);
    let result = DrillResult {
        verdict,
        reasons,
        notes: std::mem::take(&mut course.notes),
        name: course.drill.name.clone(),
        title: course.drill.title.clone(),
        teaches: course.drill.teaches.clone(),
        seed: course.options.seed,
        version: course.options.version.clone(),
        rerun: course.options.rerun.clone(),
        began_unix_us,
        devices: run.devices,
        nodes: course.view.ids(),
        shards: course.view.shards.len(),
        impacts: measure::impacts(&course.records, &course.drill.expect.text),
        phases: std::mem::take(&mut course.phases),
        faults: std::mem::take(&mut course.records),
        times: course.times.clone(),
        rulings,
        sent: report.as_ref().map_or(0, |report| report.counts.sent),
        acknowledged: report.as_ref().map_or(0, |report| report.counts.acked),
        findings: evidence.findings.clone(),
    };
    crate::report::write(&out, &result, &evidence.facts).map_err(|source| DrillError::Out { path: out, source })?;
    Ok(result)
}

fn bounds(course: &Course<'_>, run: &RunFile) -> Bounds {
    let checks = &course.drill.checks;
    Bounds {
        memory_bytes: checks.memory_mib_max << 20,
        unaffected_gap_us: checks.unaffected_gap_max.micros(),
        request_us: checks.request_max.micros(),
        sending_ended_us: run.sending_ended_us.unwrap_or(u64::MAX),
        ..Default::default()
    }
}

/// Faults as checkers want them.
pub fn active(records: &[FaultRecord]) -> Vec<Active> {
    let installed: Vec<&FaultRecord> = records.iter().filter(|record| record.outcome != "skipped").collect();
    let overlaps = |a: &FaultRecord, b: &FaultRecord| a.id != b.id && a.from_us <= b.to_us && b.from_us <= a.to_us;
    let contained = ["process.kill", "process.stop", "process.pause"];
    let active = |record: &&FaultRecord| Active {
        id: record.id.clone(),
        kind: record.kind.clone(),
        nodes: record.nodes.clone(),
        from_us: record.from_us,
        to_us: record.to_us,
        shards: record.shards.clone(),
        is_contained: contained.contains(&record.kind.as_str())
            && record.predicted.majority_survives
            && !installed.iter().any(|other| overlaps(record, other)),
    };
    installed.iter().map(active).collect()
}

fn memory(samples: &[NodeSample]) -> Vec<(u64, u64)> {
    let mut most: BTreeMap<u64, u64> = BTreeMap::new();
    for sample in samples {
        if let Some(bytes) = sample.figures.get("memory") {
            let entry = most.entry(sample.node).or_default();
            *entry = (*entry).max(*bytes as u64);
        }
    }
    most.into_iter().collect()
}

/// Healed, served again, and the hypotheses.
fn of_the_course(course: &Course<'_>, evidence: &Evidence, report: Option<&Report>) -> Vec<Ruling> {
    let mut rulings = Vec::new();
    let healed = "every fault was undone, and none is left behind";
    let breaches = course.unhealed.iter().map(|what| Breach {
        what: what.clone(),
        file: "faults.jsonl".into(),
        ..Default::default()
    });
    let breaches: Vec<Breach> = breaches.collect();
    let text = format!("{} faults", course.records.len());
    rulings.push(Ruling::of(
        "faults_healed",
        healed,
        text,
        breaches.len() as u64,
        breaches,
    ));
    let serves = "after the heal everything serves again within the bound";
    rulings.push(match (&course.unserved, course.times.liveness_us) {
        (Some(why), _) => {
            let breach = Breach {
                what: why.clone(),
                file: "report.html".into(),
                ..Default::default()
            };
            Ruling::of(
                "serves_again",
                serves,
                format!("bound {}", course.drill.phases.settle),
                1,
                vec![breach],
            )
        }
        (None, Some(us)) => {
            let text = format!("{} of at most {}", millis(us as f64 / 1e3), course.drill.phases.settle);
            Ruling::of("serves_again", serves, text, 0, Vec::new())
        }
        (None, None) => Ruling::not_judged("serves_again", serves, "the drill ended before"),
    });
    if course.drill.abort.is_some() {
        let breaches = course.aborted.iter().map(|why| Breach {
            what: why.clone(),
            file: "report.html".into(),
            ..Default::default()
        });
        let breaches: Vec<Breach> = breaches.collect();
        let sentence = "the drill had no need to end early";
        rulings.push(Ruling::of(
            "not_aborted",
            sentence,
            String::new(),
            breaches.len() as u64,
            breaches,
        ));
    }
    let thresholds = &course.drill.thresholds;
    for (name, phase, hypothesis) in [
        ("hypothesis_before", "steady", &thresholds.before),
        ("hypothesis_during", "faults", &thresholds.during),
        ("hypothesis_after", "liveness", &thresholds.after),
    ] {
        rulings.extend(hypothesis_ruling(course, evidence, report, name, phase, hypothesis));
    }
    rulings
}

fn hypothesis_ruling(
    course: &Course<'_>,
    evidence: &Evidence,
    report: Option<&Report>,
    name: &str,
    phase: &str,
    hypothesis: &Hypothesis,
) -> Option<Ruling> {
    if *hypothesis == Hypothesis::default() {
        return None;
    }
    let sentence = format!("the hypothesis holds in the phase {phase}");
    let span = course.phases.iter().find(|span| span.name == phase);
    let Some(span) = span else {
        return Some(Ruling::not_judged(name, &sentence, "the drill ended before"));
    };
    // "After" is how it is in the end, not on the way there; its last second is not answered yet.
    let (from, to) = match phase {
        "liveness" => (
            span.to_us.saturating_sub(4_000_000),
            span.to_us.saturating_sub(1_000_000),
        ),
        _ => (span.from_us, span.to_us),
    };
    let (mut evidence_text, mut breaches) = (Vec::new(), Vec::new());
    let mut hold = |is_held: bool, text: String| {
        if !is_held {
            breaches.push(Breach {
                what: text.clone(),
                at_us: from,
                file: "report.html".into(),
                ..Default::default()
            });
        }
        evidence_text.push(text);
    };
    if let Some(least) = hypothesis.availability_min {
        let is = evidence.facts.availability(from, to).unwrap_or(0.0);
        hold(
            is >= least,
            format!("availability {:.2} %, at least {:.2} %", is * 100.0, least * 100.0),
        );
    }
    if let Some(most) = hypothesis.latency_p99_max {
        let phase = report.and_then(|report| latency(report, from, to));
        if let Some(p99) = phase {
            hold(
                p99 <= most.as_secs_f64() * 1e3,
                format!("latency p99 {}, at most {most}", millis(p99)),
            );
        }
    }
    if let Some(least) = hypothesis.connected_share_min {
        let devices = report.map_or(0, |report| report.run.devices).max(1);
        let connected = match phase {
            "liveness" => report.map_or(0, |report| report.run.connected_at_end),
            _ => devices,
        };
        let share = f64::from(connected) / f64::from(devices);
        hold(
            share >= least,
            format!(
                "{:.1} % of the devices connected, at least {:.1} %",
                share * 100.0,
                least * 100.0
            ),
        );
    }
    Some(Ruling::of(
        name,
        &sentence,
        evidence_text.join("; "),
        breaches.len() as u64,
        breaches,
    ))
}

/// The worst p99 of the report's phases that lie in a stretch, ms.
fn latency(report: &Report, from: u64, to: u64) -> Option<f64> {
    let inside = report
        .phases
        .iter()
        .filter(|phase| phase.start_us < to && phase.end_us > from && phase.latency.count > 0);
    inside
        .map(|phase| phase.latency.p99)
        .fold(None, |worst: Option<f64>, p99| Some(worst.map_or(p99, |w| w.max(p99))))
}

fn verdict(course: &Course<'_>, rulings: &[Ruling], evidence: &Evidence) -> (Verdict, Vec<String>) {
    let mut reasons: Vec<String> = course.failures.clone();
    let is_no = |ruling: &&Ruling| ruling.holds == Holds::No;
    let before = rulings
        .iter()
        .filter(is_no)
        .filter(|ruling| ruling.invariant == "hypothesis_before");
    reasons.extend(before.map(|ruling| {
        format!(
            "the cluster was not well before anything was broken: {}",
            ruling.evidence
        )
    }));
    let installed = course
        .records
        .iter()
        .filter(|record| record.outcome == "installed")
        .count();
    if installed == 0 && reasons.is_empty() {
        let why = course
            .records
            .first()
            .map_or("none was due", |record| record.why.as_str());
        reasons.push(format!("no fault could be injected, so nothing was tested: {why}"));
    }
    if evidence.findings.is_none() {
        reasons.push(format!("nothing could be audited: {}", evidence.not_audited));
    } else if evidence.facts.acked == 0 {
        reasons.push("nothing was acknowledged, so nothing was tested".into());
    }
    let broken = rulings
        .iter()
        .filter(is_no)
        .filter(|ruling| ruling.invariant != "hypothesis_before");
    let broken: Vec<String> = broken
        .map(|ruling| {
            let example = ruling
                .breaches
                .first()
                .map_or(String::new(), |breach| format!(", e.g. {}", breach.what));
            format!("{} is broken {} times{example}", ruling.invariant, ruling.count)
        })
        .collect();
    let safety = rulings
        .iter()
        .filter(is_no)
        .any(|ruling| check::names().contains(&ruling.invariant.as_str()));
    // A promise that was seen broken is broken, whatever became of the bench.
    match (broken.is_empty(), reasons.is_empty() || safety) {
        (false, true) => (Verdict::Violation, broken),
        (true, true) => (
            Verdict::Pass,
            vec![format!("{installed} faults, and every invariant held")],
        ),
        (_, false) => {
            reasons.extend(broken);
            (Verdict::HarnessFailure, reasons)
        }
    }
}

#[derive(Deserialize)]
struct Digests {
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    node: u64,
    applied: Option<u64>,
    digest: Option<String>,
    error: Option<String>,
}

/// Digests of every shard, once all its replicas tell one of the same index, or the time is over.
fn digests(http: &Http, nodes: &[SiteNode], shards: usize) -> Vec<ShardDigest> {
    let end = Instant::now() + DIGESTS;
    (0..shards as u16)
        .map(|shard| digest(http, nodes, shard, end))
        .collect()
}

fn digest(http: &Http, nodes: &[SiteNode], shard: u16, end: Instant) -> ShardDigest {
    let path = format!("/api/v1/cluster/shards/{shard}/digest?timeout_ms=8000");
    let mut turn = 0;
    loop {
        let asked = &nodes[turn % nodes.len().max(1)];
        turn += 1;
        let mut found = ShardDigest {
            shard,
            ..Default::default()
        };
        match http.call("GET", &asked.http, &path, None, Duration::from_secs(15)) {
            Ok(value) => match serde_json::from_value::<Digests>(value) {
                Ok(told) => {
                    for replica in told.replicas {
                        match (replica.applied, replica.digest) {
                            (Some(applied), Some(digest)) => found.replicas.push((replica.node, applied, digest)),
                            _ => {
                                found.missing =
                                    Some(format!("node {}: {}", replica.node, replica.error.unwrap_or_default()))
                            }
                        }
                    }
                }
                Err(error) => found.missing = Some(error.to_string()),
            },
            Err(error) => found.missing = Some(error.to_string()),
        }
        let is_complete = found.missing.is_none() && !found.replicas.is_empty();
        if is_complete || Instant::now() >= end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Devices whose id begins with `prefix` and that the cluster takes for connected.
pub(super) fn connected(http: &Http, nodes: &[SiteNode], prefix: &str) -> Option<u32> {
    nodes.iter().find_map(|node| count(http, &node.http, prefix))
}

fn count(http: &Http, node: &str, prefix: &str) -> Option<u32> {
    let (mut total, mut cursor) = (0u32, None::<String>);
    loop {
        let more = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let path = format!("/api/v1/devices?filter=connected%3Dtrue%20and%20id%3D{prefix}*&limit={PAGE}{more}");
        let page: Value = http.get(node, &path).ok()?;
        total += page.get("items")?.as_array()?.len() as u32;
        let next = page.get("next").and_then(Value::as_str);
        match next {
            Some(next) if total < DEVICES_MAX => cursor = Some(next.to_owned()),
            _ => return Some(total),
        }
    }
}

/// Those listed as connected after all have left: 0 as soon as it is, else what it was in the end.
pub(super) fn left(http: &Http, nodes: &[SiteNode], prefix: &str, within: Duration) -> Option<u32> {
    let end = Instant::now() + within;
    loop {
        let listed = connected(http, nodes, prefix);
        if listed == Some(0) || Instant::now() >= end {
            return listed;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
