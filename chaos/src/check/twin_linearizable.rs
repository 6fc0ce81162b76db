//! Each section of a twin behaves like one register whose versions the cluster hands out, so that a
//! sort can judge it (`simulator::audit`): millions of operations a second.

use simulator::audit::Fact;

use super::{Evidence, Ruling};

pub const NAME: &str = "twin_linearizable";
const SENTENCE: &str = "a version of a twin belongs to one write, and versions only grow";

pub fn judge(evidence: &Evidence) -> Ruling {
    evidence.audited(NAME, SENTENCE, &[Fact::TwinVersionsGrow], |findings| {
        let text = format!("{} operations on twins, all devices", findings.twin_operations);
        (findings.twin_operations, text)
    })
}
