//! The only place that names bincode: a version byte, a crc32c, then the body.
//!
//! Layout: `version u8 | crc32c u32 LE (over version and body) | bincode body`.

use serde::de::DeserializeOwned;
use serde::Serialize;

/// The format version of everything written today.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER_LEN: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("{0} bytes are too short for a sealed record")]
    Truncated(usize),
    #[error("checksum does not match")]
    Checksum,
    #[error("format version {0} is not known to this program")]
    Version(u8),
    #[error("malformed body: {0}")]
    Body(String),
}

/// A length prefix can ask for any amount, and bincode allocates what it asks for: reading is
/// limited by the size class of what was received. bincode counts a number as its full width, of
/// which one byte may have been sent.
const CLAIM_FACTOR: usize = 16;
const SMALL: usize = 16 * 1024;
const MEDIUM: usize = 1024 * 1024;
/// Longer bodies than this may be refused.
const LARGE: usize = 64 * 1024 * 1024;

fn config() -> bincode::config::Configuration {
    bincode::config::standard()
}

/// Serialises `value` into a sealed record.
pub fn seal<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = vec![FORMAT_VERSION, 0, 0, 0, 0];
    bincode::serde::encode_into_std_write(value, &mut out, config()).expect("serialising to memory cannot fail");
    let crc = checksum(out[0], &out[HEADER_LEN..]);
    out[1..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Checks and reads a sealed record.
///
/// # Errors
/// Says what is wrong; a record that fails was damaged or is foreign, and must not be served.
pub fn open<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode(verify(bytes)?)
}

/// Checks the envelope and returns the body's bytes.
///
/// # Errors
/// As [`open`].
pub fn verify(bytes: &[u8]) -> Result<&[u8], CodecError> {
    if bytes.len() < HEADER_LEN {
        return Err(CodecError::Truncated(bytes.len()));
    }
    let stored = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    let body = &bytes[HEADER_LEN..];
    if checksum(bytes[0], body) != stored {
        return Err(CodecError::Checksum);
    }
    if bytes[0] != FORMAT_VERSION {
        return Err(CodecError::Version(bytes[0]));
    }
    Ok(body)
}

/// Bare bincode, for bytes that travel inside an envelope of their own.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, config()).expect("serialising to memory cannot fail")
}

/// Bare bincode, appended to `out`.
pub fn encode_into<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    bincode::serde::encode_into_std_write(value, out, config()).expect("serialising to memory cannot fail");
}

/// Bare bincode from the start of `bytes`; also says how many of them it took.
///
/// # Errors
/// `Body` when the bytes do not begin with a value of this type.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    read(bytes).map_err(|e| CodecError::Body(e.to_string()))
}

/// Bare bincode.
///
/// # Errors
/// `Body` when the bytes are not exactly one value of this type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = decode_prefix(bytes)?;
    if used != bytes.len() {
        return Err(CodecError::Body(format!("{} bytes left over", bytes.len() - used)));
    }
    Ok(value)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
    if bytes.len() <= SMALL {
        bincode::serde::decode_from_slice(bytes, config().with_limit::<{ SMALL * CLAIM_FACTOR }>())
    } else if bytes.len() <= MEDIUM {
        bincode::serde::decode_from_slice(bytes, config().with_limit::<{ MEDIUM * CLAIM_FACTOR }>())
    } else {
        bincode::serde::decode_from_slice(bytes, config().with_limit::<{ LARGE * CLAIM_FACTOR }>())
    }
}

fn checksum(version: u8, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[version]), body)
}
