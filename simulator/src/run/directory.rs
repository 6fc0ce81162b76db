//! The directory of a run: what lies where.
//!
//! ```text
//! DIR/scenario.toml   as it was run
//!     run.json        who, when, against what, what happened; rewritten as the run goes on
//!     windows.jsonl   counts and latencies per window of time
//!     nodes.jsonl     what /metrics of each node said
//!     history/        every operation
//!     audit.json      what reading back found
//!     report.html report.json junit.xml
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::window::Window;
use crate::audit::Findings;
use crate::drive::Endpoints;
use crate::plan::curve::PhaseSpan;

#[derive(Clone, Debug)]
pub struct RunDir(pub PathBuf);

/// About a run as a whole. Times are real µs since it began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunFile {
    pub name: String,
    pub description: String,
    pub version: String,
    /// Names the run in message ids; each resumption adds one.
    pub runs: Vec<u32>,
    pub seed: u64,
    /// `open` or `closed`.
    pub loop_mode: String,
    pub target: String,
    pub endpoints: Endpoints,
    pub begin_unix_us: u64,
    pub compression: f64,
    pub planned_us: u64,
    /// When sending ended, and when the last answer was in or given up.
    pub sending_ended_us: Option<u64>,
    pub ended_us: Option<u64>,
    pub phases: Vec<PhaseSpan>,
    pub devices: u32,
    pub workers: u16,
    pub threads: u16,
    /// How many were connected when sending ended.
    pub connected_at_end: u32,
    /// What happened meanwhile: stops, failures, faults that somebody told of.
    pub notes: Vec<RunNote>,
    /// Why the run says less than it should, if it does.
    pub incomplete: Option<String>,
    /// CPU time of the generator, all workers. µs.
    pub cpu_us: u64,
    /// What samples during the run found, if there were any.
    #[serde(default)]
    pub samples: Option<Findings>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunNote {
    pub at_us: u64,
    /// For stretches, such as a fault, its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_us: Option<u64>,
    pub text: String,
}

impl RunFile {
    /// Whether the run came to its planned end.
    pub fn is_whole(&self) -> bool {
        self.ended_us.is_some() && self.incomplete.is_none()
    }
}

impl RunDir {
    pub fn history(&self) -> PathBuf {
        self.0.join("history")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory for a new run.
    ///
    /// # Errors
    /// It holds a run already, or cannot be made.
    pub fn create(&self, scenario: &str) -> io::Result<()> {
        if self.file("run.json").exists() {
            let why = format!(
                "{} holds a run already; name another --out, or resume it",
                self.0.display()
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        fs::create_dir_all(&self.0)?;
        fs::write(self.file("scenario.toml"), scenario)
    }

    /// Replaces a file as a whole, so that a reader never sees half of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let next = self.file(&format!("{name}.new"));
        fs::write(&next, bytes)?;
        fs::rename(next, self.file(name))
    }

    /// # Errors
    /// As [`RunDir::write`].
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    /// # Errors
    /// It is not there, or holds something else.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let bytes = fs::read(self.file(name))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// The windows written so far. A torn last line is left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn windows(&self) -> io::Result<Vec<Window>> {
        read_lines(&self.file("windows.jsonl"))
    }
}

/// Appends JSON, a line at a time.
pub struct Lines(File);

impl Lines {
    /// # Errors
    /// The file cannot be opened.
    pub fn append(path: &Path) -> io::Result<Self> {
        Ok(Self(File::options().create(true).append(true).open(path)?))
    }

    /// # Errors
    /// The line cannot be written.
    pub fn put(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

/// Every line that is whole. One that is not, at the end of a crash, is left out.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for line in BufReader::new(file).lines() {
        if let Ok(value) = serde_json::from_str(&line?) {
            found.push(value);
        }
    }
    Ok(found)
}
