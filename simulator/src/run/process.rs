//! A worker in a process of its own: JSON lines over its standard input and output.
//!
//! The first line tells it everything (the scenario as text, its place, when to begin); afterwards
//! it hears modes and tells windows. Nothing else is shared but the history's directory, so that
//! the same lines over a socket would serve a worker on another machine.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::window::Window;
use crate::drive::tally::{States, Tally};
use crate::drive::worker::{Glance, Worker, WorkerSpec};
use crate::drive::Mode;
use crate::plan::Plan;
use crate::scenario;

/// Version of the lines; both sides have to have the same.
const PROTOCOL: u32 = 1;
/// How often a worker tells of itself.
const TELL_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Serialize, Deserialize)]
enum ToWorker {
    Begin {
        protocol: u32,
        scenario: String,
        /// Where the scenario stood, for the traces it names.
        path: PathBuf,
        spec: Box<WorkerSpec>,
    },
    Mode(u8),
}

#[derive(Debug, Serialize, Deserialize)]
enum FromWorker {
    Window {
        window: Box<Window>,
        records: u64,
        failure: Option<String>,
    },
    Done {
        records: u64,
        cpu_us: u64,
    },
    Failed(String),
}

/// The coordinator's side.
pub struct Remote {
    child: Child,
    input: ChildStdin,
    lines: Receiver<FromWorker>,
    states: States,
    records: u64,
    failure: Option<String>,
    done: bool,
    cpu_us: u64,
}

impl Remote {
    /// # Errors
    /// The process cannot be started or told.
    pub fn start(command: &[OsString], text: &str, path: &Path, spec: &WorkerSpec) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no program"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(io::Error::other("the worker has no pipes"));
        };
        let (tell, lines) = channel();
        std::thread::Builder::new().name("worker-lines".into()).spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                let parsed = serde_json::from_str(&line);
                let message = parsed.unwrap_or_else(|_| FromWorker::Failed(format!("said {line:?}")));
                if tell.send(message).is_err() {
                    return;
                }
            }
        })?;
        let mut remote = Self {
            child,
            input,
            lines,
            states: States::default(),
            records: 0,
            failure: None,
            done: false,
            cpu_us: 0,
        };
        remote.tell(&ToWorker::Begin {
            protocol: PROTOCOL,
            scenario: text.to_owned(),
            path: path.to_owned(),
            spec: Box::new(spec.clone()),
        })?;
        Ok(remote)
    }

    fn tell(&mut self, message: &ToWorker) -> io::Result<()> {
        let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
        line.push(b'\n');
        self.input.write_all(&line)?;
        self.input.flush()
    }

    pub fn set_mode(&mut self, mode: Mode) {
        if self.tell(&ToWorker::Mode(mode as u8)).is_err() && !self.done {
            self.failure
                .get_or_insert_with(|| "a worker does not listen any more".into());
        }
    }

    /// As [`Worker::take`].
    pub fn take(&mut self, into: &mut Tally) -> Glance {
        loop {
            match self.lines.try_recv() {
                Ok(FromWorker::Window {
                    window,
                    records,
                    failure,
                }) => {
                    window.add_to(into);
                    (self.states, self.records) = (window.states, records);
                    self.failure = self.failure.take().or(failure);
                }
                Ok(FromWorker::Done { records, cpu_us }) => {
                    (self.done, self.records, self.cpu_us) = (true, records, cpu_us);
                }
                Ok(FromWorker::Failed(why)) => {
                    self.failure.get_or_insert(why);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    if !self.done {
                        self.failure
                            .get_or_insert_with(|| "a worker process ended early".into());
                    }
                    self.done = true;
                    break;
                }
            }
        }
        Glance {
            states: self.states,
            records: self.records,
            failure: self.failure.clone(),
            is_over: self.done,
        }
    }

    pub fn cpu_us(&self) -> u64 {
        self.cpu_us
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// The worker's side: `holdfast sim worker`. Reads from `input`, tells `output`, until the run ends
/// or the coordinator is gone.
///
/// # Errors
/// It was told nonsense, or could not go on; the coordinator was told as well, if it listens.
pub fn serve(input: impl BufRead + Send + 'static, mut output: impl Write) -> io::Result<()> {
    let result = serve_run(input, &mut output);
    if let Err(error) = &result {
        let _ = tell(&mut output, &FromWorker::Failed(error.to_string()));
    }
    result
}

fn tell(output: &mut impl Write, message: &FromWorker) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

fn serve_run(mut input: impl BufRead + Send + 'static, output: &mut impl Write) -> io::Result<()> {
    let mut first = String::new();
    input.read_line(&mut first)?;
    let message: ToWorker = serde_json::from_str(&first).map_err(io::Error::other)?;
    let ToWorker::Begin {
        protocol,
        scenario,
        path,
        spec,
    } = message
    else {
        return Err(io::Error::other("the first line does not begin a run"));
    };
    if protocol != PROTOCOL {
        return Err(io::Error::other(format!(
            "the coordinator speaks version {protocol}, this is {PROTOCOL}"
        )));
    }
    let loaded = scenario::parse(&path, scenario).map_err(io::Error::other)?;
    let plan = Plan::new(Arc::new(loaded));
    let worker = Worker::start(&plan, &spec)?;
    let modes = follow(input);
    let mut tally = Tally::default();
    loop {
        let began = Instant::now();
        let glance = worker.take(&mut tally);
        let window = Window::of(&tally, glance.states, 0, 0);
        tally.reset();
        let message = FromWorker::Window {
            window: Box::new(window),
            records: glance.records,
            failure: glance.failure,
        };
        if tell(output, &message).is_err() {
            // Nobody is interested any more.
            worker.set_mode(Mode::Abort);
        }
        if glance.is_over {
            break;
        }
        match modes.recv_timeout(TELL_EVERY.saturating_sub(began.elapsed())) {
            Ok(mode) => worker.set_mode(Mode::from_u8(mode)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                worker.set_mode(Mode::Abort);
                std::thread::sleep(TELL_EVERY);
            }
        }
    }
    let records = worker.join()?;
    let cpu_us = cpu_us();
    tell(output, &FromWorker::Done { records, cpu_us })
}

/// Modes as they are told; ends when the coordinator does.
fn follow(input: impl BufRead + Send + 'static) -> Receiver<u8> {
    let (tell, modes) = channel();
    std::thread::spawn(move || {
        for line in input.lines() {
            let Ok(line) = line else { return };
            if let Ok(ToWorker::Mode(mode)) = serde_json::from_str(&line) {
                if tell.send(mode).is_err() {
                    return;
                }
            }
        }
    });
    modes
}

/// CPU time of this process so far, µs.
pub fn cpu_us() -> u64 {
    use nix::sys::resource::{getrusage, UsageWho};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return 0;
    };
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    micros(usage.user_time()) + micros(usage.system_time())
}
