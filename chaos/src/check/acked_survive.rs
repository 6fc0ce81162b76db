//! Each acknowledged write is there when everything is read back.

use simulator::audit::Fact;

use super::{Evidence, Ruling};

pub const NAME: &str = "acked_survive";
const SENTENCE: &str = "every acknowledged write survives, as it was sent, where its receipt says";

pub fn judge(evidence: &Evidence) -> Ruling {
    let facts = [
        Fact::AckedSurvive,
        Fact::PayloadIntact,
        Fact::ReceiptsTrue,
        Fact::TwinWritesSurvive,
    ];
    evidence.audited(NAME, SENTENCE, &facts, |findings| {
        let text = format!(
            "{} acknowledged messages against {} stored ones; of those without an answer {} are stored and {} are not, both is right",
            findings.acked, findings.stored, findings.unknown_stored, findings.unknown_absent
        );
        (findings.acked, text)
    })
}
