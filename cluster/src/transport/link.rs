//! The sending side of one (peer, class): requests and notices in, answers to whoever asked.
//!
//! Outlives its connections; between two of them everything is `NotSent`. May be called from any
//! thread; callbacks run outside the lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actors::id::NodeId;
use actors::time::Clock;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::counters::{add, count, Counters};
use super::message::{Header, Role, MESSAGE_HEADER_LEN};
use super::outbox::{Chunk, Outbox, Source};
use super::pending::{Done, Pending};
use super::{SendError, TransportConfig};

pub struct Link {
    peer: NodeId,
    body_bytes_max: usize,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    state: Mutex<State>,
    wake: Notify,
    /// Told when a deadline comes before the one the sweeper waits for.
    sooner: Notify,
    /// Told when connecting is worth a try at once.
    pub retry: Notify,
}

struct State {
    /// Closes the present connection, and the boot of the process it leads to; `None` between connections.
    connection: Option<(CancellationToken, u64)>,
    outbox: Outbox,
    pending: Pending,
    /// Requests up to this number were handed to the stream.
    written_through: u64,
    sweep_at_ms: u64,
    sent_at_ms: u64,
}

impl Link {
    pub fn new(peer: NodeId, config: &TransportConfig, counters: Arc<Counters>) -> Self {
        let state = State {
            connection: None,
            outbox: Outbox::new(config.queue_bytes_max, config.frame_bytes_max),
            pending: Pending::default(),
            written_through: 0,
            sweep_at_ms: u64::MAX,
            sent_at_ms: 0,
        };
        Self {
            peer,
            body_bytes_max: config.frame_bytes_max - MESSAGE_HEADER_LEN,
            clock: config.clock.clone(),
            counters,
            state: Mutex::new(state),
            wake: Notify::new(),
            sooner: Notify::new(),
            retry: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request; `done` learns the outcome, at once if it cannot be sent.
    pub fn request(&self, kind: u8, body: &[u8], deadline: Duration, done: Done) {
        if let Err(done) = self.try_request(kind, body, deadline, done) {
            done(Err(SendError::NotSent(self.peer)));
        }
    }

    fn try_request(&self, kind: u8, body: &[u8], deadline: Duration, done: Done) -> Result<(), Done> {
        if !self.fits_frame(body) {
            return Err(done);
        }
        let within_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(1);
        let deadline_ms = self.clock.monotonic_ms().saturating_add(within_ms);
        let mut state = self.lock();
        if state.connection.is_none() {
            return Err(done);
        }
        if state.pending.is_full() || !state.outbox.fits(body.len()) {
            count(&self.counters.queue_refusals);
            return Err(done);
        }
        let correlation = state.pending.insert(deadline_ms, done);
        let number = state.pending.last_number();
        let wake = state.outbox.push(
            Header {
                kind,
                role: Role::Request,
                correlation,
            },
            body,
            number,
        );
        let sooner = deadline_ms < state.sweep_at_ms;
        if sooner {
            state.sweep_at_ms = deadline_ms;
        }
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        if sooner {
            self.sooner.notify_one();
        }
        Ok(())
    }

    /// Sends what needs no answer.
    ///
    /// # Errors
    /// `NotSent`: there is no connection, no room, or the body is larger than a frame.
    pub fn notify(&self, kind: u8, role: Role, body: &[u8]) -> Result<(), SendError> {
        let refused = Err(SendError::NotSent(self.peer));
        if !self.fits_frame(body) {
            return refused;
        }
        let mut state = self.lock();
        if state.connection.is_none() {
            return refused;
        }
        if !state.outbox.fits(body.len()) {
            count(&self.counters.queue_refusals);
            return refused;
        }
        let number = state.pending.last_number();
        let wake = state.outbox.push(
            Header {
                kind,
                role,
                correlation: 0,
            },
            body,
            number,
        );
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    fn fits_frame(&self, body: &[u8]) -> bool {
        let fits = body.len() <= self.body_bytes_max;
        if !fits {
            count(&self.counters.bodies_oversized);
        }
        fits
    }

    /// An answer has come. `None`: the peer says that there will be none.
    pub fn answered(&self, correlation: u64, body: Option<Bytes>) {
        let done = self.lock().pending.take(correlation);
        match done {
            Some(done) => done(body.ok_or(SendError::NoAnswer(self.peer))),
            None => count(&self.counters.answers_unknown),
        }
    }

    /// A connection carries this link from now on, until the guard is dropped.
    pub fn open(self: &Arc<Self>, closer: CancellationToken, boot: u64) -> Opened {
        let mut state = self.lock();
        state.sent_at_ms = self.clock.monotonic_ms();
        state.connection = Some((closer, boot));
        drop(state);
        Opened(self.clone())
    }

    /// Closes the present connection, unless it leads to the process `alive`, and has connecting tried at once.
    pub fn kick(&self, alive: Option<u64>) {
        let state = self.lock();
        match &state.connection {
            Some((_, boot)) if Some(*boot) == alive => return,
            Some((closer, _)) => closer.cancel(),
            None => {}
        }
        drop(state);
        self.retry.notify_one();
    }

    /// Milliseconds since anything was last handed to the stream.
    pub fn unsent_ms(&self) -> u64 {
        self.clock.monotonic_ms().saturating_sub(self.lock().sent_at_ms)
    }

    /// Ends requests as their deadlines pass. A deadline may come true up to `SWEEP_EVERY` late.
    pub async fn sweep(&self) {
        loop {
            let now = self.clock.monotonic_ms();
            let (expired, next) = {
                let mut state = self.lock();
                let expired = state.pending.expire(now);
                let next = state.pending.next_deadline_ms();
                state.sweep_at_ms = next.unwrap_or(u64::MAX);
                (expired, next)
            };
            add(&self.counters.deadlines_passed, expired.len());
            for done in expired {
                // What was still queued may yet be written: nobody can say that it was not sent.
                done(Err(SendError::NoAnswer(self.peer)));
            }
            let wait = async {
                match next {
                    Some(at) => {
                        let left = Duration::from_millis(at.saturating_sub(now));
                        tokio::time::sleep(left.max(super::config::SWEEP_EVERY)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.sooner.notified() => {}
                () = wait => {}
            }
        }
    }

    fn close(&self) {
        let (all, written_through) = {
            let mut state = self.lock();
            state.connection = None;
            state.outbox.clear();
            state.sweep_at_ms = u64::MAX;
            (state.pending.drain(), state.written_through)
        };
        for (number, done) in all {
            let error = if number <= written_through {
                SendError::NoAnswer
            } else {
                SendError::NotSent
            };
            done(Err(error(self.peer)));
        }
    }
}

impl Source for Link {
    fn exchange(&self, written: Option<Chunk>) -> Option<Chunk> {
        let mut state = self.lock();
        if let Some(written) = written {
            state.outbox.written(written);
        }
        let chunk = state.outbox.pop()?;
        // Before the write begins: part of a failed write may have left.
        state.written_through = chunk.last_request;
        state.sent_at_ms = self.clock.monotonic_ms();
        Some(chunk)
    }

    fn give_back(&self, written: Chunk) {
        self.lock().outbox.written(written);
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }
}

/// Ends every request of the connection when the connection ends, however it ends.
pub struct Opened(Arc<Link>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.close();
    }
}
