//! Brings replicas to where the catalog wants them. Works where the catalog is led, and remembers
//! nothing that matters: each round starts from what the groups' leaders report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::shell::house::{PartError, StopSignal};
use tokio::sync::watch;

use super::peers::Peers;
use crate::asking::Asking;
use crate::catalog::moves::{self, Around, Copies, Next};
use crate::catalog::{Catalog, CatalogCommand, Placement, Stage};
use crate::raft::group::{seeded, Group};
use crate::raft::membership::{Membership, Step};
use crate::router::protocol::{Ask, Told};
use crate::service::write_catalog;

/// Between rounds while there is something to move, and while there is not.
const BUSY_TICK: Duration = Duration::from_millis(100);
const IDLE_TICK: Duration = Duration::from_millis(500);
/// How long a node may take to say what it leads.
const REPORT_DEADLINE: Duration = Duration::from_millis(800);
/// How long a step may take to be committed; it is looked at again after that.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// How long a node that was removed may take to hear of it before it is cut off.
const FAREWELL_MS: u64 = 2_000;

pub struct Mover {
    catalog: watch::Receiver<Arc<Catalog>>,
    peers: Arc<Peers>,
    asking: Arc<Asking>,
    /// Groups whose last step has not been answered.
    busy: Arc<Mutex<BTreeSet<ShardId>>>,
    /// Since when a removed node is known to be one.
    farewells: Mutex<BTreeMap<NodeId, u64>>,
    seeds: std::sync::atomic::AtomicU64,
}

impl Mover {
    pub fn new(catalog: watch::Receiver<Arc<Catalog>>, peers: Arc<Peers>, asking: Arc<Asking>) -> Self {
        Self {
            catalog,
            seeds: std::sync::atomic::AtomicU64::new(peers.me.boot ^ 0x6d6f_7665),
            peers,
            asking,
            busy: Arc::default(),
            farewells: Mutex::default(),
        }
    }

    /// # Errors
    /// Never; the signature is that of a part.
    pub async fn run(&self, mut stop: StopSignal) -> Result<(), PartError> {
        let mut watched = self.catalog.clone();
        loop {
            // Not open yet at the very start, and never in quarantine.
            let group = self.asking.service.catalog.get().filter(|group| group.role().leading);
            let busy = match group {
                Some(group) => self.round(group).await,
                None => false,
            };
            let pause = if busy { BUSY_TICK } else { IDLE_TICK };
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                changed = watched.changed() => changed?,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether there is, or may be, something left to do.
    async fn round(&self, group: &Group) -> bool {
        let catalog = self.catalog.borrow().clone();
        if catalog.shards.is_empty() {
            return false;
        }
        let own = group.membership();
        let followed = own.as_ref().is_some_and(|own| self.is_complete(&catalog, own));
        let departing = catalog
            .present()
            .any(|(_, record)| matches!(record.stage, Stage::Leaving | Stage::Lost));
        if followed && !departing && catalog.is_settled() {
            return false;
        }
        // A former leader must not act on what it believes.
        if group.read_index().await.is_err() {
            return true;
        }
        let seen = self.survey(own).await;
        self.take_notes(group, &catalog, &seen).await;
        let catalog = self.catalog.borrow().clone();
        self.take_steps(&catalog, &seen);
        self.see_off(group, &catalog).await;
        true
    }

    fn is_complete(&self, catalog: &Catalog, own: &Membership) -> bool {
        let members = members_of(own);
        own.committed && own.voters.len() == 1 && members == self.audience(catalog)
    }

    /// Whoever shall have the catalog: everybody who may run, and those that were removed until they
    /// have heard of it.
    fn audience(&self, catalog: &Catalog) -> BTreeSet<NodeId> {
        let own = self.asking.service.catalog.get().and_then(Group::membership);
        let members = own.as_ref().map(members_of).unwrap_or_default();
        let hears = |(id, stage): (NodeId, Stage)| match stage {
            Stage::Joining | Stage::Member | Stage::Leaving => true,
            Stage::Lost => false,
            // One that is no member any more is not asked back.
            Stage::Removed => members.contains(&id) && self.is_told_farewell(id),
        };
        let stages = catalog.nodes.iter().map(|(id, record)| (*id, record.stage));
        stages.filter(|known| hears(*known)).map(|(id, _)| id).collect()
    }

    fn is_told_farewell(&self, node: NodeId) -> bool {
        let now = self.peers.clock.monotonic_ms();
        let mut farewells = self.farewells.lock().expect("no holder of this lock panics");
        let since = *farewells.entry(node).or_insert(now);
        now.saturating_sub(since) < FAREWELL_MS && self.peers.is_connected(node)
    }

    /// What the leaders say of their groups; of two, the later term is right.
    async fn survey(&self, own: Option<Membership>) -> BTreeMap<ShardId, Membership> {
        let nodes: Vec<NodeId> = self.catalog.borrow().present().map(|(id, _)| id).collect();
        let asks = nodes
            .into_iter()
            .filter(|id| self.peers.is_connected(*id))
            .map(|id| self.asking.node(id, Ask::Memberships, REPORT_DEADLINE));
        let mut seen: BTreeMap<ShardId, Membership> = own.into_iter().map(|own| (own.shard, own)).collect();
        for told in futures::future::join_all(asks).await {
            let Ok(Told::Memberships(groups)) = told else { continue };
            for group in groups.into_iter().filter(|group| group.shard != ShardId::CATALOG) {
                let newer = seen.get(&group.shard).is_none_or(|known| known.term < group.term);
                if newer {
                    seen.insert(group.shard, group);
                }
            }
        }
        seen
    }

    /// Writes down where replicas are, so that nodes open and give back theirs.
    async fn take_notes(&self, own: &Group, catalog: &Catalog, seen: &BTreeMap<ShardId, Membership>) {
        for group in seen.values() {
            let ([voters], true) = (&group.voters[..], group.committed) else {
                continue;
            };
            let members = members_of(group);
            let Some(placement) = catalog.placement(group.shard) else {
                continue;
            };
            if is_noted(placement, voters, &members) || group.at < placement.noted {
                continue;
            }
            let note = CatalogCommand::Note {
                shard: group.shard,
                at: group.at,
                voters: voters.clone(),
                members,
            };
            if let Err(error) = write_catalog(own, &note).await {
                tracing::debug!(shard = %group.shard, ?error, "not noted yet");
                return;
            }
        }
    }

    fn take_steps(&self, catalog: &Catalog, seen: &BTreeMap<ShardId, Membership>) {
        let mut copies = copies_under_way(catalog, seen);
        let audience = self.audience(catalog);
        let nobody = BTreeSet::new();
        for group in seen.values() {
            let Some(placement) = catalog.placement(group.shard) else {
                continue;
            };
            if self.is_busy(group.shard) {
                continue;
            }
            let is_catalog = group.shard == ShardId::CATALOG;
            let next = moves::next(
                group,
                &Around {
                    target: &placement.target,
                    audience: if is_catalog { &audience } else { &nobody },
                    alive: &|id| self.peers.is_connected(id),
                    may_receive: &|id| is_catalog || copies.may_begin(id),
                },
            );
            if let Next::Step(step) = next {
                if let (Step::AddLearner(id), false) = (&step, is_catalog) {
                    copies.begin(*id);
                }
                self.take_step(group, step);
            }
        }
    }

    fn is_busy(&self, shard: ShardId) -> bool {
        self.busy
            .lock()
            .expect("no holder of this lock panics")
            .contains(&shard)
    }

    fn take_step(&self, group: &Membership, step: Step) {
        let (shard, leader) = (group.shard, group.leader);
        tracing::info!(%shard, ?step, "moving");
        self.busy.lock().expect("no holder of this lock panics").insert(shard);
        let (asking, busy) = (self.asking.clone(), self.busy.clone());
        let ask = Ask::Step {
            shard,
            from: group.at,
            step: step.clone(),
        };
        let seed = self.seeds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tokio::spawn(seeded(seed, async move {
            match asking.node(leader, ask, STEP_DEADLINE).await {
                Ok(Told::Done) => {}
                Ok(Told::Refused(reason)) => tracing::info!(%shard, ?step, reason, "not moved yet"),
                Ok(_) => tracing::warn!(%shard, "a step was answered by something else"),
                Err(error) => tracing::info!(%shard, ?step, %error, "not moved yet"),
            }
            busy.lock().expect("no holder of this lock panics").remove(&shard);
        }));
    }

    /// Nodes that hold nothing any more have left.
    async fn see_off(&self, group: &Group, catalog: &Catalog) {
        for (node, record) in catalog.present() {
            if !matches!(record.stage, Stage::Leaving | Stage::Lost) || catalog.is_needed(node) {
                continue;
            }
            match write_catalog(group, &CatalogCommand::Gone { node }).await {
                Ok(true) => tracing::info!(node, "node has left the cluster"),
                Ok(false) => {}
                Err(error) => tracing::debug!(node, ?error, "not seen off yet"),
            }
        }
    }
}

fn members_of(group: &Membership) -> BTreeSet<NodeId> {
    group.voters.iter().flatten().chain(&group.learners).copied().collect()
}

fn is_noted(placement: &Placement, voters: &BTreeSet<NodeId>, members: &BTreeSet<NodeId>) -> bool {
    let mut holders = members.clone();
    holders.extend(&placement.target);
    placement.voters.iter().copied().collect::<BTreeSet<_>>() == *voters && placement.holders == holders
}

fn copies_under_way(catalog: &Catalog, seen: &BTreeMap<ShardId, Membership>) -> Copies {
    let mut copies = Copies::default();
    for group in seen.values().filter(|group| group.shard != ShardId::CATALOG) {
        if let Some(placement) = catalog.placement(group.shard) {
            copies.count(group, &placement.target);
        }
    }
    copies
}
