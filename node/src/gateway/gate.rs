//! How many commands of one shard this node has on their way at once: as many as are answered soon.
//!
//! Beyond capacity something has to wait. What waits in a client's socket costs nothing and delays
//! nobody else; what waits further in delays heartbeats, reads and every other device. So a gate
//! lets through what comes back within [`TARGET`], and connections whose publishes find it full
//! are not read from until their turn comes, first come, first served.
//!
//! One gate per shard: a shard without a leader must not close the door to the others. The limit
//! follows the latency that is measured, as in TCP Vegas; nothing has to be configured, and a
//! slower disk or a busier machine is taken into account within a second.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use actors::id::ShardId;
use tokio::sync::Semaphore;

use super::mailbox::Mailbox;

/// From submission to answer, on average, up to which more commands are let through, and beyond
/// which fewer, as far as the limit's bounds allow.
const TARGET: Duration = Duration::from_millis(150);
/// How often the limit is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// From here on, what a client sends may as well wait in its socket for the next answer.
const SLOW: Duration = Duration::from_millis(50);
/// A shard that answered nothing for this long has other troubles than load.
pub(super) const STALLED: Duration = Duration::from_millis(500);
/// Commands a node lets through at least, over all shards, however late they are answered: fewer
/// would make batches small and answers no faster.
const NODE_MIN: usize = 8_192;
/// Commands let through to one shard at most.
const LIMIT_MAX: usize = 16_384;
/// Commands a connection may submit when its turn comes.
const QUANTUM: usize = 32;
/// Sessions that are being opened, and as many being closed, at once: whoever comes in a crowd must
/// not delay those who are here.
const SESSIONS_AT_ONCE: usize = 8;
/// Room that is worth a turn, or turns would shrink to single commands.
const TURN_MIN: usize = 8;

/// The gates of one node.
pub struct Gates {
    gates: Vec<Gate>,
}

impl std::fmt::Debug for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gates(…)")
    }
}

impl Gates {
    /// One per shard.
    pub fn new(shards: u16) -> Arc<Self> {
        let (start, shards) = (Instant::now(), usize::from(shards.max(1)));
        let limit_min = (NODE_MIN / shards).max(QUANTUM);
        Arc::new(Self {
            gates: (0..shards).map(|_| Gate::new(start, limit_min)).collect(),
        })
    }

    pub fn of(&self, shard: ShardId) -> &Gate {
        &self.gates[usize::from(shard.0) % self.gates.len()]
    }

    /// Connections that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.gates.iter().map(|gate| gate.waiting.load(Ordering::Relaxed)).sum()
    }
}

pub struct Gate {
    /// Let through and not answered, and granted to a connection that has not used it yet.
    inside: AtomicUsize,
    limit: AtomicUsize,
    limit_min: usize,
    /// Length of the queue, so that nobody takes its lock while it is empty.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Arc<Mailbox>>>,
    pace: Mutex<Pace>,
    /// Attempts to open or to close a session take a permit each, in the order of asking.
    pub opening: Semaphore,
    pub closing: Semaphore,
    start: Instant,
    /// Milliseconds from `start` to the latest answer.
    answered_ms: AtomicU64,
    /// Answers took longer than [`SLOW`] when the latency was last looked at.
    slow: AtomicBool,
}

/// What was seen since the limit was last looked at.
struct Pace {
    since: Instant,
    answers: u64,
    latency_us: u64,
    /// Somebody had to wait.
    limited: bool,
}

impl Gate {
    fn new(start: Instant, limit_min: usize) -> Self {
        Self {
            inside: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit_min),
            limit_min,
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            pace: Mutex::new(Pace {
                since: start,
                answers: 0,
                latency_us: 0,
                limited: false,
            }),
            opening: Semaphore::new(SESSIONS_AT_ONCE),
            closing: Semaphore::new(SESSIONS_AT_ONCE),
            start,
            answered_ms: AtomicU64::new(0),
            slow: AtomicBool::new(false),
        }
    }

    /// Lets one command through, unless the gate is full or others wait already.
    pub fn enter(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |inside: usize| (inside < limit).then_some(inside + 1);
        self.waiting.load(Ordering::Relaxed) == 0
            && self
                .inside
                .fetch_update(Ordering::SeqCst, Ordering::Relaxed, more)
                .is_ok()
    }

    /// Puts a connection into the queue; its mailbox gets a grant when its turn comes.
    pub fn wait(&self, mailbox: Arc<Mailbox>) {
        let mut queue = self.queue();
        queue.push_back(mailbox);
        self.waiting.store(queue.len(), Ordering::SeqCst);
        // What left in between has not seen the queue.
        self.hand_out(&mut queue);
        drop(queue);
        if let Ok(mut pace) = self.pace.try_lock() {
            pace.limited = true;
        }
    }

    /// Commands were answered, after `latency` all together.
    pub fn answered(&self, commands: usize, latency: Duration, now: Instant) {
        self.answered_ms
            .store(millis(now.saturating_duration_since(self.start)), Ordering::Relaxed);
        // Whoever finds it taken leaves the sample out.
        if let Ok(mut pace) = self.pace.try_lock() {
            pace.answers += commands as u64;
            pace.latency_us += u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            if now.saturating_duration_since(pace.since) >= LOOK_EVERY {
                let limit = self.limit.load(Ordering::Relaxed);
                let limit = pace.next_limit(limit).clamp(self.limit_min, LIMIT_MAX);
                self.limit.store(limit, Ordering::Relaxed);
                self.slow.store(pace.latency() > SLOW, Ordering::Relaxed);
                *pace = Pace {
                    since: now,
                    answers: 0,
                    latency_us: 0,
                    limited: self.waiting.load(Ordering::Relaxed) > 0,
                };
            }
        }
        self.leave(commands);
    }

    /// Commands are not on their way any more, for whatever reason.
    pub fn leave(&self, commands: usize) {
        self.inside.fetch_sub(commands, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.hand_out(&mut self.queue());
        }
    }

    /// One command's way through and back, for callers without a connection: waits for its turn, up
    /// to `patience`. `None`: refuse it.
    pub async fn pass(&self, patience: Duration) -> Option<Pass<'_>> {
        if !self.enter() {
            self.turn(patience).await?;
        }
        Some(Pass {
            gate: self,
            since: Instant::now(),
        })
    }

    async fn turn(&self, patience: Duration) -> Option<()> {
        let place = Place {
            gate: self,
            mailbox: Arc::default(),
        };
        self.wait(place.mailbox.clone());
        let granted = poll_fn(|cx| {
            place.mailbox.poll(cx.waker());
            match place.mailbox.take().granted {
                0 => Poll::Pending,
                granted => Poll::Ready(granted),
            }
        });
        let granted = tokio::time::timeout(patience, granted).await.ok()?;
        self.leave(granted - 1);
        Some(())
    }

    /// Whether the shard answers at all: waiting is a matter of load, then.
    pub fn moves(&self, now: Instant) -> bool {
        let now = millis(now.saturating_duration_since(self.start));
        now.saturating_sub(self.answered_ms.load(Ordering::Relaxed)) < millis(STALLED)
    }

    /// Whether answers come, but late.
    pub fn is_slow(&self, now: Instant) -> bool {
        self.slow.load(Ordering::Relaxed) && self.moves(now)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arc<Mailbox>>> {
        // Nothing panics while it holds this lock; a poisoned one is as good.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(&self, queue: &mut VecDeque<Arc<Mailbox>>) {
        let limit = self.limit.load(Ordering::Relaxed);
        while !queue.is_empty() {
            let inside = self.inside.load(Ordering::SeqCst);
            let room = limit.saturating_sub(inside);
            if room < TURN_MIN {
                // What is inside will leave, and look again.
                break;
            }
            let Some(mailbox) = queue.pop_front() else { break };
            let grant = room.min(QUANTUM);
            self.inside.fetch_add(grant, Ordering::SeqCst);
            if !mailbox.grant(grant) {
                // The connection has ended.
                self.inside.fetch_sub(grant, Ordering::SeqCst);
            }
        }
        self.waiting.store(queue.len(), Ordering::SeqCst);
    }
}

/// A place in the queue; what is granted to it after it was given up goes back.
struct Place<'a> {
    gate: &'a Gate,
    mailbox: Arc<Mailbox>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let granted = self.mailbox.close();
        if granted > 0 {
            self.gate.leave(granted);
        }
    }
}

/// A command that was let through. Dropped, it has been answered.
pub struct Pass<'a> {
    gate: &'a Gate,
    since: Instant,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.answered(1, self.since.elapsed(), Instant::now());
    }
}

impl Pace {
    /// On average.
    fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us / self.answers.max(1))
    }

    fn next_limit(&self, limit: usize) -> usize {
        if self.answers == 0 {
            return limit;
        }
        let (target, seen) = (TARGET.as_secs_f64(), self.latency().as_secs_f64());
        if seen > target {
            // Not by more than a third at once: one late answer is not a trend.
            (limit as f64 * (target / seen).max(0.66)) as usize
        } else if self.limited {
            limit + limit / 4 + 8
        } else {
            limit
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 256;

    fn gate() -> Gate {
        Gate::new(Instant::now(), LIMIT)
    }

    fn fill(gate: &Gate) -> usize {
        (0..).take_while(|_| gate.enter()).count()
    }

    /// Nobody passes those who wait, and each gets a turn in the order in which it came.
    #[test]
    fn a_full_gate_serves_those_who_wait_in_their_order() {
        let gate = gate();
        assert_eq!(fill(&gate), LIMIT);
        let boxes: Vec<Arc<Mailbox>> = (0..3).map(|_| Arc::new(Mailbox::default())).collect();
        boxes.iter().for_each(|mailbox| gate.wait(mailbox.clone()));
        let grants = || boxes.iter().map(|mailbox| mailbox.take().granted).collect::<Vec<_>>();
        assert_eq!(grants(), [0, 0, 0]);

        gate.leave(QUANTUM + TURN_MIN);
        assert_eq!(grants(), [QUANTUM, TURN_MIN, 0]);
        gate.leave(TURN_MIN - 1);
        assert_eq!(grants(), [0, 0, 0], "a turn that small is none");
        assert!(!gate.enter(), "one still waits");
        gate.leave(QUANTUM);
        assert_eq!(grants(), [0, 0, QUANTUM]);
        assert!(gate.enter());
    }

    /// A connection that ended does not keep what it was granted.
    #[test]
    fn what_is_granted_to_the_dead_goes_to_the_next() {
        let gate = gate();
        fill(&gate);
        let (dead, alive) = (Arc::new(Mailbox::default()), Arc::new(Mailbox::default()));
        gate.wait(dead.clone());
        gate.wait(alive.clone());
        assert_eq!(dead.close(), 0);
        gate.leave(QUANTUM);
        assert_eq!(alive.take().granted, QUANTUM);
        assert_eq!(gate.inside.load(Ordering::SeqCst), LIMIT);
    }

    /// The limit falls while answers are late, grows while they are early and somebody waits, and
    /// stays between its bounds.
    #[test]
    fn the_limit_follows_the_latency() {
        let gate = gate();
        let mut now = gate.start;
        let mut after = |latency: Duration, limited: bool| {
            now += LOOK_EVERY;
            gate.inside.fetch_add(10, Ordering::SeqCst);
            gate.pace.lock().unwrap().limited = limited;
            gate.answered(10, latency * 10, now);
            gate.limit.load(Ordering::Relaxed)
        };
        assert_eq!(after(TARGET / 2, false), LIMIT, "nobody waits");
        let more = after(TARGET / 2, true);
        assert!(more > LIMIT);
        assert!(after(TARGET * 2, true) < more);
        let low = (0..50).map(|_| after(TARGET * 9, true)).last();
        assert_eq!(low, Some(LIMIT));
        let high = (0..100).map(|_| after(TARGET / 2, true)).last();
        assert_eq!(high, Some(LIMIT_MAX));
    }

    /// What is answered late is slow, what is not answered at all is stalled.
    #[test]
    fn a_slow_shard_is_one_that_answers() {
        let gate = gate();
        let after = |at: Duration, latency: Duration| {
            gate.inside.fetch_add(1, Ordering::SeqCst);
            gate.answered(1, latency, gate.start + at);
            gate.is_slow(gate.start + at)
        };
        assert!(!after(LOOK_EVERY, SLOW));
        assert!(after(LOOK_EVERY * 2, SLOW * 2));
        assert!(!gate.is_slow(gate.start + LOOK_EVERY * 2 + STALLED));
        assert!(!after(LOOK_EVERY * 9, SLOW / 2));
    }

    /// A shard without a leader answers nothing; that is no overload.
    #[test]
    fn a_stalled_shard_is_told_from_a_busy_one() {
        let gate = gate();
        gate.inside.fetch_add(1, Ordering::SeqCst);
        gate.answered(1, TARGET, gate.start + Duration::from_secs(9));
        assert!(gate.moves(gate.start + Duration::from_secs(9) + STALLED / 2));
        assert!(!gate.moves(gate.start + Duration::from_secs(9) + STALLED));
    }
}
