//! All lanes of one process: started, watched, stopped. A run with one worker is one of these; a
//! larger one has several, each in a process of its own (see `coordinate`).

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::context::Mode;
use super::endpoints::Endpoints;
use super::lane::{self, LaneSpec};
use super::sources;
use super::tally::{Board, States, Tally};
use crate::plan::Plan;

/// What a worker is told beside the scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Place among the workers, and their number.
    pub index: u16,
    pub of: u16,
    /// Names this run in message ids.
    pub run: u32,
    /// µs since 1970.
    pub begin_unix_us: u64,
    /// Where a run that was broken off goes on; what was due before is over. Real µs, 0: at the beginning.
    pub resume_us: u64,
    pub endpoints: Endpoints,
    pub history_dir: PathBuf,
    /// Prefix of this worker's parts of the history.
    pub part: String,
}

pub struct Worker {
    mode: Arc<AtomicU8>,
    boards: Vec<Arc<Board>>,
    lanes: Vec<JoinHandle<io::Result<u64>>>,
}

/// What a worker tells of itself.
#[derive(Clone, Debug, Default)]
pub struct Glance {
    pub states: States,
    pub records: u64,
    /// Why a lane cannot go on, if one cannot.
    pub failure: Option<String>,
    pub is_over: bool,
}

impl Worker {
    /// # Errors
    /// A thread could not be started.
    pub fn start(plan: &Plan, spec: &WorkerSpec) -> io::Result<Self> {
        let run = &plan.loaded.scenario.run;
        let threads = u32::from(run.threads);
        let sources = sources::parse(&run.source_addresses).map_err(io::Error::other)?;
        let endpoints = Arc::new(spec.endpoints.clone());
        let mode = Arc::new(AtomicU8::new(Mode::Run as u8));
        let lanes_in_all = threads * u32::from(spec.of);
        let bytes_max = plan.loaded.scenario.history.bytes_max;
        let mut worker = Self {
            mode: mode.clone(),
            boards: Vec::new(),
            lanes: Vec::new(),
        };
        for thread in 0..threads {
            let board = Arc::new(Board::default());
            let lane = LaneSpec {
                plan: plan.clone(),
                index: u32::from(spec.index) * threads + thread,
                of: lanes_in_all,
                resume_us: spec.resume_us,
                clock: Clock::new(spec.begin_unix_us, plan.loaded.scenario.compression),
                endpoints: endpoints.clone(),
                sources: sources.clone(),
                run: spec.run,
                history_dir: spec.history_dir.clone(),
                part: format!("{}-t{thread}", spec.part),
                history_bytes_max: bytes_max.map(|bytes| bytes / u64::from(lanes_in_all)),
                mode: mode.clone(),
                board: board.clone(),
            };
            let named = std::thread::Builder::new().name(format!("fleet-{thread}"));
            worker.boards.push(board);
            worker.lanes.push(named.spawn(move || lane::run(lane))?);
        }
        Ok(worker)
    }

    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Moves what was counted since the last time into `into`.
    pub fn take(&self, into: &mut Tally) -> Glance {
        let mut glance = Glance {
            is_over: self.lanes.iter().all(JoinHandle::is_finished),
            ..Default::default()
        };
        for board in &self.boards {
            let (states, records, failure) = board.take(into);
            glance.states.add(&states);
            glance.records += records;
            glance.failure = glance.failure.or(failure);
        }
        glance
    }

    /// Waits for the lanes, which must have been told to end. Returns the records written.
    ///
    /// # Errors
    /// A lane failed; its part of the history ends early.
    pub fn join(mut self) -> io::Result<u64> {
        let mut records = 0;
        for lane in self.lanes.drain(..) {
            records += lane
                .join()
                .map_err(|_| io::Error::other("a thread of the fleet panicked"))??;
        }
        Ok(records)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.set_mode(Mode::Abort);
    }
}
