//! Debian's Mosquitto on a port of its own, for comparison. It keeps nothing and syncs nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chaos::process::Process;
use tempfile::TempDir;

use crate::cli::local::{HarnessError, Interrupt};

const PROGRAM: &str = "/usr/sbin/mosquitto";
const START_DEADLINE: Duration = Duration::from_secs(10);

pub struct Mosquitto {
    pub address: SocketAddr,
    pub process: Process,
    child: Child,
    _dir: TempDir,
}

impl Mosquitto {
    pub fn is_installed() -> bool {
        Path::new(PROGRAM).exists()
    }

    /// # Errors
    /// It did not start listening in time.
    pub fn start(interrupt: &Interrupt) -> Result<Self, HarnessError> {
        let failed = |e: std::io::Error| HarnessError::new("mosquitto", e);
        let dir = tempfile::Builder::new().prefix("holdfast-").tempdir().map_err(failed)?;
        let address = {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
            free.local_addr().map_err(failed)?
        };
        let config = dir.path().join("mosquitto.conf");
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 1000\nlog_type error\n{}",
            address.port(),
            user_line()
        );
        std::fs::write(&config, text).map_err(failed)?;
        let mut command = Command::new(PROGRAM);
        command
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        let listening = wait_listening(address, interrupt);
        match listening.and_then(|()| Process::of(child.id()).map_err(|e| HarnessError::new("mosquitto", e))) {
            Ok(process) => Ok(Self {
                address,
                process,
                child,
                _dir: dir,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

/// As root it would change to a user who cannot read the configuration's directory.
fn user_line() -> &'static str {
    if nix::unistd::geteuid().is_root() {
        "user root\n"
    } else {
        ""
    }
}

fn wait_listening(address: SocketAddr, interrupt: &Interrupt) -> Result<(), HarnessError> {
    let end = Instant::now() + START_DEADLINE;
    while TcpStream::connect(address).is_err() {
        if Instant::now() >= end {
            return Err(HarnessError::Failed(format!("mosquitto does not listen on {address}")));
        }
        interrupt.sleep(Duration::from_millis(20))?;
    }
    Ok(())
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // Its own child, not reaped: the pid is still its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
