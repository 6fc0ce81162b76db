//! What a device has sent and not seen answered, oldest first. Bounded by its window.

use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Telemetry,
    /// A deliberate second publish.
    Repeat,
    Report,
    /// A question for the twin; not asked again after a lost connection.
    Get,
}

/// A publish under way. Times are real µs since the run began.
#[derive(Debug)]
pub struct Flight {
    pub packet_id: u16,
    pub what: What,
    /// Place among the device's subjects.
    pub subject: u16,
    pub n: u64,
    pub intended_us: u64,
    pub sent_us: u64,
    pub sends: u32,
    pub digest: u32,
    pub has_id: bool,
    /// The packet, or the request, as it is sent again.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct Flights {
    list: VecDeque<Flight>,
    next_id: u16,
}

impl Flights {
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn push(&mut self, flight: Flight) {
        self.list.push_back(flight);
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flight> {
        self.list.iter_mut()
    }

    pub fn has(&self, what: What) -> bool {
        self.list.iter().any(|flight| flight.what == what)
    }

    /// A packet id that stands for nothing, never 0. Ids from 32768 are the server's in Holdfast.
    pub fn packet_id(&mut self) -> u16 {
        loop {
            self.next_id = if self.next_id >= 0x7fff { 1 } else { self.next_id + 1 };
            if self.list.iter().all(|flight| flight.packet_id != self.next_id) {
                return self.next_id;
            }
        }
    }

    /// Takes out what `packet_id` stands for, and says whether it was the oldest.
    pub fn settle(&mut self, packet_id: u16) -> Option<(Flight, bool)> {
        let at = self.list.iter().position(|flight| flight.packet_id == packet_id)?;
        Some((self.list.remove(at)?, at == 0))
    }

    pub fn settle_oldest(&mut self) -> Option<Flight> {
        self.list.pop_front()
    }

    /// Takes everything out, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Flight> + '_ {
        self.list.drain(..)
    }

    pub fn drop_gets(&mut self) {
        self.list.retain(|flight| flight.what != What::Get);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(packet_id: u16, what: What) -> Flight {
        Flight {
            packet_id,
            what,
            subject: 0,
            n: u64::from(packet_id),
            intended_us: 0,
            sent_us: 0,
            sends: 1,
            digest: 0,
            has_id: true,
            bytes: Vec::new(),
        }
    }

    #[test]
    fn ids_skip_what_is_outstanding_and_settle_once() {
        let mut flights = Flights::default();
        for _ in 0..3 {
            let id = flights.packet_id();
            flights.push(flight(id, What::Telemetry));
        }
        for _ in 0..0x8000 {
            assert!(!(1..=3).contains(&flights.packet_id()));
        }
        assert!(matches!(flights.settle(2), Some((found, false)) if found.n == 2));
        assert!(flights.settle(2).is_none());
        assert!(matches!(flights.settle(1), Some((_, true))));
        flights.push(flight(9, What::Get));
        flights.drop_gets();
        assert_eq!(flights.len(), 1);
    }
}
