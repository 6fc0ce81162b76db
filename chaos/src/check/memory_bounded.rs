//! Resident memory of every node stays within its bound.

use super::{Breach, Evidence, Ruling};

pub const NAME: &str = "memory_bounded";
const SENTENCE: &str = "the memory of every node stays within its bound";

pub fn judge(evidence: &Evidence) -> Ruling {
    let bound = evidence.bounds.memory_bytes;
    if evidence.memory.is_empty() {
        return Ruling::not_judged(NAME, SENTENCE, "no node told its memory");
    }
    let over = evidence.memory.iter().filter(|(_, bytes)| *bytes > bound);
    let breaches: Vec<Breach> = over
        .map(|(node, bytes)| Breach {
            what: format!("node {node} had {} MiB, allowed are {}", bytes >> 20, bound >> 20),
            file: "run/nodes.jsonl".into(),
            ..Default::default()
        })
        .collect();
    let most = evidence.memory.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    let text = format!(
        "{} nodes, the most {} MiB, allowed are {} MiB",
        evidence.memory.len(),
        most >> 20,
        bound >> 20
    );
    Ruling::of(NAME, SENTENCE, text, breaches.len() as u64, breaches)
}
