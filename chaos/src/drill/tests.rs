//! Drills that ship make sense, mistakes are named with line and key, plans repeat.

use super::*;

#[test]
fn every_shipped_drill_makes_sense() {
    assert!(shipped::ALL.len() >= 14);
    for (name, text) in shipped::ALL {
        let loaded = parse(Path::new(name), (*text).to_owned()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&loaded.drill.name, name);
        assert!(
            !loaded.drill.teaches.is_empty() && !loaded.drill.expect.text.is_empty(),
            "{name}"
        );
        let mut brief = loaded.drill.clone();
        brief.brief();
        assert!(brief.phases.faults.0 <= BRIEF, "{name}");
        assert!(!plan(&brief, 1).is_empty(), "{name} has nothing left when it is brief");
    }
}

const SOUND: &str = r#"name = "t"
title = "T"
[workload]
[[workload.fleet]]
name = "a"
profile = "constant"
count = 10
[[fault]]
kind = "process.kill"
on = "busiest"
at = "1s"
[[fault]]
kind = "link.drop"
at = "2s"
with = { percent = 10 }
"#;

fn refused(text: &str) -> Vec<Problem> {
    match parse(Path::new("x.toml"), text.to_owned()) {
        Err(LoadError::Refused { problems, .. }) => problems,
        other => panic!("{other:?} for {text}"),
    }
}

/// Rows: what is changed in a sound file, line and key of the problem, a word of the reason.
#[test]
fn problems_have_line_and_key() {
    assert!(parse(Path::new("x.toml"), SOUND.to_owned()).is_ok());
    let rows = [
        ("process.kill", "process.kil", 9, "fault[0].kind", "process.kill"),
        ("\"busiest\"", "\"nobody\"", 10, "fault[0].on", "busiest"),
        ("percent = 10", "percent = 0", 15, "fault[1].with.percent", "1..=100"),
        ("percent = 10", "precent = 10", 15, "fault[1].with.precent", "percent"),
        ("at = \"1s\"", "at = \"1h\"", 11, "fault[0].at", "is over"),
        ("at = \"1s\"", "at = 1", 11, "fault[0].at", "invalid type"),
        ("count = 10", "count = 0", 7, "workload.fleet[0].count", "1..="),
        ("name = \"t\"", "name = \"t\"\nnodes = 3", 2, "nodes", "unknown field"),
        ("[workload]", "[workload]\nseed = 3", 4, "workload.seed", "itself"),
        (
            "title = \"T\"",
            "title = \"T\"\n[checks]\nwithout = [\"x\"]",
            4,
            "checks.without[0]",
            "acked_survive",
        ),
        (
            "title = \"T\"",
            "title = \"T\"\n[cluster]\nnodes = 12",
            4,
            "cluster.nodes",
            "1..=9",
        ),
    ];
    for (from, to, line, key, reason) in rows {
        let problems = refused(&SOUND.replacen(from, to, 1));
        let found = &problems[0];
        assert_eq!((found.line, found.key.as_str()), (line, key), "{to}: {problems:?}");
        assert!(found.reason.contains(reason), "{to}: {}", found.reason);
    }
}

#[test]
fn the_same_seed_plans_the_same_and_another_something_else() {
    let sink = parse(Path::new("x"), shipped::source("kitchen-sink").unwrap().to_owned())
        .unwrap()
        .drill;
    assert_eq!(plan(&sink, 7), plan(&sink, 7));
    assert_ne!(plan(&sink, 7), plan(&sink, 8));
    let mut ends: Vec<Duration> = Vec::new();
    for planned in plan(&sink, 7) {
        ends.retain(|end| *end > planned.at);
        assert!(ends.is_empty(), "two at once");
        ends.push(planned.at + planned.length);
    }
}

/// Every fault that can be aimed is aimed at who was meant, and a majority is predicted to survive one node.
#[test]
fn faults_hit_who_is_meant() {
    let view = View::imagined(5, 10);
    for entry in crate::catalogue::all() {
        let drill = Drill {
            fault: vec![model::FaultAt {
                kind: entry.id.into(),
                on: "node:2".into(),
                at: simulator::scenario::Span::secs(1),
                length: simulator::scenario::Span::secs(1),
                repeat: 1,
                every: simulator::scenario::Span::secs(1),
                with: toml::Table::new(),
            }],
            ..parse(Path::new("x"), SOUND.to_owned()).unwrap().drill
        };
        let planned = &plan(&drill, 1)[0];
        let aimed = aim(planned, &view).unwrap();
        assert!(!aimed.deeds.is_empty(), "{}", entry.id);
        let impact = predict(&aimed, &view, &|_| 10);
        if entry.id == "process.kill" {
            assert_eq!(aimed.nodes, [2]);
            assert_eq!((impact.shards_leaderless, impact.devices_reconnect), (2, 10));
            assert!(impact.majority_survives);
        }
        if entry.id == "power.cut" {
            assert!(!impact.majority_survives);
        }
    }
}

/// In a ring of five everybody hears three, itself included.
#[test]
fn a_ring_leaves_everybody_a_majority() {
    let ring = parse(Path::new("x"), shipped::source("majority-ring").unwrap().to_owned())
        .unwrap()
        .drill;
    let view = View::imagined(5, 10);
    let aimed = aim(&plan(&ring, 1)[0], &view).unwrap();
    let mut deaf = std::collections::BTreeMap::<u64, usize>::new();
    for deed in &aimed.deeds {
        let crate::deed::Deed::Lease { node, fault, .. } = deed else {
            panic!("{deed:?}")
        };
        *deaf.entry(*node).or_default() += 1;
        *deaf.entry(fault["peer"].as_u64().unwrap()).or_default() += 1;
    }
    assert_eq!(deaf.values().copied().collect::<Vec<_>>(), [2; 5]);
    assert!(predict(&aimed, &view, &|_| 0).majority_survives);
}
