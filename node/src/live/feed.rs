//! Follows one shard, page by page, and sorts what is in a page by who wants it.

use std::sync::Arc;
use std::time::Duration;

use actix::{Addr, Message};
use actors::id::ShardId;
use cluster::api::{Interest, LivePage, LiveQuery};
use tokio::sync::watch;

use super::cursor::Place;
use super::event::{self, of_item};
use super::filter::Filter;
use super::hub::Hub;
use super::outbox::Frame;
use super::source::Source;

/// How long a page is waited for where nothing happens.
const WAIT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What is asked for now; the number grows with every change.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub version: u64,
    pub interest: Arc<Interest>,
}

/// A page for the hub. The answer says whether it was taken: one that was asked for before
/// somebody else began to watch may lack what that one wants, and is asked for again.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Fed {
    pub shard: ShardId,
    pub version: u64,
    pub page: LivePage,
}

/// Runs until the hub is gone or drops the task.
pub async fn follow(source: Arc<dyn Source>, shard: ShardId, mut asked: watch::Receiver<Asked>, hub: Addr<Hub>) {
    let mut after = None;
    let mut failures = 0;
    loop {
        let Asked { version, interest } = asked.borrow_and_update().clone();
        let query = LiveQuery {
            shard,
            after,
            through: u64::MAX,
            wait_ms: u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX),
            interest: interest.as_ref().clone(),
        };
        let page = tokio::select! {
            page = source.page(query, failures) => page,
            changed = asked.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match page {
            Ok(page) => {
                failures = 0;
                let through = page.through;
                // Waits for the hub, so that a slow one is not flooded.
                match hub.send(Fed { shard, version, page }).await {
                    Ok(true) => after = Some(through),
                    Ok(false) => {}
                    Err(_) => return,
                }
            }
            Err(error) => {
                tracing::debug!(%shard, %error, "a shard's events could not be read, trying again");
                failures += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Hands what is in the page, in order, to those whose filter lets it through, by their places in
/// `filters`. `term` is that of the last entry seen, and goes on with the page.
pub fn sort(
    shard: ShardId,
    page: &LivePage,
    term: &mut Option<u64>,
    filters: &[&Filter],
    give: &mut dyn FnMut(usize, Frame),
) {
    let mut all = |marker: Arc<str>| {
        for at in 0..filters.len() {
            give(at, Frame::Marker(marker.clone()));
        }
    };
    let first = page.entries.first().map_or(page.through + 1, |entry| entry.index);
    if page.gap {
        metrics::counter!(crate::observe::metrics::names::LIVE_GAPS).increment(1);
        all(event::gap(
            shard,
            first,
            "the log does not reach back that far any more",
        ));
        *term = page.term_before;
    }
    *term = term.or(page.term_before);
    for entry in &page.entries {
        if term.is_some_and(|term| term < entry.term) {
            let leader = page.leader.filter(|(term, _)| *term == entry.term);
            let marker = event::failover(shard, entry, leader.map(|(_, node)| node));
            for at in 0..filters.len() {
                give(at, Frame::Marker(marker.clone()));
            }
        }
        *term = Some(entry.term);
        for item in &entry.items {
            let wanting: Vec<usize> = (0..filters.len())
                .filter(|at| filters[*at].wants_device(&item.key))
                .collect();
            if wanting.is_empty() {
                continue;
            }
            for happened in of_item(shard, entry, item) {
                let Some(kind) = happened.kind() else { continue };
                let mut text = None;
                for at in &wanting {
                    if filters[*at].wants(kind, happened.stream()) {
                        let text = text.get_or_insert_with(|| happened.text(kind)).clone();
                        let place = happened.place;
                        give(*at, Frame::Event { shard, place, text });
                    }
                }
            }
        }
    }
}

/// Where a subscriber stands that has seen the whole page.
pub fn end_of(page: &LivePage) -> Place {
    Place::end_of(page.through)
}
