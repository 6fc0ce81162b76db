//! The frame of the HTML report: its style, beginning and end.

use super::junit::escape;

/// Of every report, so that they look alike.
pub const STYLE: &str = include_str!("style.css");

pub fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{} – load test report</title><style>{STYLE}</style></head><body>\n",
        escape(title)
    )
}

pub fn foot() -> &'static str {
    "<footer>Made by holdfast sim. Totals and latencies are computed from the recorded history; latency counts from the intended time of each message. <b>Unknown</b> means that no answer came: such a message may be stored or not, and is neither success nor loss.</footer></main></body></html>\n"
}
