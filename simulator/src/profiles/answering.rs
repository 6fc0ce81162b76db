//! What a device answers to a method call, and when.

use super::Methods;
use crate::payloads::Chance;

/// An answer, to be sent at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Scenario µs.
    pub at_us: u64,
    /// The last part of the call's topic.
    pub rid: String,
    pub payload: Vec<u8>,
}

/// The name and request id of a call, from its topic; `None` when it is no call.
pub fn call<'a>(device: &str, topic: &'a str) -> Option<(&'a str, &'a str)> {
    let below = topic.strip_prefix("devices/")?.strip_prefix(device)?;
    let (name, rid) = below.strip_prefix("/methods/")?.split_once('/')?;
    (name != "res" && !rid.contains('/')).then_some((name, rid))
}

/// `None`: the device stays silent.
pub fn answer(methods: &Methods, rid: &str, payload: &[u8], now_us: u64, chance: &mut Chance) -> Option<Answer> {
    // All three are drawn each time, so that one call's luck does not shift the next one's.
    let (silent, failed) = (chance.hit(methods.silent_share), chance.hit(methods.fail_share));
    let delay = methods.delay_secs.draw(chance).max(0.0);
    if silent {
        return None;
    }
    let body = if payload.is_empty() { b"null" } else { payload };
    let status = if failed { 500 } else { 200 };
    let mut answer = format!("{{\"status\":{status},\"payload\":").into_bytes();
    answer.extend_from_slice(body);
    answer.push(b'}');
    Some(Answer {
        at_us: now_us + (delay * 1e6) as u64,
        rid: rid.to_owned(),
        payload: answer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payloads::Dist;

    #[test]
    fn calls_are_told_from_answers() {
        for (topic, expected) in [
            ("devices/d/methods/open/7", Some(("open", "7"))),
            ("devices/d/methods/res/7", None),
            ("devices/e/methods/open/7", None),
            ("devices/d/methods/open", None),
            ("devices/d/twin/desired", None),
        ] {
            assert_eq!(call("d", topic), expected, "{topic}");
        }
    }

    #[test]
    fn answers_bring_back_the_payload_late_failed_or_never() {
        let mut methods = Methods {
            delay_secs: Dist::Fixed(0.5),
            fail_share: 0.0,
            silent_share: 0.0,
        };
        let mut chance = Chance::new(1);
        let given = answer(&methods, "7", b"[1]", 1_000, &mut chance).unwrap();
        assert_eq!(
            (given.at_us, given.payload.as_slice()),
            (501_000, &br#"{"status":200,"payload":[1]}"#[..])
        );
        methods.fail_share = 1.0;
        let failed = answer(&methods, "7", b"", 0, &mut chance).unwrap();
        assert_eq!(failed.payload, br#"{"status":500,"payload":null}"#);
        methods.silent_share = 1.0;
        assert_eq!(answer(&methods, "7", b"", 0, &mut chance), None);
    }
}
