//! Which active device has been idle longest.
//!
//! A message does not touch this order: it only notes its time at the device. The order is
//! corrected when it is asked, so the hot path pays nothing and the answer is still exact.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::device_actor::Desk;

/// Every active device once, under a time not later than its last use. Times are those of ticks,
/// so many devices share one.
#[derive(Default)]
pub(super) struct IdleOrder(BTreeMap<u64, Vec<Rc<Desk>>>);

/// What [`IdleOrder::longest_idle`] found.
pub(super) enum Look {
    /// It is taken out.
    Idle(Rc<Desk>),
    /// A device had been used since it was listed; it now stands where it belongs.
    Moved,
    Nobody,
}

impl IdleOrder {
    /// Lists a device by its last use.
    pub(super) fn insert(&mut self, desk: Rc<Desk>) {
        let used_ms = desk.used_ms.get();
        desk.listed_ms.set(used_ms);
        self.0.entry(used_ms).or_default().push(desk);
    }

    /// Walks along all devices listed with this one: for what happens rarely.
    pub(super) fn remove(&mut self, desk: &Rc<Desk>) {
        let listed_ms = desk.listed_ms.get();
        let Some(desks) = self.0.get_mut(&listed_ms) else {
            return;
        };
        if let Some(position) = desks.iter().position(|d| Rc::ptr_eq(d, desk)) {
            desks.swap_remove(position);
        }
        if desks.is_empty() {
            self.0.remove(&listed_ms);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// One step towards the longest idle device.
    pub(super) fn longest_idle(&mut self) -> Look {
        let Some(mut oldest) = self.0.first_entry() else {
            return Look::Nobody;
        };
        let desk = oldest.get_mut().pop().expect("a time without devices is removed");
        if oldest.get().is_empty() {
            oldest.remove();
        }
        if desk.used_ms.get() == desk.listed_ms.get() {
            return Look::Idle(desk);
        }
        self.insert(desk);
        Look::Moved
    }
}
