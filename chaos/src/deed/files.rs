//! Files, disks and the power.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{outcome, Outcome};
use crate::damage::{self, Damage};
use crate::powercut::{self, Taken, Unsynced};
use crate::site::{Site, SiteError};

/// How old an older copy is at least.
const OLDER: Duration = Duration::from_secs(3);
/// A small disk is filled to the last of these.
const FILL_STEP: usize = 1 << 20;

/// Where the data of a node goes for a while, and where it belongs.
pub fn aside(site: &Site, node: u64) -> Result<(PathBuf, PathBuf), SiteError> {
    let dir = site.entry(node)?.dir;
    Ok((dir.join("data.aside"), dir.join("data")))
}

pub fn empty_disk(site: &Site, node: u64) -> Outcome {
    let begin = || -> Result<String, SiteError> {
        let (from, to) = aside(site, node)?;
        if let Ok(process) = site.process(node) {
            process.kill().map_err(|source| SiteError::Process { node, source })?;
        }
        fs::rename(&to, &from).map_err(|error| SiteError::file(&to, error))?;
        match site.command(&["cluster", "start", &node.to_string()]) {
            Err(SiteError::Command { .. }) => Ok(format!("node {node} was refused with an empty directory")),
            Err(other) => Err(other),
            // It runs and does not take part: that is for the checkers to see.
            Ok(said) => Ok(format!(
                "node {node} was started with an empty directory: {}",
                said.trim()
            )),
        }
    };
    outcome(begin())
}

/// A graceful stop first, so that what is stored lies in files.
fn stopped(site: &Site, node: u64) -> Result<PathBuf, SiteError> {
    site.command(&["cluster", "stop", &node.to_string()])?;
    Ok(site.entry(node)?.dir.join("data"))
}

pub fn damage(site: &Site, node: u64, part: &str, how: Damage) -> Outcome {
    let begin = || -> Result<String, SiteError> {
        let store = stopped(site, node)?.join(part);
        let said = damage::damage(&store, how).map_err(|error| SiteError::file(&store, error))?;
        // It may refuse to start, run without taking part, or mend itself: all are its right.
        let word = match site.command(&["cluster", "start", &node.to_string()]) {
            Ok(text) => text,
            Err(error) => error.to_string(),
        };
        // What is damaged and not looked at would wait for the next reader.
        let client = super::http(site)?;
        if let Some(asked) = site.current().first() {
            let _ = client.post(&asked.http, &format!("/api/v1/cluster/nodes/{node}/scrub"));
        }
        Ok(format!("{said}; {}", word.lines().next().unwrap_or_default().trim()))
    };
    match begin() {
        // Nothing was damaged; the undoing starts the node again.
        Err(SiteError::File { path, source }) => Outcome::Skipped(format!("{}: {source}", path.display())),
        other => outcome(other),
    }
}

pub fn old_copy(site: &Site, node: u64) -> Outcome {
    let begin = || -> Result<String, SiteError> {
        let id = node.to_string();
        let data = stopped(site, node)?;
        let older = data.with_file_name("data.older");
        damage::copy(&data, &older).map_err(|error| SiteError::file(&older, error))?;
        site.command(&["cluster", "start", &id])?;
        std::thread::sleep(OLDER);
        stopped(site, node)?;
        fs::remove_dir_all(&data).map_err(|error| SiteError::file(&data, error))?;
        fs::rename(&older, &data).map_err(|error| SiteError::file(&data, error))?;
        let word = match site.command(&["cluster", "start", &id]) {
            Ok(text) => text,
            Err(error) => error.to_string(),
        };
        let word = word.lines().next().unwrap_or_default().trim().to_owned();
        Ok(format!(
            "node {node} has its directory of {} s ago; {word}",
            OLDER.as_secs()
        ))
    };
    outcome(begin())
}

pub fn filler(site: &Site) -> Result<PathBuf, SiteError> {
    let disk = site.disk.as_ref().ok_or_else(|| {
        SiteError::Unknown("there is no small disk to fill; the drill mounts one, as root, with cluster.disk".into())
    })?;
    Ok(disk.join("holdfast-chaos-filler"))
}

/// Bounded by the small disk it is on.
pub fn fill(site: &Site) -> Outcome {
    let begin = || -> Result<String, SiteError> {
        let path = filler(site)?;
        let failed = |error| SiteError::file(&path, error);
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        let block = vec![0; FILL_STEP];
        while file.write_all(&block).is_ok() {}
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(format!("{} MiB, to the last", bytes >> 20))
    };
    outcome(begin())
}

pub fn mount(path: &Path, bytes: u64) -> Outcome {
    let size = format!("size={bytes}");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
        .arg(path)
        .stderr(std::process::Stdio::null())
        .status();
    match mounted {
        Ok(status) if status.success() => Outcome::Installed(format!("{} MiB at {}", bytes >> 20, path.display())),
        Ok(_) => Outcome::Skipped("a file system cannot be mounted here: it takes root".into()),
        Err(error) => Outcome::Skipped(format!("mount: {error}")),
    }
}

pub fn power_cut(site: &Site, torn_seed: Option<u64>) -> Outcome {
    let begin = || -> Result<String, SiteError> {
        let shim = site
            .mirror
            .as_ref()
            .ok_or_else(|| SiteError::Unknown("no mirror".into()))?;
        let nodes = site.current();
        let processes: Vec<_> = nodes
            .iter()
            .filter_map(|node| Some((node.id, site.process(node.id).ok()?)))
            .collect();
        // All signals before any wait: the power goes at once.
        for (node, process) in &processes {
            let killed = process.signal(nix::sys::signal::Signal::SIGKILL);
            killed.map_err(|source| SiteError::Process { node: *node, source })?;
        }
        for (node, process) in &processes {
            if process.is_alive() {
                let _ = process.kill();
            }
            let _ = node;
        }
        let mut taken = Taken::default();
        for node in &nodes {
            let dir = site.entry(node.id)?.dir;
            let unsynced = torn_seed.map_or(Unsynced::Lost, |seed| Unsynced::Torn { seed });
            let cut = powercut::cut(node.id, &powercut::mirror(shim, node.id), &dir, unsynced, true);
            taken.add(cut.map_err(|error| SiteError::Unknown(error.to_string()))?);
        }
        Ok(format!(
            "{} nodes; {} unsynced bytes and {} names are gone, {} names are back",
            nodes.len(),
            taken.bytes,
            taken.names_lost,
            taken.names_returned
        ))
    };
    outcome(begin())
}
