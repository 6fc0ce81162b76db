//! A drill: what it says, whether it makes sense, which faults happen when, and what to expect.

mod aim;
mod check;
pub mod model;
mod plan;
mod predict;
mod scenario;
pub mod shipped;
mod view;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use simulator::scenario::locate::{line_of, Locator};
use simulator::scenario::Problem;

pub use aim::{aim, Aimed};
pub use model::Drill;
pub use plan::{plan, single, Planned};
pub use predict::{predict, Impact};
pub use scenario::{scenario, Reach};
pub use view::{NodeView, ShardView, View};

/// Drill files are small.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A brief run's phase of faults.
const BRIEF: Duration = Duration::from_secs(12);

/// A drill that makes sense.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// A file, or the name of a drill that ships.
    pub path: PathBuf,
    pub text: String,
    pub drill: Drill,
}

#[derive(Debug)]
pub enum LoadError {
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    /// It makes no sense; lines are those of the file.
    Refused {
        path: PathBuf,
        problems: Vec<Problem>,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => write!(f, "{} cannot be read: {source}", path.display()),
            Self::Refused { path, problems } => {
                let lines = problems.iter().map(|problem| format!("{}:{problem}", path.display()));
                f.write_str(&lines.collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

impl std::error::Error for LoadError {}

/// Reads a drill: a file, or the name of one that ships.
///
/// # Errors
/// See [`LoadError`].
pub fn load(what: &Path) -> Result<Loaded, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: what.to_owned(),
        source,
    };
    if let Some(text) = what.to_str().and_then(shipped::source) {
        if !what.exists() || what.is_dir() {
            return parse(what, text.to_owned());
        }
    }
    let about = fs::metadata(what).map_err(unreadable)?;
    if about.len() > FILE_BYTES_MAX || about.is_dir() {
        return Err(unreadable(std::io::Error::other("this is no drill file")));
    }
    parse(what, fs::read_to_string(what).map_err(unreadable)?)
}

/// As [`load`], of a text; `path` is for messages.
///
/// # Errors
/// See [`LoadError`].
pub fn parse(path: &Path, text: String) -> Result<Loaded, LoadError> {
    let refused = |problems| LoadError::Refused {
        path: path.to_owned(),
        problems,
    };
    let locator = Locator::new(&text);
    let drill: Drill = toml::from_str(&text).map_err(|error| {
        let at = error.span().map(|span| span.start);
        refused(vec![Problem {
            line: at.map_or(1, |at| line_of(&text, at)),
            key: at.and_then(|at| locator.key_at(at)).unwrap_or_default(),
            reason: error.message().lines().collect::<Vec<_>>().join("; "),
        }])
    })?;
    let mut problems: Vec<Problem> = check::problems(&drill)
        .into_iter()
        .map(|(key, reason)| Problem {
            line: locator.line(&key),
            key,
            reason,
        })
        .collect();
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line);
        return Err(refused(problems));
    }
    Ok(Loaded {
        path: path.to_owned(),
        text,
        drill,
    })
}

impl Drill {
    /// The same drill in little time: times of phases and faults shrink together.
    pub fn brief(&mut self) {
        let part = (BRIEF.as_secs_f64() / self.phases.faults.as_secs_f64()).min(1.0);
        let shrink =
            |span: &mut simulator::scenario::Span| span.0 = span.0.mul_f64(part).max(Duration::from_millis(500));
        shrink(&mut self.phases.faults);
        self.phases.steady.0 = self.phases.steady.0.min(Duration::from_secs(4));
        for fault in &mut self.fault {
            shrink(&mut fault.at);
            shrink(&mut fault.length);
            shrink(&mut fault.every);
        }
        if let Some(nemesis) = &mut self.nemesis {
            shrink(&mut nemesis.mean_between);
            shrink(&mut nemesis.mean_length);
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
