//! Messages of a device are stored in the order in which they were sent.

use simulator::audit::Fact;

use super::{Evidence, Ruling};

pub const NAME: &str = "device_order";
const SENTENCE: &str =
    "each device's messages keep their order, their numbers have no gap, and acknowledgements come in order";

pub fn judge(evidence: &Evidence) -> Ruling {
    let facts = [Fact::InOrder, Fact::SeqGapFree, Fact::AcksInOrder];
    evidence.audited(NAME, SENTENCE, &facts, |findings| {
        (
            findings.stored,
            format!("{} devices, {} stored messages", findings.subjects, findings.stored),
        )
    })
}
