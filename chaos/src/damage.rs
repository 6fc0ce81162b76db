//! Damage to the files of a node that does not run.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Files shorter than this hold nothing worth damaging.
const BYTES_MIN: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    BitFlip,
    Truncate,
    Missing,
}

/// Damages the largest file of `store`, and tells what was done to which.
///
/// # Errors
/// There is nothing to damage, or the disk refuses.
pub fn damage(store: &Path, how: Damage) -> io::Result<String> {
    let (path, bytes) = largest(store)?;
    match how {
        Damage::BitFlip => flip(&path, bytes)?,
        Damage::Truncate => OpenOptions::new().write(true).open(&path)?.set_len(bytes / 2)?,
        Damage::Missing => fs::remove_file(&path)?,
    }
    let done = match how {
        Damage::BitFlip => "bits flipped",
        Damage::Truncate => "cut in half",
        Damage::Missing => "removed",
    };
    Ok(format!("{} ({bytes} bytes): {done}", path.display()))
}

/// Tables of the store are what counts; a store that has none yet has its log.
fn largest(store: &Path) -> io::Result<(PathBuf, u64)> {
    let mut found: Vec<(bool, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let about = entry.metadata()?;
        let counts = name.ends_with(".sst") || name.ends_with(".log");
        if about.is_file() && counts && about.len() >= BYTES_MIN {
            found.push((name.ends_with(".sst"), about.len(), entry.path()));
        }
    }
    let most = found.into_iter().max();
    let (_, bytes, path) =
        most.ok_or_else(|| io::Error::other(format!("{} holds nothing to damage", store.display())))?;
    Ok((path, bytes))
}

/// One bit in every 200 bytes, but for the first and last hundred: wherever a reader looks, it meets one.
fn flip(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut at = 100;
    while at + 100 < bytes {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 0x10;
        file.write_all_at(&byte, at)?;
        at += 200;
    }
    file.sync_all()
}

/// # Errors
/// The disk refuses.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damage_bites_the_largest_file_and_no_other() {
        for how in [Damage::BitFlip, Damage::Truncate, Damage::Missing] {
            let dir = tempfile::tempdir().unwrap();
            let write = |name: &str, bytes: usize| fs::write(dir.path().join(name), vec![7; bytes]).unwrap();
            write("000001.sst", 5_000);
            write("000002.sst", 9_000);
            write("000003.log", 90_000);
            write("IDENTITY", 90_000);
            let said = damage(dir.path(), how).unwrap();
            assert!(said.contains("000002.sst"), "{said}");
            let now = fs::read(dir.path().join("000002.sst")).unwrap_or_default();
            assert_ne!(now, vec![7; 9_000], "{how:?}");
            assert_eq!(fs::read(dir.path().join("000001.sst")).unwrap(), vec![7; 5_000]);
            assert_eq!(fs::read(dir.path().join("000003.log")).unwrap(), vec![7; 90_000]);
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(damage(empty.path(), Damage::BitFlip).is_err());
    }
}
