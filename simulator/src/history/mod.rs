//! The record of a run: every operation, who, when, and what came of it.
//!
//! A history is a directory of *parts*, one per thread that recorded, each a chain of segments.
//! A segment is a file of checksummed blocks that is only ever appended to: a crash of the
//! simulator loses at most the last blocks that were not written yet, and a reader stops at the
//! first damaged one and says so. Writing needs one block of memory, reading one block.

mod block;
pub mod export;
mod op;
mod reader;
pub mod summary;
mod writer;

pub use op::{Kind, Note, NoteKind, Op, Outcome, Place, Record};
pub use reader::{parts, read, read_part, Broken, Ending, PartPath, Tail};
pub use writer::{Header, Writer};

/// Version of the format; a reader refuses another.
pub const FORMAT: u32 = 1;
/// Ending of segment files.
pub const EXTENSION: &str = "hfh";
