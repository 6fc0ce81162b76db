//! The verdict as JUnit XML: a case per threshold and per fact of the audit.

use std::fmt::Write;

use super::{Report, Verdict};
use crate::audit::Fact;

/// Violations told in one case.
const TOLD: usize = 20;

pub fn xml(report: &Report) -> String {
    let mut cases = String::new();
    let (mut tests, mut failures, mut errors) = (0, 0, 0);
    let mut case = |name: &str, class: &str, failure: Option<(&str, String)>| {
        tests += 1;
        let _ = write!(
            cases,
            "  <testcase classname=\"{}\" name=\"{}\"",
            escape(class),
            escape(name)
        );
        match failure {
            None => cases.push_str("/>\n"),
            Some((kind, text)) => {
                match kind {
                    "error" => errors += 1,
                    _ => failures += 1,
                }
                let first = text.lines().next().unwrap_or_default();
                let _ = write!(
                    cases,
                    ">\n    <{kind} message=\"{}\">{}</{kind}>\n  </testcase>\n",
                    escape(first),
                    escape(&text)
                );
            }
        }
    };
    for check in &report.checks {
        let failure = (!check.holds).then(|| ("failure", format!("{}, allowed is {}", check.value, check.limit)));
        case(&check.name, "thresholds", failure);
    }
    if let Some(audit) = &report.audit {
        for fact in Fact::ALL {
            let count = audit.count(fact);
            let told = audit
                .violations
                .iter()
                .filter(|violation| violation.fact == fact)
                .take(TOLD);
            let lines: Vec<String> = told.map(ToString::to_string).collect();
            let failure = (count > 0).then(|| ("failure", format!("{count} violations\n{}", lines.join("\n"))));
            case(&format!("{fact}: {}", fact.sentence()), "audit", failure);
        }
    }
    let failed = report.verdict == Verdict::HarnessFailure;
    case(
        "the run itself",
        "harness",
        failed.then(|| ("error", report.reasons.join("\n"))),
    );
    let seconds = report.run.ended_us.unwrap_or(0) as f64 / 1e6;
    let head = format!(
        "<testsuite name=\"{}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{seconds:.3}\">\n",
        escape(&report.run.name)
    );
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{head}{cases}</testsuite>\n")
}

/// For text and attributes. Characters that XML cannot hold become spaces.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(character),
            control if control.is_control() => out.push(' '),
            other => out.push(other),
        }
    }
    out
}
