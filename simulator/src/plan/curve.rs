//! The load over time: phases as one curve of factors, and its integral.
//!
//! A device counts *operational* time, in which its intervals are as the profile says; the curve
//! turns it into scenario time. At factor 2 operational time runs twice as fast, so everything
//! comes twice as often, and every intended time stays exact and repeatable.

use crate::scenario::{Phase, PhaseWord, Span};

/// Pieces of one phase; a long diurnal curve gets coarser rather than larger.
const PIECES_MAX: usize = 20_000;
/// Pieces of one period of a diurnal curve.
const PIECES_OF_DAY: usize = 96;

/// A stretch over which the factor changes evenly. Times in scenario µs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    start: f64,
    length: f64,
    from: f64,
    to: f64,
    /// Operational time before it.
    before: f64,
}

#[derive(Clone, Debug)]
pub struct Curve {
    pieces: Vec<Piece>,
    /// Operational time of the whole run.
    total: f64,
    end_us: u64,
    spans: Vec<PhaseSpan>,
}

/// When a phase is. Scenario µs.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PhaseSpan {
    pub title: String,
    pub kind: String,
    pub start_us: u64,
    pub end_us: u64,
}

impl Curve {
    pub fn new(phases: &[Phase]) -> Self {
        let mut curve = Self {
            pieces: Vec::new(),
            total: 0.0,
            end_us: 0,
            spans: Vec::new(),
        };
        for phase in phases {
            let start = curve.end_us;
            curve.end_us = start.saturating_add(phase.duration.micros());
            curve.spans.push(PhaseSpan {
                title: phase.title().to_owned(),
                kind: phase.kind.name().to_owned(),
                start_us: start,
                end_us: curve.end_us,
            });
            curve.add_phase(phase);
        }
        curve
    }

    pub fn end_us(&self) -> u64 {
        self.end_us
    }

    pub fn spans(&self) -> &[PhaseSpan] {
        &self.spans
    }

    /// The place of the phase at a time; the last one's after the end.
    pub fn phase_at(&self, at_us: u64) -> usize {
        let later = self.spans.iter().position(|span| at_us < span.end_us);
        later.unwrap_or(self.spans.len().saturating_sub(1))
    }

    /// 0 after the end.
    pub fn factor(&self, at_us: u64) -> f64 {
        let at = at_us as f64;
        match self.piece(|piece| piece.start <= at) {
            Some(piece) if at < piece.start + piece.length => {
                piece.from + (piece.to - piece.from) * (at - piece.start) / piece.length
            }
            _ => 0.0,
        }
    }

    /// Operational time that has passed at a scenario time.
    pub fn operational(&self, at_us: u64) -> f64 {
        let at = at_us as f64;
        let Some(piece) = self.piece(|piece| piece.start <= at) else {
            return 0.0;
        };
        let inside = (at - piece.start).min(piece.length);
        let slope = (piece.to - piece.from) / piece.length;
        piece.before + piece.from * inside + slope * inside * inside / 2.0
    }

    /// The scenario time at which so much operational time has passed; `None`: never in this run.
    pub fn at(&self, operational: f64) -> Option<u64> {
        if operational >= self.total {
            return None;
        }
        let piece = self.piece(|piece| piece.before <= operational)?;
        let rest = operational - piece.before;
        let slope = (piece.to - piece.from) / piece.length;
        let root = (piece.from * piece.from + 2.0 * slope * rest).max(0.0).sqrt();
        let inside = match piece.from + root {
            sum if sum > 0.0 => 2.0 * rest / sum,
            _ => 0.0,
        };
        Some((piece.start + inside.min(piece.length)) as u64)
    }

    /// The last piece for which `before` holds.
    fn piece(&self, before: impl Fn(&Piece) -> bool) -> Option<&Piece> {
        self.pieces
            .partition_point(before)
            .checked_sub(1)
            .map(|at| &self.pieces[at])
    }

    fn add(&mut self, length: f64, from: f64, to: f64) {
        if length <= 0.0 {
            return;
        }
        let start = self.pieces.last().map_or(0.0, |piece| piece.start + piece.length);
        self.pieces.push(Piece {
            start,
            length,
            from,
            to,
            before: self.total,
        });
        self.total += length * (from + to) / 2.0;
    }

    fn add_phase(&mut self, phase: &Phase) {
        let length = phase.duration.micros() as f64;
        match phase.kind {
            PhaseWord::Ramp => self.add(length, phase.from.unwrap_or(0.0), phase.to.unwrap_or(1.0)),
            PhaseWord::Steady | PhaseWord::ReconnectStorm => {
                let factor = phase.factor.unwrap_or(1.0);
                self.add(length, factor, factor);
            }
            PhaseWord::Burst => self.add_bursts(phase, length),
            PhaseWord::Diurnal => self.add_day(phase, length),
            PhaseWord::Drain => self.add(length, 0.0, 0.0),
        }
    }

    fn add_bursts(&mut self, phase: &Phase, length: f64) {
        let micros = |span: Option<Span>| span.map_or(length, |span| span.micros() as f64);
        let every = micros(phase.every).max(length / (PIECES_MAX as f64 / 2.0));
        let (burst, factor) = (micros(phase.length).min(every), phase.factor.unwrap_or(1.0));
        let mut at = 0.0;
        while at < length {
            let high = burst.min(length - at);
            self.add(high, factor, factor);
            self.add((every - burst).min(length - at - high), 1.0, 1.0);
            at += every;
        }
    }

    fn add_day(&mut self, phase: &Phase, length: f64) {
        let micros = |span: Option<Span>, default: u64| span.map_or(default * 1_000_000, Span::micros) as f64;
        let (period, peak) = (micros(phase.period, 86_400), micros(phase.peak, 64_800));
        let (low, high) = (phase.low.unwrap_or(0.2), phase.high.unwrap_or(1.0));
        let step = (period / PIECES_OF_DAY as f64).max(length / PIECES_MAX as f64);
        let factor = |at: f64| {
            let turn = std::f64::consts::TAU * (at - peak) / period;
            low + (high - low) * (1.0 + turn.cos()) / 2.0
        };
        let mut at = 0.0;
        while at < length {
            let piece = step.min(length - at);
            self.add(piece, factor(at), factor(at + piece));
            at += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(text: &str) -> Vec<Phase> {
        #[derive(serde::Deserialize)]
        struct Rows {
            phase: Vec<Phase>,
        }
        toml::from_str::<Rows>(text).unwrap().phase
    }

    const ALL: &str = r#"phase = [
        { kind = "ramp", duration = "10s" },
        { kind = "steady", duration = "20s", factor = 2 },
        { kind = "burst", duration = "30s", factor = 5, length = "2s", every = "10s" },
        { kind = "diurnal", duration = "100s", period = "50s", peak = "25s", low = 0, high = 1 },
        { kind = "reconnect-storm", duration = "5s" },
        { kind = "drain", duration = "5s" },
    ]"#;

    /// Turning operational time into scenario time and back is the identity wherever anything is sent.
    #[test]
    fn times_go_there_and_back() {
        let curve = Curve::new(&phases(ALL));
        assert_eq!(curve.end_us(), 170_000_000);
        let mut last = 0;
        for step in 1..10_000 {
            let operational = curve.total * f64::from(step) / 10_000.0;
            let at = curve.at(operational).unwrap();
            assert!(at >= last, "{step}");
            last = at;
            assert!(
                (curve.operational(at) - operational).abs() < 10.0,
                "{step} {at} {operational}"
            );
        }
        assert_eq!(curve.at(curve.total), None);
    }

    #[test]
    fn factors_are_those_of_the_phases() {
        let curve = Curve::new(&phases(ALL));
        for (second, factor) in [
            (5.0, 0.5),
            (15.0, 2.0),
            (31.0, 5.0),
            (33.0, 1.0),
            (60.1, 0.0),
            (85.0, 1.0),
            (162.0, 1.0),
            (167.0, 0.0),
            (500.0, 0.0),
        ] {
            let found = curve.factor((second * 1e6) as u64);
            assert!((found - factor).abs() < 0.01, "{second}: {found}");
        }
        assert_eq!(curve.phase_at(35_000_000), 2);
        assert_eq!(curve.phase_at(999_000_000), 5);
    }

    /// The integral of a day's curve is its mean times its length.
    #[test]
    fn a_day_has_its_mean() {
        let curve = Curve::new(&phases(
            r#"phase = [{ kind = "diurnal", duration = "2d", low = 0.2, high = 1.0 }]"#,
        ));
        let mean = curve.total / (2.0 * 86_400e6);
        assert!((mean - 0.6).abs() < 1e-3, "{mean}");
        assert!((curve.factor(64_800_000_000) - 1.0).abs() < 1e-6);
    }

    /// A very long phase of short bursts stays within bounds.
    #[test]
    fn pieces_are_bounded() {
        let text = r#"phase = [{ kind = "burst", duration = "365d", factor = 5, length = "1s", every = "2s" }]"#;
        assert!(Curve::new(&phases(text)).pieces.len() <= PIECES_MAX + 2);
    }
}
