//! Charts as HTML and inline SVG: shapes stretch with the page, text stays text.
//!
//! The plot is an SVG without any words in it, drawn in a box of 1000 by 100 units that the browser
//! stretches; labels are HTML beside it. So a chart reads as well on a phone as on a wall.

use std::fmt::Write;

use super::junit::escape;
use super::numbers::stretch;

/// A line or an area over time. Times are µs, `None`: nothing was measured there.
pub struct Line {
    pub name: String,
    /// A CSS class: `c1` to `c6`, `good`, `bad`, `soft`.
    pub class: &'static str,
    pub points: Vec<(u64, Option<f64>)>,
    pub fill: bool,
}

/// A stretch of time behind the lines.
pub struct Band {
    pub from_us: u64,
    pub to_us: u64,
    pub class: &'static str,
    pub title: String,
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub hint: &'a str,
    pub end_us: u64,
    pub lines: Vec<Line>,
    pub bands: &'a [Band],
    /// Points in time worth a mark.
    pub marks: &'a [(u64, String)],
    pub logarithmic: bool,
    pub unit: fn(f64) -> String,
}

const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 100.0;
/// Columns that tell their values when pointed at.
const COLUMNS: usize = 120;

struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(chart: &Chart<'_>) -> Self {
        let values = || {
            chart
                .lines
                .iter()
                .flat_map(|line| line.points.iter().filter_map(|point| point.1))
        };
        let high = values().fold(0.0, f64::max);
        if chart.logarithmic {
            let low = values().filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
            let low = if low < f64::MAX { low } else { 0.1 };
            let (low, high) = (low.log10().floor(), high.max(low * 1.01).log10().ceil());
            let high = if high > low { high } else { low + 1.0 };
            return Self {
                low,
                high,
                logarithmic: true,
            };
        }
        Self {
            low: 0.0,
            high: nice(high),
            logarithmic: false,
        }
    }

    /// From the top, in units of the box.
    fn y(&self, value: f64) -> f64 {
        let value = if self.logarithmic {
            value.max(1e-9).log10()
        } else {
            value
        };
        let part = (value - self.low) / (self.high - self.low);
        HEIGHT * (1.0 - part.clamp(0.0, 1.0))
    }

    /// Values worth a line, lowest first.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = (self.high - self.low).round() as i32;
            let step = (decades / 5).max(1);
            return (0..=decades)
                .step_by(step as usize)
                .map(|at| 10f64.powi(self.low as i32 + at))
                .collect();
        }
        (0..=4).map(|at| self.high * f64::from(at) / 4.0).collect()
    }
}

/// The next number above that people like to read, divisible by four.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 5.0, 6.0, 8.0, 10.0];
    let fits = steps.iter().find(|step| **step * power >= value * 1.0001);
    fits.copied().unwrap_or(12.0) * power
}

pub fn chart(chart: &Chart<'_>) -> String {
    let scale = Scale::of(chart);
    let end = chart.end_us.max(1) as f64;
    let x = |at: u64| at as f64 / end * WIDTH;
    let mut svg = String::new();
    for band in chart.bands {
        let (from, to) = (x(band.from_us), x(band.to_us.min(chart.end_us)));
        let _ = write!(
            svg,
            "<rect class=\"band {}\" x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"100\"><title>{}</title></rect>",
            band.class,
            (to - from).max(0.0),
            escape(&band.title)
        );
    }
    for tick in scale.ticks() {
        let y = scale.y(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"0\" x2=\"1000\" y1=\"{y:.2}\" y2=\"{y:.2}\"/>"
        );
    }
    chart.lines.iter().for_each(|line| draw(line, &scale, &x, &mut svg));
    for (at, text) in chart.marks {
        let x = x(*at);
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"100\"><title>{}</title></line>",
            escape(text)
        );
    }
    hover(chart, &mut svg);
    frame(chart, &scale, &svg, legend(&chart.lines))
}

fn draw(line: &Line, scale: &Scale, x: &impl Fn(u64) -> f64, svg: &mut String) {
    // A gap in the measurements is a gap in the line.
    let runs = line.points.split(|point| point.1.is_none());
    for run in runs.filter(|run| !run.is_empty()) {
        let mut path = String::new();
        for (at, value) in run {
            let y = scale.y(value.unwrap_or(0.0));
            let _ = write!(path, "{}{:.1} {y:.2}", if path.is_empty() { "M" } else { "L" }, x(*at));
        }
        if run.len() == 1 {
            let _ = write!(path, "h2");
        }
        if line.fill {
            let (first, last) = (x(run[0].0), x(run[run.len() - 1].0));
            let _ = write!(
                svg,
                "<path class=\"area {}\" d=\"{path}L{last:.1} 100L{first:.1} 100Z\"/>",
                line.class
            );
        }
        let _ = write!(svg, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
    }
}

/// Columns that say what is there.
fn hover(chart: &Chart<'_>, svg: &mut String) {
    let step = chart.end_us / COLUMNS as u64 + 1;
    for column in 0..COLUMNS as u64 {
        let (from, to) = (column * step, (column + 1) * step);
        let mut text = String::new();
        for line in &chart.lines {
            let inside = line
                .points
                .iter()
                .filter(|(at, _)| (from..to).contains(at))
                .filter_map(|point| point.1);
            if let Some(most) = inside.fold(None, |most: Option<f64>, value| {
                Some(most.map_or(value, |m| m.max(value)))
            }) {
                let _ = write!(text, "\n{} {}", line.name, (chart.unit)(most));
            }
        }
        if !text.is_empty() {
            let wide = WIDTH / COLUMNS as f64;
            let _ = write!(
                svg,
                "<rect class=\"hover\" x=\"{:.1}\" y=\"0\" width=\"{wide:.1}\" height=\"100\"><title>{}{}</title></rect>",
                column as f64 * wide,
                stretch(from),
                escape(&text)
            );
        }
    }
}

fn legend(lines: &[Line]) -> String {
    let items = lines
        .iter()
        .map(|line| format!("<span class=\"key {}\">{}</span>", line.class, escape(&line.name)));
    items.collect()
}

fn frame(chart: &Chart<'_>, scale: &Scale, svg: &str, legend: String) -> String {
    let mut labels = String::new();
    for tick in scale.ticks() {
        let _ = write!(
            labels,
            "<span style=\"top:{:.2}%\">{}</span>",
            scale.y(tick),
            escape(&(chart.unit)(tick))
        );
    }
    let strip = strip(chart.bands, chart.end_us);
    figure(chart.title, chart.hint, chart.end_us, &(labels + &strip), svg, &legend)
}

/// Names of the phases above the plot, where there is room for them.
fn strip(bands: &[Band], end_us: u64) -> String {
    let part = |at: u64| at as f64 / end_us.max(1) as f64 * 100.0;
    let wide = bands
        .iter()
        .filter(|band| band.class != "fault" && part(band.to_us.min(end_us)) - part(band.from_us) > 7.0);
    let names: String = wide
        .map(|band| {
            let (from, to) = (part(band.from_us), part(band.to_us.min(end_us)));
            format!(
                "<span style=\"left:{from:.2}%;width:{:.2}%\">{}</span>",
                to - from,
                escape(&band.title)
            )
        })
        .collect();
    format!("</div><div class=\"phases\">{names}")
}

fn figure(title: &str, hint: &str, end_us: u64, labels: &str, svg: &str, legend: &str) -> String {
    let times = (0..=4u64).map(|at| {
        let class = ["first", "", "", "", "last"][at as usize];
        format!(
            "<span class=\"{class}\" style=\"left:{}%\">{}</span>",
            at * 25,
            stretch(end_us * at / 4)
        )
    });
    let times: String = times.collect();
    format!(
        "<figure class=\"chart\"><figcaption><b>{}</b> <span class=\"hint\">{}</span></figcaption>\
         <div class=\"plot\"><div class=\"ys\">{labels}</div>\
         <svg viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">{svg}</svg>\
         <div class=\"xs\">{times}</div></div><div class=\"legend\">{legend}</div></figure>\n",
        escape(title),
        escape(hint),
        escape(title)
    )
}

/// From, to, and (value, count) pairs.
pub type HeatColumn = (u64, u64, Vec<(f64, u64)>);

/// A heat map: for each column, how many fell into each bucket of a logarithmic scale.
pub struct HeatMap<'a> {
    pub title: &'a str,
    pub hint: &'a str,
    pub end_us: u64,
    pub columns: Vec<HeatColumn>,
    pub unit: fn(f64) -> String,
}

/// Buckets of a decade.
const BUCKETS: f64 = 4.0;

pub fn heat_map(map: &HeatMap<'_>) -> String {
    let values = || {
        map.columns
            .iter()
            .flat_map(|column| column.2.iter().map(|pair| pair.0))
            .filter(|v| *v > 0.0)
    };
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    if high <= 0.0 {
        return String::new();
    }
    let (low, high) = (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0));
    let rows = ((high - low) * BUCKETS).round() as usize;
    let tall = HEIGHT / rows as f64;
    let mut svg = String::new();
    for (from, to, pairs) in &map.columns {
        let mut counts = vec![0u64; rows];
        for (value, count) in pairs {
            let row = ((value.max(1e-9).log10() - low) * BUCKETS) as usize;
            counts[row.min(rows - 1)] += count;
        }
        let total: u64 = counts.iter().sum();
        let x = *from as f64 / map.end_us.max(1) as f64 * WIDTH;
        let wide = (to - from) as f64 / map.end_us.max(1) as f64 * WIDTH;
        for (row, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            // Shares from a ten-thousandth to all, so that a rare slow message is seen.
            let share = *count as f64 / total as f64;
            let strength = (1.0 + share.log10() / 4.0).clamp(0.12, 1.0);
            let (floor, ceiling) = (
                10f64.powf(low + row as f64 / BUCKETS),
                10f64.powf(low + (row + 1) as f64 / BUCKETS),
            );
            let _ = write!(
                svg,
                "<rect class=\"heat\" x=\"{x:.1}\" y=\"{:.2}\" width=\"{:.1}\" height=\"{:.2}\" fill-opacity=\"{strength:.2}\"><title>{}\n{} to {}: {count} ({:.2} %)</title></rect>",
                HEIGHT - (row + 1) as f64 * tall,
                wide + 0.4,
                tall + 0.2,
                stretch(*from),
                (map.unit)(floor),
                (map.unit)(ceiling),
                share * 100.0
            );
        }
    }
    let mut labels = String::new();
    for decade in 0..=(high - low) as i32 {
        let y = HEIGHT * (1.0 - f64::from(decade) / (high - low));
        let _ = write!(
            labels,
            "<span style=\"top:{y:.2}%\">{}</span>",
            (map.unit)(10f64.powi(low as i32 + decade))
        );
    }
    let legend = "<span class=\"key heat\">darker: a larger share of the messages of that moment</span>";
    figure(map.title, map.hint, map.end_us, &labels, &svg, legend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_their_values() {
        for value in [0.0, 0.3, 1.0, 7.0, 99.0, 1_234.0, 61_204.0] {
            assert!(
                nice(value) >= value && nice(value) <= value.max(0.5) * 2.6,
                "{value} {}",
                nice(value)
            );
        }
    }

    /// Names from outside are text and nothing else.
    #[test]
    fn nothing_from_outside_becomes_markup() {
        let evil = "<script>\"'&".to_owned();
        let bands = [Band {
            from_us: 0,
            to_us: 5,
            class: "b0",
            title: evil.clone(),
        }];
        let text = chart(&Chart {
            title: &evil,
            hint: &evil,
            end_us: 10,
            lines: vec![Line {
                name: evil.clone(),
                class: "c1",
                points: vec![(1, Some(1.0)), (2, None), (3, Some(2.0))],
                fill: true,
            }],
            bands: &bands,
            marks: &[(4, evil.clone())],
            logarithmic: true,
            unit: |v| format!("{v}"),
        });
        assert!(!text.contains("<script"), "{text}");
        assert_eq!(text.matches("class=\"line c1\"").count(), 2, "a gap parts the line");
    }
}
