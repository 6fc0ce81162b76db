//! What a gateway device's connection adds: entries that are carried out in a child's lane and
//! answered here, in the order of the connection, and a lane whose session begins anew.

use std::time::Instant;

use actors::device::{Command, Fence, Origin};

use super::{After, Entry, InFlight, Outcome, State};

impl InFlight {
    /// Takes an entry whose command is carried out elsewhere; gives its number, for [`Self::settle`].
    pub fn push_elsewhere(&mut self, after: After, digest: u64, bytes: usize, now: Instant) -> u64 {
        let number = self.next_number();
        self.append(Entry {
            command: None,
            ordinal: 0,
            state: State::Waiting,
            after,
            digest,
            bytes,
            since: now,
        });
        number
    }

    /// The number of the entry that is pushed next.
    pub fn next_number(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// What came of an entry that was carried out elsewhere.
    pub fn settle(&mut self, number: u64, outcome: Outcome) {
        if let Some(entry) = self.entry_mut(number) {
            entry.state = State::Done(outcome);
        }
    }

    /// What is to be told of an entry that waits.
    pub fn after_mut(&mut self, number: u64) -> Option<&mut After> {
        self.entry_mut(number).map(|entry| &mut entry.after)
    }

    fn entry_mut(&mut self, number: u64) -> Option<&mut Entry> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(at)
    }

    /// Goes on in another session: what is not answered is sent under new ordinals. What was sent
    /// before may have been stored, so that it is marked as a repetition.
    pub fn renew(&mut self, generation: u64) {
        self.generation = generation;
        self.next_ordinal = 1;
        self.attempt = self.attempt.wrapping_add(1);
        self.cursor = 0;
        self.resend_at = None;
        self.suspicion = None;
        self.next_pause = self.pause.min;
        for (at, entry) in self.entries.iter_mut().enumerate() {
            if matches!(entry.state, State::Done(_)) {
                // Never sent again, and its ordinal belongs to another session.
                (entry.command, entry.ordinal) = (None, 0);
                continue;
            }
            entry.state = State::Waiting;
            if entry.ordinal == 0 {
                continue;
            }
            entry.ordinal = self.next_ordinal;
            self.next_ordinal += 1;
            let fence = Fence {
                generation,
                ordinal: entry.ordinal,
            };
            let was_sent = self.first + at as u64 <= self.sent;
            if let Some(command) = &mut entry.command {
                move_to(fence, was_sent, command);
            }
        }
    }

    /// Everything that waits, in order: it will not be carried out.
    pub fn abandon(&mut self) -> Vec<After> {
        self.unacknowledged = 0;
        self.first = self.next_number();
        self.cursor = 0;
        self.entries.drain(..).map(|entry| entry.after).collect()
    }
}

fn move_to(new: Fence, was_sent: bool, command: &mut Command) {
    match command {
        Command::Subscribe { fence, .. } | Command::Unsubscribe { fence, .. } => *fence = new,
        Command::RecordTelemetry { origin, .. } | Command::UpdateTwin { origin, .. } => {
            if let Origin::Session { fence, delivery } = origin {
                *fence = new;
                if let Some(delivery) = delivery {
                    delivery.dup |= was_sent;
                }
            }
        }
        _ => {}
    }
}
