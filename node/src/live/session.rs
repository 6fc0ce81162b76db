//! One subscriber's side: first what it has not seen since its cursor, then what happens now.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use actors::id::ShardId;
use cluster::api::{Interest, LiveQuery};
use tokio::time::Instant;

use super::cursor::{Cursor, Place};
use super::event;
use super::feed;
use super::filter::Filter;
use super::hub::{Full, Hub, Subscribe};
use super::outbox::{Frame, Outbox};
use super::source::Source;

/// How long the shards may take to be followed before a subscriber is let in without them.
const BEGIN_DEADLINE: Duration = Duration::from_secs(5);
/// How often an idle subscriber hears that it is still connected.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tries to read what a subscriber has not seen, before it is told of a gap.
const CATCH_UP_TRIES: usize = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What to write next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A JSON object; the cursor, where it moves, takes the subscriber behind it.
    Object { text: Arc<str>, cursor: Option<String> },
    /// Nothing happened for a while.
    KeepAlive { cursor: String },
}

/// A subscription. Dropped, it ends.
pub struct Watch {
    source: Arc<dyn Source>,
    filter: Arc<Filter>,
    outbox: Arc<Outbox>,
    cursor: Cursor,
    /// Shards whose past is still to be read, up to where the present begins.
    past: VecDeque<(ShardId, u64)>,
    /// Of the stretch being read: the term of its last entry.
    past_term: Option<u64>,
    ready: VecDeque<Frame>,
    failures: usize,
    last: Instant,
}

#[derive(Debug, thiserror::Error)]
pub enum CannotWatch {
    #[error(transparent)]
    Full(#[from] Full),
    /// The node is stopping.
    #[error("the node takes no subscribers any more")]
    Stopping,
}

impl Watch {
    /// Begins to watch: from now on, or behind `cursor` for the shards it names.
    ///
    /// # Errors
    /// Nothing is watched then.
    pub async fn begin(
        hub: &Addr<Hub>,
        source: Arc<dyn Source>,
        filter: Filter,
        cursor: Option<Cursor>,
    ) -> Result<Self, CannotWatch> {
        let filter = Arc::new(filter);
        let asked = hub.send(Subscribe(filter.clone())).await;
        let subscription = asked.map_err(|_| CannotWatch::Stopping)??;
        // Made before anything is waited for: dropped, it ends the subscription.
        let mut watch = Self {
            source,
            filter,
            outbox: subscription.outbox,
            cursor: Cursor::default(),
            past: VecDeque::new(),
            past_term: None,
            ready: VecDeque::new(),
            failures: 0,
            last: Instant::now(),
        };
        match tokio::time::timeout(BEGIN_DEADLINE, subscription.begun).await {
            Ok(Ok(begin)) => watch.go_back(begin, cursor),
            // Some shard cannot be followed yet; what it holds will come from where its feed begins.
            _ => {
                let text = r#"{"kind":"gap","reason":"not every shard could be followed at once"}"#;
                watch.ready.push_back(Frame::Marker(text.into()));
            }
        }
        Ok(watch)
    }

    /// Notes what lies between the subscriber's cursor and where the hub's feeds are.
    fn go_back(&mut self, begin: Cursor, cursor: Option<Cursor>) {
        let Some(cursor) = cursor else {
            self.cursor = begin;
            return;
        };
        for (shard, at) in begin.shards() {
            match cursor.at(shard) {
                Some(seen) => {
                    self.cursor.set(shard, seen);
                    if seen < at {
                        self.past.push_back((shard, at.index));
                    }
                }
                None => {
                    self.cursor.set(shard, at);
                    let text = event::gap(shard, at.index + 1, "the cursor does not name this shard");
                    self.ready.push_back(Frame::Marker(text));
                }
            }
        }
    }

    /// The cursor as text.
    pub fn cursor(&self) -> String {
        self.cursor.text(None)
    }

    /// Waits for something to write; `None` when the node ends the subscription.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                if let Some(next) = self.take(frame) {
                    return Some(next);
                }
                continue;
            }
            if self.outbox.is_closed() {
                return None;
            }
            if let Some((shard, through)) = self.past.front().copied() {
                self.read_past(shard, through).await;
                continue;
            }
            match tokio::time::timeout_at(self.last + KEEP_ALIVE, self.outbox.pop()).await {
                Ok(Some(frame)) => {
                    if let Some(next) = self.take(frame) {
                        return Some(next);
                    }
                }
                Ok(None) => return None,
                Err(_) => {
                    self.last = Instant::now();
                    return Some(Next::KeepAlive { cursor: self.cursor() });
                }
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Option<Next> {
        match frame {
            Frame::Event { shard, place, text } => {
                // What the cursor has passed was told before, perhaps by another node.
                if !self.cursor.advance(shard, place) {
                    return None;
                }
                self.last = Instant::now();
                let cursor = Some(self.cursor.text(Some(shard)));
                Some(Next::Object { text, cursor })
            }
            Frame::Marker(text) => {
                self.last = Instant::now();
                Some(Next::Object { text, cursor: None })
            }
            Frame::Seen(seen) => {
                for (shard, place) in seen.shards() {
                    if self.cursor.at(shard).is_some() {
                        self.cursor.advance(shard, place);
                    }
                }
                None
            }
        }
    }

    /// Reads one page of what happened between the cursor and `through`.
    async fn read_past(&mut self, shard: ShardId, through: u64) {
        let seen = self.cursor.at(shard).unwrap_or(Place::end_of(through));
        // An entry that was seen in part is read again; `take` leaves out what was.
        let after = if seen.position == u32::MAX {
            seen.index
        } else {
            seen.index.saturating_sub(1)
        };
        if after >= through {
            return self.past_is_read();
        }
        let mut interest = Interest::default();
        self.filter.add_to(&mut interest);
        let query = LiveQuery {
            shard,
            after: Some(after),
            through,
            wait_ms: 1_000,
            interest,
        };
        match self.source.page(query, self.failures).await {
            Ok(page) if page.through > after => {
                self.failures = 0;
                let ready = &mut self.ready;
                let mut give = |_: usize, frame: Frame| ready.push_back(frame);
                feed::sort(shard, &page, &mut self.past_term, &[&self.filter], &mut give);
                let mut seen = Cursor::default();
                seen.set(shard, feed::end_of(&page));
                self.ready.push_back(Frame::Seen(Arc::new(seen)));
                if page.through >= through {
                    self.past_is_read();
                }
            }
            // The replica that was asked is not there yet, or nobody answers.
            _ if self.failures >= CATCH_UP_TRIES => {
                let text = event::gap(shard, through + 1, "the past of this shard could not be read");
                self.ready.push_back(Frame::Marker(text));
                let mut seen = Cursor::default();
                seen.set(shard, Place::end_of(through));
                self.ready.push_back(Frame::Seen(Arc::new(seen)));
                self.past_is_read();
            }
            _ => {
                self.failures += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    fn past_is_read(&mut self) {
        self.past.pop_front();
        self.past_term = None;
        self.failures = 0;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.outbox.close();
    }
}
