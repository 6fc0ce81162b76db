//! What a warden did and how to undo it: lines of JSON, synced before each deed. A torn last line
//! is a deed that was never done.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::deed::Undo;
use crate::process::Process;
use crate::site::Site;

const EXTENSION: &str = "journal";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin { site: Box<Site>, warden: (u32, u64) },
    Planned { fault: String, undo: Vec<Undo> },
    Healed { fault: String },
}

/// A journal that is being written; its lock is held while its warden lives.
pub struct Journal {
    path: PathBuf,
    file: File,
}

/// Faults of one journal that were not healed.
#[derive(Clone, Debug)]
pub struct Leftover {
    pub journal: PathBuf,
    pub site: Site,
    /// The warden, if it still lives and will do it itself.
    pub warden: Option<Process>,
    pub faults: Vec<(String, Vec<Undo>)>,
}

/// Where wardens of this user keep their journals: `HOLDFAST_WARDEN_STATE`, else the state directory
/// of the user.
pub fn state_dir() -> PathBuf {
    let of = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    of("HOLDFAST_WARDEN_STATE")
        .or_else(|| of("XDG_STATE_HOME").map(|dir| dir.join("holdfast/chaos")))
        .or_else(|| of("HOME").map(|dir| dir.join(".local/state/holdfast/chaos")))
        .unwrap_or_else(|| PathBuf::from("/var/tmp/holdfast-chaos"))
}

impl Journal {
    /// # Errors
    /// The disk refuses.
    pub fn begin(dir: &Path, site: &Site) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let me = Process::of(std::process::id()).map_err(io::Error::other)?;
        let path = dir.join(format!("warden-{}-{}.{EXTENSION}", me.pid, me.started_ticks()));
        // It holds the operator's token.
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        file.try_lock()?;
        let mut journal = Self { path, file };
        journal.site(site)?;
        File::open(dir)?.sync_all()?;
        Ok(journal)
    }

    /// Where undoing happens from now on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn site(&mut self, site: &Site) -> io::Result<()> {
        let me = Process::of(std::process::id()).map_err(io::Error::other)?;
        self.put(&Line::Begin {
            site: Box::new(site.clone()),
            warden: (me.pid, me.started_ticks()),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// The disk refuses: then the deed must not be done.
    pub fn planned(&mut self, fault: &str, undo: &[Undo]) -> io::Result<()> {
        self.put(&Line::Planned {
            fault: fault.to_owned(),
            undo: undo.to_vec(),
        })
    }

    /// # Errors
    /// The disk refuses: it will be undone once more, which changes nothing.
    pub fn healed(&mut self, fault: &str) -> io::Result<()> {
        self.put(&Line::Healed {
            fault: fault.to_owned(),
        })
    }

    fn put(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)?;
        self.file.sync_data()
    }

    /// Nothing is left to undo.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Journals with something left to undo, oldest first. Those of wardens that live are told too.
///
/// # Errors
/// The directory cannot be read.
pub fn leftovers(dir: &Path) -> io::Result<Vec<Leftover>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    paths.sort();
    Ok(paths.iter().filter_map(|path| read(path)).collect())
}

fn read(path: &Path) -> Option<Leftover> {
    let text = fs::read_to_string(path).ok()?;
    let (mut site, mut warden) = (None, None);
    let mut open: BTreeMap<usize, (String, Vec<Undo>)> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(Line::Begin {
                site: of,
                warden: (pid, started),
            }) => {
                site = Some(*of);
                warden = Some(Process::known(pid, started)).filter(Process::is_alive);
            }
            Ok(Line::Planned { fault, undo }) => drop(open.insert(at, (fault, undo))),
            Ok(Line::Healed { fault }) => open.retain(|_, (name, _)| *name != fault),
            Err(_) => break,
        }
    }
    Some(Leftover {
        journal: path.to_owned(),
        site: site?,
        warden,
        faults: open.into_values().collect(),
    })
}

impl Leftover {
    /// Undoes what is left, the newest first, and removes the journal if everything was undone.
    /// Returns what could not be, by fault.
    pub fn heal(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        for (fault, undo) in self.faults.iter().rev() {
            for step in undo {
                if let Err(error) = step.run(&self.site) {
                    problems.push((fault.clone(), error.to_string()));
                }
            }
        }
        if problems.is_empty() {
            let _ = fs::remove_file(&self.journal);
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        Site {
            program: "/bin/true".into(),
            dir: None,
            env: Vec::new(),
            token: "t".into(),
            nodes: Vec::new(),
            mirror: None,
            disk: None,
        }
    }

    /// What was planned and not healed is found, also behind a torn line, and healing removes it.
    #[test]
    fn what_was_not_healed_is_found_and_finished() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        fs::write(&mark, "x").unwrap();
        let mut journal = Journal::begin(dir.path(), &site()).unwrap();
        let undo = [Undo::Remove { path: mark.clone() }];
        journal.planned("a", &undo).unwrap();
        journal.planned("b", &undo).unwrap();
        journal.healed("b").unwrap();
        journal.file.write_all(b"{\"planned\":{\"fau").unwrap();
        let found = leftovers(dir.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].warden.is_some(), "this process wrote it and lives");
        assert_eq!(found[0].faults, [("a".to_owned(), undo.to_vec())]);
        assert!(mark.exists());
        assert_eq!(found[0].heal(), []);
        assert!(!mark.exists() && leftovers(dir.path()).unwrap().is_empty());
    }

    /// What cannot be undone stays in the journal.
    #[test]
    fn what_cannot_be_undone_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), &site()).unwrap();
        journal
            .planned("a", &[Undo::Start { node: 1 }, Undo::StartAll])
            .unwrap();
        let found = leftovers(dir.path()).unwrap();
        assert_eq!(
            found[0].heal().len(),
            1,
            "a cluster known by address only cannot be started"
        );
        assert_eq!(leftovers(dir.path()).unwrap().len(), 1);
    }
}
