//! The answering side of one accepted connection: how many requests are unanswered, and the
//! answers on their way back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::config::{UNANSWERED_BYTES_MAX, UNANSWERED_MAX};
use super::counters::{count, Counters};
use super::message::{Header, Role, MESSAGE_HEADER_LEN};
use super::outbox::{Chunk, Outbox, Source};
use super::TransportConfig;

pub struct Incoming {
    body_bytes_max: usize,
    counters: Arc<Counters>,
    state: Mutex<State>,
    wake: Notify,
    room: Notify,
}

struct State {
    open: bool,
    outbox: Outbox,
    unanswered: usize,
    unanswered_bytes: usize,
    /// The reader waits for `room`.
    paused: bool,
}

impl State {
    fn has_room(&self) -> bool {
        self.unanswered < UNANSWERED_MAX && self.unanswered_bytes < UNANSWERED_BYTES_MAX && !self.outbox.full()
    }

    /// `true` when a waiting reader may go on.
    fn resumes(&mut self) -> bool {
        self.paused && self.has_room() && std::mem::take(&mut self.paused)
    }
}

impl Incoming {
    pub fn new(config: &TransportConfig, counters: Arc<Counters>) -> Self {
        let outbox = Outbox::new(config.queue_bytes_max, config.frame_bytes_max);
        Self {
            body_bytes_max: config.frame_bytes_max - MESSAGE_HEADER_LEN,
            counters,
            state: Mutex::new(State {
                open: true,
                outbox,
                unanswered: 0,
                unanswered_bytes: 0,
                paused: false,
            }),
            wake: Notify::new(),
            room: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when one more request may be handed to the handler.
    pub async fn has_room(&self) {
        loop {
            {
                let mut state = self.lock();
                if state.has_room() {
                    return;
                }
                state.paused = true;
            }
            count(&self.counters.reads_paused);
            self.room.notified().await;
        }
    }

    /// Counts a request in, and makes the means to answer it.
    pub fn take_in(self: &Arc<Self>, header: Header, body_len: usize) -> Answer {
        let mut state = self.lock();
        state.unanswered += 1;
        state.unanswered_bytes += body_len;
        drop(state);
        let reply = Reply {
            to: self.clone(),
            kind: header.kind,
            correlation: header.correlation,
            body_len,
        };
        Answer(Some(Way::Back(reply)))
    }

    pub fn pong(&self) {
        let mut state = self.lock();
        let header = Header {
            kind: 0,
            role: Role::Pong,
            correlation: 0,
        };
        // A full queue is being written: that is sign of life enough.
        let wake = state.outbox.fits(0) && state.outbox.push(header, &[], 0);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    fn answer(&self, reply: &Reply, body: Option<Bytes>) {
        let mut state = self.lock();
        state.unanswered -= 1;
        state.unanswered_bytes -= reply.body_len;
        let resumes = state.resumes();
        let mut wake = false;
        if state.open {
            let body = body.filter(|body| body.len() <= self.body_bytes_max && state.outbox.fits(body.len()));
            let role = if body.is_some() { Role::Answer } else { Role::NoAnswer };
            if body.is_none() {
                count(&self.counters.answers_missing);
            }
            let header = Header {
                kind: reply.kind,
                role,
                correlation: reply.correlation,
            };
            // A missing answer is always said, even when the queue is full: there are at most
            // as many of these few bytes as there were unanswered requests.
            wake = state.outbox.push(header, body.as_deref().unwrap_or_default(), 0);
        }
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        if resumes {
            self.room.notify_one();
        }
    }

    /// Answers that come later have nowhere to go.
    pub fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        state.outbox.clear();
    }
}

impl Source for Incoming {
    fn exchange(&self, written: Option<Chunk>) -> Option<Chunk> {
        let mut state = self.lock();
        if let Some(written) = written {
            state.outbox.written(written);
        }
        let resumes = state.resumes();
        let chunk = state.outbox.pop();
        drop(state);
        if resumes {
            self.room.notify_one();
        }
        chunk
    }

    fn give_back(&self, written: Chunk) {
        let mut state = self.lock();
        state.outbox.written(written);
        let resumes = state.resumes();
        drop(state);
        if resumes {
            self.room.notify_one();
        }
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }
}

/// How a request is answered: once, from any thread. Dropped, the peer learns that there is no answer.
pub struct Answer(Option<Way>);

enum Way {
    Back(Reply),
    Call(Box<dyn FnOnce(Option<Bytes>) + Send>),
}

struct Reply {
    to: Arc<Incoming>,
    kind: u8,
    correlation: u64,
    body_len: usize,
}

impl Answer {
    /// For requests that came over no connection: `answered` is called once, with `None` when the answer is dropped.
    pub fn call(answered: impl FnOnce(Option<Bytes>) + Send + 'static) -> Self {
        Self(Some(Way::Call(Box::new(answered))))
    }

    /// Sends the answer. One larger than a frame, or that finds the queue to the peer full, becomes "no answer".
    pub fn send(mut self, body: Bytes) {
        self.finish(Some(body));
    }

    fn finish(&mut self, body: Option<Bytes>) {
        match self.0.take() {
            Some(Way::Back(reply)) => reply.to.answer(&reply, body),
            Some(Way::Call(answered)) => answered(body),
            None => {}
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.finish(None);
    }
}
