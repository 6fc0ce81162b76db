//! Runs the real `holdfast` program and looks at how it ends.
#![allow(clippy::disallowed_methods, dead_code)] // real processes, real time; not every test uses all of it

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The program, without variables that would change what it does.
pub fn holdfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command
}

pub fn run(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    Ended {
        code: status.code().expect("it ends by itself"),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

pub fn holdfast_with(arguments: &[&str]) -> Ended {
    run(holdfast().args(arguments))
}

impl Ended {
    /// Asserts the exit code and that stderr says each of `words`.
    #[track_caller]
    pub fn with(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing in: {}", self.stderr);
        }
        self
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// A base port from which a block of `ports` is free now. Other tests run at the same time, so
/// that the listeners that hold the block are handed out with it; drop them to use it.
pub fn free_base_port(ports: u16) -> (u16, Vec<TcpListener>) {
    // Each caller of this process gets another block: a block that was let go may not be in use yet.
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let first = 21_000 + 100 * (CALLS.fetch_add(1, Ordering::Relaxed) % 50);
    for base in (first..32_000).step_by(5_000) {
        let block: Result<Vec<_>, _> = (base..base + ports)
            .map(|port| TcpListener::bind(("127.0.0.1", port)))
            .collect();
        if let Ok(held) = block {
            return (base, held);
        }
    }
    panic!("no {ports} free ports in a row from {first}, nor 5000 and 10000 above");
}

/// Waits for a condition; fails when it does not come true in a time that no machine needs.
#[track_caller]
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "the condition never came true");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
