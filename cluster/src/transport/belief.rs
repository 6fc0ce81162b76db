//! What this node believes of a peer's process, and what its handler is told when that changes.
//!
//! Pure: evidence in, events out.

use super::PeerEvent;

/// Attempts that may break off in the middle before a broken connection counts as lost: a process
/// that is being killed may still take a connection and drop it.
const UNCLEAR_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Belief {
    /// Never connected, or known to be gone.
    #[default]
    Nothing,
    Connected {
        boot: u64,
    },
    /// The connection just ended; whether the process lives is being found out.
    Broken {
        boot: u64,
        unclear: u32,
    },
    /// The handler was told `Lost`.
    Lost {
        boot: u64,
    },
}

impl Belief {
    pub fn connected(&mut self, now: u64) -> Vec<PeerEvent> {
        let connected = PeerEvent::Connected { boot: now };
        let events = match *self {
            Self::Nothing => vec![connected],
            Self::Connected { boot } | Self::Broken { boot, .. } | Self::Lost { boot } if boot != now => {
                vec![PeerEvent::ProcessGone, connected]
            }
            Self::Connected { .. } | Self::Broken { .. } => vec![PeerEvent::Lost, connected],
            Self::Lost { .. } => vec![connected],
        };
        *self = Self::Connected { boot: now };
        events
    }

    /// The connection ended by itself: worth finding out why.
    pub fn broke(&mut self) {
        if let Self::Connected { boot } = *self {
            *self = Self::Broken { boot, unclear: 0 };
        }
    }

    /// Nothing is heard, or nothing gets through.
    pub fn unreachable(&mut self) -> Option<PeerEvent> {
        match *self {
            Self::Connected { boot } | Self::Broken { boot, .. } => {
                *self = Self::Lost { boot };
                Some(PeerEvent::Lost)
            }
            Self::Nothing | Self::Lost { .. } => None,
        }
    }

    /// Nobody listens where the peer did.
    pub fn refused(&mut self) -> Option<PeerEvent> {
        (std::mem::take(self) != Self::Nothing).then_some(PeerEvent::ProcessGone)
    }

    /// A stream was opened and broke off before the handshake was done.
    pub fn unclear(&mut self) -> Option<PeerEvent> {
        match self {
            Self::Broken { unclear, .. } if *unclear < UNCLEAR_MAX => {
                *unclear += 1;
                None
            }
            _ => self.unreachable(),
        }
    }

    /// Whether the next attempt decides something and should not wait.
    pub fn is_urgent(&self) -> bool {
        matches!(self, Self::Broken { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_means_that_the_old_process_is_gone() {
        let mut belief = Belief::default();
        assert_eq!(belief.connected(1), [PeerEvent::Connected { boot: 1 }]);
        belief.broke();
        assert_eq!(
            belief.connected(2),
            [PeerEvent::ProcessGone, PeerEvent::Connected { boot: 2 }]
        );
    }

    #[test]
    fn a_refused_connection_means_gone_and_is_said_once() {
        let mut belief = Belief::default();
        assert_eq!(belief.refused(), None, "a peer that was never there is not gone");
        belief.connected(1);
        belief.broke();
        assert_eq!(belief.refused(), Some(PeerEvent::ProcessGone));
        assert_eq!(belief.refused(), None);
        assert_eq!(belief.connected(2), [PeerEvent::Connected { boot: 2 }]);
    }

    #[test]
    fn a_silent_peer_is_lost_and_may_turn_out_to_be_gone() {
        let mut belief = Belief::default();
        belief.connected(1);
        assert_eq!(belief.unreachable(), Some(PeerEvent::Lost));
        assert_eq!(belief.unreachable(), None);
        assert_eq!(belief.refused(), Some(PeerEvent::ProcessGone));
    }

    #[test]
    fn attempts_that_break_off_are_repeated_a_few_times() {
        let mut belief = Belief::default();
        belief.connected(1);
        belief.broke();
        for _ in 0..UNCLEAR_MAX {
            assert_eq!(belief.unclear(), None);
            assert!(belief.is_urgent());
        }
        assert_eq!(belief.unclear(), Some(PeerEvent::Lost));
        assert!(!belief.is_urgent());
        assert_eq!(belief.connected(1), [PeerEvent::Connected { boot: 1 }]);
    }
}
