//! Nothing is stored twice, and nothing that was refused or never sent.

use simulator::audit::Fact;

use super::{Evidence, Ruling};

pub const NAME: &str = "stored_once";
const SENTENCE: &str = "nothing is stored twice, nothing that was refused, nothing that nobody sent";

pub fn judge(evidence: &Evidence) -> Ruling {
    let facts = [Fact::StoredOnce, Fact::RefusedAbsent, Fact::NothingInvented];
    evidence.audited(NAME, SENTENCE, &facts, |findings| {
        (
            findings.stored,
            format!("{} stored messages under their ids", findings.stored),
        )
    })
}
