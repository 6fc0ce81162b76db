//! A run from beginning to end: prepare, drive, watch, stop. What it says in the end is `report`'s.

pub mod api;
mod course;
pub mod directory;
mod operator;
pub mod process;
mod provision;
mod sampler;
pub mod window;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use crate::drive::endpoints::BadEndpoints;
use crate::drive::preflight::{self, Short};
use crate::drive::tally::{States, Tally};
use crate::drive::{clock, sources, Endpoints, Mode};
use crate::plan::Plan;
use crate::scenario::{Loaded, LoopMode, TargetKind};
use api::{Api, ApiError};
use course::Course;
use directory::{RunDir, RunFile, RunNote};

/// What a run needs beside its scenario.
pub struct Options {
    pub out: PathBuf,
    /// Names the run in message ids.
    pub run: u32,
    /// Program and arguments of a worker process, where the scenario asks for several.
    pub worker: Vec<OsString>,
    pub version: String,
    /// Goes on with the run in `out`.
    pub resume: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Endpoints(#[from] BadEndpoints),
    #[error(transparent)]
    Short(#[from] Short),
    #[error("the fleet could not be registered: {0}")]
    Provision(ApiError),
    /// The directory of the run.
    #[error("{0}")]
    Disk(io::Error),
    #[error("the fleet could not be started: {0}")]
    Start(io::Error),
    #[error("nothing is left to resume: the run in {0} is over")]
    Over(PathBuf),
}

/// What a watcher sees a few times a second.
pub struct View<'a> {
    pub name: &'a str,
    pub elapsed_us: u64,
    pub planned_us: u64,
    pub phase: &'a str,
    pub mode: Mode,
    pub loop_mode: LoopMode,
    pub devices: u32,
    pub states: States,
    /// Since the last view.
    pub recent: &'a Tally,
    pub recent_us: u64,
    pub total: &'a Tally,
    pub notes: &'a [RunNote],
    pub records: u64,
}

/// What whoever started the run wants now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    GoOn,
    /// What was to be seen is seen: the run ends before its time, in order.
    Enough,
    /// Nothing new; wait for what is outstanding.
    Stop,
    /// Leave everything.
    Abort,
}

/// Follows a run.
pub trait Watcher {
    fn prepared(&mut self, what: &str);
    fn update(&mut self, view: &View<'_>);
    /// Something that stays on the screen.
    fn note(&mut self, text: &str);
    fn wish(&self) -> Wish;
    /// Notes from elsewhere since the last call, such as faults that somebody injected.
    fn outside_notes(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// Drives the scenario to its end, or until the watcher wants it to stop. What happened is in the
/// directory afterwards, also when this fails in the middle.
///
/// # Errors
/// It could not begin; see [`RunError`].
pub fn run(loaded: Loaded, options: &Options, watcher: &mut dyn Watcher) -> Result<RunFile, RunError> {
    let plan = Plan::new(Arc::new(loaded));
    let scenario = &plan.loaded.scenario;
    let endpoints = Endpoints::resolve(&plan.loaded)?;
    let sources = sources::parse(&scenario.run.source_addresses).unwrap_or_default();
    let listeners = endpoints.mqtt.len() + endpoints.ws.len() + endpoints.http.len();
    preflight::check(&plan, listeners, sources.len())?;
    let unreachable = endpoints.unreachable(&plan.loaded)?;
    let dir = RunDir(options.out.clone());
    let before = match options.resume {
        true => Some(dir.read_json::<RunFile>("run.json").map_err(RunError::Disk)?),
        false => {
            dir.create(&plan.loaded.text).map_err(RunError::Disk)?;
            None
        }
    };
    if before.as_ref().is_some_and(RunFile::is_whole) {
        return Err(RunError::Over(options.out.clone()));
    }
    prepare(&plan, &endpoints, watcher)?;
    let mut file = describe(&plan, &endpoints, options, before);
    for text in unreachable {
        file.notes.push(RunNote {
            at_us: 0,
            until_us: None,
            text: format!("unreachable at the start: {text}"),
        });
    }
    Ok(Course::begin(&plan, options, dir, file, watcher)?.follow(watcher))
}

fn prepare(plan: &Plan, endpoints: &Endpoints, watcher: &mut dyn Watcher) -> Result<(), RunError> {
    if !provision::is_needed(plan) {
        return Ok(());
    }
    watcher.prepared("registering devices that no CONNECT registers");
    let api = Api::new(endpoints).map_err(RunError::Provision)?;
    let runtime = api::runtime().map_err(RunError::Start)?;
    let done = AtomicU64::new(0);
    runtime
        .block_on(provision::provision(plan, &api, &done))
        .map_err(RunError::Provision)
}

fn describe(plan: &Plan, endpoints: &Endpoints, options: &Options, before: Option<RunFile>) -> RunFile {
    let scenario = &plan.loaded.scenario;
    let planned_us = plan.loaded.real_us(plan.curve.end_us());
    let mut file = before.unwrap_or_else(|| RunFile {
        begin_unix_us: clock::unix_us() + if scenario.run.workers > 1 { 1_500_000 } else { 200_000 },
        ..Default::default()
    });
    file.name.clone_from(&scenario.name);
    file.description.clone_from(&scenario.description);
    file.version.clone_from(&options.version);
    file.runs.push(options.run);
    file.seed = scenario.seed;
    file.loop_mode = match scenario.run.mode {
        LoopMode::Open => "open".into(),
        LoopMode::Closed => "closed".into(),
    };
    file.target = match scenario.target.kind {
        TargetKind::Holdfast => "holdfast".into(),
        TargetKind::Mqtt => "mqtt".into(),
    };
    file.endpoints = endpoints.clone();
    // The token is nobody's business who reads a report.
    file.endpoints.token = None;
    file.compression = scenario.compression;
    file.planned_us = planned_us;
    file.phases = plan.curve.spans().to_vec();
    for span in &mut file.phases {
        span.start_us = plan.loaded.real_us(span.start_us);
        span.end_us = plan.loaded.real_us(span.end_us);
    }
    file.devices = plan.roster.devices();
    (file.workers, file.threads) = (scenario.run.workers, scenario.run.threads);
    (file.ended_us, file.sending_ended_us, file.incomplete) = (None, None, None);
    file
}
