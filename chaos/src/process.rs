//! Faults of a process: killed, or stopped in its tracks. Each comes with its undoing.
//!
//! A process is named by its pid *and* its start time, because a pid alone may by now be somebody
//! else's. How to start it again is the caller's knowledge, handed in as a closure.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// How long a killed process may take to disappear. SIGKILL cannot be refused, only delayed.
const DEATH_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It ended before, or its pid now belongs to another process: nothing was done.
    #[error("process {pid} is gone or is not the one that was meant")]
    Gone { pid: u32 },
    #[error("process {pid} is still there {waited:?} after SIGKILL")]
    StillThere { pid: u32, waited: Duration },
    #[error("failed to {what} process {pid}: {source}")]
    System {
        what: &'static str,
        pid: u32,
        source: io::Error,
    },
    #[error("failed to start the process again: {0}")]
    Start(String),
}

/// One particular process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks since boot; together with the pid it is unique.
    started_ticks: u64,
}

impl Process {
    /// # Errors
    /// `Gone`: no such process.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let stat = Stat::read(pid).ok_or(ProcessError::Gone { pid })?;
        Ok(Self {
            pid,
            started_ticks: stat.started_ticks,
        })
    }

    /// Clock ticks since boot when it started.
    pub fn started_ticks(&self) -> u64 {
        self.started_ticks
    }

    /// The process that had this pid at that time, whether it still lives or not.
    pub fn known(pid: u32, started_ticks: u64) -> Self {
        Self { pid, started_ticks }
    }

    /// Whether this very process is there and has not ended (a zombie has).
    pub fn is_alive(&self) -> bool {
        Stat::read(self.pid)
            .is_some_and(|stat| stat.started_ticks == self.started_ticks && !matches!(stat.state, 'Z' | 'X'))
    }

    /// CPU time used so far, all threads, user and system.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = Stat::read(self.pid).filter(|stat| stat.started_ticks == self.started_ticks)?;
        // Linux reports these in units of 1/100 s on every architecture (USER_HZ).
        Some(Duration::from_millis(stat.cpu_ticks * 10))
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        if !self.is_alive() {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kib| kib * 1024)
    }

    /// # Errors
    /// `Gone`: nothing was sent. `System`: the signal was refused.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        if !self.is_alive() {
            return Err(ProcessError::Gone { pid: self.pid });
        }
        let pid = Pid::from_raw(i32::try_from(self.pid).map_err(|_| ProcessError::Gone { pid: self.pid })?);
        kill(pid, signal).map_err(|errno| ProcessError::System {
            what: signal.as_str(),
            pid: self.pid,
            source: errno.into(),
        })
    }

    /// `kill -9`, and returns when the process has ended.
    ///
    /// # Errors
    /// As [`Process::signal`]; `StillThere` when the kernel does not let it end.
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGKILL)?;
        let end = Instant::now() + DEATH_WAIT;
        while self.is_alive() {
            if Instant::now() >= end {
                return Err(ProcessError::StillThere {
                    pid: self.pid,
                    waited: DEATH_WAIT,
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Processes whose command line names a file called `name` below `dir`.
pub fn with_argument_below(dir: &std::path::Path, name: &str) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let below = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .filter_map(|word| std::str::from_utf8(word).ok())
            .map(std::path::Path::new)
            .any(|path| path.starts_with(dir) && path.file_name().is_some_and(|file| file == name))
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Process::of(pid).ok().filter(|_| below(pid)))
        .collect()
}

/// What one line of /proc says.
struct Stat {
    state: char,
    cpu_ticks: u64,
    started_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything; the fields start after the last one.
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            cpu_ticks: number(11)? + number(12)?,
            started_ticks: number(19)?,
        })
    }
}

/// Something that breaks and can be mended. Healing twice, or before injecting, does nothing.
pub trait Fault {
    /// # Errors
    /// Nothing is broken, or it is not known to be: the drill says nothing about the product.
    fn inject(&mut self) -> Result<(), ProcessError>;
    /// # Errors
    /// The fault could not be undone; the drill says nothing about the product.
    fn heal(&mut self) -> Result<(), ProcessError>;
}

/// `kill -9` of a process; healed by starting it again. Dropping it heals it.
pub struct ProcessKill<S: FnMut() -> Result<u32, String>> {
    victim: Process,
    start: S,
    injected: bool,
}

impl<S: FnMut() -> Result<u32, String>> ProcessKill<S> {
    /// `start` starts the process again and returns its pid once it runs.
    pub fn new(victim: Process, start: S) -> Self {
        Self {
            victim,
            start,
            injected: false,
        }
    }

    /// The process of the moment: after healing, the new one.
    pub fn process(&self) -> Process {
        self.victim
    }
}

impl<S: FnMut() -> Result<u32, String>> Fault for ProcessKill<S> {
    fn inject(&mut self) -> Result<(), ProcessError> {
        self.victim.kill()?;
        self.injected = true;
        Ok(())
    }

    fn heal(&mut self) -> Result<(), ProcessError> {
        if !self.injected {
            return Ok(());
        }
        self.injected = false;
        let pid = (self.start)().map_err(ProcessError::Start)?;
        self.victim = Process::of(pid)?;
        Ok(())
    }
}

impl<S: FnMut() -> Result<u32, String>> Drop for ProcessKill<S> {
    fn drop(&mut self) {
        if let Err(error) = self.heal() {
            tracing::error!(%error, "a killed process was not started again");
        }
    }
}

/// SIGSTOP of a process: it holds its sockets and answers nothing. Dropping it heals it.
pub struct ProcessPause {
    victim: Process,
    injected: bool,
}

impl ProcessPause {
    pub fn new(victim: Process) -> Self {
        Self {
            victim,
            injected: false,
        }
    }
}

impl Fault for ProcessPause {
    fn inject(&mut self) -> Result<(), ProcessError> {
        self.victim.signal(Signal::SIGSTOP)?;
        self.injected = true;
        Ok(())
    }

    fn heal(&mut self) -> Result<(), ProcessError> {
        if !self.injected {
            return Ok(());
        }
        self.injected = false;
        self.victim.signal(Signal::SIGCONT)
    }
}

impl Drop for ProcessPause {
    fn drop(&mut self) {
        if let Err(error) = self.heal() {
            tracing::error!(%error, "a stopped process was not continued");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    /// A pid that was given to another process is left alone.
    #[test]
    fn another_process_of_the_same_pid_is_not_killed() {
        let mut child = sleeper();
        let mut process = Process::of(child.id()).unwrap();
        process.started_ticks += 1;
        assert!(matches!(process.kill(), Err(ProcessError::Gone { .. })));
        assert!(Process::of(child.id()).unwrap().is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A killed process is dead before `inject` returns, and is started again even if forgotten.
    #[test]
    fn kill_is_always_healed() {
        let mut first = sleeper();
        let mut second = None;
        let victim = Process::of(first.id()).unwrap();
        {
            let start = || {
                let child = sleeper();
                let pid = child.id();
                second = Some(child);
                Ok(pid)
            };
            let mut fault = ProcessKill::new(victim, start);
            fault.inject().unwrap();
            assert!(!victim.is_alive());
        }
        let mut second = second.expect("dropping the fault heals it");
        assert!(Process::of(second.id()).unwrap().is_alive());
        second.kill().unwrap();
        first.wait().unwrap();
        second.wait().unwrap();
    }

    /// A stopped process runs again when the fault is dropped.
    #[test]
    fn pause_is_always_healed() {
        let mut child = sleeper();
        let process = Process::of(child.id()).unwrap();
        {
            let mut fault = ProcessPause::new(process);
            fault.inject().unwrap();
            let end = Instant::now() + Duration::from_secs(5);
            while Stat::read(child.id()).unwrap().state != 'T' {
                assert!(Instant::now() < end);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_ne!(Stat::read(child.id()).unwrap().state, 'T');
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
