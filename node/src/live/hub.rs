//! The actor that owns the subscribers: who watches what, and which shards are followed for them.
//!
//! Runs on a thread of its own, so that many events for many subscribers hold up no request. A
//! shard is followed while somebody watches it, and not otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext as _, Context, Handler, Message, MessageResult, SpawnHandle, WrapFuture as _};
use actors::id::ShardId;
use cluster::api::Interest;
use metrics::{counter, gauge};
use tokio::sync::{oneshot, watch};

use super::cursor::Cursor;
use super::feed::{self, Asked, Fed};
use super::filter::Filter;
use super::outbox::{Bounds, Frame, Outbox};
use super::source::Source;
use crate::observe::metrics::names::{LIVE_EVENTS, LIVE_MISSED, LIVE_SUBSCRIBERS};

/// Messages that may wait for the hub; feeds and subscribers wait then.
const MAILBOX: usize = 64;
/// How often subscribers that have gone are forgotten.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between telling subscribers how far everything has been seen.
const SEEN_TICKS: u64 = 10;

#[derive(Clone, Copy, Debug)]
pub struct HubLimits {
    /// Subscribers of this node. Default 128.
    pub subscribers_max: usize,
    pub outbox: Bounds,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            subscribers_max: 128,
            outbox: Bounds {
                frames: 1_024,
                bytes: 2 << 20,
            },
        }
    }
}

pub struct Hub {
    source: Arc<dyn Source>,
    limits: HubLimits,
    shard_count: u16,
    subscribers: Vec<Subscriber>,
    feeds: BTreeMap<ShardId, Feed>,
    asked: watch::Sender<Asked>,
    ticks: u64,
    stopped: bool,
}

struct Subscriber {
    filter: Arc<Filter>,
    /// `None`: all of them.
    shards: Option<BTreeSet<ShardId>>,
    outbox: Arc<Outbox>,
    /// Shards whose feed has not begun yet, and where the others stood.
    waits_for: BTreeSet<ShardId>,
    begin: Cursor,
    begun: Option<oneshot::Sender<Cursor>>,
}

impl Subscriber {
    fn watches(&self, shard: ShardId) -> bool {
        self.shards.as_ref().is_none_or(|shards| shards.contains(&shard))
    }

    fn tell_when_begun(&mut self) {
        if self.waits_for.is_empty() {
            if let Some(begun) = self.begun.take() {
                // Whoever asked may have gone away.
                let _ = begun.send(self.begin.clone());
            }
        }
    }
}

struct Feed {
    task: SpawnHandle,
    /// Up to where it has been followed; `None` before its first page.
    at: Option<super::cursor::Place>,
    term: Option<u64>,
}

/// Too many watch already.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} subscribers watch already")]
pub struct Full(pub usize);

/// Asks for events.
#[derive(Message)]
#[rtype(result = "Result<Subscription, Full>")]
pub struct Subscribe(pub Arc<Filter>);

/// What a subscriber gets.
#[derive(Debug)]
pub struct Subscription {
    pub outbox: Arc<Outbox>,
    /// Once every shard is followed: from where on.
    pub begun: oneshot::Receiver<Cursor>,
}

/// Ends every subscription; there will be no others.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

impl Hub {
    pub fn new(source: Arc<dyn Source>, limits: HubLimits) -> Self {
        Self {
            shard_count: source.shards(),
            source,
            limits,
            subscribers: Vec::new(),
            feeds: BTreeMap::new(),
            asked: watch::channel(Asked::default()).0,
            ticks: 0,
            stopped: false,
        }
    }

    fn forget_the_gone(&mut self, context: &mut Context<Self>) {
        let before = self.subscribers.len();
        self.subscribers.retain(|subscriber| !subscriber.outbox.is_closed());
        if self.subscribers.len() != before {
            self.ask(context);
        }
    }

    /// Follows the shards somebody watches, and asks for what they want.
    fn ask(&mut self, context: &mut Context<Self>) {
        gauge!(LIVE_SUBSCRIBERS).set(self.subscribers.len() as f64);
        let mut interest = Interest::default();
        for subscriber in &self.subscribers {
            subscriber.filter.add_to(&mut interest);
        }
        self.asked.send_modify(|asked| {
            asked.version += 1;
            asked.interest = Arc::new(interest);
        });
        for shard in (0..self.shard_count).map(ShardId) {
            let watched = self.subscribers.iter().any(|subscriber| subscriber.watches(shard));
            match (watched, self.feeds.contains_key(&shard)) {
                (true, false) => {
                    let task = feed::follow(self.source.clone(), shard, self.asked.subscribe(), context.address());
                    let task = context.spawn(task.into_actor(self));
                    self.feeds.insert(
                        shard,
                        Feed {
                            task,
                            at: None,
                            term: None,
                        },
                    );
                }
                (false, true) => {
                    if let Some(feed) = self.feeds.remove(&shard) {
                        context.cancel_future(feed.task);
                    }
                }
                _ => {}
            }
        }
    }

    fn tell_how_far(&self) {
        let mut seen = Cursor::default();
        for (shard, feed) in &self.feeds {
            if let Some(at) = feed.at {
                seen.set(*shard, at);
            }
        }
        let seen = Arc::new(seen);
        for subscriber in &self.subscribers {
            subscriber.outbox.push(Frame::Seen(seen.clone()));
        }
    }
}

impl Actor for Hub {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
        context.run_interval(TICK, |hub, context| {
            hub.forget_the_gone(context);
            hub.ticks += 1;
            if hub.ticks.is_multiple_of(SEEN_TICKS) {
                hub.tell_how_far();
            }
        });
    }
}

impl Handler<Subscribe> for Hub {
    type Result = MessageResult<Subscribe>;

    fn handle(&mut self, Subscribe(filter): Subscribe, context: &mut Self::Context) -> Self::Result {
        self.forget_the_gone(context);
        if self.stopped || self.subscribers.len() >= self.limits.subscribers_max {
            return MessageResult(Err(Full(self.subscribers.len())));
        }
        let (begun, when_begun) = oneshot::channel();
        let shards = filter.shards(|key| self.source.shard_for(key));
        let mut subscriber = Subscriber {
            filter,
            shards,
            outbox: Arc::new(Outbox::new(self.limits.outbox)),
            waits_for: BTreeSet::new(),
            begin: Cursor::default(),
            begun: Some(begun),
        };
        for shard in (0..self.shard_count).map(ShardId) {
            if !subscriber.watches(shard) {
                continue;
            }
            match self.feeds.get(&shard).and_then(|feed| feed.at) {
                Some(at) => subscriber.begin.set(shard, at),
                None => drop(subscriber.waits_for.insert(shard)),
            }
        }
        subscriber.tell_when_begun();
        let outbox = subscriber.outbox.clone();
        self.subscribers.push(subscriber);
        self.ask(context);
        MessageResult(Ok(Subscription {
            outbox,
            begun: when_begun,
        }))
    }
}

impl Handler<Fed> for Hub {
    type Result = bool;

    fn handle(&mut self, fed: Fed, _: &mut Self::Context) -> bool {
        let Fed { shard, version, page } = fed;
        let Some(feed) = self.feeds.get_mut(&shard) else {
            return false;
        };
        // The first page holds no events: it says where the feed begins.
        if feed.at.is_some() && version != self.asked.borrow().version {
            return false;
        }
        let meant: Vec<usize> = (0..self.subscribers.len())
            .filter(|at| self.subscribers[*at].watches(shard))
            .collect();
        let filters: Vec<&Filter> = meant.iter().map(|at| &*self.subscribers[*at].filter).collect();
        let (mut given, mut missed) = (0, 0);
        feed::sort(
            shard,
            &page,
            &mut feed.term,
            &filters,
            &mut |at, frame| match self.subscribers[meant[at]].outbox.push(frame) {
                true => given += 1,
                false => missed += 1,
            },
        );
        counter!(LIVE_EVENTS).increment(given);
        counter!(LIVE_MISSED).increment(missed);
        let at = feed::end_of(&page);
        feed.at = Some(at);
        for subscriber in self.subscribers.iter_mut().filter(|s| s.waits_for.contains(&shard)) {
            subscriber.waits_for.remove(&shard);
            subscriber.begin.set(shard, at);
            subscriber.tell_when_begun();
        }
        true
    }
}

impl Handler<Stop> for Hub {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        self.stopped = true;
        self.subscribers.iter().for_each(|subscriber| subscriber.outbox.close());
        self.forget_the_gone(context);
    }
}
