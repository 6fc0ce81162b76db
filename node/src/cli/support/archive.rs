//! The archive: a gzipped tar that is bounded, private to its owner, and there as a whole or not
//! at all. Says at its end what is in it and what is missing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::write::GzEncoder;
use flate2::Compression;
use serde_json::{json, Value};

use super::redact::Redactor;
use crate::cli::failure::Failure;

/// Bytes of everything together, before compression.
const BYTES_MAX: u64 = 256 << 20;

pub struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    file: PathBuf,
    partial: PathBuf,
    /// Everything lies in a directory of this name.
    root: String,
    redactor: Redactor,
    files: Vec<Value>,
    missing: Vec<Value>,
    bytes: u64,
    finished: bool,
}

/// What became of it.
pub struct Done {
    pub file: PathBuf,
    pub bytes: u64,
    pub files: usize,
    pub missing: Vec<Value>,
}

impl Archive {
    /// # Errors
    /// The file exists (65) or cannot be made (74).
    pub fn create(file: &Path, root: &str, redactor: Redactor) -> Result<Self, Failure> {
        if file.exists() {
            return Err(super::taken(file));
        }
        let mut partial = file.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial);
        let opened = opened.map_err(|e| Failure::disk(format!("cannot write {}", partial.display()), &e))?;
        Ok(Self {
            tar: tar::Builder::new(GzEncoder::new(opened, Compression::default())),
            file: file.to_owned(),
            partial,
            root: root.to_owned(),
            redactor,
            files: Vec::new(),
            missing: Vec::new(),
            bytes: 0,
            finished: false,
        })
    }

    /// Adds a document, without its secrets.
    ///
    /// # Errors
    /// The archive cannot be written (74). What exceeds the bound is noted as missing instead.
    pub fn add(&mut self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        let clean = self.redactor.clean(bytes);
        if self.bytes + clean.len() as u64 > BYTES_MAX {
            self.miss(path, format!("the archive would exceed {BYTES_MAX} bytes"));
            return Ok(());
        }
        self.bytes += clean.len() as u64;
        self.files.push(json!({ "path": path, "bytes": clean.len() }));
        self.append(path, &clean)
    }

    /// # Errors
    /// As [`Self::add`].
    pub fn json(&mut self, path: &str, value: &Value) -> Result<(), Failure> {
        self.add(path, format!("{value:#}\n").as_bytes())
    }

    /// Notes what could not be collected.
    pub fn miss(&mut self, what: &str, why: impl std::fmt::Display) {
        self.missing.push(json!({ "what": what, "why": why.to_string() }));
    }

    fn append(&mut self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        header.set_mtime(since.map_or(0, |since| since.as_secs()));
        let path = format!("{}/{path}", self.root);
        let added = self.tar.append_data(&mut header, path, bytes);
        added.map_err(|e| Failure::disk(format!("cannot write {}", self.partial.display()), &e))
    }

    /// Writes the manifest and gives the archive its name.
    ///
    /// # Errors
    /// The disk refuses (74); nothing is left behind.
    pub fn finish(mut self, mut about: Value) -> Result<Done, Failure> {
        about["files"] = Value::Array(self.files.clone());
        about["missing"] = Value::Array(self.missing.clone());
        let manifest = self.redactor.clean(format!("{about:#}\n").as_bytes());
        self.append("manifest.json", &manifest)?;
        let failed = |e: std::io::Error| Failure::disk(format!("cannot write {}", self.file.display()), &e);
        self.tar.finish().map_err(failed)?;
        self.tar.get_mut().try_finish().map_err(failed)?;
        self.tar.get_ref().get_ref().sync_all().map_err(failed)?;
        fs::rename(&self.partial, &self.file).map_err(failed)?;
        self.finished = true;
        Ok(Done {
            bytes: fs::metadata(&self.file).map_or(0, |found| found.len()),
            file: self.file.clone(),
            files: self.files.len() + 1,
            missing: std::mem::take(&mut self.missing),
        })
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if !self.finished {
            // An unfinished archive helps nobody; that it stays behind would be no harm.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
