//! Writes one part of a history: one thread, one block of memory.
//!
//! What is recorded reaches the operating system within a block or a call of `flush`, and so
//! survives the end of this process; segments are synced to disk when they are closed. After a
//! failed write the writer takes nothing more and says so: a history with a hole would accuse the
//! product of losses that nobody saw.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::block::{seal, BlockKind};
use super::op::{encode, Record};
use super::{EXTENSION, FORMAT};

/// Records are written when so many bytes are there.
const BLOCK_BYTES: usize = 64 * 1024;
/// Segments are closed at this size. Unit: bytes.
const SEGMENT_BYTES: u64 = 64 << 20;

/// What the first block of each segment says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    pub run: u32,
    pub part: String,
    /// Number of the segment within its part, from 0.
    pub segment: u32,
    pub scenario: String,
    pub seed: u64,
}

impl Header {
    pub fn new(run: u32, part: &str, scenario: &str, seed: u64) -> Self {
        Self {
            format: FORMAT,
            run,
            part: part.to_owned(),
            segment: 0,
            scenario: scenario.to_owned(),
            seed,
        }
    }
}

pub struct Writer {
    dir: PathBuf,
    header: Header,
    file: File,
    written: u64,
    block: Vec<u8>,
    base_us: u64,
    before_us: u64,
    in_block: u32,
    records: u64,
    /// Segments closed and still there, oldest first, with their sizes.
    closed: Vec<(PathBuf, u64)>,
    bytes_max: Option<u64>,
    failed: Option<String>,
    scratch: Vec<u8>,
}

impl Writer {
    /// Begins a part. `bytes_max` bounds its segments; beyond, the oldest are deleted.
    ///
    /// # Errors
    /// The first segment cannot be made.
    pub fn create(dir: &Path, header: Header, bytes_max: Option<u64>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut writer = Self {
            file: open(dir, &header)?,
            dir: dir.to_owned(),
            header,
            written: 0,
            block: Vec::with_capacity(BLOCK_BYTES + 256),
            base_us: 0,
            before_us: 0,
            in_block: 0,
            records: 0,
            closed: Vec::new(),
            bytes_max,
            failed: None,
            scratch: Vec::new(),
        };
        writer.put_header()?;
        Ok(writer)
    }

    /// Takes a record. After a failure it is let go of; see [`Writer::failure`].
    pub fn record(&mut self, record: &Record) {
        if self.failed.is_some() {
            return;
        }
        if self.in_block == 0 {
            let at = match record {
                Record::Op(op) => op.done_us,
                Record::Note(note) => note.at_us,
            };
            (self.base_us, self.before_us) = (at, at);
        }
        encode(record, &mut self.before_us, &mut self.block);
        (self.in_block, self.records) = (self.in_block + 1, self.records + 1);
        if self.block.len() >= BLOCK_BYTES {
            self.flush();
        }
    }

    /// Hands what is there to the operating system.
    pub fn flush(&mut self) {
        if self.in_block == 0 || self.failed.is_some() {
            return;
        }
        let block = std::mem::take(&mut self.block);
        let result = self.put(BlockKind::Records, self.in_block, &block).and_then(|()| {
            if self.written >= SEGMENT_BYTES {
                self.next_segment()?;
            }
            Ok(())
        });
        self.block = block;
        self.block.clear();
        self.in_block = 0;
        if let Err(error) = result {
            self.failed = Some(error.to_string());
        }
    }

    pub fn records(&self) -> u64 {
        self.records
    }

    /// Why nothing more is recorded, if that is so.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Ends the part in order.
    ///
    /// # Errors
    /// Something could not be written, now or before.
    pub fn close(mut self) -> io::Result<u64> {
        self.flush();
        if let Some(failed) = self.failed {
            return Err(io::Error::other(failed));
        }
        let end = serde_json::json!({ "records": self.records });
        self.put(BlockKind::End, 0, end.to_string().as_bytes())?;
        self.file.sync_data()?;
        Ok(self.records)
    }

    fn put_header(&mut self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.header).map_err(io::Error::other)?;
        self.put(BlockKind::Header, 0, &text)
    }

    fn put(&mut self, kind: BlockKind, records: u32, payload: &[u8]) -> io::Result<()> {
        self.scratch.clear();
        seal(kind, records, self.base_us, payload, &mut self.scratch);
        self.file.write_all(&self.scratch)?;
        self.written += self.scratch.len() as u64;
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.closed.push((path(&self.dir, &self.header), self.written));
        self.header.segment += 1;
        self.file = open(&self.dir, &self.header)?;
        self.written = 0;
        self.put_header()?;
        while let Some(bytes_max) = self.bytes_max {
            let kept: u64 = self.closed.iter().map(|(_, size)| size).sum();
            if kept + SEGMENT_BYTES <= bytes_max || self.closed.is_empty() {
                break;
            }
            let (oldest, _) = self.closed.remove(0);
            fs::remove_file(oldest)?;
        }
        Ok(())
    }
}

fn path(dir: &Path, header: &Header) -> PathBuf {
    dir.join(format!("{}-{:06}.{EXTENSION}", header.part, header.segment))
}

fn open(dir: &Path, header: &Header) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path(dir, header))
}
