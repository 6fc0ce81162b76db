//! While a fault concerns one node's process, shards that it did not lead go on: they are never
//! without an acknowledgement for longer than the bound.

use super::{Breach, Evidence, Ruling, TOLD_MAX};

pub const NAME: &str = "unaffected_undisturbed";
const SENTENCE: &str = "shards that a fault does not touch go on";

pub fn judge(evidence: &Evidence) -> Ruling {
    let bound = evidence.bounds.unaffected_gap_us;
    let (mut judged, mut longest) = (0, 0);
    let mut breaches = Vec::new();
    for fault in evidence
        .faults
        .iter()
        .filter(|fault| fault.is_contained && fault.to_us - fault.from_us >= bound / 4)
    {
        for (shard, acks) in &evidence.facts.acks {
            // Where hardly anything is sent, silence says nothing.
            let before = acks.partition_point(|at| *at < fault.from_us);
            let busy = before as f64 / (fault.from_us.max(1) as f64 / 1e6) >= 1.0;
            if fault.shards.contains(shard) || !busy {
                continue;
            }
            judged += 1;
            let end = fault.to_us.min(evidence.bounds.sending_ended_us);
            let gap = longest_gap(acks, fault.from_us, end);
            longest = longest.max(gap);
            if gap > bound {
                breaches.push(Breach {
                    what: format!("shard {shard} had no acknowledgement for {:.1} s", gap as f64 / 1e6),
                    at_us: fault.from_us,
                    during: Some(fault.id.clone()),
                    file: "report.html".into(),
                    ..Default::default()
                });
            }
        }
    }
    if judged == 0 {
        return Ruling::not_judged(NAME, SENTENCE, "no fault was contained to single nodes for long enough");
    }
    let count = breaches.len() as u64;
    breaches.truncate(TOLD_MAX);
    let text = format!(
        "{judged} pairs of fault and shard, the longest silence {:.2} s, allowed are {:.0} s",
        longest as f64 / 1e6,
        bound as f64 / 1e6
    );
    Ruling::of(NAME, SENTENCE, text, count, breaches)
}

/// The longest stretch within `from..to` without any of the sorted `acks`.
fn longest_gap(acks: &[u64], from: u64, to: u64) -> u64 {
    let inside = &acks[acks.partition_point(|at| *at < from)..acks.partition_point(|at| *at <= to)];
    let (mut last, mut longest) = (from, 0);
    for at in inside.iter().copied().chain([to]) {
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    longest
}
