//! What a connection waits for: bytes, room to write, notes, and its deadlines.
//!
//! One timer serves all deadlines; it is set again only when an earlier one appears, so that a
//! busy connection does not touch the timer wheel for every packet.

use std::future::{poll_fn, Future};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::gate;
use super::reasons::End;

/// How often a publish that found the node's budget used up is tried again.
const HELD_RETRY: Duration = Duration::from_millis(100);

/// How long a client may be behind while room is short.
const SLOW_LOOK: Duration = Duration::from_secs(1);

/// The timer of a connection, made when it is first needed.
#[derive(Default)]
pub(super) struct Alarm {
    sleep: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    /// When `sleep` fires; later than the next deadline never, earlier often.
    armed: Option<Instant>,
}

impl Alarm {
    fn poll(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = deadline else {
            return false;
        };
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.armed = Some(deadline);
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(deadline.into()),
                None => self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline.into()))),
            }
        }
        let fired = self
            .sleep
            .as_mut()
            .is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
        if fired {
            self.armed = None;
        }
        fired
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Until there is something to do. Writes meanwhile what the client takes.
    pub(super) async fn wait(&mut self) {
        poll_fn(|cx| {
            let noted = self.session.mailbox.poll(cx.waker());
            let wrote = self.poll_write(cx);
            let read = self.poll_read(cx);
            // Looked once; what comes from now on may wait for the next answer.
            self.answered = false;
            let deadline = self.next_deadline();
            let late = self.alarm.poll(deadline, cx);
            if noted || wrote || read || late {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        if self.mute {
            self.socket.output.clear();
            return false;
        }
        if self.socket.output.is_empty() {
            return false;
        }
        let before = self.socket.output.len();
        let full = !self.takes_packets();
        let polled = self.socket.poll_flush(cx);
        let left = self.socket.output.len();
        match polled {
            Poll::Ready(Ok(())) => {
                self.slow_since = None;
                // Room again for packets or downlinks that waited for it.
                full || self.down.is_waiting()
                    || self.methods.is_waiting()
                    || self.messages.is_ready()
                    || self.children.as_ref().is_some_and(|children| children.has_ready())
            }
            Poll::Ready(Err(_)) => {
                // Nobody hears us; what was received is still carried out.
                self.socket.ended = true;
                self.mute = true;
                self.ending.get_or_insert(End::Lost);
                true
            }
            Poll::Pending => {
                let over = left > self.shared.limits.write_buffer_bytes_max;
                if left < before && !over {
                    self.slow_since = None;
                }
                self.slow_since.get_or_insert_with(Instant::now);
                false
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.listens() {
            return false;
        }
        match self.socket.poll_fill(cx) {
            Poll::Ready(bytes) => {
                if bytes > 0 {
                    self.heard_at = Instant::now();
                }
                true
            }
            Poll::Pending => false,
        }
    }

    /// Whether the socket is read.
    fn listens(&self) -> bool {
        self.ending.is_none() && !self.socket.ended && self.takes_packets() && !self.naps()
    }

    /// While answers come late, the socket is read when one has come, and not for every packet: a
    /// read costs as much as several messages do, and none of them would be answered sooner.
    fn naps(&self) -> bool {
        !self.answered && self.inflight.unacknowledged() > 0 && self.session.gate().is_slow(self.now)
    }

    /// # Errors
    /// The connection has to end: something took too long.
    pub(super) fn check_deadlines(&mut self) -> Result<(), End> {
        let limits = &self.shared.limits;
        let passed = |since: Option<Instant>, after: Duration| since.is_some_and(|since| self.now >= since + after);
        if passed(self.inflight.oldest(), limits.commit_timeout) {
            return Err(self.inflight.unanswered());
        }
        if passed(self.slow_since, limits.slow_reader_timeout) {
            return Err(End::SlowReader);
        }
        if passed(self.slow_since, SLOW_LOOK) && self.session.is_in_the_way() {
            return Err(End::BuffersFull);
        }
        if !self.listens() {
            // Silence that we caused is not the client's.
            self.heard_at = self.now;
        }
        if self.silence_max.is_some_and(|max| passed(Some(self.heard_at), max)) {
            return Err(End::KeepAlive);
        }
        Ok(())
    }

    /// Whether a publish has waited for its turn for as long as its client can be left waiting.
    pub(super) fn waited_too_long(&self) -> bool {
        let wait = self.shared.limits.admission_wait;
        self.protocol.is_v5()
            && self.held_since.is_some_and(|since| self.now >= since + wait)
            // A shard without a leader is not busy; its commands have a deadline of their own.
            && self.session.gate().moves(self.now)
    }

    /// When to look at the publish again that is held. A turn comes as a note.
    fn held_until(&self) -> Option<Instant> {
        self.held.as_ref()?;
        let retry = self.now + HELD_RETRY;
        if !self.session.is_queued() {
            // A client that does not read is looked at again once it has.
            return self.slow_since.is_none().then_some(retry);
        }
        let late = self.held_since? + self.shared.limits.admission_wait;
        self.protocol.is_v5().then_some(late.max(retry))
    }

    fn next_deadline(&self) -> Option<Instant> {
        let limits = &self.shared.limits;
        let silence = self
            .silence_max
            .filter(|_| self.listens())
            .map(|max| self.heard_at + max);
        [
            self.inflight.oldest().map(|since| since + limits.commit_timeout),
            self.inflight.resend_at(),
            self.methods.next_deadline(),
            self.slow_since
                .map(|since| (since + limits.slow_reader_timeout).min(self.now + SLOW_LOOK)),
            self.announce_at,
            self.children.as_ref().and_then(|children| children.next_deadline()),
            self.held_until(),
            self.messages.due_at(),
            // Answers that stop coming wake nobody.
            self.naps().then(|| self.now + gate::STALLED),
            silence,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
