//! What a scenario file says, whether it makes sense, and where it does not.

pub mod check;
pub mod limits;
pub mod locate;
mod model;
mod overrides;
mod span;
mod starter;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub use model::{
    Audit, Fleet, HistoryKeep, LoopMode, Operator, Overflow, Phase, PhaseWord, Protocol, Replay, Run, Scenario, Target,
    TargetKind, Thresholds,
};
pub use overrides::Overrides;
pub use span::{BadSpan, Span};
pub use starter::STARTER;

use crate::payloads::replay::{self, Trace};
use crate::profiles::{self, Profile};
use locate::Locator;

/// A scenario that makes sense, with everything it refers to.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub text: String,
    pub scenario: Scenario,
    /// Every profile a fleet uses, shipped or its own.
    pub profiles: BTreeMap<String, Profile>,
    /// Traces of the fleets that replay one, by fleet.
    pub traces: BTreeMap<usize, Trace>,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    pub line: usize,
    pub key: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.line, self.reason),
            key => write!(f, "{}: {key}: {}", self.line, self.reason),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It makes no sense; lines are those of the file.
    #[error("{}", lines(path, problems))]
    Refused { path: PathBuf, problems: Vec<Problem> },
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let line = |problem: &Problem| format!("{}:{problem}", path.display());
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Reads and checks a scenario, its own profiles, and the traces it replays.
///
/// # Errors
/// See [`LoadError`].
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > limits::FILE_BYTES_MAX {
        let reason = format!("{size} bytes are above the limit of {}", limits::FILE_BYTES_MAX);
        return Err(unreadable(std::io::Error::other(reason)));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    parse(path, text)
}

/// As [`load`], of a text; `path` is for messages, and where traces are looked for.
///
/// # Errors
/// See [`LoadError`].
pub fn parse(path: &Path, text: String) -> Result<Loaded, LoadError> {
    let refused = |problems| LoadError::Refused {
        path: path.to_owned(),
        problems,
    };
    let locator = Locator::new(&text);
    let scenario: Scenario = toml::from_str(&text).map_err(|error| refused(vec![syntax(&text, &locator, &error)]))?;
    let mut found = check::problems(&scenario);
    let mut traces = BTreeMap::new();
    for (at, fleet) in scenario.fleet.iter().enumerate() {
        let Some(replay) = &fleet.replay else { continue };
        let file = path.parent().unwrap_or(Path::new(".")).join(&replay.file);
        match replay::read(&file) {
            Ok(trace) => drop(traces.insert(at, trace)),
            Err(error) => found.push((
                format!("fleet[{at}].replay.file"),
                format!("{}: {error}", file.display()),
            )),
        }
    }
    if !found.is_empty() {
        let locate = |(key, reason): (String, String)| Problem {
            line: locator.line(&key),
            key,
            reason,
        };
        let mut problems: Vec<Problem> = found.into_iter().map(locate).collect();
        problems.sort_by_key(|problem| problem.line);
        return Err(refused(problems));
    }
    let mut profiles = profiles::shipped();
    profiles.extend(scenario.profile.clone());
    profiles.retain(|name, _| scenario.fleet.iter().any(|fleet| fleet.profile == *name));
    Ok(Loaded {
        path: path.to_owned(),
        text,
        scenario,
        profiles,
        traces,
    })
}

fn syntax(text: &str, locator: &Locator<'_>, error: &toml::de::Error) -> Problem {
    let offset = error.span().map(|span| span.start);
    Problem {
        line: offset.map_or(1, |at| locate::line_of(text, at)),
        key: offset.and_then(|at| locator.key_at(at)).unwrap_or_default(),
        reason: error.message().lines().collect::<Vec<_>>().join("; "),
    }
}

/// The JSON schema of a scenario file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Scenario).to_value()
}

impl Loaded {
    pub fn profile(&self, fleet: usize) -> &Profile {
        &self.profiles[&self.scenario.fleet[fleet].profile]
    }

    /// Scenario time to real time. Unit: µs.
    pub fn real_us(&self, scenario_us: u64) -> u64 {
        (scenario_us as f64 / self.scenario.compression) as u64
    }

    /// Real time to scenario time. Unit: µs.
    pub fn scenario_us(&self, real_us: u64) -> u64 {
        (real_us as f64 * self.scenario.compression) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Vec<Problem> {
        match parse(Path::new("x.toml"), text.to_owned()) {
            Err(LoadError::Refused { problems, .. }) => problems,
            other => panic!("{other:?} for {text}"),
        }
    }

    const SOUND: &str = r#"name = "t"
[target]
mqtt = ["127.0.0.1:1883"]
[[fleet]]
name = "a"
profile = "constant"
count = 10
[[phase]]
kind = "steady"
duration = "10s"
"#;

    #[test]
    fn the_starter_is_sound() {
        let loaded = parse(Path::new("x.toml"), STARTER.to_owned()).unwrap();
        assert!(loaded.scenario.fleet.len() >= 3);
        assert!(parse(Path::new("x.toml"), SOUND.to_owned()).is_ok());
    }

    /// Rows: what is changed in a sound file, the line and key of the problem, a word of the reason.
    #[test]
    fn problems_have_line_and_key() {
        let rows = [
            ("count = 10", "count = 0", 7, "fleet[0].count", "1..="),
            ("count = 10", "count = 9000000", 7, "fleet[0].count", "1000000"),
            ("count = 10", "count = \"x\"", 7, "fleet[0].count", "invalid type"),
            ("count = 10", "cuont = 10", 7, "fleet[0].cuont", "unknown field"),
            (
                "profile = \"constant\"",
                "profile = \"constnat\"",
                6,
                "fleet[0].profile",
                "constant",
            ),
            (
                "kind = \"steady\"",
                "kind = \"stedy\"",
                9,
                "phase[0].kind",
                "unknown variant",
            ),
            (
                "kind = \"steady\"",
                "kind = \"steady\"\nlow = 0.1",
                10,
                "phase[0].low",
                "steady",
            ),
            (
                "duration = \"10s\"",
                "duration = \"10\"",
                10,
                "phase[0].duration",
                "no length of time",
            ),
            (
                "name = \"a\"",
                "name = \"a\"\nrate = 1e12",
                6,
                "fleet[0].rate",
                "10000000",
            ),
            ("name = \"a\"", "name = \"a\"\nrate = -1", 6, "fleet[0].rate", "above 0"),
            ("name = \"a\"", "name = \"a\"\nid = \"x\"", 6, "fleet[0].id", "${n}"),
            (
                "name = \"a\"",
                "name = \"a\"\nid = \"ä-${n}\"",
                6,
                "fleet[0].id",
                "device id",
            ),
            (
                "name = \"a\"",
                "name = \"a\"\nwindow = 5000",
                6,
                "fleet[0].window",
                "1024",
            ),
            (
                "name = \"t\"",
                "name = \"t\"\ncompression = 0.5",
                2,
                "compression",
                "1..=",
            ),
            ("name = \"t\"", "nmae = \"t\"", 1, "nmae", "unknown field"),
            ("[target]", "[target", 2, "", ""),
        ];
        for (from, to, line, key, reason) in rows {
            let problems = refused(&SOUND.replacen(from, to, 1));
            let found = &problems[0];
            assert_eq!((found.line, found.key.as_str()), (line, key), "{to}: {problems:?}");
            assert!(found.reason.contains(reason), "{to}: {}", found.reason);
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = SOUND
            .replace("count = 10", "count = 0\nwindow = 0")
            .replace("10s", "0s");
        assert_eq!(refused(&text).len(), 3);
    }

    #[test]
    fn own_profiles_are_checked_and_win() {
        let own = "[profile.mine]\ntitle = \"x\"\n[[profile.mine.stream]]\ninterval = \"1s\"\npayload = \"${nix}\"\n";
        let text = format!("{}{own}", SOUND.replace("\"constant\"", "\"mine\""));
        let problems = refused(&text);
        assert_eq!(problems[0].key, "profile.mine.stream[0].payload");
        assert_eq!(problems[0].line, 15);
        let loaded = parse(Path::new("x.toml"), text.replace("${nix}", "${n}")).unwrap();
        assert_eq!(loaded.profile(0).title, "x");
    }

    #[test]
    fn the_schema_names_every_table() {
        let schema = schema();
        for table in ["fleet", "phase", "thresholds", "profile", "run", "target"] {
            assert!(schema["properties"].get(table).is_some(), "{table}");
        }
    }
}
