//! Programs of the system that the tests drive.

use std::path::PathBuf;
use std::process::Command;

/// Where `program` is.
///
/// # Panics
/// With the line that installs it, when it is missing.
pub fn require(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("{program} is missing; install it: sudo apt-get install -y --no-install-recommends {package}")
    })
}

/// # Panics
/// See [`require`].
pub fn curl() -> Command {
    let mut curl = Command::new(require("curl", "curl"));
    curl.args(["--silent", "--show-error", "--max-time", "20"]);
    curl
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
