//! In the end the cluster knows who is connected.

use super::{Breach, Evidence, Ruling};

pub const NAME: &str = "presence_converges";
const SENTENCE: &str = "after the heal the cluster's presence is what devices see, and after they left it is nobody";

pub fn judge(evidence: &Evidence) -> Ruling {
    let Some(presence) = &evidence.presence else {
        return Ruling::not_judged(NAME, SENTENCE, "presence was not asked for");
    };
    let mut breaches = Vec::new();
    let mut say = |what: String| {
        breaches.push(Breach {
            what,
            file: "result.json".into(),
            ..Default::default()
        });
    };
    if presence.connected != presence.listed {
        say(format!(
            "{} devices were connected, the cluster listed {}",
            presence.connected, presence.listed
        ));
    }
    if let Some(left @ 1..) = presence.listed_after_leaving {
        say(format!("{left} devices are listed as connected after all had left"));
    }
    let text = format!(
        "{} connected, {} listed; after leaving {}",
        presence.connected,
        presence.listed,
        presence
            .listed_after_leaving
            .map_or("not asked".to_owned(), |left| left.to_string())
    );
    Ruling::of(NAME, SENTENCE, text, breaches.len() as u64, breaches)
}
