//! All leases of this node: installing, renewing, healing, expiring, and who still has to be asked.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actors::id::NodeId;
use actors::time::Clock;
use tokio::sync::watch;

use super::clock::Skew;
use super::kind::{Area, Fault, Peers};
use super::lease::{Lease, LeaseView, PastView};
use super::link::Wire;
use super::machine;
use super::parse::{BadFault, Wanted};

/// Leases at once.
pub const LEASES_MAX: usize = 64;
/// Leases that are over and still shown.
pub const PAST_MAX: usize = 64;
/// How long a lease may be asked for.
pub const TTL_MS: RangeInclusive<u64> = 100..=600_000;
const ID_BYTES_MAX: usize = 64;
/// How often a thread that is held up looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);

/// Why a lease is not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("the configuration of this node does not allow drills")]
    NotAllowed,
    #[error("there are {LEASES_MAX} leases already")]
    Full,
    #[error(transparent)]
    Bad(#[from] BadFault),
}

/// The table. Shared by everything that may be asked to misbehave.
pub struct Faults {
    node: NodeId,
    allowed: bool,
    /// The machine's: nothing here changes it.
    clock: Arc<dyn Clock>,
    /// Which areas have a lease that acts, one bit each.
    areas: AtomicU8,
    table: Mutex<Table>,
    /// Told when a lease ends, for threads that are held up by one.
    ended: Condvar,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
pub(super) struct Table {
    leases: BTreeMap<String, Arc<Lease>>,
    past: VecDeque<Past>,
    pub(super) skew: Skew,
    /// Leases that are over for everybody but those who act by them.
    #[cfg(feature = "planted")]
    stuck: Vec<Arc<Lease>>,
}

struct Past {
    lease: Arc<Lease>,
    reason: &'static str,
    ended_ms: u64,
}

impl Faults {
    /// `allowed`: whether anybody may install anything.
    pub fn new(node: NodeId, allowed: bool, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            node,
            allowed,
            clock,
            areas: AtomicU8::new(0),
            table: Mutex::default(),
            ended: Condvar::new(),
            changes: watch::Sender::new(0),
        })
    }

    pub fn allowed(&self) -> bool {
        self.allowed
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What the transport asks about one peer.
    pub fn wire(self: &Arc<Self>, peer: NodeId) -> Wire {
        Wire::new(self.clone(), peer)
    }

    /// Installs a lease, or renews the one of that name; another fault under its name replaces it.
    ///
    /// # Errors
    /// See [`InstallError`]; nothing has changed then.
    pub fn install(self: &Arc<Self>, id: &str, wanted: Wanted) -> Result<LeaseView, InstallError> {
        if !self.allowed {
            return Err(InstallError::NotAllowed);
        }
        self.check(id, &wanted)?;
        let Wanted { fault, ttl_ms, seed } = wanted;
        let mut table = self.lock();
        let now_ms = self.now_ms();
        self.expire_in(&mut table, now_ms);
        let ends_ms = now_ms + ttl_ms;
        let known = table.leases.get(id).cloned();
        if let Some(lease) = known.as_ref().filter(|known| known.fault == fault) {
            lease.renew(ends_ms);
            let view = lease.view(now_ms);
            drop(table);
            tracing::warn!(target: "audit", lease = id, kind = view.kind, ttl_ms, "fault lease renewed");
            self.tell();
            return Ok(view);
        }
        if known.is_none() && table.leases.len() >= LEASES_MAX {
            return Err(InstallError::Full);
        }
        if known.is_some() {
            self.end(&mut table, id, "healed", now_ms);
        }
        let lease = Arc::new(Lease::new(id, fault, seed, (now_ms, ends_ms)));
        table.skew.begins(&lease, &*self.clock);
        table.leases.insert(id.to_owned(), lease.clone());
        self.recount(&table);
        drop(table);
        tracing::warn!(target: "audit", lease = id, fault = ?lease.fault, ttl_ms, seed = lease.seed, "fault lease installed");
        machine::start(self, &lease);
        self.tell();
        Ok(lease.view(now_ms))
    }

    fn check(&self, id: &str, wanted: &Wanted) -> Result<(), BadFault> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.chars().all(fine) {
            return Err(BadFault {
                key: "id".into(),
                reason: format!("{id:?} is no name; 1 to {ID_BYTES_MAX} letters, digits, . _ - are allowed"),
            });
        }
        if self.peers_of(&wanted.fault) == Some(Peers::One(self.node)) {
            return Err(BadFault {
                key: "fault.peer".into(),
                reason: format!("{} is the node that was asked; name another one", self.node),
            });
        }
        Ok(())
    }

    fn peers_of(&self, fault: &Fault) -> Option<Peers> {
        match fault {
            Fault::LinkDrop { peer, .. }
            | Fault::LinkCut { peer }
            | Fault::LinkLatency { peer, .. }
            | Fault::LinkDuplicate { peer, .. }
            | Fault::LinkReorder { peer, .. }
            | Fault::LinkCorrupt { peer, .. }
            | Fault::LinkBandwidth { peer, .. }
            | Fault::LinkReset { peer, .. }
            | Fault::LinkHalfOpen { peer } => Some(*peer),
            _ => None,
        }
    }

    /// Ends a lease; says whether there was one.
    pub fn heal(&self, id: &str) -> bool {
        let mut table = self.lock();
        let now_ms = self.now_ms();
        self.expire_in(&mut table, now_ms);
        let healed = self.end(&mut table, id, "healed", now_ms);
        self.recount(&table);
        drop(table);
        self.tell();
        healed
    }

    /// Ends all; returns how many there were.
    pub fn heal_all(&self) -> usize {
        let mut table = self.lock();
        let now_ms = self.now_ms();
        self.expire_in(&mut table, now_ms);
        let ids: Vec<String> = table.leases.keys().cloned().collect();
        for id in &ids {
            self.end(&mut table, id, "healed", now_ms);
        }
        self.recount(&table);
        drop(table);
        self.tell();
        ids.len()
    }

    pub fn leases(&self) -> Vec<LeaseView> {
        self.expire();
        let (table, now_ms) = (self.lock(), self.now_ms());
        table.leases.values().map(|lease| lease.view(now_ms)).collect()
    }

    /// Oldest first.
    pub fn past(&self) -> Vec<PastView> {
        self.expire();
        let (table, now_ms) = (self.lock(), self.now_ms());
        let view = |past: &Past| PastView {
            id: past.lease.id.clone(),
            kind: past.lease.fault.kind(),
            fault: past.lease.fault.clone(),
            seed: past.lease.seed,
            reason: past.reason,
            ended_ms_ago: now_ms.saturating_sub(past.ended_ms),
            hits: past.lease.hits(),
        };
        table.past.iter().map(view).collect()
    }

    /// Tells of leases whose time is up; they have not acted since. Returns when the next one's is.
    pub fn expire(&self) -> Option<Duration> {
        let mut table = self.lock();
        let now_ms = self.now_ms();
        if self.expire_in(&mut table, now_ms) {
            self.recount(&table);
            self.tell();
        }
        let next = table.leases.values().map(|lease| lease.ends_ms()).min();
        next.map(|ends_ms| Duration::from_millis(ends_ms.saturating_sub(now_ms)))
    }

    /// Expires leases as their time comes, for as long as it is polled.
    pub async fn watch_time(self: Arc<Self>) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let next = self.expire();
            let wait = async {
                match next {
                    Some(next) => tokio::time::sleep(next.max(Duration::from_millis(1))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = wait => {}
            }
        }
    }

    /// Whether anybody has to ask about `area`.
    pub(super) fn asked(&self, area: Area) -> bool {
        self.areas.load(Ordering::Relaxed) & area as u8 != 0
    }

    /// The leases that act now, in the order of their ids, of those that `pick` wants.
    pub(super) fn acting<T>(&self, pick: impl Fn(&Fault) -> Option<T>) -> Vec<(Arc<Lease>, T)> {
        let (table, now_ms) = (self.lock(), self.now_ms());
        let acting = table.all().filter(|lease| table.acts(lease, now_ms));
        acting
            .filter_map(|lease| Some((lease.clone(), pick(&lease.fault)?)))
            .collect()
    }

    pub(super) fn still(&self, lease: &Arc<Lease>) -> bool {
        self.lock().acts(lease, self.now_ms())
    }

    /// Holds this thread up until `lease` ends, or for `time` at most.
    pub(super) fn hold_up(&self, lease: &Arc<Lease>, time: Option<Duration>) {
        let began_ms = self.now_ms();
        let until_ms = time.map_or(u64::MAX, |time| began_ms + time.as_millis() as u64);
        let mut table = self.lock();
        loop {
            let now_ms = self.now_ms();
            if now_ms >= until_ms || !table.acts(lease, now_ms) {
                return;
            }
            let left = Duration::from_millis(until_ms - now_ms).min(LOOK);
            table = self
                .ended
                .wait_timeout(table, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Changes with every lease that begins or ends.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.monotonic_ms()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expire_in(&self, table: &mut Table, now_ms: u64) -> bool {
        let over = |lease: &Arc<Lease>| lease.ends_ms() <= now_ms;
        let ids: Vec<String> = table
            .leases
            .values()
            .filter(|l| over(l))
            .map(|l| l.id.clone())
            .collect();
        for id in &ids {
            self.end(table, id, "expired", now_ms);
        }
        !ids.is_empty()
    }

    fn end(&self, table: &mut Table, id: &str, reason: &'static str, now_ms: u64) -> bool {
        let Some(lease) = table.leases.remove(id) else {
            return false;
        };
        if !table.sticks(&lease) {
            lease.heal();
            table.skew.ends(&lease, now_ms);
        }
        tracing::warn!(target: "audit", lease = id, kind = lease.fault.kind(), reason, hits = lease.hits(), "fault lease ended");
        if table.past.len() >= PAST_MAX {
            table.past.pop_front();
        }
        table.past.push_back(Past {
            lease,
            reason,
            ended_ms: now_ms,
        });
        true
    }

    fn recount(&self, table: &Table) {
        let drifts = if table.skew.drifts { Area::Drift as u8 } else { 0 };
        let areas = table
            .all()
            .fold(drifts, |areas, lease| areas | lease.fault.area() as u8);
        self.areas.store(areas, Ordering::Relaxed);
        metrics::gauge!("holdfast_chaos_leases").set(table.leases.len() as f64);
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
        self.ended.notify_all();
    }
}

impl Table {
    #[cfg(not(feature = "planted"))]
    fn all(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }

    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self)]
    fn sticks(&mut self, _: &Arc<Lease>) -> bool {
        false
    }

    #[cfg(feature = "planted")]
    fn all(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values().chain(&self.stuck)
    }

    #[cfg(feature = "planted")]
    fn sticks(&mut self, lease: &Arc<Lease>) -> bool {
        let sticks = actors::planted::is(actors::planted::Planted::LeaseNotHealed);
        if sticks {
            self.stuck.push(lease.clone());
        }
        sticks
    }

    pub(super) fn clock_leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.all().filter(|lease| lease.fault.area() == Area::Clock)
    }

    #[allow(clippy::unused_self)]
    pub(super) fn acts(&self, lease: &Arc<Lease>, now_ms: u64) -> bool {
        #[cfg(feature = "planted")]
        if self.stuck.iter().any(|stuck| Arc::ptr_eq(stuck, lease)) {
            return true;
        }
        lease.acts(now_ms)
    }
}
