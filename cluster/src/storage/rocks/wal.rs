//! Tells a torn last write from damage, before RocksDB reads its WAL.
//!
//! RocksDB cannot: a damaged length near the end passes for a torn tail (acknowledged entries are
//! lost in silence), and a torn write of many pages passes for damage (the node never starts
//! again). Here every batch begins and ends with a mark: up to which sequence number the WAL was
//! synced when the batch was written. What cannot be read and was synced, by the word of any
//! readable batch behind it, is damage; otherwise it was never acknowledged and is cut off.
//!
//! Knows the WAL's framing (blocks of 32 KiB, fragments with a masked crc32c) and the head of a
//! batch, nothing of the rows.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::storage::StorageOpenError;

const BLOCK: usize = 32 * 1024;
/// `masked crc32c u32 LE (over type and payload) | length u16 LE | type u8`
const HEADER: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// `sequence u64 LE | count u32 LE`, then the mark as RocksDB's log data: `tag | length | bytes`.
const BATCH_HEAD: usize = 12 + 2 + Mark::LEN;
const LOG_DATA: u8 = 3;

/// What a batch says about those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Stands for this database. Devices choose bytes of the WAL but do not know it, so what they
    /// send is never taken for a mark.
    pub database: u64,
    /// Every change up to this sequence number was durable.
    pub synced: u64,
}

impl Mark {
    const LEN: usize = 16;

    pub fn bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.database.to_le_bytes());
        out[8..].copy_from_slice(&self.synced.to_le_bytes());
        out
    }
}

/// The number that stands for the database in `dir`, `None` if there is none.
pub fn database_of(dir: &Path) -> io::Result<Option<u64>> {
    match fs::read(dir.join("IDENTITY")) {
        Ok(text) => Ok(Some(xxhash_rust::xxh3::xxh3_64(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Cuts off a torn last write.
///
/// # Errors
/// `Corrupt` when something that was durable cannot be read any more; nothing was changed.
pub fn mend(dir: &Path) -> Result<(), StorageOpenError> {
    let disk = |source| StorageOpenError::Disk {
        dir: dir.to_owned(),
        source,
    };
    let files = wal_files(dir).map_err(disk)?;
    let database = database_of(dir).map_err(disk)?;
    let mut scan = Scan::new(database);
    for (n, file) in files.iter().enumerate() {
        let bytes = fs::read(file).map_err(disk)?;
        scan.file(n, &bytes);
    }
    match scan.verdict() {
        Verdict::Intact => Ok(()),
        Verdict::Torn { file, len } => cut(&files[file..], len).map_err(disk),
        Verdict::Damaged { file, at } => Err(StorageOpenError::Corrupt {
            dir: dir.to_owned(),
            reason: format!(
                "{} cannot be read at byte {at}, which was durable",
                files[file].display()
            ),
        }),
    }
}

/// Looks through the files of a running log. What is being written just now is at their end, and
/// nothing behind it says that it was durable.
///
/// # Errors
/// `InvalidData` when something that was durable cannot be read any more.
pub fn check(dir: &Path) -> io::Result<()> {
    let mut scan = Scan::new(database_of(dir)?);
    let files = wal_files(dir)?;
    for (n, file) in files.iter().enumerate() {
        match fs::read(file) {
            Ok(bytes) => scan.file(n, &bytes),
            // Flushed and let go of since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    match scan.verdict() {
        Verdict::Damaged { file, at } if files[file].exists() => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} cannot be read at byte {at}, which was durable",
                files[file].display()
            ),
        )),
        _ => Ok(()),
    }
}

/// The first file keeps `len` bytes, the others none: what they hold came later.
fn cut(files: &[PathBuf], len: usize) -> io::Result<()> {
    for (n, path) in files.iter().enumerate() {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(if n == 0 { len as u64 } else { 0 })?;
        file.sync_all()?;
    }
    Ok(())
}

fn wal_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    let entries = match dir.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|e| e == "log")) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Intact,
    /// `len` bytes of the file are good, and nothing behind them was ever durable.
    Torn {
        file: usize,
        len: usize,
    },
    Damaged {
        file: usize,
        at: usize,
    },
}

/// Reads all files as one sequence of batches.
struct Scan {
    database: Option<u64>,
    /// Sequence number of the change that comes next, once a batch was read.
    next: Option<u64>,
    /// Where the first unreadable batch begins.
    bad: Option<(usize, usize)>,
    /// Something behind it says that it was durable.
    was_synced: bool,
}

struct Fragment<'a> {
    kind: u8,
    payload: &'a [u8],
    end: usize,
}

impl Scan {
    fn new(database: Option<u64>) -> Self {
        Self {
            database,
            next: None,
            bad: None,
            was_synced: false,
        }
    }

    fn verdict(self) -> Verdict {
        match self.bad {
            None => Verdict::Intact,
            Some((file, at)) if self.was_synced || self.database.is_none() => Verdict::Damaged { file, at },
            Some((file, len)) => Verdict::Torn { file, len },
        }
    }

    fn file(&mut self, file: usize, bytes: &[u8]) {
        let mut at = 0;
        // Where the open record began, and its first bytes.
        let mut open: Option<(usize, Vec<u8>)> = None;
        loop {
            at = skip_trailer(at);
            if at >= bytes.len() {
                break;
            }
            let Some(fragment) = read_fragment(bytes, at) else {
                self.mark_bad(file, open.take().map_or(at, |(began, _)| began));
                at = find_fragment(bytes, at + 1);
                continue;
            };
            match (fragment.kind, &mut open) {
                (FULL | FIRST, None) => open = Some((at, head_of(fragment.payload))),
                (MIDDLE | LAST, Some((_, head))) => extend_head(head, fragment.payload),
                // The rest of a record whose beginning could not be read, already marked.
                (MIDDLE, None) if self.bad.is_some() => {}
                (LAST, None) if self.bad.is_some() => self.hear(mark_at_end(fragment.payload)),
                (FULL | FIRST, Some(_)) | (MIDDLE | LAST, None) => {
                    let began = open.take().map_or(at, |(began, _)| began);
                    self.mark_bad(file, began);
                    continue_with(&mut open, &fragment, at);
                }
                // Records that are not batches: RocksDB's own notes.
                _ => {}
            }
            if let (FULL | LAST, Some((began, head))) = (fragment.kind, &open) {
                self.batch(file, *began, head);
                open = None;
            }
            at = fragment.end;
        }
        if let Some((began, _)) = open {
            self.mark_bad(file, began);
        }
    }

    fn mark_bad(&mut self, file: usize, at: usize) {
        self.bad.get_or_insert((file, at));
    }

    fn batch(&mut self, file: usize, began: usize, head: &[u8]) {
        let Some((sequence, count)) = numbers(head) else {
            return self.mark_bad(file, began);
        };
        // Whole batches are missing in between. Between files that may be: files whose contents were
        // flushed linger, or are gone already.
        if began > 0 && self.next.is_some_and(|next| next < sequence) {
            self.mark_bad(file, began);
        }
        if self.bad.is_none() {
            self.next = Some(sequence + u64::from(count));
            return;
        }
        self.hear(head.get(12..).and_then(read_mark));
    }

    /// Takes the word of something behind the first unreadable batch.
    fn hear(&mut self, mark: Option<Mark>) {
        if let Some(mark) = mark.filter(|mark| Some(mark.database) == self.database) {
            // Without a readable batch before it, it is not known what is missing: any mark counts.
            self.was_synced |= self.next.is_none_or(|next| mark.synced >= next);
        }
    }
}

fn continue_with(open: &mut Option<(usize, Vec<u8>)>, fragment: &Fragment<'_>, at: usize) {
    if matches!(fragment.kind, FULL | FIRST) {
        *open = Some((at, head_of(fragment.payload)));
    }
}

fn head_of(payload: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(BATCH_HEAD);
    extend_head(&mut head, payload);
    head
}

fn extend_head(head: &mut Vec<u8>, payload: &[u8]) {
    let wanted = BATCH_HEAD - head.len();
    head.extend_from_slice(&payload[..wanted.min(payload.len())]);
}

fn numbers(head: &[u8]) -> Option<(u64, u32)> {
    let (sequence, rest) = head.split_first_chunk()?;
    let (count, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*sequence), u32::from_le_bytes(*count)))
}

fn read_mark(bytes: &[u8]) -> Option<Mark> {
    let (tag, bytes) = bytes.split_first_chunk::<2>()?;
    let (database, synced) = bytes.split_first_chunk()?;
    let (synced, _) = synced.split_first_chunk()?;
    (usize::from(tag[1]) == Mark::LEN && tag[0] == LOG_DATA).then_some(Mark {
        database: u64::from_le_bytes(*database),
        synced: u64::from_le_bytes(*synced),
    })
}

fn mark_at_end(payload: &[u8]) -> Option<Mark> {
    read_mark(payload.get(payload.len().checked_sub(2 + Mark::LEN)?..)?)
}

/// The end of a block is too small for a header.
fn skip_trailer(at: usize) -> usize {
    let left = BLOCK - at % BLOCK;
    if left < HEADER {
        at + left
    } else {
        at
    }
}

fn read_fragment(bytes: &[u8], at: usize) -> Option<Fragment<'_>> {
    let block_end = bytes.len().min(at - at % BLOCK + BLOCK);
    let header = bytes.get(at..at + HEADER).filter(|_| at + HEADER <= block_end)?;
    let kind = header[6];
    let end = at + HEADER + usize::from(u16::from_le_bytes([header[4], header[5]]));
    if kind == 0 || end > block_end {
        return None;
    }
    let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    // Type and payload are adjacent.
    let found = crc32c::crc32c(&bytes[at + HEADER - 1..end]);
    let masked = found.rotate_right(15).wrapping_add(0xa282_ead8);
    (masked == stored).then_some(Fragment {
        kind,
        payload: &bytes[at + HEADER..end],
        end,
    })
}

/// The next place that holds a whole fragment, whatever it belongs to.
fn find_fragment(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len()
        && !(matches!(bytes.get(at + HEADER - 1), Some(FULL..=LAST)) && read_fragment(bytes, at).is_some())
    {
        at += 1;
    }
    at
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
