//! Node processes of a local cluster: which run, starting one, signalling one.
//!
//! A process counts as a node when its pid and its start time are the recorded ones, or when it
//! holds the lock of the node's data directory; a zombie does not run.

use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::directory::{NodeEntry, ALLOW_DRILLS};
use crate::cli::failure::{Exit, Failure};
use crate::serve::lock;

/// How often a waiting command looks again.
pub const POLL: Duration = Duration::from_millis(50);
/// How long a killed process may take to give its ports back.
const DYING_PATIENCE: Duration = Duration::from_secs(5);
/// Lines of a log that are shown when its node does not start.
pub const LOG_TAIL_LINES: usize = 12;
/// Bytes of a log that are read for them.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// A process that runs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    /// Clock ticks since boot.
    pub started: u64,
}

/// The process that runs this node now, also when `cluster.json` does not know of it.
pub fn running(node: &NodeEntry) -> Option<Running> {
    let recorded = node
        .pid
        .and_then(look)
        .filter(|found| node.pid_started.is_none_or(|at| at == found.started));
    recorded
        .filter(|found| node.pid_started.is_some() || runs_config(found.pid, &node.config))
        .or_else(|| lock::holder(&node.data_dir()).and_then(look))
}

/// Whether this very process is still there.
pub fn alive(process: Running) -> bool {
    look(process.pid).is_some_and(|found| found == process)
}

/// A living process, by pid.
pub fn look(pid: u32) -> Option<Running> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, started) = parse_stat(&stat)?;
    (!matches!(state, 'Z' | 'X' | 'x')).then_some(Running { pid, started })
}

/// State and start time. The command name before them may hold anything, also parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // `starttime` is the 22nd field; state, which was taken, is the 3rd.
    let started = fields.nth(22 - 4)?.parse().ok()?;
    Some((state, started))
}

fn runs_config(pid: u32, config: &Path) -> bool {
    let wanted = config.as_os_str().as_encoded_bytes();
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == wanted))
}

/// # Errors
/// Says which port of which node is taken (69).
pub fn check_ports(node: &NodeEntry) -> Result<(), Failure> {
    let ports = [
        ("MQTT", node.mqtt),
        ("HTTP", node.http),
        ("peers", node.peer),
        ("WebSocket", node.ws),
    ];
    for (what, address) in ports {
        if let Err(error) = TcpListener::bind(address) {
            return Err(port_taken(node.id, what, address, &error));
        }
    }
    Ok(())
}

/// As [`check_ports`], but has patience with a node that ran before: the kernel takes a moment to
/// close the sockets of a process that was killed, after it stopped counting as running.
///
/// # Errors
/// As [`check_ports`].
pub async fn await_ports(node: &NodeEntry) -> Result<(), Failure> {
    let deadline = std::time::Instant::now() + DYING_PATIENCE;
    loop {
        match check_ports(node) {
            Err(_) if node.data_dir().exists() && std::time::Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            checked => return checked,
        }
    }
}

fn port_taken(id: u64, what: &str, address: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("node {id} cannot listen on {address} ({what}); nothing was started"),
    )
    .because(error)
    .advise(format!(
        "stop what uses port {port} (`ss -ltnp sport = :{port}` names it), or choose other ports for a new \
             cluster with --base-port",
        port = address.port()
    ))
}

/// Starts a node in a process group of its own, with this process's environment and its output
/// appended to the node's log. `allow_drills`: it takes fault leases.
///
/// # Errors
/// The program or the log cannot be opened (74).
pub fn spawn(node: &NodeEntry, allow_drills: bool) -> Result<(Child, Running), Failure> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&node.log);
    let log = log.map_err(|e| Failure::disk(format!("cannot open {}", node.log.display()), &e))?;
    let errors = log
        .try_clone()
        .map_err(|e| Failure::disk(format!("cannot open {}", node.log.display()), &e))?;
    let program = std::env::current_exe().map_err(|e| Failure::disk("cannot find the holdfast program", &e))?;
    let mut child = Command::new(&program)
        .arg("node")
        .arg("--config")
        .arg(&node.config)
        .envs(allow_drills.then_some(ALLOW_DRILLS))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::disk(format!("cannot start {}", program.display()), &e))?;
    match look(child.id()) {
        Some(process) => Ok((child, process)),
        None => {
            let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
            Err(
                Failure::new(Exit::Unavailable, format!("node {} ended at once ({status})", node.id))
                    .because(log_tail(&node.log))
                    .advise("mend what the log names, then try again"),
            )
        }
    }
}

/// Asks a process to stop gracefully, also one that is paused.
pub fn terminate(process: Running) {
    signal(process, Signal::SIGTERM);
    signal(process, Signal::SIGCONT);
}

pub fn kill_now(process: Running) {
    signal(process, Signal::SIGKILL);
}

fn signal(process: Running, signal: Signal) {
    if let (true, Ok(pid)) = (alive(process), i32::try_from(process.pid)) {
        // It may have ended since: then there is nothing left to ask.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Waits until the process is gone; `false` after `deadline`.
pub async fn wait_gone(process: Running, deadline: Duration) -> bool {
    let gone = async {
        while alive(process) {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(deadline, gone).await.is_ok()
}

/// The last lines of a log, for a person to read.
pub fn log_tail(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
        }
        Err(error) => format!("{}: {error}", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_a_later_one_with_its_pid_is_not() {
        let me = look(std::process::id()).expect("this process runs");
        assert!(alive(me));
        assert!(!alive(Running {
            started: me.started + 1,
            ..me
        }));
    }

    #[test]
    fn a_command_name_cannot_fool_the_parser() {
        let stat = "42 (a) R 9 (b)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
        for bad in ["", "1 (x", "1 (x) S", "1 (x) S 1 2 3"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = Command::new("true").spawn().expect("true starts");
        let pid = child.id();
        let waiting = std::time::Instant::now();
        while look(pid).is_some() && waiting.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "not reaped yet");
        assert_eq!(look(pid), None);
        child.wait().expect("reaped");
    }
}
