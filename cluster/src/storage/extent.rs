//! Which entries of one shard's log there are, and which operations keep them consecutive.
//!
//! Shared by the log stores; holds no entries itself.

use super::LogOp;

/// Which entries of a shard there are: `first..=last`, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub present: Option<(u64, u64)>,
    /// Where the next append must begin, if known.
    next: Option<u64>,
}

impl Extent {
    pub fn of(first: u64, last: u64) -> Self {
        Self {
            present: Some((first, last)),
            next: Some(last + 1),
        }
    }

    /// # Errors
    /// Says which rule `op` breaks.
    pub fn apply(&mut self, op: &LogOp) -> Result<(), String> {
        match op {
            LogOp::Append {
                shard,
                first_index,
                entries,
            } if !entries.is_empty() => {
                if self.next.is_some_and(|next| next != *first_index) {
                    let next = self.next.unwrap_or_default();
                    return Err(format!(
                        "shard {shard}: append at {first_index}, the log goes on at {next}"
                    ));
                }
                let last = first_index + entries.len() as u64 - 1;
                *self = Self::of(self.present.map_or(*first_index, |(first, _)| first), last);
            }
            LogOp::Truncate { last_kept, .. } => self.truncate(*last_kept),
            LogOp::Purge { up_to, .. } => self.purge(*up_to),
            LogOp::Forget { .. } => *self = Self::default(),
            LogOp::Append { .. } | LogOp::Put { .. } => {}
        }
        Ok(())
    }

    fn truncate(&mut self, last_kept: Option<u64>) {
        let Some((first, last)) = self.present else { return };
        *self = match last_kept {
            Some(kept) if kept >= last => return,
            Some(kept) if kept >= first => Self::of(first, kept),
            // Everything goes; what was there began at `first`, and so does what comes next.
            _ => Self {
                present: None,
                next: Some(first),
            },
        };
    }

    fn purge(&mut self, up_to: u64) {
        match self.present {
            Some((first, last)) if up_to < last => *self = Self::of(first.max(up_to + 1), last),
            Some(_) => {
                *self = Self {
                    present: None,
                    next: Some(up_to + 1),
                }
            }
            // A snapshot was installed over an empty log.
            None => self.next = Some(self.next.map_or(up_to + 1, |next| next.max(up_to + 1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use actors::id::ShardId;
    use bytes::Bytes;

    use super::*;

    const S: ShardId = ShardId(3);

    fn append(first_index: u64, count: usize) -> LogOp {
        LogOp::Append {
            shard: S,
            first_index,
            entries: vec![Bytes::new(); count],
        }
    }

    fn purge(up_to: u64) -> LogOp {
        LogOp::Purge {
            shard: S,
            up_to,
            record: Bytes::new(),
        }
    }

    fn forget() -> LogOp {
        LogOp::Forget {
            shard: S,
            record: Bytes::new(),
        }
    }

    fn truncate(last_kept: Option<u64>) -> LogOp {
        LogOp::Truncate { shard: S, last_kept }
    }

    /// Each row: operations, then where the next append may begin (`None`: anywhere).
    #[test]
    fn an_append_fits_only_behind_the_last_entry() {
        let rows = [
            (vec![], None),
            (vec![append(5, 0)], None),
            (vec![append(5, 2)], Some(7)),
            (vec![append(5, 2), truncate(Some(5))], Some(6)),
            (vec![append(5, 2), truncate(Some(4))], Some(5)),
            (vec![append(5, 2), truncate(None)], Some(5)),
            (vec![append(5, 2), purge(5)], Some(7)),
            (vec![append(5, 2), purge(9)], Some(10)),
            (vec![append(5, 2), purge(9), truncate(None), purge(3)], Some(10)),
            (vec![purge(9)], Some(10)),
            (vec![append(5, 2), purge(5), forget()], None),
            (vec![append(5, 2), forget(), append(0, 1)], Some(1)),
        ];
        for (ops, next) in rows {
            let mut extent = Extent::default();
            ops.iter().for_each(|op| extent.apply(op).unwrap());
            for index in 0..12 {
                let fits = extent.clone().apply(&append(index, 1)).is_ok();
                assert_eq!(
                    fits,
                    next.is_none_or(|next| next == index),
                    "{ops:?} then append at {index}"
                );
            }
        }
    }
}
