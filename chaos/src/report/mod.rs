//! The verdict's directory:
//!
//! ```text
//! DIR/drill.toml scenario.toml   as they were run
//!     result.json                everything that is said
//!     report.html                the same for people, in one file
//!     faults.jsonl               what was ordered, what came of it, when it was healed
//!     sightings.jsonl            who said that which shard is led by whom
//!     timeline.json              per shard and second what was served
//!     digests.json               of every replica
//!     run/                       the load: history, audit, figures and a report of its own
//!     nodes/                     logs
//! ```

mod html;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use simulator::run::directory::{read_lines, RunDir, RunFile};
use simulator::run::window::Window;

use crate::check::{Bounds, Bucket, Evidence, Facts};
use crate::run::DrillResult;

/// What charts are drawn from.
#[derive(Default, Serialize, Deserialize)]
pub struct TimeLine {
    pub shards: BTreeMap<u16, Vec<Bucket>>,
}

/// Writes `result.json`, `timeline.json` and `report.html`.
///
/// # Errors
/// The disk refuses.
pub fn write(out: &Path, result: &DrillResult, facts: &Facts) -> io::Result<()> {
    let dir = RunDir(out.to_owned());
    let line = TimeLine {
        shards: facts.buckets.clone(),
    };
    dir.write_json("result.json", result)?;
    dir.write_json("timeline.json", &line)?;
    page(&dir, result, &line)
}

/// Makes `report.html` again from what lies in the directory, and returns what was found.
///
/// # Errors
/// It is no verdict's directory, or the disk refuses.
pub fn again(out: &Path) -> io::Result<DrillResult> {
    let dir = RunDir(out.to_owned());
    let result: DrillResult = dir.read_json("result.json")?;
    let line = dir.read_json("timeline.json").unwrap_or_default();
    page(&dir, &result, &line)?;
    Ok(result)
}

/// What a directory holds as evidence: the history, and an audit, sightings, digests and faults if
/// they are there. The cluster is not needed.
///
/// # Errors
/// There is no history.
pub fn evidence(dir: &Path) -> io::Result<Evidence> {
    let verdict = RunDir(dir.to_owned());
    let run = match dir.join("run/history").is_dir() {
        true => RunDir(dir.join("run")),
        false => verdict.clone(),
    };
    let facts = Facts::read(&run.history()).map_err(io::Error::other)?;
    let about: Option<RunFile> = run.read_json("run.json").ok();
    let result: Option<DrillResult> = verdict.read_json("result.json").ok();
    Ok(Evidence {
        facts,
        findings: run.read_json("audit.json").ok(),
        not_audited: "nobody has read the cluster back".into(),
        sightings: read_lines(&verdict.file("sightings.jsonl"))?,
        faults: result.map_or_else(Vec::new, |result| crate::run::active(&result.faults)),
        digests: verdict.read_json("digests.json").unwrap_or_default(),
        bounds: Bounds {
            sending_ended_us: about.and_then(|about| about.sending_ended_us).unwrap_or(u64::MAX),
            ..Default::default()
        },
        ..Default::default()
    })
}

fn page(dir: &RunDir, result: &DrillResult, line: &TimeLine) -> io::Result<()> {
    let windows: Vec<Window> = RunDir(dir.file("run")).windows().unwrap_or_default();
    dir.write("report.html", html::page(result, line, &windows).as_bytes())
}
