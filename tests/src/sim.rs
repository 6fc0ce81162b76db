//! Runs of the simulator against clusters of tests: driven in this process, then judged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use simulator::history::{self, Kind, Op, Outcome, Record};
use simulator::plan::Plan;
use simulator::report::conclude::{conclude, Auditing};
use simulator::report::Report;
use simulator::run::directory::RunFile;
use simulator::run::{Options, View, Watcher, Wish};
use simulator::scenario;

/// Number of every run in message ids.
pub const RUN: u32 = 4_711;

/// Watches without a word, and does one thing at one time.
struct Deed<F: FnMut()> {
    at_us: u64,
    deed: Option<F>,
    note: &'static str,
    notes: Vec<String>,
}

impl<F: FnMut()> Watcher for Deed<F> {
    fn prepared(&mut self, _: &str) {}

    fn update(&mut self, view: &View<'_>) {
        if view.elapsed_us >= self.at_us {
            if let Some(mut deed) = self.deed.take() {
                deed();
                self.notes.push(self.note.to_owned());
            }
        }
    }

    fn note(&mut self, _: &str) {}

    fn wish(&self) -> Wish {
        Wish::GoOn
    }

    fn outside_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// Drives `text` with its directory at `out`; `deed` happens once, so long after the beginning.
#[track_caller]
pub fn drive_and(text: &str, out: &Path, at: std::time::Duration, note: &'static str, deed: impl FnMut()) -> RunFile {
    let loaded = scenario::parse(&out.join("s.toml"), text.to_owned());
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let options = Options {
        out: out.to_owned(),
        run: RUN,
        worker: Vec::new(),
        version: "test".into(),
        resume: false,
    };
    let mut watcher = Deed {
        at_us: u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
        deed: Some(deed),
        note,
        notes: Vec::new(),
    };
    simulator::run::run(loaded, &options, &mut watcher).expect("the run begins")
}

/// Drives `text` undisturbed.
#[track_caller]
pub fn drive(text: &str, out: &Path) -> RunFile {
    drive_and(text, out, std::time::Duration::MAX, "", || {})
}

/// Reads the cluster back and judges the run in `out`.
#[track_caller]
pub fn judged(out: &Path) -> Report {
    let (report, problem) = conclude(out, Auditing::Now, &AtomicU64::new(0)).expect("the run can be judged");
    assert!(problem.is_none(), "{problem:?}");
    report
}

/// The operations of a run by the id of the device or child that they are about.
#[track_caller]
pub fn operations(out: &Path) -> BTreeMap<String, Vec<Op>> {
    let plan = plan(out);
    let mut found: BTreeMap<String, Vec<Op>> = BTreeMap::new();
    let take = |record| {
        if let Record::Op(op) = record {
            let (id, _) = plan.roster.subject_id(&plan.loaded, op.subject);
            found.entry(id).or_default().push(op);
        }
    };
    history::read(&out.join("history"), take).expect("the history can be read");
    found
}

/// How many of `ops` are of a kind and went well.
pub fn went_well(ops: &[Op], kind: Kind) -> usize {
    let well = ops.iter().filter(|op| op.kind == kind && op.outcome == Outcome::Ok);
    well.count()
}

/// The plan of a run, as it was driven.
#[track_caller]
pub fn plan(out: &Path) -> Plan {
    let file: PathBuf = out.join("scenario.toml");
    Plan::new(Arc::new(scenario::load(&file).expect("the scenario of a run is sound")))
}
