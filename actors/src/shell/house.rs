//! Supervision of the long-lived parts of a node, as ractor actors under one root.
//!
//! Each part says in advance what shall follow its failure. The house restarts, counts and
//! reports; what a part does, and what an escalation means for the process, is not known here.
//! Actors have no names and join no group: ractor's registries are shared by the whole process,
//! hence by all nodes of a simulation.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::watch;

use crate::time::Clock;

/// Why a part failed.
pub type PartError = Box<dyn std::error::Error + Send + Sync>;

/// What follows when a part fails: panics, or ends with an error. A part that ends with `Ok` has
/// done its work and is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Start it again at once, at most `max` times within `within_ms`; the next failure escalates.
    Always { max: u32, within_ms: u64 },
    /// Leave it down. It is logged.
    Never,
    /// The node cannot do without it: tell the owner of the house.
    Escalate,
}

/// One long-lived part.
pub struct Part {
    /// Unique in its house; for logs and metrics.
    pub name: &'static str,
    pub restart: Restart,
    /// Makes the body, anew at each start. It should end soon after the signal.
    pub start: Box<dyn Fn(StopSignal) -> BoxFuture<'static, Result<(), PartError>> + Send + Sync>,
}

/// Tells a part that it shall end.
#[derive(Clone)]
pub struct StopSignal(watch::Receiver<bool>);

impl StopSignal {
    /// Resolves when the part shall end, at once if that was said before.
    pub async fn stopped(&mut self) {
        // An error means that the house itself is gone.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    pub fn is_stopped(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// A part failed and will not be started again. The other parts go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escalated {
    pub part: &'static str,
    /// How often it had been started again before.
    pub restarts: u64,
    pub reason: String,
}

/// Called on the house's task; must not block.
pub type OnEscalate = Box<dyn Fn(Escalated) + Send + Sync>;

/// The root of the supervision tree.
pub struct House {
    parts: Vec<Arc<Part>>,
    restarts: Arc<BTreeMap<&'static str, AtomicU64>>,
    clock: Arc<dyn Clock>,
    on_escalate: OnEscalate,
    stop: watch::Receiver<bool>,
}

/// Holds a house. Dropped without [`Self::stop`], it tells the parts to stop and does not wait.
pub struct HouseHandle {
    root: ActorRef<HouseMsg>,
    ended: Option<ractor::concurrency::JoinHandle<()>>,
    restarts: Arc<BTreeMap<&'static str, AtomicU64>>,
    stop: watch::Sender<bool>,
}

impl House {
    /// Starts all parts, in order, on the current tokio runtime.
    ///
    /// # Errors
    /// An actor could not be started; nothing is left running.
    pub async fn start(
        parts: Vec<Part>,
        clock: Arc<dyn Clock>,
        on_escalate: impl Fn(Escalated) + Send + Sync + 'static,
    ) -> Result<HouseHandle, SpawnErr> {
        let restarts: Arc<BTreeMap<_, _>> = Arc::new(parts.iter().map(|p| (p.name, AtomicU64::new(0))).collect());
        let (stop, stop_rx) = watch::channel(false);
        let house = House {
            parts: parts.into_iter().map(Arc::new).collect(),
            restarts: Arc::clone(&restarts),
            clock,
            on_escalate: Box::new(on_escalate),
            stop: stop_rx,
        };
        let (root, ended) = Actor::spawn(None, house, ()).await?;
        Ok(HouseHandle {
            root,
            ended: Some(ended),
            restarts,
            stop,
        })
    }

    async fn start_part(&self, root: &ActorRef<HouseMsg>, state: &mut Rooms, part: usize) -> Result<(), SpawnErr> {
        let body = PartActor {
            part: Arc::clone(&self.parts[part]),
            stop: StopSignal(self.stop.clone()),
        };
        let (actor, _) = Actor::spawn_linked(None, body, (), root.get_cell()).await?;
        state.living.insert(actor.get_id(), part);
        // Cannot fail: the actor runs, and it can only end by what it is told here.
        let _ = actor.cast(Run);
        Ok(())
    }

    async fn failed(&self, root: &ActorRef<HouseMsg>, state: &mut Rooms, part: usize, reason: String) {
        let Part { name, restart, .. } = *self.parts[part];
        if *self.stop.borrow() {
            tracing::warn!(part = name, reason, "part failed while stopping");
            return;
        }
        match restart {
            Restart::Never => tracing::warn!(part = name, reason, "part failed and stays down"),
            Restart::Escalate => self.escalate(name, reason),
            Restart::Always { max, within_ms } => {
                if !state.may_restart(part, self.clock.monotonic_ms(), max, within_ms) {
                    return self.escalate(name, reason);
                }
                self.restarts[name].fetch_add(1, Ordering::Relaxed);
                tracing::warn!(part = name, reason, "part failed, starting it again");
                if let Err(err) = self.start_part(root, state, part).await {
                    self.escalate(name, err.to_string());
                }
            }
        }
    }

    fn escalate(&self, part: &'static str, reason: String) {
        let restarts = self.restarts[part].load(Ordering::Relaxed);
        tracing::error!(part, reason, restarts, "part failed for good");
        (self.on_escalate)(Escalated { part, restarts, reason });
    }
}

impl HouseHandle {
    /// How often the part was started again; `None` for a name the house does not have.
    pub fn restarts(&self, part: &str) -> Option<u64> {
        self.restarts.get(part).map(|count| count.load(Ordering::Relaxed))
    }

    /// Tells all parts to stop and waits for them, at most `grace`; what still runs then is
    /// dropped at its next await. Says whether all ended by themselves.
    pub async fn stop(mut self, grace: Duration) -> bool {
        self.stop.send_replace(true);
        let _ = self.root.cast(HouseMsg::StopWhenEmpty);
        let Some(mut ended) = self.ended.take() else {
            return true;
        };
        if tokio::time::timeout(grace, &mut ended).await.is_ok() {
            return true;
        }
        tracing::warn!("parts did not stop within {} ms and are dropped", grace.as_millis());
        for part in self.root.get_children() {
            part.kill();
        }
        let _ = ended.await;
        false
    }
}

impl Drop for HouseHandle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.root.cast(HouseMsg::StopWhenEmpty);
    }
}

/// What the root is told besides the ends of its parts. Public only because ractor asks for it.
#[doc(hidden)]
pub enum HouseMsg {
    StopWhenEmpty,
}

/// Who lives in the house. Public only because ractor asks for it.
#[doc(hidden)]
#[derive(Default)]
pub struct Rooms {
    living: BTreeMap<ActorId, usize>,
    /// Per part, when it was started again lately: at most `max` entries each.
    restarted_ms: BTreeMap<usize, VecDeque<u64>>,
    closing: bool,
}

impl Rooms {
    fn may_restart(&mut self, part: usize, now_ms: u64, max: u32, within_ms: u64) -> bool {
        let lately = self.restarted_ms.entry(part).or_default();
        while lately.front().is_some_and(|at| at.saturating_add(within_ms) <= now_ms) {
            lately.pop_front();
        }
        if lately.len() >= max as usize {
            return false;
        }
        lately.push_back(now_ms);
        true
    }
}

impl Actor for House {
    type Msg = HouseMsg;
    type State = Rooms;
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<HouseMsg>, (): ()) -> Result<Rooms, ActorProcessingErr> {
        let mut rooms = Rooms::default();
        for part in 0..self.parts.len() {
            if let Err(err) = self.start_part(&myself, &mut rooms, part).await {
                myself.stop_children(None);
                return Err(err.into());
            }
        }
        Ok(rooms)
    }

    async fn handle(
        &self,
        myself: ActorRef<HouseMsg>,
        message: HouseMsg,
        rooms: &mut Rooms,
    ) -> Result<(), ActorProcessingErr> {
        let HouseMsg::StopWhenEmpty = message;
        rooms.closing = true;
        if rooms.living.is_empty() {
            myself.stop(None);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<HouseMsg>,
        event: SupervisionEvent,
        rooms: &mut Rooms,
    ) -> Result<(), ActorProcessingErr> {
        let part = event
            .actor_id()
            .filter(|_| !matches!(event, SupervisionEvent::ActorStarted(_)));
        let Some(part) = part.and_then(|id| rooms.living.remove(&id)) else {
            return Ok(());
        };
        match event {
            SupervisionEvent::ActorFailed(_, error) => self.failed(&myself, rooms, part, error.to_string()).await,
            _ => tracing::debug!(part = self.parts[part].name, "part ended"),
        }
        if rooms.closing && rooms.living.is_empty() {
            myself.stop(None);
        }
        Ok(())
    }
}

/// Runs one part's body once.
struct PartActor {
    part: Arc<Part>,
    stop: StopSignal,
}

struct Run;

impl Actor for PartActor {
    type Msg = Run;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Run>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, myself: ActorRef<Run>, _: Run, (): &mut ()) -> Result<(), ActorProcessingErr> {
        (self.part.start)(self.stop.clone()).await?;
        myself.stop(None);
        Ok(())
    }
}
