//! Small files that are replaced as a whole: after a crash there is the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::sealed;

/// Ends the name of a file that is being written; one that is found was never finished.
pub const UNFINISHED: &str = "tmp";

/// Durably replaces the file with the sealed form of `body`.
pub fn replace(path: &Path, body: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension(UNFINISHED);
    let mut file = File::create(&unfinished)?;
    file.write_all(&sealed::seal_raw(body))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&unfinished, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// The body, or `None` if there is no such file.
///
/// # Errors
/// `InvalidData` when the file is damaged.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => sealed::open_raw(&bytes).map(|body| Some(body.to_vec())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
