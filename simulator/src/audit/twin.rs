//! A section of a twin as a versioned register: rules that a sort can check.
//!
//! (A) each version belongs to one write; (B) nothing returns a version before its write began;
//! (C) what starts after something returned version v returns at least v, and a write more than v;
//! (D) in the end the section is at least at the newest acknowledged version, and holds its mark.

use super::findings::{Fact, Findings, Violation};
use super::ledger::TwinOp;
use crate::history::{Kind, Outcome};

/// Clocks of two processes of one machine may differ by this. Unit: µs.
const CLOCKS_US: u64 = 2_000;

/// A section as it was read in the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Final {
    pub version: u64,
    /// `sim.run` and `sim.k` of the section, if it has them.
    pub mark: Option<(u32, u64)>,
}

pub fn is_write(kind: Kind) -> bool {
    matches!(kind, Kind::Report | Kind::DesiredWrite)
}

/// Judges one section of one device. `last`: `None` when it was not read in the end.
pub fn check(device: &str, section: &str, ops: &[TwinOp], last: Option<Final>, findings: &mut Findings) {
    findings.twin_operations += ops.len() as u64;
    let mut told: Vec<&TwinOp> = ops
        .iter()
        .filter(|op| op.outcome == Outcome::Ok && op.version != 0)
        .collect();
    told.sort_by_key(|op| op.begin_us);
    let context = Context { device, section };
    context.one_write_each(&told, findings);
    context.not_before_its_write(ops, &told, findings);
    context.never_back(&told, findings);
    if let Some(last) = last {
        context.in_the_end(ops, &told, last, findings);
    }
}

struct Context<'a> {
    device: &'a str,
    section: &'a str,
}

impl Context<'_> {
    fn violate(&self, fact: Fact, op: &TwinOp, what: String, findings: &mut Findings) {
        findings.violate(Violation {
            fact,
            device: self.device.to_owned(),
            n: op.n,
            seq: op.version,
            at_us: op.end_us,
            receipt: None,
            what: format!("{}: {what}", self.section),
        });
    }

    fn one_write_each(&self, told: &[&TwinOp], findings: &mut Findings) {
        let mut writes: Vec<&&TwinOp> = told.iter().filter(|op| is_write(op.kind)).collect();
        writes.sort_by_key(|op| op.version);
        for pair in writes.windows(2) {
            if pair[0].version == pair[1].version {
                let what = format!(
                    "writes {} and {} both got version {}",
                    pair[0].n, pair[1].n, pair[1].version
                );
                self.violate(Fact::TwinVersionsGrow, pair[1], what, findings);
            }
        }
    }

    fn not_before_its_write(&self, ops: &[TwinOp], told: &[&TwinOp], findings: &mut Findings) {
        let mut writes: Vec<&TwinOp> = ops
            .iter()
            .filter(|op| is_write(op.kind) && op.outcome == Outcome::Ok && op.version != 0)
            .collect();
        writes.sort_by_key(|op| op.version);
        for read in told.iter().filter(|op| !is_write(op.kind)) {
            let Ok(at) = writes.binary_search_by_key(&read.version, |op| op.version) else {
                continue; // somebody else's write, or one without an answer
            };
            if read.end_us + CLOCKS_US < writes[at].begin_us {
                let what = format!("a read returned version {} before its write began", read.version);
                self.violate(Fact::TwinReadsFresh, read, what, findings);
            }
        }
    }

    fn never_back(&self, told: &[&TwinOp], findings: &mut Findings) {
        let mut by_end: Vec<&&TwinOp> = told.iter().collect();
        by_end.sort_by_key(|op| op.end_us);
        let (mut ended, mut highest) = (0, 0);
        for op in told {
            while ended < by_end.len() && by_end[ended].end_us + CLOCKS_US < op.begin_us {
                highest = highest.max(by_end[ended].version);
                ended += 1;
            }
            if is_write(op.kind) && op.version <= highest {
                let what = format!("write {} got version {} after {highest} was there", op.n, op.version);
                self.violate(Fact::TwinVersionsGrow, op, what, findings);
            } else if op.version < highest {
                let what = format!(
                    "a read returned version {} after {highest} was there: stale",
                    op.version
                );
                self.violate(Fact::TwinReadsFresh, op, what, findings);
            }
        }
    }

    fn in_the_end(&self, ops: &[TwinOp], told: &[&TwinOp], last: Final, findings: &mut Findings) {
        let writes = told.iter().filter(|op| is_write(op.kind));
        let Some(newest) = told.iter().max_by_key(|op| op.version) else {
            return;
        };
        if last.version < newest.version {
            let what = format!(
                "version {} was there, in the end it is {}",
                newest.version, last.version
            );
            self.violate(Fact::TwinWritesSurvive, newest, what, findings);
            return;
        }
        let Some(newest) = writes
            .max_by_key(|op| op.version)
            .filter(|op| op.version == last.version)
        else {
            return; // written since by somebody else, or by a write without an answer
        };
        if last.mark != Some((newest.run, newest.n)) {
            let unanswered = ops
                .iter()
                .any(|op| is_write(op.kind) && last.mark == Some((op.run, op.n)));
            let held = last
                .mark
                .map_or("nothing of ours".to_owned(), |(_, k)| format!("write {k}"));
            let aside = if unanswered {
                ", which is another one of this run"
            } else {
                ""
            };
            let what = format!(
                "version {} belongs to write {}, and it holds {held}{aside}",
                newest.version, newest.n
            );
            self.violate(Fact::TwinWritesSurvive, newest, what, findings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, n: u64, version: u64, begin: u64, end: u64) -> TwinOp {
        TwinOp {
            kind,
            n,
            run: 1,
            begin_us: begin * 10_000,
            end_us: end * 10_000,
            outcome: Outcome::Ok,
            version,
        }
    }

    fn found(ops: &[TwinOp], last: Option<Final>) -> Vec<Fact> {
        let mut findings = Findings::default();
        check("d", "desired", ops, last, &mut findings);
        findings.violations.iter().map(|violation| violation.fact).collect()
    }

    #[test]
    fn each_planted_fault_is_found_and_nothing_else() {
        use Kind::{DesiredWrite as W, OperatorRead as R};
        let end = |version, k| {
            Some(Final {
                version,
                mark: Some((1, k)),
            })
        };
        type Row<'a> = (&'a str, Vec<TwinOp>, Option<Final>, &'a [Fact]);
        let rows: [Row<'_>; 8] = [
            (
                "sound",
                vec![
                    op(W, 1, 1, 0, 1),
                    op(R, 1, 1, 2, 3),
                    op(W, 2, 2, 4, 5),
                    op(R, 2, 2, 6, 7),
                ],
                end(2, 2),
                &[],
            ),
            (
                "at the same time",
                vec![
                    op(W, 1, 1, 0, 1),
                    op(W, 2, 2, 2, 9),
                    op(R, 1, 1, 3, 8),
                    op(R, 2, 2, 3, 4),
                ],
                end(2, 2),
                &[],
            ),
            (
                "stale",
                vec![op(W, 1, 1, 0, 1), op(W, 2, 2, 2, 3), op(R, 1, 1, 4, 5)],
                end(2, 2),
                &[Fact::TwinReadsFresh],
            ),
            (
                "backwards between reads",
                vec![op(R, 1, 5, 0, 1), op(R, 2, 4, 2, 3)],
                None,
                &[Fact::TwinReadsFresh],
            ),
            (
                "before its write",
                vec![op(R, 1, 1, 0, 1), op(W, 1, 1, 5, 6)],
                end(1, 1),
                &[Fact::TwinReadsFresh, Fact::TwinVersionsGrow],
            ),
            (
                "one version twice",
                vec![op(W, 1, 1, 0, 3), op(W, 2, 1, 0, 3)],
                None,
                &[Fact::TwinVersionsGrow],
            ),
            (
                "lost in the end",
                vec![op(W, 1, 1, 0, 1), op(W, 2, 2, 2, 3)],
                end(1, 1),
                &[Fact::TwinWritesSurvive],
            ),
            (
                "another's content",
                vec![op(W, 1, 1, 0, 1), op(W, 2, 2, 2, 3)],
                end(2, 1),
                &[Fact::TwinWritesSurvive],
            ),
        ];
        for (name, ops, last, facts) in rows {
            let mut facts = facts.to_vec();
            let mut seen = found(&ops, last);
            facts.sort();
            seen.sort();
            assert_eq!(seen, facts, "{name}");
        }
    }

    /// Unanswered writes may have happened or not.
    #[test]
    fn unknown_writes_accuse_nobody() {
        let mut lost = op(Kind::DesiredWrite, 2, 0, 2, 3);
        lost.outcome = Outcome::Unknown;
        let ops = [op(Kind::DesiredWrite, 1, 1, 0, 1), lost];
        assert_eq!(
            found(
                &ops,
                Some(Final {
                    version: 2,
                    mark: Some((1, 2))
                })
            ),
            []
        );
        assert_eq!(
            found(
                &ops,
                Some(Final {
                    version: 1,
                    mark: Some((1, 1))
                })
            ),
            []
        );
    }
}
