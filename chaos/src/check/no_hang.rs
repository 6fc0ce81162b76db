//! No request hangs past its deadline: each has an end, be it that nobody knows.

use super::{Breach, Evidence, Ruling, TOLD_MAX};

pub const NAME: &str = "no_hang";
const SENTENCE: &str = "no request hangs past its deadline";

pub fn judge(evidence: &Evidence) -> Ruling {
    let requests = &evidence.facts.requests;
    if requests.count == 0 {
        return Ruling::not_judged(NAME, SENTENCE, "nobody asked anything over HTTP");
    }
    let bound = evidence.bounds.request_us;
    let late = requests.slowest.iter().filter(|request| request.took_us > bound);
    let breaches: Vec<Breach> = late
        .map(|request| Breach {
            what: format!(
                "{} of subject {} took {:.1} s",
                request.kind,
                request.subject,
                request.took_us as f64 / 1e6
            ),
            at_us: request.at_us,
            during: evidence.during(request.at_us),
            file: "run/history".into(),
            ..Default::default()
        })
        .collect();
    let slowest = requests
        .slowest
        .iter()
        .map(|request| request.took_us)
        .max()
        .unwrap_or(0);
    let text = format!(
        "{} requests, the slowest {:.2} s, allowed are {:.0} s",
        requests.count,
        slowest as f64 / 1e6,
        bound as f64 / 1e6
    );
    let count = breaches.len() as u64;
    Ruling::of(
        NAME,
        SENTENCE,
        text,
        count,
        breaches.into_iter().take(TOLD_MAX).collect(),
    )
}
