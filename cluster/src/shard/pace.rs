//! When the shards that a node leads propose: together, in rounds.
//!
//! What many groups propose at once reaches each peer in one frame and each disk with one sync;
//! proposals that leave one by one cost all of that each. So a round begins once the former one is
//! committed, and takes everything along that waits by then. While nothing is in flight it begins
//! at once: nobody waits for a timer unless the node is busy, and for a slow group never longer
//! than [`ROUND_MAX`].

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a round may keep the next one waiting.
const ROUND_MAX: Duration = Duration::from_millis(20);
/// The pause after a round, as a share of what it took: the busier the machine, the longer.
const GAP_SHARE: u32 = 2;
/// Longest pause after a round.
const GAP_MAX: Duration = Duration::from_millis(10);
/// A shorter pause is none: timers are not finer.
const GAP_MIN: Duration = Duration::from_millis(1);
/// A round that carried so many messages is followed by a pause of [`GAP_BUSY`] at least: others are
/// about to come, and what they share costs more than they do.
const BUSY: usize = 8;
const GAP_BUSY: Duration = Duration::from_millis(3);

/// One per node, shared by its arbiters.
#[derive(Default)]
pub struct Pace {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The present round, from 1.
    round: u64,
    began: Option<Instant>,
    /// Its proposals without an outcome.
    open: usize,
    /// What the former round took.
    took: Duration,
    over: Option<Instant>,
    /// Messages of the present round.
    carried: usize,
    asked: Vec<Arc<Turn>>,
    /// The next round is about to begin.
    called: bool,
}

impl State {
    /// The pause that the former round calls for.
    fn gap(&self) -> Duration {
        let gap = (self.took / GAP_SHARE).min(GAP_MAX);
        if self.carried >= BUSY {
            gap.max(GAP_BUSY)
        } else {
            gap
        }
    }
}

/// A journal's place in the rounds.
pub struct Turn {
    held: Mutex<Held>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Held {
    asked: bool,
    seat: Option<Seat>,
}

/// The right to propose once in a round; dropped when the proposal has its outcome.
pub struct Seat {
    pace: Arc<Pace>,
    round: u64,
}

impl Seat {
    /// How many messages the proposal brings along.
    pub fn carries(&self, messages: usize) {
        self.pace.carries(self.round, messages);
    }
}

impl Turn {
    /// `wake` is told when a seat is there.
    pub fn new(wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            wake,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock panics")
    }

    pub fn take(&self) -> Option<Seat> {
        self.lock().seat.take()
    }
}

impl Pace {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A seat in the next round for `turn`, in which it will find it.
    pub fn ask(self: &Arc<Self>, turn: &Arc<Turn>) {
        {
            let mut held = turn.lock();
            if held.asked || held.seat.is_some() {
                return;
            }
            held.asked = true;
        }
        let mut state = self.lock();
        state.asked.push(turn.clone());
        if state.open == 0 {
            self.call(&mut state);
        } else if state.asked.len() == 1 {
            let at = state.began.map_or_else(Instant::now, |began| began + ROUND_MAX);
            self.begin_at(at, state.round);
        }
    }

    /// Has the next round begun after the pause that the former one calls for.
    fn call(self: &Arc<Self>, state: &mut State) {
        if state.called {
            return;
        }
        state.called = true;
        let gap = state.gap();
        let at = match state.over {
            Some(over) if gap >= GAP_MIN => over + gap,
            _ => Instant::now(),
        };
        self.begin_at(at, state.round);
    }

    /// In a task of its own, so that whoever is ready in this turn of the loop comes along.
    fn begin_at(self: &Arc<Self>, at: Instant, former: u64) {
        let pace = self.clone();
        tokio::spawn(async move {
            if at > Instant::now() {
                tokio::time::sleep_until(at).await;
            }
            pace.begin(former);
        });
    }

    /// Begins the round after `former`, unless it has begun.
    fn begin(self: &Arc<Self>, former: u64) {
        let (round, turns) = {
            let mut state = self.lock();
            if state.round != former {
                return;
            }
            state.called = false;
            if state.asked.is_empty() {
                return;
            }
            state.round += 1;
            state.began = Some(Instant::now());
            state.open = state.asked.len();
            state.carried = 0;
            (state.round, std::mem::take(&mut state.asked))
        };
        for turn in turns {
            let seat = Seat {
                pace: self.clone(),
                round,
            };
            {
                let mut held = turn.lock();
                held.asked = false;
                held.seat = Some(seat);
            }
            turn.wake.notify_one();
        }
    }

    /// A peer's round has come to this node's disk: a pause ends, so that both share the sync.
    /// Rounds of all nodes fall into step that way.
    pub fn nudge(self: &Arc<Self>) {
        let state = self.lock();
        if state.called && state.open == 0 && !state.asked.is_empty() {
            self.begin_at(Instant::now(), state.round);
        }
    }

    fn carries(&self, round: u64, messages: usize) {
        let mut state = self.lock();
        if state.round == round {
            state.carried += messages;
        }
    }

    fn ended(self: &Arc<Self>, round: u64) {
        let mut state = self.lock();
        // A straggler of a round that was not waited for.
        if state.round != round {
            return;
        }
        state.open -= 1;
        if state.open > 0 {
            return;
        }
        let now = Instant::now();
        state.took = state.began.map_or(Duration::ZERO, |began| now - began);
        state.over = Some(now);
        if !state.asked.is_empty() {
            self.call(&mut state);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pace.ended(self.round);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn turns<const N: usize>() -> [Arc<Turn>; N] {
        std::array::from_fn(|_| Turn::new(Arc::default()))
    }

    async fn seat(turn: &Turn) -> Seat {
        loop {
            if let Some(seat) = turn.take() {
                return seat;
            }
            turn.wake.notified().await;
        }
    }

    /// Whatever needs no timer has happened.
    async fn settle() {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn while_nothing_is_in_flight_nobody_waits_for_a_timer() {
        let (pace, [turn]) = (Arc::new(Pace::default()), turns());
        for _ in 0..100 {
            pace.ask(&turn);
            settle().await;
            assert!(turn.take().is_some());
        }
    }

    #[tokio::test]
    async fn what_waits_leaves_together_when_the_round_is_over() {
        let (pace, [first, second, third]) = (Arc::new(Pace::default()), turns());
        pace.ask(&first);
        let open = seat(&first).await;
        pace.ask(&second);
        pace.ask(&third);
        pace.ask(&second);
        settle().await;
        assert!(second.take().is_none() && third.take().is_none());
        drop(open);
        let seats = (seat(&second).await, seat(&third).await);
        assert_eq!(seats.0.round, seats.1.round);
        assert_eq!(pace.lock().open, 2);
    }

    #[tokio::test]
    async fn a_round_of_many_is_followed_by_a_pause_that_a_peers_round_ends() {
        let (pace, [first, second]) = (Arc::new(Pace::default()), turns());
        pace.ask(&first);
        let open = seat(&first).await;
        open.carries(BUSY - 1);
        assert!(pace.lock().gap() < GAP_BUSY);
        open.carries(1);
        assert!(pace.lock().gap() >= GAP_BUSY);
        drop(open);
        pace.ask(&second);
        pace.nudge();
        settle().await;
        assert!(second.take().is_some());
    }

    #[tokio::test]
    async fn a_slow_shard_holds_nobody_up_for_good() {
        let (pace, [slow, other]) = (Arc::new(Pace::default()), turns());
        pace.ask(&slow);
        let stuck = seat(&slow).await;
        pace.ask(&other);
        let seat = seat(&other).await;
        drop(stuck);
        assert_eq!(pace.lock().open, 1, "a straggler must not end a later round");
        drop(seat);
        assert_eq!(pace.lock().open, 0);
    }

    #[tokio::test]
    async fn a_journal_that_is_gone_keeps_no_seat() {
        let (pace, [first, second]) = (Arc::new(Pace::default()), turns());
        pace.ask(&first);
        drop(first);
        settle().await;
        pace.ask(&second);
        settle().await;
        assert!(second.take().is_some());
    }
}
