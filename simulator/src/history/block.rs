//! A block: a header with length and checksum, and what it holds.

/// Bytes of a header: magic, kind, records, length, base time, checksum.
pub const HEADER_BYTES: usize = 28;
const MAGIC: u32 = 0x4248_4648; // "HFHB"
/// Bytes a block may say it holds; beyond, it is damaged.
pub const PAYLOAD_BYTES_MAX: u32 = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// JSON about the run; the first of each segment.
    Header = 1,
    Records = 2,
    /// The part was closed in order. JSON with its counts.
    End = 3,
}

#[derive(Clone, Copy, Debug)]
pub struct BlockHeader {
    pub kind: BlockKind,
    pub records: u32,
    pub length: u32,
    pub base_us: u64,
    checksum: u32,
}

/// The bytes of a block.
pub fn seal(kind: BlockKind, records: u32, base_us: u64, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    out.extend_from_slice(&records.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&base_us.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&out[start..]), payload);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(payload);
}

impl BlockHeader {
    /// `None`: these bytes are no header.
    pub fn read(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match bytes[4] {
            1 => BlockKind::Header,
            2 => BlockKind::Records,
            3 => BlockKind::End,
            _ => return None,
        };
        let header = Self {
            kind,
            records: word(8),
            length: word(12),
            base_us: u64::from(word(16)) | u64::from(word(20)) << 32,
            checksum: word(24),
        };
        (word(0) == MAGIC && header.length <= PAYLOAD_BYTES_MAX).then_some(header)
    }

    pub fn holds(&self, bytes: &[u8; HEADER_BYTES], payload: &[u8]) -> bool {
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..HEADER_BYTES - 4]), payload);
        checksum == self.checksum
    }
}
