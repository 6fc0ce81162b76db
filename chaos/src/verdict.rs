//! What a drill says in the end, as one word and an exit code.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use simulator::report::numbers::grouped;

use crate::checker::Findings;

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// All facts held, and something was there to judge.
    Pass,
    /// The product broke a promise.
    Violation { facts: Vec<String> },
    /// The drill itself failed; nothing is said about the product.
    HarnessFailure { reason: String },
}

impl Verdict {
    /// A record without a single acknowledgement proves nothing, so it is a harness failure.
    pub fn of(findings: &Findings) -> Verdict {
        if !findings.breaches.is_empty() {
            let fact = |(fact, breach): (&crate::Fact, &crate::checker::Breach)| {
                format!(
                    "{fact} broken {} times, e.g. {}",
                    breach.count,
                    breach.examples.join("; ")
                )
            };
            return Verdict::Violation {
                facts: findings.breaches.iter().map(fact).collect(),
            };
        }
        if findings.acknowledged == 0 {
            return Verdict::HarnessFailure {
                reason: "nothing was acknowledged, so nothing was tested".into(),
            };
        }
        Verdict::Pass
    }

    /// 0 pass, 1 violation, 75 harness failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Verdict::Pass => 0,
            Verdict::Violation { .. } => 1,
            Verdict::HarnessFailure { .. } => 75,
        }
    }
}

/// The line a person reads last.
pub struct Summary {
    pub acknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub longest_gap: Duration,
    pub nodes: usize,
    pub shards: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acknowledged {} · lost {} · duplicated {} · longest gap {} ms · {} nodes, {} shards",
            grouped(self.acknowledged),
            grouped(self.lost),
            grouped(self.duplicated),
            grouped(self.longest_gap.as_millis() as u64),
            self.nodes,
            self.shards
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Breach, Fact};

    #[test]
    fn verdicts_have_their_exit_codes() {
        let mut findings = Findings {
            acknowledged: 1,
            ..Default::default()
        };
        assert_eq!(Verdict::of(&findings).exit_code(), 0);
        findings.breaches.insert(
            Fact::AckedSurvive,
            Breach {
                count: 1,
                examples: Vec::new(),
            },
        );
        assert_eq!(Verdict::of(&findings).exit_code(), 1);
        assert_eq!(Verdict::of(&Findings::default()).exit_code(), 75);
    }

    #[test]
    fn summary_reads_as_promised() {
        let summary = Summary {
            acknowledged: 61_204,
            lost: 0,
            duplicated: 0,
            longest_gap: Duration::from_millis(412),
            nodes: 3,
            shards: 16,
        };
        assert_eq!(
            summary.to_string(),
            "acknowledged 61,204 · lost 0 · duplicated 0 · longest gap 412 ms · 3 nodes, 16 shards"
        );
        assert_eq!(
            ["1", "12", "999", "1,000", "1,234,567"],
            [1, 12, 999, 1_000, 1_234_567]
                .map(grouped)
                .map(|s| s)
                .each_ref()
                .map(String::as_str)
        );
    }
}
