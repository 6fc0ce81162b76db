//! What checks the deployment files, and where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of the repository.
pub fn file(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lie in the repository");
    root.join(path)
}

/// # Panics
/// When it cannot be read.
pub fn text(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A program that `.ci/setup.sh` puts into the cache directory, or one of the system.
///
/// # Panics
/// With the line that installs it, when it is missing.
pub fn tool(below_cache: &str, name: &str) -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let cache = std::env::var_os("HOLDFAST_CACHE").map_or_else(|| home.join(".cache/holdfast"), PathBuf::from);
    let kept = cache.join(below_cache).join(name);
    if kept.is_file() {
        return kept;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing, also in {}; run .ci/setup.sh", kept.display()))
}

/// Runs a program to its end: whether it succeeded, and both outputs as one text.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> (bool, String) {
    let ended = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let text = [&ended.stdout[..], &ended.stderr[..]].concat();
    (ended.status.success(), String::from_utf8_lossy(&text).into_owned())
}
