//! A running fleet in a few lines of text, for a terminal and for logs.

use super::numbers::{grouped, millis, rate, stretch, Latency};
use crate::run::View;
use crate::scenario::LoopMode;

/// One line, for where there is no terminal.
pub fn line(view: &View<'_>) -> String {
    let seconds = view.recent_us as f64 / 1e6;
    let latency = Latency::from(&view.recent.latency);
    let mut text = format!(
        "{:>7}  {}  {} connected  {}/s sent  {}/s acked",
        stretch(view.elapsed_us),
        view.phase,
        view.states.connected,
        rate(view.recent.counts.sent as f64 / seconds),
        rate(view.recent.counts.acked as f64 / seconds),
    );
    if latency.count > 0 {
        text += &format!("  p50 {}  p99 {}", millis(latency.p50), millis(latency.p99));
    }
    if view.loop_mode == LoopMode::Closed {
        text += "  (closed loop)";
    }
    for (name, count) in [
        ("refused", view.total.counts.refused),
        ("lost", view.total.counts.lost),
        ("failed connects", view.total.counts.connects_failed),
        ("dropped", view.total.counts.dropped),
    ] {
        if count > 0 {
            text += &format!("  {} {name}", grouped(count));
        }
    }
    text
}

/// The dashboard: at most `width` columns, a fixed number of lines but for the errors.
pub fn screen(view: &View<'_>, width: usize) -> Vec<String> {
    let seconds = view.recent_us as f64 / 1e6;
    let counts = &view.total.counts;
    let recent = &view.recent.counts;
    let (now, all) = (Latency::from(&view.recent.latency), Latency::from(&view.total.latency));
    let lag = Latency::from(&view.total.lag);
    let left = view.planned_us.saturating_sub(view.elapsed_us);
    let mode = match view.loop_mode {
        LoopMode::Open => "open loop",
        LoopMode::Closed => "CLOSED LOOP: hides stalls",
    };
    let states = &view.states;
    let mut lines = vec![
        format!("{}   {}   {mode}", view.name, view.phase),
        bar(
            view.elapsed_us,
            view.planned_us,
            width.saturating_sub(28).clamp(10, 60),
            left,
        ),
        String::new(),
        format!(
            "devices   {} of {} connected   {} connecting   {} backing off   {} away   {} waiting",
            grouped(u64::from(states.connected)),
            grouped(u64::from(view.devices)),
            states.connecting,
            states.backing_off,
            states.away,
            states.waiting
        ),
        format!(
            "rate      {:>10}/s sent   {:>10}/s acked   {} outstanding",
            rate(recent.sent as f64 / seconds),
            rate(recent.acked as f64 / seconds),
            grouped(states.outstanding)
        ),
        format!(
            "total     {:>10}   sent   {:>10}   acked   {} refused   {} dropped   {} resent",
            grouped(counts.sent),
            grouped(counts.acked),
            grouped(counts.refused),
            grouped(counts.dropped),
            grouped(counts.resent)
        ),
        percentiles("latency", "now", &now),
        percentiles("", "all", &all),
        format!(
            "send lag  p99 {}   max {}{}",
            millis(lag.p99),
            millis(lag.max),
            if lag.p99 > super::LAG_WARNING_MS {
                "   THE GENERATOR IS THE BOTTLENECK"
            } else {
                ""
            }
        ),
        format!(
            "twins     {} reports acked   {} reads   {} desired seen   {} calls   {} messages",
            grouped(counts.reports_acked),
            grouped(counts.twin_reads),
            grouped(counts.desired_seen),
            grouped(counts.method_calls),
            grouped(counts.messages)
        ),
    ];
    let mut errors: Vec<(&String, &u64)> = view.total.errors.iter().collect();
    errors.sort_by(|a, b| b.1.cmp(a.1));
    for (kind, count) in errors.iter().take(5) {
        lines.push(format!("error     {:>10} × {kind}", grouped(**count)));
    }
    for note in view.notes.iter().rev().take(3).rev() {
        lines.push(format!("note      {:>9}  {}", stretch(note.at_us), note.text));
    }
    for line in &mut lines {
        if line.chars().count() > width {
            *line = line.chars().take(width.saturating_sub(1)).chain(['…']).collect();
        }
    }
    lines
}

fn percentiles(title: &str, when: &str, latency: &Latency) -> String {
    if latency.count == 0 {
        return format!("{title:<9} {when}: nothing acknowledged");
    }
    format!(
        "{title:<9} {when}   p50 {:>9}   p90 {:>9}   p99 {:>9}   p99.9 {:>9}   max {:>9}",
        millis(latency.p50),
        millis(latency.p90),
        millis(latency.p99),
        millis(latency.p999),
        millis(latency.max)
    )
}

fn bar(done_us: u64, all_us: u64, width: usize, left_us: u64) -> String {
    let part = (done_us as f64 / all_us.max(1) as f64).min(1.0);
    let full = (part * width as f64) as usize;
    format!(
        "{}{} {:>3.0} %   {} left",
        "█".repeat(full),
        "░".repeat(width - full),
        part * 100.0,
        stretch(left_us)
    )
}
