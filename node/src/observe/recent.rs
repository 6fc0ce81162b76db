//! The last log lines, kept in memory, so that whoever can reach the API can read them: the log
//! itself goes to wherever stderr leads, which only the machine's owner knows.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that are kept.
pub const RECENT_BYTES_MAX: usize = 1 << 20;

/// Clones share the lines.
#[derive(Clone, Default)]
pub struct RecentLines(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl RecentLines {
    fn push(&self, line: &[u8]) {
        // A log that panics because a logger panicked helps nobody.
        let Ok(mut kept) = self.0.lock() else { return };
        let line = &line[..line.len().min(RECENT_BYTES_MAX)];
        kept.bytes += line.len();
        kept.lines.push_back(line.into());
        while kept.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
    }

    /// The last whole lines that fit into `bytes_max`, oldest first.
    pub fn text(&self, bytes_max: usize) -> String {
        let Ok(kept) = self.0.lock() else { return String::new() };
        let mut left = bytes_max;
        let fits = |line: &&[u8]| {
            let fits = line.len() <= left;
            left = left.saturating_sub(line.len());
            fits
        };
        let chosen: Vec<&[u8]> = kept.lines.iter().rev().map(AsRef::as_ref).take_while(fits).collect();
        let bytes: Vec<u8> = chosen.into_iter().rev().flat_map(|line| line.iter().copied()).collect();
        without_colours(&String::from_utf8_lossy(&bytes))
    }
}

/// Text without the escape sequences that a terminal's lines carry.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

impl<'a> MakeWriter<'a> for RecentLines {
    type Writer = Keep<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Keep(self)
    }
}

/// Takes one line; the formatter writes a line in one go.
pub struct Keep<'a>(&'a RecentLines);

impl Write for Keep<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let recent = RecentLines::default();
        let line = format!("{}\n", "x".repeat(1023));
        for number in 0..2000 {
            recent.push(format!("{number:04}{}", &line[4..]).as_bytes());
        }
        let text = recent.text(usize::MAX);
        assert_eq!(text.len(), RECENT_BYTES_MAX);
        assert!(text.starts_with("0976") && text.lines().last().is_some_and(|last| last.starts_with("1999")));
        assert_eq!(recent.text(2 * 1024 + 5).lines().count(), 2, "whole lines only");
        assert_eq!(recent.text(0), "");
        recent.push(&vec![b'y'; 3 * RECENT_BYTES_MAX]);
        assert_eq!(recent.text(usize::MAX).len(), RECENT_BYTES_MAX);
    }

    #[test]
    fn colours_are_left_out() {
        assert_eq!(
            without_colours("\x1b[2mtime\x1b[0m \x1b[32m INFO\x1b[0m x\n"),
            "time  INFO x\n"
        );
        assert_eq!(without_colours("a\x1b[3"), "a");
    }
}
