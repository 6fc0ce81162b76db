//! A recorded trace: `device,time,payload` as CSV, read once and played per device.
//!
//! `time` is RFC 3339, or seconds or milliseconds since any beginning; rows of one device must not
//! go back in time. The device column chooses a lane: names are given to the fleet's devices in the
//! order of their first appearance, and repeat when the fleet is larger than the trace.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

/// Rows one trace may have.
pub const ROWS_MAX: usize = 5_000_000;
/// Bytes of all payloads of one trace; they are held in memory.
pub const TRACE_BYTES_MAX: usize = 512 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Row {
    /// Since the first row of the whole trace.
    pub at_us: u64,
    pub payload: Box<[u8]>,
}

/// The rows of each recorded device.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub lanes: Vec<Arc<[Row]>>,
    /// From the first row to the last.
    pub length_us: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BadTrace {
    #[error("cannot be read: {0}")]
    Csv(#[from] csv::Error),
    #[error("has no column {0:?}; it needs device, time and payload")]
    Column(&'static str),
    #[error("line {line}: {text:?} is no time: write RFC 3339, or seconds (12.5) or milliseconds (1709210096789)")]
    Time { line: u64, text: String },
    #[error("line {line}: goes back in time for device {device:?}")]
    Backwards { line: u64, device: String },
    #[error("is empty")]
    Empty,
    #[error("is larger than the limit of {limit}")]
    TooLarge { limit: String },
}

/// # Errors
/// The file is no such trace, or too large.
pub fn read(path: &Path) -> Result<Trace, BadTrace> {
    let mut reader = csv::ReaderBuilder::new().flexible(false).from_path(path)?;
    let headers = reader.headers()?.clone();
    let column = |name: &'static str| {
        let at = headers
            .iter()
            .position(|header| header.trim().eq_ignore_ascii_case(name));
        at.ok_or(BadTrace::Column(name))
    };
    let (device, time, payload) = (column("device")?, column("time")?, column("payload")?);
    let mut lanes: Vec<Vec<(i64, Box<[u8]>)>> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let (mut rows, mut bytes) = (0usize, 0usize);
    for record in reader.byte_records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default();
        let name = String::from_utf8_lossy(field(device)).into_owned();
        let text = String::from_utf8_lossy(field(time));
        let at = moment(text.trim()).ok_or_else(|| BadTrace::Time {
            line,
            text: text.to_string(),
        })?;
        (rows, bytes) = (rows + 1, bytes + field(payload).len());
        if rows > ROWS_MAX {
            return Err(BadTrace::TooLarge {
                limit: format!("{ROWS_MAX} rows"),
            });
        }
        if bytes > TRACE_BYTES_MAX {
            return Err(BadTrace::TooLarge {
                limit: format!("{TRACE_BYTES_MAX} bytes of payloads"),
            });
        }
        let lane = *known.entry(name.clone()).or_insert_with(|| {
            lanes.push(Vec::new());
            lanes.len() - 1
        });
        if lanes[lane].last().is_some_and(|(before, _)| *before > at) {
            return Err(BadTrace::Backwards { line, device: name });
        }
        lanes[lane].push((at, field(payload).into()));
    }
    let first = lanes.iter().filter_map(|lane| lane.first()).map(|row| row.0).min();
    let first = first.ok_or(BadTrace::Empty)?;
    let last = lanes
        .iter()
        .filter_map(|lane| lane.last())
        .map(|row| row.0)
        .max()
        .unwrap_or(first);
    let since = |at: i64| u64::try_from(at - first).unwrap_or(0);
    let lanes = lanes.into_iter().map(|lane| {
        let rows = lane.into_iter().map(|(at, payload)| Row {
            at_us: since(at),
            payload,
        });
        rows.collect()
    });
    Ok(Trace {
        lanes: lanes.collect(),
        length_us: since(last),
    })
}

/// Microseconds since some beginning.
fn moment(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse::<f64>() {
        // More seconds than a thousand years can only be milliseconds.
        let seconds = if number.abs() >= 3.2e10 { number / 1e3 } else { number };
        return (seconds.is_finite() && seconds.abs() < 9e12).then_some((seconds * 1e6) as i64);
    }
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(text: &str) -> Result<Trace, BadTrace> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn rows_keep_their_distances() {
        let read = trace("time,device,payload\n2024-01-01T00:00:00Z,a,\"{\"\"t\"\":1}\"\n2024-01-01T00:00:01.5Z,b,x\n2024-01-01T00:00:02Z,a,y\n").unwrap();
        assert_eq!(read.lanes.len(), 2);
        assert_eq!(&*read.lanes[0][0].payload, br#"{"t":1}"#);
        assert_eq!(read.lanes[0][1].at_us, 2_000_000);
        assert_eq!(read.lanes[1][0].at_us, 1_500_000);
        assert_eq!(read.length_us, 2_000_000);
        let millis = trace("device,time,payload\na,1709210096789,x\na,1709210096790,y\n").unwrap();
        assert_eq!(millis.length_us, 1_000);
    }

    #[test]
    fn bad_traces_are_refused_with_their_line() {
        for (text, reason) in [
            ("device,time,payload\n", "is empty"),
            ("device,payload\na,x\n", "no column \"time\""),
            ("device,time,payload\na,noon,x\n", "line 2"),
            ("device,time,payload\na,2,x\na,1,x\n", "line 3: goes back"),
            ("device,time,payload\na,2\n", "cannot be read"),
        ] {
            let error = trace(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
