//! What was measured, and how it is shown: one table, or JSON.

use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;
use simulator::report::numbers::grouped;

use crate::cli::local::HarnessError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    Machine,
    Holdfast,
    Mosquitto,
}

/// Several samples of one figure.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub samples: usize,
}

impl Spread {
    /// `None` without a sample.
    pub fn of(samples: &[f64]) -> Option<Spread> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Spread {
            median,
            min,
            max,
            samples: sorted.len(),
        })
    }
}

#[derive(Clone, Debug, Serialize)]
struct Measure {
    name: String,
    unit: &'static str,
    who: Who,
    #[serde(flatten)]
    spread: Spread,
}

/// Figures in the order in which they were measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    measures: Vec<Measure>,
    notes: Vec<String>,
    /// Acknowledged messages that could not be read back. Must stay 0.
    acknowledged_lost: u64,
}

impl Report {
    /// Adds a figure; nothing when there is no sample.
    pub fn add(&mut self, who: Who, name: impl Into<String>, unit: &'static str, samples: &[f64]) {
        if let Some(spread) = Spread::of(samples) {
            self.measures.push(Measure {
                name: name.into(),
                unit,
                who,
                spread,
            });
        }
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub fn lost(&mut self, count: u64) {
        self.acknowledged_lost += count;
    }

    pub fn exit_code(&self) -> u8 {
        u8::from(self.acknowledged_lost > 0)
    }

    /// # Errors
    /// The report cannot be serialised.
    pub fn print_json(&self) -> Result<(), HarnessError> {
        let text = serde_json::to_string_pretty(self).map_err(|e| HarnessError::new("the report", e))?;
        println!("{text}");
        Ok(())
    }

    /// One row per figure and unit; the values of each side next to one another.
    pub fn print_table(&self) {
        let mut rows: Vec<(&str, &str, [String; 3])> = Vec::new();
        for measure in &self.measures {
            let found = rows
                .iter()
                .position(|(name, unit, _)| *name == measure.name && *unit == measure.unit);
            let at = found.unwrap_or_else(|| {
                rows.push((&measure.name, measure.unit, Default::default()));
                rows.len() - 1
            });
            rows[at].2[measure.who as usize] = text(&measure.spread);
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "measure",
            "unit",
            "machine",
            "Holdfast, 3 nodes, fsync",
            "Mosquitto, no fsync",
        ]);
        for (name, unit, values) in rows {
            let mut cells = vec![Cell::new(name), Cell::new(unit)];
            cells.extend(
                values
                    .into_iter()
                    .map(|value| Cell::new(value).set_alignment(CellAlignment::Right)),
            );
            table.add_row(cells);
        }
        println!("{table}");
        println!("median [least–most] of the repetitions");
        for note in &self.notes {
            println!("{note}");
        }
    }
}

fn text(spread: &Spread) -> String {
    match spread.samples {
        1 => number(spread.median),
        _ => format!(
            "{} [{}–{}]",
            number(spread.median),
            number(spread.min),
            number(spread.max)
        ),
    }
}

/// Three digits that matter, or whole numbers with separators.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ if value < 0.0 => format!("-{}", grouped(value.abs().round() as u64)),
        _ => grouped(value.round() as u64),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_the_median_and_the_ends() {
        let spread = Spread::of(&[3.0, 1.0, f64::NAN, 2.0]).unwrap();
        assert_eq!(
            (spread.median, spread.min, spread.max, spread.samples),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(Spread::of(&[1.0, 2.0]).unwrap().median, 1.5);
        assert!(Spread::of(&[]).is_none());
    }

    #[test]
    fn numbers_show_what_matters() {
        let shown = [0.0, 0.123, 12.34, 412.4, 61_204.0, -1_200.0].map(number);
        assert_eq!(
            shown,
            ["0", "0.12", "12.3", "412", "61,204", "-1,200"].map(String::from)
        );
    }
}
