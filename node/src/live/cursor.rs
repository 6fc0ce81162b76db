//! How far a subscriber has come, shard by shard: what it hands back to go on where it was.
//!
//! As text: `shard-index-position` for each shard, or `shard-index` where the whole entry was
//! seen, separated by commas. The id of an event is such a part, so that for one shard the id of
//! the last event is a cursor.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use actors::id::ShardId;

/// Longest text that is read; a cluster of 1,024 shards fits.
pub const CURSOR_BYTES_MAX: usize = 48 * 1024;

/// Where one event stands in its shard's log: entry, item and event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub index: u64,
    /// Of the event within the entry; `u32::MAX` is the end of the entry.
    pub position: u32,
}

impl Place {
    pub fn end_of(index: u64) -> Self {
        Self {
            index,
            position: u32::MAX,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(BTreeMap<ShardId, Place>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is a list of shard-index or shard-index-position, as it came with an event")]
pub struct BadCursor;

impl Cursor {
    pub fn at(&self, shard: ShardId) -> Option<Place> {
        self.0.get(&shard).copied()
    }

    pub fn shards(&self) -> impl Iterator<Item = (ShardId, Place)> + '_ {
        self.0.iter().map(|(shard, place)| (*shard, *place))
    }

    /// Goes on to `place`, never back. Says whether that is new.
    pub fn advance(&mut self, shard: ShardId, place: Place) -> bool {
        match self.0.get_mut(&shard) {
            Some(known) if *known >= place => false,
            Some(known) => {
                *known = place;
                true
            }
            None => {
                self.0.insert(shard, place);
                true
            }
        }
    }

    pub fn set(&mut self, shard: ShardId, place: Place) {
        self.0.insert(shard, place);
    }

    /// The cursor as text, beginning with `shard`.
    pub fn text(&self, first: Option<ShardId>) -> String {
        use fmt::Write as _;
        let mut text = String::new();
        let own = first.and_then(|shard| self.0.get_key_value(&shard));
        let others = self.0.iter().filter(|(shard, _)| Some(**shard) != first);
        for (shard, place) in own.into_iter().chain(others) {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{}-{}", shard.0, place.index);
            if place.position != u32::MAX {
                let _ = write!(text, "-{}", place.position);
            }
        }
        text
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        if text.len() > CURSOR_BYTES_MAX {
            return Err(BadCursor);
        }
        let mut cursor = Self::default();
        for part in text.split(',') {
            let mut numbers = part.trim().split('-');
            let shard = number(numbers.next())?.ok_or(BadCursor)?;
            let index = number(numbers.next())?.ok_or(BadCursor)?;
            let position = number(numbers.next())?.unwrap_or(u64::from(u32::MAX));
            if numbers.next().is_some() || index == u64::MAX {
                return Err(BadCursor);
            }
            let shard = ShardId(u16::try_from(shard).map_err(|_| BadCursor)?);
            let position = u32::try_from(position).map_err(|_| BadCursor)?;
            if cursor.0.insert(shard, Place { index, position }).is_some() {
                return Err(BadCursor);
            }
        }
        Ok(cursor)
    }
}

fn number(text: Option<&str>) -> Result<Option<u64>, BadCursor> {
    text.map(|text| text.parse().map_err(|_| BadCursor)).transpose()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back() {
        for text in ["3-17-2", "3-17", "3-17-2,0-5,12-99-0"] {
            let cursor: Cursor = text.parse().unwrap();
            assert_eq!(cursor.text(Some(ShardId(3))), text);
        }
        for bad in [
            "",
            "3",
            "3-",
            "a-1",
            "3-1-2-3",
            "3-1,",
            "3-1,3-2",
            "70000-1",
            "-1-1",
            "3-18446744073709551615",
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad:?}");
        }
    }

    #[test]
    fn cursors_only_go_on() {
        let mut cursor: Cursor = "1-5-2".parse().unwrap();
        let at = |index, position| Place { index, position };
        assert!(!cursor.advance(ShardId(1), at(5, 2)));
        assert!(!cursor.advance(ShardId(1), Place::end_of(4)));
        assert!(cursor.advance(ShardId(1), at(5, 3)));
        assert!(cursor.advance(ShardId(1), Place::end_of(5)));
        assert!(!cursor.advance(ShardId(1), at(5, 7)));
        assert!(cursor.advance(ShardId(1), at(6, 0)));
        assert!(cursor.advance(ShardId(2), at(1, 0)));
        assert_eq!(cursor.text(None), "1-6-0,2-1-0");
    }
}
