//! A method call has at most one answer.

use super::{Breach, Evidence, Ruling, TOLD_MAX};

pub const NAME: &str = "one_method_answer";
const SENTENCE: &str = "a method call has at most one answer";

pub fn judge(evidence: &Evidence) -> Ruling {
    let methods = &evidence.facts.methods;
    if methods.is_empty() {
        return Ruling::not_judged(NAME, SENTENCE, "no method was called");
    }
    let twice = methods.iter().filter(|(_, answers)| answers.0 > 1);
    let breaches: Vec<Breach> = twice
        .map(|((subject, call), (answers, at_us))| Breach {
            what: format!("call {call} of subject {subject} has {answers} answers"),
            at_us: *at_us,
            during: evidence.during(*at_us),
            file: "run/history".into(),
            ..Default::default()
        })
        .collect();
    let count = breaches.len() as u64;
    let text = format!("{} calls", methods.len());
    Ruling::of(
        NAME,
        SENTENCE,
        text,
        count,
        breaches.into_iter().take(TOLD_MAX).collect(),
    )
}
