//! A shard has at most one leader in a term, whoever tells; and one place in its log one term,
//! which never falls along the log.

use std::collections::BTreeMap;

use super::{Breach, Evidence, Ruling, TOLD_MAX};

pub const NAME: &str = "one_owner_per_term";
const SENTENCE: &str = "a shard has at most one leader in a term, and terms never fall along its log";

pub fn judge(evidence: &Evidence) -> Ruling {
    let mut breaches = leaders(evidence);
    let seen = evidence.sightings.len();
    let (places, from_receipts) = receipts(evidence);
    breaches.extend(from_receipts);
    if seen == 0 && places == 0 {
        return Ruling::not_judged(NAME, SENTENCE, "no node told who leads, and no receipt was given");
    }
    let count = breaches.len() as u64;
    breaches.truncate(TOLD_MAX);
    let text = format!("{seen} sightings of leaders by all nodes, {places} receipts");
    Ruling::of(NAME, SENTENCE, text, count, breaches)
}

fn leaders(evidence: &Evidence) -> Vec<Breach> {
    let mut owners: BTreeMap<(u16, u64), (u64, u64)> = BTreeMap::new();
    let mut found = Vec::new();
    for sighting in &evidence.sightings {
        let Some(leader) = sighting.leader else { continue };
        let first = owners
            .entry((sighting.shard, sighting.term))
            .or_insert((leader, sighting.node));
        if first.0 != leader {
            found.push(Breach {
                what: format!(
                    "shard {} in term {}: node {} names node {leader} as its leader, node {} named node {}",
                    sighting.shard, sighting.term, sighting.node, first.1, first.0
                ),
                at_us: sighting.at_us,
                during: evidence.during(sighting.at_us),
                file: "sightings.jsonl".into(),
                ..Default::default()
            });
        }
    }
    found
}

fn receipts(evidence: &Evidence) -> (usize, Vec<Breach>) {
    let mut found = Vec::new();
    let mut count = 0;
    for (shard, places) in &evidence.facts.places {
        count += places.len();
        let mut sorted = places.clone();
        sorted.sort_unstable_by_key(|place| (place.index, place.term));
        for pair in sorted.windows(2) {
            let fine = match pair[0].index == pair[1].index {
                true => pair[0].term == pair[1].term,
                false => pair[0].term <= pair[1].term,
            };
            if !fine {
                let (a, b) = (pair[0], pair[1]);
                found.push(Breach {
                    what: format!(
                        "shard {shard}: index {} has term {}, index {} has term {}",
                        a.index, a.term, b.index, b.term
                    ),
                    receipt: Some(format!("{shard}-{}-{}", b.term, b.index)),
                    at_us: b.at_us,
                    during: evidence.during(b.at_us),
                    file: "run/history".into(),
                    ..Default::default()
                });
            }
        }
    }
    (count, found)
}
