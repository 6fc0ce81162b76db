//! Replicas of a shard are equal, byte for byte, at an equal applied index.

use std::collections::BTreeMap;

use super::{Breach, Evidence, Ruling};

pub const NAME: &str = "replicas_agree";
const SENTENCE: &str = "replicas of a shard are equal byte for byte at an equal applied index";

pub fn judge(evidence: &Evidence) -> Ruling {
    if evidence.digests.is_empty() {
        return Ruling::not_judged(NAME, SENTENCE, "no digests were asked for");
    }
    let mut breaches = Vec::new();
    let (mut compared, mut missing) = (0, Vec::new());
    for digest in &evidence.digests {
        missing.extend(
            digest
                .missing
                .as_ref()
                .map(|why| format!("shard {}: {why}", digest.shard)),
        );
        let mut by_index: BTreeMap<u64, BTreeMap<&str, u64>> = BTreeMap::new();
        for (node, applied, hash) in &digest.replicas {
            compared += 1;
            by_index.entry(*applied).or_default().insert(hash, *node);
        }
        for (index, hashes) in by_index {
            if hashes.len() > 1 {
                breaches.push(Breach {
                    what: format!("shard {} differs at index {index}: {hashes:?}", digest.shard),
                    file: "digests.json".into(),
                    ..Default::default()
                });
            }
        }
    }
    if breaches.is_empty() && !missing.is_empty() {
        let why = format!("not every replica could be compared: {}", missing.join("; "));
        return Ruling::not_judged(NAME, SENTENCE, &why);
    }
    let text = format!("digests of {compared} replicas of {} shards", evidence.digests.len());
    Ruling::of(NAME, SENTENCE, text, breaches.len() as u64, breaches)
}
