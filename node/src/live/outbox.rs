//! What one subscriber has not read yet: bounded, and it says how much did not fit.
//!
//! Filled by the hub, emptied by the subscriber's own task, on another thread. What does not fit
//! is counted and told in its place, between what came before it and what comes after.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actors::id::ShardId;
use tokio::sync::Notify;

use super::cursor::{Cursor, Place};
use super::event;

/// Frames and bytes that wait for one subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub frames: usize,
    pub bytes: usize,
}

/// Something to tell.
#[derive(Clone, Debug)]
pub enum Frame {
    Event {
        shard: ShardId,
        place: Place,
        text: Arc<str>,
    },
    Marker(Arc<str>),
    /// Up to here there was nothing (more) for this subscriber.
    Seen(Arc<Cursor>),
}

impl Frame {
    fn bytes(&self) -> usize {
        match self {
            Frame::Event { text, .. } | Frame::Marker(text) => text.len(),
            Frame::Seen(_) => 0,
        }
    }
}

#[derive(Debug)]
pub struct Outbox {
    bounds: Bounds,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Frame>,
    bytes: usize,
    missed: u64,
    closed: bool,
}

impl State {
    fn push(&mut self, frame: Frame) {
        self.bytes += frame.bytes();
        self.queue.push_back(frame);
    }
}

impl Outbox {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Says whether it fitted; what does not is counted as missed. Progress is not worth room.
    pub fn push(&self, frame: Frame) -> bool {
        let mut state = self.lock();
        let fits = state.queue.len() < self.bounds.frames
            && (state.bytes + frame.bytes() <= self.bounds.bytes || state.queue.is_empty());
        if !fits || state.closed {
            state.missed += u64::from(!matches!(frame, Frame::Seen(_)));
            return false;
        }
        if state.missed > 0 {
            let missed = std::mem::take(&mut state.missed);
            state.push(Frame::Marker(event::missed(missed)));
        }
        state.push(frame);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// The next frame; `None` once it is closed.
    pub async fn pop(&self) -> Option<Frame> {
        loop {
            let woken = self.wake.notified();
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if let Some(frame) = state.queue.pop_front() {
                    state.bytes -= frame.bytes();
                    return Some(frame);
                }
                if state.missed > 0 {
                    let missed = std::mem::take(&mut state.missed);
                    return Some(Frame::Marker(event::missed(missed)));
                }
            }
            woken.await;
        }
    }

    /// Nothing more is taken in or given out. Either side may say so.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queue = VecDeque::new();
        state.bytes = 0;
        drop(state);
        self.wake.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds this lock; a poisoned one is as good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Frame {
        Frame::Marker(text.into())
    }

    async fn text(outbox: &Outbox) -> String {
        match outbox.pop().await.unwrap() {
            Frame::Marker(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn outbox(frames: usize, bytes: usize) -> Outbox {
        Outbox::new(Bounds { frames, bytes })
    }

    /// Nothing is left out silently: what did not fit is told where it would have been.
    #[actix_web::test]
    async fn what_does_not_fit_is_counted_in_its_place() {
        let outbox = outbox(2, 1_000);
        for name in ["a", "b", "c", "d"] {
            outbox.push(frame(name));
        }
        assert_eq!(text(&outbox).await, "a");
        assert!(outbox.push(frame("e")));
        assert!(!outbox.push(frame("f")));
        let mut rest = Vec::new();
        for _ in 0..4 {
            rest.push(text(&outbox).await);
        }
        let missed = |count| format!(r#"{{"count":{count},"kind":"missed"}}"#);
        assert_eq!(rest, ["b".into(), missed(2), "e".into(), missed(1)]);
    }

    #[actix_web::test]
    async fn bytes_are_bounded_but_the_first_always_fits() {
        let outbox = outbox(10, 4);
        assert!(outbox.push(frame("large one")));
        assert!(!outbox.push(frame("x")));
        assert_eq!(text(&outbox).await, "large one");
        assert!(text(&outbox).await.contains(r#""count":1"#));
        assert!(outbox.push(frame("12")) && outbox.push(frame("34")) && !outbox.push(frame("5")));
    }

    #[actix_web::test]
    async fn progress_that_does_not_fit_is_not_missed() {
        let outbox = outbox(1, 10);
        assert!(outbox.push(frame("a")));
        assert!(!outbox.push(Frame::Seen(Arc::default())));
        assert_eq!(text(&outbox).await, "a");
        outbox.close();
        assert!(outbox.pop().await.is_none() && !outbox.push(frame("b")));
    }
}
