//! Phases: which keys belong to which kind, and in which ranges.

use super::Check;
use crate::scenario::limits::FACTOR_MAX;
use crate::scenario::{Phase, PhaseWord};

impl Check {
    pub fn phase(&mut self, key: &str, phase: &Phase) {
        self.range(
            format!("{key}.duration"),
            phase.duration.as_secs_f64(),
            0.001,
            315_360_000.0,
        );
        let spans = [
            ("length", phase.length),
            ("every", phase.every),
            ("period", phase.period),
        ];
        for (name, span) in spans {
            if span.is_some_and(|span| span.0.is_zero()) {
                self.refuse(format!("{key}.{name}"), "is zero");
            }
        }
        let factors = [
            ("from", phase.from, FACTOR_MAX),
            ("to", phase.to, FACTOR_MAX),
            ("factor", phase.factor, FACTOR_MAX),
            ("low", phase.low, FACTOR_MAX),
            ("high", phase.high, FACTOR_MAX),
            ("share", phase.share, 1.0),
        ];
        for (name, value, high) in factors {
            self.range(format!("{key}.{name}"), value.unwrap_or(0.0), 0.0, high);
        }
        let given = [
            ("from", phase.from.is_some()),
            ("to", phase.to.is_some()),
            ("factor", phase.factor.is_some()),
            ("length", phase.length.is_some()),
            ("every", phase.every.is_some()),
            ("low", phase.low.is_some()),
            ("high", phase.high.is_some()),
            ("period", phase.period.is_some()),
            ("peak", phase.peak.is_some()),
            ("share", phase.share.is_some()),
            ("over", phase.over.is_some()),
        ];
        let (allowed, required): (&[&str], &[&str]) = match phase.kind {
            PhaseWord::Ramp => (&["from", "to"], &[]),
            PhaseWord::Steady => (&["factor"], &[]),
            PhaseWord::Burst => (&["factor", "length", "every"], &["factor", "length", "every"]),
            PhaseWord::Diurnal => (&["low", "high", "period", "peak"], &[]),
            PhaseWord::ReconnectStorm => (&["share", "over", "factor"], &[]),
            PhaseWord::Drain => (&[], &[]),
        };
        for (name, is_given) in given {
            if is_given && !allowed.contains(&name) {
                self.refuse(
                    format!("{key}.{name}"),
                    format!("does not belong to a phase of kind {}", phase.kind.name()),
                );
            }
            if !is_given && required.contains(&name) {
                self.refuse(
                    format!("{key}.{name}"),
                    format!("is missing; a {} needs it", phase.kind.name()),
                );
            }
        }
        if phase.length > phase.every && phase.every.is_some() {
            self.refuse(format!("{key}.length"), "is above every");
        }
        if phase.low > phase.high && phase.high.is_some() {
            self.refuse(format!("{key}.low"), "is above high");
        }
    }
}
