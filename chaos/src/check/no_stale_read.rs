//! A read of a twin never returns less than what was there before it began.

use simulator::audit::Fact;

use super::{Evidence, Ruling};

pub const NAME: &str = "no_stale_read";
const SENTENCE: &str = "no read of a twin returns less than what was there before it began";

pub fn judge(evidence: &Evidence) -> Ruling {
    evidence.audited(NAME, SENTENCE, &[Fact::TwinReadsFresh], |findings| {
        let text = format!("{} operations on twins, at any node", findings.twin_operations);
        (findings.twin_operations, text)
    })
}
