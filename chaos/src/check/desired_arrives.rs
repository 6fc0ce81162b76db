//! After everything is healed, a connected device has seen the newest desired change that was
//! acknowledged.

use super::{Breach, Evidence, Ruling, TOLD_MAX};

pub const NAME: &str = "desired_arrives";
const SENTENCE: &str = "after the heal every connected device has the newest desired change that was acknowledged";

pub fn judge(evidence: &Evidence) -> Ruling {
    let before = evidence
        .bounds
        .sending_ended_us
        .saturating_sub(evidence.bounds.desired_grace_us);
    let facts = &evidence.facts;
    let mut judged = 0;
    let mut breaches = Vec::new();
    for (subject, writes) in &facts.desired_writes {
        let newest = writes.iter().filter(|(_, at)| *at <= before).max();
        let Some((mark, at_us)) = newest.filter(|_| facts.connected_at_end.contains(subject)) else {
            continue;
        };
        judged += 1;
        let seen = facts.desired_seen.get(subject).copied().unwrap_or(0);
        if seen < *mark {
            breaches.push(Breach {
                what: format!(
                    "subject {subject}: change {mark} was acknowledged at {:.1} s, the newest it saw is {seen}",
                    *at_us as f64 / 1e6
                ),
                at_us: *at_us,
                during: evidence.during(*at_us),
                file: "run/history".into(),
                ..Default::default()
            });
        }
    }
    if judged == 0 {
        return Ruling::not_judged(NAME, SENTENCE, "no desired property of a connected device was changed");
    }
    let count = breaches.len() as u64;
    let text = format!("{judged} devices whose desired properties were changed");
    breaches.truncate(TOLD_MAX);
    Ruling::of(NAME, SENTENCE, text, count, breaches)
}
