//! Whoever has messages of their own: a device, or a child behind a gateway.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::context::FleetContext;
use crate::plan::cursor::{Cursor, Sender, Setting};
use crate::plan::curve::Curve;
use crate::profiles::obeying::Obeyed;

pub struct Subject {
    /// Number over all fleets; histories know it by this.
    pub number: u32,
    pub id: Box<str>,
    /// Messages sent or dropped so far.
    pub n: u64,
    pub cursors: Vec<Cursor>,
}

/// Which message is due next, over all streams of all subjects of a device. Scenario µs.
#[derive(Clone, Debug, Default)]
pub struct Due(BinaryHeap<Reverse<(u64, u16, u8)>>);

impl Due {
    pub fn push(&mut self, at_us: u64, subject: u16, cursor: u8) {
        if at_us != u64::MAX {
            self.0.push(Reverse((at_us, subject, cursor)));
        }
    }

    /// When, and whose.
    pub fn peek(&self) -> Option<(u64, u16, u8)> {
        self.0.peek().map(|Reverse(due)| *due)
    }

    pub fn pop(&mut self) {
        self.0.pop();
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a cursor of a subject is stepped and written with.
pub fn with_setting<R>(
    fleet: &FleetContext,
    curve: &Curve,
    sender: Sender<'_>,
    obeyed: &Obeyed,
    stream: u8,
    then: impl FnOnce(&Setting<'_>) -> R,
) -> R {
    let told = |name: &str| obeyed.number(name);
    then(&Setting {
        plan: &fleet.streams[usize::from(stream)],
        curve,
        sender,
        told: &told,
    })
}

/// Messages that fell due while a device was away, counted without being kept: copies of its
/// cursors run ahead, and the originals go back for what is sent later.
#[derive(Clone, Debug)]
pub struct Backlog {
    pub ahead: Vec<Vec<Cursor>>,
    pub due: Due,
    pub pending: u32,
}
