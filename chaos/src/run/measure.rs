//! What each fault did, from what was seen and recorded; and how right the prediction was.

use super::result::{FaultRecord, Impacts, Measured};
use crate::check::{Facts, Sighting};
use crate::drill::Impact;

/// What happens this long after a heal still counts as the fault's doing.
const AFTERMATH_US: u64 = 1_000_000;
/// An election is looked for this long.
const ELECTION_US: u64 = 60_000_000;
/// Below this it cannot be told whether a majority went on.
const LONG_US: u64 = 4_000_000;

pub fn measure(record: &FaultRecord, sightings: &[Sighting], facts: &Facts) -> Measured {
    let changed = changed(record, sightings);
    let (mut detect, mut elect, mut recover) = (None::<u64>, None::<u64>, None::<u64>);
    for (shard, old) in &changed {
        let times = election(record, *shard, *old, sightings);
        detect = match (detect, times.0) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        elect = elect.max(times.1);
        let again = times.1.and_then(|elected| facts.next_ack(*shard, elected));
        recover = recover.max(again);
    }
    let since = |at: Option<u64>| at.map(|at| at.saturating_sub(record.from_us));
    let end = record.to_us + AFTERMATH_US;
    let lost = facts.lost.partition_point(|at| *at <= end) - facts.lost.partition_point(|at| *at < record.from_us);
    Measured {
        impact: Impact {
            shards_leaderless: changed.len() as u32,
            devices_reconnect: lost as u32,
            majority_survives: went_on(record, facts),
        },
        detect_us: since(detect),
        elect_us: since(elect),
        recover_us: since(recover),
    }
}

/// Shards whose leader went while the fault lasted, with who that was.
fn changed(record: &FaultRecord, sightings: &[Sighting]) -> Vec<(u16, u64)> {
    let mut shards: Vec<u16> = sightings.iter().map(|sighting| sighting.shard).collect();
    shards.sort_unstable();
    shards.dedup();
    let of = |shard: u16| {
        let before = sightings
            .iter()
            .filter(|s| s.shard == shard && s.at_us < record.from_us && s.leader.is_some())
            .max_by_key(|s| (s.term, s.at_us))?;
        // Leaders that go home meanwhile are somebody else's doing.
        let old = before
            .leader
            .filter(|old| record.nodes.is_empty() || record.nodes.contains(old))?;
        let gone = sightings.iter().any(|s| {
            s.shard == shard
                && (record.from_us..=record.to_us).contains(&s.at_us)
                && (s.term > before.term || s.leader.is_none())
                && s.leader != Some(old)
        });
        gone.then_some((shard, old))
    };
    shards.into_iter().filter_map(of).collect()
}

/// When somebody noticed, and when there was another leader (or the same one again).
fn election(record: &FaultRecord, shard: u16, old: u64, sightings: &[Sighting]) -> (Option<u64>, Option<u64>) {
    let window = record.from_us..record.from_us + ELECTION_US;
    let term = sightings
        .iter()
        .filter(|s| s.shard == shard && s.at_us < record.from_us)
        .map(|s| s.term)
        .max()
        .unwrap_or(0);
    let inside = || {
        sightings
            .iter()
            .filter(|s| s.shard == shard && window.contains(&s.at_us))
    };
    let noticed = inside()
        .filter(|s| s.leader != Some(old) || s.term > term)
        .map(|s| s.at_us)
        .min();
    let elected = inside()
        .filter(|s| s.leader.is_some() && s.term > term)
        .map(|s| s.at_us)
        .min();
    (noticed, elected)
}

/// Every shard acknowledged something in the second half.
fn went_on(record: &FaultRecord, facts: &Facts) -> bool {
    if record.to_us.saturating_sub(record.from_us) < LONG_US {
        return record.predicted.majority_survives;
    }
    let middle = record.from_us + (record.to_us - record.from_us) / 2;
    facts
        .acks
        .keys()
        .all(|shard| facts.next_ack(*shard, middle).is_some_and(|at| at <= record.to_us))
}

/// The worst of all faults, and the score.
pub fn impacts(records: &[FaultRecord], expected: &str) -> Impacts {
    let none = Impact {
        majority_survives: true,
        ..Default::default()
    };
    let installed: Vec<&FaultRecord> = records.iter().filter(|record| record.outcome == "installed").collect();
    let near = |predicted: u32, measured: u32| predicted.abs_diff(measured) <= 2.max(predicted.max(measured) / 4);
    let (mut right, mut all) = (0u32, 0u32);
    let (mut predicted, mut measured) = (none, none);
    for record in installed {
        let Some(found) = &record.measured else { continue };
        let (p, m) = (record.predicted, found.impact);
        predicted = predicted.worst(p);
        measured = measured.worst(m);
        for is_right in [
            near(p.shards_leaderless, m.shards_leaderless),
            near(p.devices_reconnect, m.devices_reconnect),
            p.majority_survives == m.majority_survives,
        ] {
            all += 1;
            right += u32::from(is_right);
        }
    }
    Impacts {
        predicted,
        measured,
        score: (all > 0).then(|| f64::from(right) / f64::from(all)),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at_ms: u64, leader: Option<u64>, term: u64) -> Sighting {
        Sighting {
            at_us: at_ms * 1_000,
            node: 2,
            shard: 3,
            leader,
            term,
        }
    }

    #[test]
    fn detection_and_election_are_told_apart() {
        let record = FaultRecord {
            from_us: 1_000_000,
            to_us: 3_000_000,
            outcome: "installed".into(),
            predicted: Impact {
                shards_leaderless: 1,
                devices_reconnect: 0,
                majority_survives: true,
            },
            ..Default::default()
        };
        let sightings = [
            seen(10, Some(1), 4),
            seen(1_200, None, 5),
            seen(1_700, Some(2), 5),
            seen(9_000, Some(1), 6),
        ];
        let measured = measure(&record, &sightings, &Facts::default());
        assert_eq!((measured.detect_us, measured.elect_us), (Some(200_000), Some(700_000)));
        assert_eq!(measured.impact.shards_leaderless, 1);
        let quiet = measure(&record, &sightings[..1], &Facts::default());
        assert_eq!((quiet.detect_us, quiet.impact.shards_leaderless), (None, 0));
        let records = [FaultRecord {
            measured: Some(measured),
            ..record
        }];
        assert_eq!(impacts(&records, "").score, Some(1.0));
    }
}
