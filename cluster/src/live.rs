//! What happens to devices, as it is committed, for those who watch.
//!
//! Read from the log of a replica, and never further than that has applied it: in order, without a
//! hole, nothing that is not committed, and at no cost while nobody watches. A log is kept for a
//! while after it was applied, so that a watcher that was away goes on where it was, at any node;
//! where the log no longer reaches that far back, the page says so.

use std::collections::BTreeSet;
use std::time::Duration;

use actors::device::Event;
use actors::id::{DeviceKey, NodeId, ShardId, TenantId};
use actors::ports::CallError;
use actors::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::handle::Cluster;
use crate::raft::group::{Group, Logged};
use crate::raft::machine::PAYLOAD_APP;
use crate::router::protocol::{Ask, Told};
use crate::shard::batch;

/// Entries one page looks at.
const ENTRIES_MAX: u64 = 256;
/// Bytes of log one page looks at, but for its first entry.
const BYTES_MAX: usize = 1 << 20;
/// Longest wait for something new.
pub const WAIT_MAX: Duration = Duration::from_secs(2);
/// How much longer than it waits a peer may take to answer.
const GRACE: Duration = Duration::from_secs(2);
/// Devices and prefixes that are told apart; beyond, everything is sent to the watching node.
const PATTERNS_MAX: usize = 256;

/// Whose events somebody watches, so that no others are sent between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Every device of every tenant.
    everything: bool,
    devices: BTreeSet<DeviceKey>,
    /// Beginnings of device ids.
    prefixes: BTreeSet<(TenantId, String)>,
}

impl Interest {
    pub fn add_device(&mut self, key: DeviceKey) {
        self.devices.insert(key);
        self.bound();
    }

    pub fn add_prefix(&mut self, tenant: TenantId, prefix: String) {
        self.prefixes.insert((tenant, prefix));
        self.bound();
    }

    fn bound(&mut self) {
        if self.devices.len() + self.prefixes.len() > PATTERNS_MAX {
            *self = Self {
                everything: true,
                ..Self::default()
            };
        }
    }

    pub fn wants(&self, key: &DeviceKey) -> bool {
        let id = key.device.as_str();
        self.everything
            || self.devices.contains(key)
            || self
                .prefixes
                .iter()
                .any(|(tenant, prefix)| *tenant == key.tenant && id.starts_with(prefix.as_str()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveQuery {
    pub shard: ShardId,
    /// Only what comes after this index; `None`: only what comes from now on.
    pub after: Option<u64>,
    /// Nothing beyond this index.
    pub through: u64,
    /// How long to wait for something new, at most [`WAIT_MAX`].
    pub wait_ms: u64,
    pub interest: Interest,
}

/// A stretch of one shard's log, as far as it is applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LivePage {
    /// Everything up to this index was looked at; ask for what comes after it.
    pub through: u64,
    /// Of the entry the page begins after; `None` where that is not known any more.
    pub term_before: Option<u64>,
    /// Entries are missing before the first one here: the log does not reach back that far.
    pub gap: bool,
    /// Entries that hold something of interest, or the first of their term.
    pub entries: Vec<LiveEntry>,
    /// Who leads, in which term, as the replica knows it.
    pub leader: Option<(u64, NodeId)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveEntry {
    pub index: u64,
    pub term: u64,
    pub items: Vec<LiveItem>,
}

/// What one command did to one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveItem {
    /// Within its entry, from 0.
    pub position: u32,
    pub key: DeviceKey,
    /// The device's version before the first event; each raises it by 1.
    pub prev_version: u64,
    pub at: Timestamp,
    pub events: Vec<Event>,
}

/// Reads one page at a replica of this node, waiting for something new.
///
/// # Errors
/// `Unknown`: the log cannot be read.
pub async fn page(group: &Group, query: &LiveQuery) -> Result<LivePage, CallError> {
    let Some(after) = query.after else {
        return Ok(start(group));
    };
    let wait = Duration::from_millis(query.wait_ms).min(WAIT_MAX);
    let _ = tokio::time::timeout(wait, group.applied_beyond(after)).await;
    let to = group.applied_index().min(query.through);
    let leader = group.role();
    let mut page = LivePage {
        through: after,
        term_before: group.shared.with_meta(|meta| meta.term_at(after)),
        leader: leader.leader.map(|node| (leader.term, node)),
        ..LivePage::default()
    };
    if to <= after {
        return Ok(page);
    }
    let end = to.min(after + ENTRIES_MAX);
    let entries = group.logged(after + 1, end + 1, BYTES_MAX).map_err(|error| {
        tracing::error!(shard = %group.shard, %error, "the log cannot be read for a watcher");
        CallError::Unknown
    })?;
    fill(&mut page, group, entries, end, &query.interest);
    Ok(page)
}

/// Where a watcher begins that wants nothing of the past.
fn start(group: &Group) -> LivePage {
    let role = group.role();
    let (through, term) = group
        .shared
        .with_meta(|meta| (meta.applied_index(), meta.term_at(meta.applied_index())));
    LivePage {
        through,
        term_before: term,
        leader: role.leader.map(|node| (role.term, node)),
        ..LivePage::default()
    }
}

fn fill(page: &mut LivePage, group: &Group, entries: Vec<Logged>, end: u64, interest: &Interest) {
    let Some(first) = entries.first() else {
        // Purged after a snapshot was installed, or while this was being read.
        page.gap = true;
        page.through = end;
        page.term_before = group.shared.with_meta(|meta| meta.term_at(end));
        return;
    };
    if first.index > page.through + 1 {
        page.gap = true;
        page.term_before = group.shared.with_meta(|meta| meta.term_at(first.index - 1));
    }
    let mut term = page.term_before;
    for entry in entries {
        let items = items_of(group, &entry, interest);
        let new_term = term.is_some_and(|term| term < entry.term);
        if new_term || !items.is_empty() {
            page.entries.push(LiveEntry {
                index: entry.index,
                term: entry.term,
                items,
            });
        }
        term = Some(entry.term);
        page.through = entry.index;
    }
}

fn items_of(group: &Group, entry: &Logged, interest: &Interest) -> Vec<LiveItem> {
    let payload = match &entry.payload {
        Some(payload) if payload.first() == Some(&PAYLOAD_APP) => &payload[1..],
        _ => return Vec::new(),
    };
    let misfits = group.shared.misfits_at(entry.index);
    let items = (0u32..).zip(batch::items(payload).flatten());
    items
        .filter(|(position, item)| interest.wants(&item.key) && !misfits.contains(position))
        .map(|(position, item)| LiveItem {
            position,
            key: item.key,
            prev_version: item.prev_version,
            at: item.at,
            events: item.events,
        })
        .collect()
}

impl Cluster {
    /// Fixed when the cluster is created.
    pub fn shard_count(&self) -> u16 {
        self.running.config.shards
    }

    /// The next page of a shard's events: from this node's replica, or from a peer's where there
    /// is none here. `attempt` counts failures in a row, so that another peer is asked.
    ///
    /// # Errors
    /// `NotLeader` or `Unknown`: nobody who has a replica answered; ask again.
    pub async fn live(&self, query: LiveQuery, attempt: usize) -> Result<LivePage, CallError> {
        let running = &self.running;
        let me = running.me.node;
        let shard = query.shard;
        let node = match running.router.handle(shard) {
            Some(_) => me,
            None => {
                let catalog = running.catalog.borrow().clone();
                let voters = catalog.placement(shard).map(|p| p.voters.clone()).unwrap_or_default();
                let connected: Vec<NodeId> = voters
                    .into_iter()
                    .filter(|node| *node != me && running.peers.is_connected(*node))
                    .collect();
                let turn = usize::try_from(me).unwrap_or_default().wrapping_add(attempt);
                let turns = connected.len().max(1);
                let unreached = CallError::NotLeader { shard, leader: None };
                *connected.get(turn % turns).ok_or(unreached)?
            }
        };
        let deadline = Duration::from_millis(query.wait_ms).min(WAIT_MAX) + GRACE;
        match running.asking.node(node, Ask::Live(Box::new(query)), deadline).await? {
            Told::Live(page) => Ok(*page),
            _ => Err(CallError::Unknown),
        }
    }
}
