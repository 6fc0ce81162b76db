//! A run under way: lanes here or in other processes, their figures in windows, and the mode that
//! all of them follow.

use std::io;
use std::time::Duration;

use super::directory::{Lines, RunDir, RunFile, RunNote};
use super::operator::Operator;
use super::process::{self, Remote};
use super::sampler::Sampler;
use super::window::Window;
use super::{Options, RunError, View, Watcher, Wish};
use crate::audit::Findings;
use crate::drive::tally::Tally;
use crate::drive::worker::Glance;
use crate::drive::{Clock, Endpoints, Mode, Worker, WorkerSpec};
use crate::haul::Scraper;
use crate::plan::Plan;
use crate::scenario::TargetKind;

/// How often a watcher is told.
const GLANCE_EVERY: Duration = Duration::from_millis(250);
/// Windows a run is divided into at most; longer runs have longer windows, so that a week's figures
/// fit on a disk and into a report.
const WINDOWS_MAX: u64 = 7_200;
/// After the last deadline lanes only have to close their files. Unit: µs.
const GRACE_US: u64 = 10_000_000;

enum Team {
    Here(Worker),
    Processes(Vec<Remote>),
}

/// A run under way.
pub struct Course<'a> {
    plan: &'a Plan,
    dir: RunDir,
    file: RunFile,
    clock: Clock,
    team: Team,
    operator: Option<Operator>,
    sampler: Option<Sampler>,
    samples: Findings,
    _scraper: Option<Scraper>,
    windows: Lines,
    window_us: u64,
    window: Tally,
    window_from_us: u64,
    total: Tally,
    mode: Mode,
    deadline_us: u64,
    glance: Glance,
}

impl<'a> Course<'a> {
    /// # Errors
    /// See [`RunError`].
    pub fn begin(
        plan: &'a Plan,
        options: &Options,
        dir: RunDir,
        file: RunFile,
        watcher: &mut dyn Watcher,
    ) -> Result<Self, RunError> {
        let scenario = &plan.loaded.scenario;
        let clock = Clock::new(file.begin_unix_us, scenario.compression);
        let endpoints = Endpoints::resolve(&plan.loaded)?;
        dir.write_json("run.json", &file).map_err(RunError::Disk)?;
        let windows = Lines::append(&dir.file("windows.jsonl")).map_err(RunError::Disk)?;
        let scraper = match scenario.target.kind {
            TargetKind::Holdfast if !endpoints.http.is_empty() => {
                let every = scenario.run.scrape_interval.0;
                Some(Scraper::start(&endpoints, clock, every, &dir.file("nodes.jsonl")).map_err(RunError::Disk)?)
            }
            _ => None,
        };
        let incarnation = file.runs.len() - 1;
        let resume_us = if incarnation > 0 { clock.now_us() } else { 0 };
        watcher.prepared("starting the fleet");
        let operator_part = format!("r{incarnation}-operator");
        let operator = Operator::start(
            plan,
            &endpoints,
            clock,
            options.run,
            resume_us,
            &dir.history(),
            &operator_part,
        );
        let sampler = Sampler::start(plan, &endpoints, dir.history(), file.runs.clone()).map_err(RunError::Start)?;
        let team = team(plan, options, &dir, &file, &endpoints, resume_us)?;
        let planned_us = file.planned_us;
        Ok(Self {
            plan,
            clock,
            team,
            operator: operator.map_err(RunError::Start)?,
            sampler,
            samples: Findings::default(),
            _scraper: scraper,
            windows,
            window_us: (planned_us / WINDOWS_MAX).max(1_000_000),
            window: Tally::default(),
            window_from_us: clock.now_us(),
            total: Tally::default(),
            mode: Mode::Run,
            deadline_us: u64::MAX,
            glance: Glance::default(),
            dir,
            file,
        })
    }

    /// Until everything is over.
    pub fn follow(mut self, watcher: &mut dyn Watcher) -> RunFile {
        let mut recent = Tally::default();
        let mut recent_from = self.clock.now_us();
        loop {
            std::thread::sleep(GLANCE_EVERY);
            let now = self.clock.now_us();
            recent.reset();
            self.glance = self.take(&mut recent);
            self.window.add(&recent);
            self.total.add(&recent);
            self.steer(now, watcher);
            if now >= self.window_from_us + self.window_us || self.glance.is_over {
                self.end_window(now);
            }
            watcher.update(&self.view(&recent, now, now - recent_from));
            recent_from = now;
            if self.glance.is_over {
                break;
            }
        }
        self.end(watcher)
    }

    fn take(&mut self, into: &mut Tally) -> Glance {
        match &mut self.team {
            Team::Here(worker) => worker.take(into),
            Team::Processes(workers) => {
                let mut whole = Glance {
                    is_over: true,
                    ..Default::default()
                };
                for worker in workers {
                    let glance = worker.take(into);
                    whole.states.add(&glance.states);
                    whole.records += glance.records;
                    whole.failure = whole.failure.or(glance.failure);
                    whole.is_over &= glance.is_over;
                }
                whole
            }
        }
    }

    /// Whether it is time for another mode.
    fn steer(&mut self, now: u64, watcher: &mut dyn Watcher) {
        for text in watcher.outside_notes() {
            self.note(text, now, watcher);
        }
        self.look_at_samples(now, watcher);
        if let Some(failure) = self.glance.failure.take() {
            if self.file.incomplete.is_none() {
                self.note(failure.clone(), now, watcher);
                self.file.incomplete = Some(failure);
                self.set_mode(Mode::Stop, now);
            }
        }
        match watcher.wish() {
            Wish::GoOn => {}
            Wish::Enough if self.mode == Mode::Run => self.set_mode(Mode::Stop, now),
            Wish::Stop if self.mode == Mode::Run => {
                let text = format!(
                    "stopped after {:.0} s of {:.0} s",
                    now as f64 / 1e6,
                    self.file.planned_us as f64 / 1e6
                );
                self.file.incomplete.get_or_insert(text.clone());
                self.note(text, now, watcher);
                self.set_mode(Mode::Stop, now);
            }
            Wish::Abort if self.mode != Mode::Abort => {
                self.file.incomplete.get_or_insert_with(|| "aborted".into());
                self.set_mode(Mode::Abort, now);
            }
            Wish::Enough | Wish::Stop | Wish::Abort => {}
        }
        if self.mode == Mode::Run && now >= self.file.planned_us {
            self.set_mode(Mode::Drain, now);
        }
        if now >= self.deadline_us && self.mode != Mode::Abort {
            self.set_mode(Mode::Abort, now);
        }
        if self.mode == Mode::Abort && now >= self.deadline_us.saturating_add(GRACE_US) {
            self.file
                .incomplete
                .get_or_insert_with(|| "a part of the fleet did not end".into());
            self.glance.is_over = true;
        }
    }

    fn look_at_samples(&mut self, now: u64, watcher: &mut dyn Watcher) {
        let found = self.sampler.as_ref().map_or_else(Vec::new, Sampler::take);
        for findings in found {
            for violation in findings.violations.iter().take(5) {
                self.note(format!("a sample found: {violation}"), now, watcher);
            }
            self.samples.add(findings);
        }
    }

    fn set_mode(&mut self, mode: Mode, now: u64) {
        if self.mode == Mode::Run {
            self.file.sending_ended_us = Some(now);
            self.file.connected_at_end = self.glance.states.connected;
            let drain = self.plan.loaded.scenario.run.drain.micros();
            self.deadline_us = now.saturating_add(drain);
            if let Some(operator) = &self.operator {
                operator.stop();
            }
        }
        if mode == Mode::Abort {
            self.deadline_us = self.deadline_us.min(now);
        }
        self.mode = mode;
        match &mut self.team {
            Team::Here(worker) => worker.set_mode(mode),
            Team::Processes(workers) => workers.iter_mut().for_each(|worker| worker.set_mode(mode)),
        }
    }

    fn note(&mut self, text: String, now: u64, watcher: &mut dyn Watcher) {
        watcher.note(&text);
        self.file.notes.push(RunNote {
            at_us: now,
            until_us: None,
            text,
        });
    }

    fn end_window(&mut self, now: u64) {
        let window = Window::of(&self.window, self.glance.states, self.window_from_us, now);
        self.window.reset();
        self.window_from_us = now;
        // A run that cannot write its figures any more still has its history.
        if let Err(error) = self
            .windows
            .put(&window)
            .and_then(|()| self.dir.write_json("run.json", &self.file))
        {
            self.file
                .incomplete
                .get_or_insert(format!("figures cannot be written: {error}"));
            if self.mode == Mode::Run {
                self.set_mode(Mode::Stop, now);
            }
        }
    }

    fn view<'b>(&'b self, recent: &'b Tally, now: u64, recent_us: u64) -> View<'b> {
        let phase = self.plan.curve.phase_at(self.clock.scenario_us(now));
        View {
            name: &self.file.name,
            elapsed_us: now,
            planned_us: self.file.planned_us,
            phase: match self.mode {
                Mode::Run => self.file.phases.get(phase).map_or("", |span| span.title.as_str()),
                Mode::Drain => "waiting for the last answers",
                Mode::Stop => "stopping",
                Mode::Abort => "ending",
            },
            mode: self.mode,
            loop_mode: self.plan.loaded.scenario.run.mode,
            devices: self.file.devices,
            states: self.glance.states,
            recent,
            recent_us: recent_us.max(1),
            total: &self.total,
            notes: &self.file.notes,
            records: self.glance.records,
        }
    }

    fn end(mut self, watcher: &mut dyn Watcher) -> RunFile {
        watcher.prepared("closing the history");
        let mut cpu_us = process::cpu_us();
        let joined = match self.team {
            Team::Here(worker) => worker.join().map(drop),
            Team::Processes(workers) => {
                cpu_us += workers.iter().map(Remote::cpu_us).sum::<u64>();
                Ok(())
            }
        };
        let operated = self.operator.take().map_or(Ok(0), Operator::finish);
        for problem in [joined, operated.map(drop)].into_iter().filter_map(Result::err) {
            self.file.incomplete.get_or_insert(problem.to_string());
        }
        self.sampler = None;
        if self.samples.subjects > 0 {
            self.file.samples = Some(self.samples);
        }
        self.file.cpu_us += cpu_us;
        self.file.ended_us = Some(self.clock.now_us());
        self.file.sending_ended_us = self.file.sending_ended_us.or(self.file.ended_us);
        // Whoever called still has the file in hand.
        if let Err(error) = self.dir.write_json("run.json", &self.file) {
            self.file
                .incomplete
                .get_or_insert(format!("run.json cannot be written: {error}"));
        }
        self.file
    }
}

fn team(
    plan: &Plan,
    options: &Options,
    dir: &RunDir,
    file: &RunFile,
    endpoints: &Endpoints,
    resume_us: u64,
) -> Result<Team, RunError> {
    let of = plan.loaded.scenario.run.workers;
    let incarnation = file.runs.len() - 1;
    let spec = |index: u16| WorkerSpec {
        index,
        of,
        run: options.run,
        begin_unix_us: file.begin_unix_us,
        resume_us,
        endpoints: endpoints.clone(),
        history_dir: dir.history(),
        part: format!("r{incarnation}-w{index}"),
    };
    if of == 1 {
        return Worker::start(plan, &spec(0)).map(Team::Here).map_err(RunError::Start);
    }
    let start = |index| Remote::start(&options.worker, &plan.loaded.text, &plan.loaded.path, &spec(index));
    let workers = (0..of).map(start).collect::<io::Result<Vec<_>>>();
    workers.map(Team::Processes).map_err(RunError::Start)
}
