//! Where log lines go and which ones: text or JSON, to stderr or a file, with a filter that can
//! change while the program runs.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use tracing_subscriber::fmt::writer::MakeWriterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, reload, EnvFilter, Layer as _, Registry};

use super::recent::RecentLines;

/// What is logged when nothing else was asked for.
pub const FILTER_DEFAULT: &str = "info,openraft=error";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    /// One object per line, for machines.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("log format {other:?} is neither text nor json")),
        }
    }
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub format: LogFormat,
    /// As `RUST_LOG`: `info,cluster::raft=debug`.
    pub filter: String,
    /// Appended to; stderr without one.
    pub file: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: FILTER_DEFAULT.into(),
            file: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log filter {filter:?}: {reason}")]
    Filter { filter: String, reason: String },
    #[error("log file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    /// Only one part of a process may set logging up.
    #[error("logging is set up already")]
    Twice,
}

/// Changes the filter of a running program, and shows what it logged last.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    recent: RecentLines,
}

impl LogHandle {
    /// The last lines, up to `bytes_max` bytes of them.
    pub fn recent(&self, bytes_max: usize) -> String {
        self.recent.text(bytes_max)
    }

    /// # Errors
    /// `Filter` when it cannot be read; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        // Fails only once the subscriber is gone, which lives as long as the process.
        self.filter.reload(parsed).map_err(|e| LogError::Filter {
            filter: filter.to_owned(),
            reason: e.to_string(),
        })
    }
}

/// Sets logging up for the whole process.
///
/// # Errors
/// Nothing is set up in any of the cases of [`LogError`].
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let file = config.file.as_ref().map(open).transpose()?;
    // Colours are for eyes; a file or a pipe gets none.
    let colours = file.is_none() && io::IsTerminal::is_terminal(&io::stderr());
    let writer = match file {
        Some(file) => fmt::writer::BoxMakeWriter::new(Mutex::new(file)),
        None => fmt::writer::BoxMakeWriter::new(io::stderr),
    };
    let recent = RecentLines::default();
    let writer = writer.and(recent.clone());
    let lines = match config.format {
        LogFormat::Text => fmt::layer().with_ansi(colours).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    Ok(LogHandle { filter: handle, recent })
}

/// # Errors
/// `Filter`, with the reason.
pub fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|e| LogError::Filter {
        filter: filter.to_owned(),
        reason: e.to_string(),
    })
}

fn open(path: &PathBuf) -> Result<File, LogError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|source| LogError::File {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_refused_before_anything_is_set_up() {
        let filter = LogConfig {
            filter: "info,=debug=x".into(),
            ..LogConfig::default()
        };
        assert!(matches!(init(&filter), Err(LogError::Filter { .. })));
        let file = LogConfig {
            file: Some("/proc/no/such/dir/log".into()),
            ..LogConfig::default()
        };
        assert!(matches!(init(&file), Err(LogError::File { .. })));
        assert!("xml".parse::<LogFormat>().is_err());
    }

    /// The only test that sets logging up: it counts for the whole process.
    #[test]
    fn lines_are_json_carry_their_trace_and_follow_the_filter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        let config = LogConfig {
            format: LogFormat::Json,
            filter: "off".into(),
            file: Some(path.clone()),
        };
        let handle = init(&config).unwrap();
        tracing::error!(target: "logtest", "unseen");
        handle.set_filter("off,logtest=info").unwrap();
        assert!(handle.set_filter("=x=").is_err());
        tracing::info_span!(target: "logtest", "http", trace_id = "abc")
            .in_scope(|| tracing::info!(target: "logtest", shard = 3, "seen"));
        tracing::debug!(target: "logtest", "unseen");
        handle.set_filter("off").unwrap();
        tracing::error!(target: "logtest", "unseen");
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!((&lines[0]["message"], &lines[0]["shard"]), (&"seen".into(), &3.into()));
        assert_eq!(lines[0]["span"]["trace_id"], "abc");
        assert_eq!(handle.recent(usize::MAX), text);
        assert!(matches!(init(&config), Err(LogError::Twice)));
    }
}
