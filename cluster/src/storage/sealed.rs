//! A checksum and a format version around every value on disk, above the storage engine's own.
//!
//! Layout as `actors::wire::codec`: `version u8 | crc32c u32 LE (over version and body) | body`.
//! Knows nothing of what the body means.

use std::io;

use actors::wire::codec;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = codec::HEADER_LEN;

/// Appends the sealed form of `body` to `out`.
pub fn seal_into(out: &mut Vec<u8>, body: &[u8]) {
    let version = [codec::FORMAT_VERSION];
    let crc = crc32c::crc32c_append(crc32c::crc32c(&version), body);
    out.reserve(OVERHEAD + body.len());
    out.extend_from_slice(&version);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
}

/// Returns the sealed form of `body`.
pub fn seal_raw(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    seal_into(&mut out, body);
    out
}

/// Returns the body of a sealed value.
///
/// # Errors
/// `InvalidData`: the bytes were damaged or are foreign and must not be served.
pub fn open_raw(bytes: &[u8]) -> io::Result<&[u8]> {
    codec::verify(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any single flipped bit is detected, whatever it hits.
    #[test]
    fn a_flipped_bit_is_detected() {
        let sealed = seal_raw(b"report");
        assert_eq!(open_raw(&sealed).unwrap(), b"report");
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                open_raw(&damaged).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_truncated_value_is_detected() {
        let sealed = seal_raw(b"report");
        for len in 0..sealed.len() {
            assert!(open_raw(&sealed[..len]).is_err(), "{len} bytes");
        }
    }
}
