//! Reads histories back, block by block.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::block::{BlockHeader, BlockKind, HEADER_BYTES};
use super::op::{decode, Record};
use super::writer::Header;
use super::{EXTENSION, FORMAT};

/// How a part ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// In order.
    Closed,
    /// The recorder was killed, or still records: what was in flight is not in it.
    Open,
    /// The last bytes are no whole block; everything before them was read.
    Torn,
}

/// What came after the last record of a part.
#[derive(Clone, Debug)]
pub struct Tail {
    pub ending: Ending,
    pub records: u64,
    /// Segments at the beginning that were deleted to save room.
    pub missing_segments: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartPath {
    pub part: String,
    /// In order.
    pub segments: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no history: {why}")]
    Foreign { path: PathBuf, why: String },
    /// A damaged block with whole ones behind it: not the torn end of a crash.
    #[error("{path} is damaged at byte {offset}")]
    Damaged { path: PathBuf, offset: u64 },
}

/// The parts of a history directory, by name.
///
/// # Errors
/// The directory cannot be read, or holds no history.
pub fn parts(dir: &Path) -> Result<Vec<PartPath>, Broken> {
    let io = |source| Broken::Io {
        path: dir.to_owned(),
        source,
    };
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            names.push(path);
        }
    }
    names.sort();
    let mut found: Vec<PartPath> = Vec::new();
    for path in names {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let part = stem.rsplit_once('-').map_or(stem, |(part, _)| part).to_owned();
        match found.last_mut() {
            Some(last) if last.part == part => last.segments.push(path),
            _ => found.push(PartPath {
                part,
                segments: vec![path],
            }),
        }
    }
    if found.is_empty() {
        return Err(Broken::Foreign {
            path: dir.to_owned(),
            why: format!("there is no *.{EXTENSION} in it"),
        });
    }
    Ok(found)
}

/// Reads every record of every part.
///
/// # Errors
/// A file cannot be read, is none of ours, or is damaged in the middle.
pub fn read(dir: &Path, mut each: impl FnMut(Record)) -> Result<Vec<Tail>, Broken> {
    parts(dir)?.iter().map(|part| read_part(part, &mut each)).collect()
}

/// Reads every record of one part, in the order of recording.
///
/// # Errors
/// As [`read`].
pub fn read_part(part: &PartPath, each: &mut impl FnMut(Record)) -> Result<Tail, Broken> {
    let mut tail = Tail {
        ending: Ending::Open,
        records: 0,
        missing_segments: 0,
    };
    let last = part.segments.len() - 1;
    for (at, path) in part.segments.iter().enumerate() {
        let mut segment = Segment::open(path)?;
        let header = match segment.header()? {
            Some(header) => header,
            // Just begun, or cut off before it began.
            None if at == last => break,
            None => return Err(segment.damaged()),
        };
        if at == 0 {
            tail.missing_segments = header.segment;
        }
        loop {
            match segment.block()? {
                Some(BlockKind::Records) => tail.records += segment.records(each)?,
                Some(BlockKind::End) => {
                    tail.ending = Ending::Closed;
                    break;
                }
                Some(BlockKind::Header) => return Err(segment.damaged()),
                None if segment.torn && at < last => return Err(segment.damaged()),
                None => {
                    if segment.torn {
                        tail.ending = Ending::Torn;
                    }
                    break;
                }
            }
        }
    }
    Ok(tail)
}

struct Segment<'a> {
    path: &'a Path,
    file: BufReader<File>,
    offset: u64,
    header: [u8; HEADER_BYTES],
    block: Option<BlockHeader>,
    payload: Vec<u8>,
    torn: bool,
}

impl<'a> Segment<'a> {
    fn open(path: &'a Path) -> Result<Self, Broken> {
        let file = File::open(path).map_err(|source| Broken::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path,
            file: BufReader::with_capacity(256 * 1024, file),
            offset: 0,
            header: [0; HEADER_BYTES],
            block: None,
            payload: Vec::new(),
            torn: false,
        })
    }

    /// `None`: the file ends before its first block does.
    fn header(&mut self) -> Result<Option<Header>, Broken> {
        let foreign = |path: &Path, why: String| Broken::Foreign {
            path: path.to_owned(),
            why,
        };
        match self.block() {
            Ok(Some(BlockKind::Header)) => {}
            Ok(None) if self.offset < HEADER_BYTES as u64 || self.block.is_none() && self.is_ours() => return Ok(None),
            _ => return Err(foreign(self.path, "it does not begin as one".into())),
        }
        let header: Header =
            serde_json::from_slice(&self.payload).map_err(|error| foreign(self.path, error.to_string()))?;
        if header.format != FORMAT {
            let why = format!("format {} is not {FORMAT}, which this version reads", header.format);
            return Err(foreign(self.path, why));
        }
        Ok(Some(header))
    }

    /// Whether what was read begins as a block of ours does.
    fn is_ours(&self) -> bool {
        BlockHeader::read(&self.header).is_some()
    }

    /// Reads the next block; `None` at the end, or where the end is torn.
    fn block(&mut self) -> Result<Option<BlockKind>, Broken> {
        let start = self.offset;
        let got = self.fill_header()?;
        if got < HEADER_BYTES {
            self.torn = got > 0;
            return Ok(None);
        }
        let Some(block) = BlockHeader::read(&self.header) else {
            return self.bad(start);
        };
        self.payload.resize(block.length as usize, 0);
        let mut payload = std::mem::take(&mut self.payload);
        let got = self.fill(&mut payload)?;
        self.payload = payload;
        if got < self.payload.len() {
            self.torn = true;
            return Ok(None);
        }
        if !block.holds(&self.header, &self.payload) {
            return self.bad(start);
        }
        self.block = Some(block);
        Ok(Some(block.kind))
    }

    /// A block that is not whole: torn when nothing follows it, damage otherwise.
    fn bad(&mut self, start: u64) -> Result<Option<BlockKind>, Broken> {
        let mut rest = Vec::new();
        self.file.read_to_end(&mut rest).map_err(|source| self.io(source))?;
        // Whatever a crash left behind the last whole block holds no further one.
        let magic = [0x48, 0x46, 0x48, 0x42];
        if rest.windows(4).any(|bytes| bytes == magic) {
            self.offset = start;
            return Err(self.damaged());
        }
        self.torn = true;
        Ok(None)
    }

    fn records(&mut self, each: &mut impl FnMut(Record)) -> Result<u64, Broken> {
        let block = self.block.expect("a block was just read");
        let (mut rest, mut before) = (self.payload.as_slice(), block.base_us);
        for _ in 0..block.records {
            match decode(&mut rest, &mut before) {
                Some(record) => each(record),
                None => return Err(self.damaged()),
            }
        }
        Ok(u64::from(block.records))
    }

    fn fill_header(&mut self) -> Result<usize, Broken> {
        let mut header = [0u8; HEADER_BYTES];
        let got = self.fill(&mut header)?;
        self.header = header;
        Ok(got)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Broken> {
        let mut got = 0;
        while got < buffer.len() {
            match self.file.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
        self.offset += got as u64;
        Ok(got)
    }

    fn io(&self, source: io::Error) -> Broken {
        Broken::Io {
            path: self.path.to_owned(),
            source,
        }
    }

    fn damaged(&self) -> Broken {
        Broken::Damaged {
            path: self.path.to_owned(),
            offset: self.offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::op::{Kind, Op};
    use super::super::Writer;
    use super::*;

    fn op(n: u64) -> Record {
        let mut op = Op::new(3, Kind::Telemetry, n);
        (op.intended_us, op.sent_us, op.done_us) = (n * 1_000, n * 1_000 + 5, n * 1_000 + 900);
        Record::Op(op)
    }

    fn write(dir: &Path, count: u64, close: bool) {
        let mut writer = Writer::create(dir, Header::new(1, "a", "t", 1), None).unwrap();
        (1..=count).for_each(|n| writer.record(&op(n)));
        writer.flush();
        if close {
            assert_eq!(writer.close().unwrap(), count);
        }
    }

    fn collect(dir: &Path) -> Result<(Vec<Record>, Vec<Tail>), Broken> {
        let mut found = Vec::new();
        let tails = read(dir, |record| found.push(record))?;
        Ok((found, tails))
    }

    fn segment(dir: &Path) -> PathBuf {
        parts(dir).unwrap()[0].segments[0].clone()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 20_000, true);
        let (found, tails) = collect(dir.path()).unwrap();
        assert_eq!(found, (1..=20_000).map(op).collect::<Vec<_>>());
        assert_eq!((tails[0].ending, tails[0].records), (Ending::Closed, 20_000));
        let bytes = fs::metadata(segment(dir.path())).unwrap().len();
        assert!(bytes < 20_000 * 20, "{bytes} bytes are not compact");
    }

    /// Cut anywhere, a history gives back a beginning of what was recorded, and tells its end.
    #[test]
    fn a_torn_end_loses_only_the_end() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 20_000, false);
        let path = segment(dir.path());
        let whole = fs::read(&path).unwrap();
        let (_, tails) = collect(dir.path()).unwrap();
        assert_eq!(tails[0].ending, Ending::Open);
        for cut in [whole.len() - 1, whole.len() - 40_000, 66_000, 400] {
            fs::write(&path, &whole[..cut]).unwrap();
            let (found, tails) = collect(dir.path()).unwrap();
            assert_eq!(found, (1..=found.len() as u64).map(op).collect::<Vec<_>>());
            assert_eq!(tails[0].ending, Ending::Torn, "cut at {cut}");
        }
    }

    #[test]
    fn damage_in_the_middle_is_told() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 20_000, true);
        let path = segment(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[30_000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(collect(dir.path()), Err(Broken::Damaged { .. })));
        fs::write(&path, b"something else entirely, and long enough for a header").unwrap();
        assert!(matches!(collect(dir.path()), Err(Broken::Foreign { .. })));
    }
}
