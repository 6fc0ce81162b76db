//! The host of one led shard: finds, starts and retires the actors of its devices.
//!
//! Lives on the shard's arbiter for one term of leadership. It bounds what may wait, keeps only
//! devices in memory that are in use, and contains the panic of a device to that device. It does
//! not know what a command means nor how events become durable.

use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::io;
use std::mem;
use std::rc::Rc;

use actix::dev::SendError;
use actix::Addr;

use super::admission::{refuse, Admission};
use super::device_actor::{Ask, Crew, Desk, DeviceActor, Rules};
use super::idle::{IdleOrder, Look};
use super::spawn::Spawn;
use crate::device::Command;
use crate::id::DeviceKey;
use crate::ports::{Journal, ReplyTo, Store, Ticket};

/// Hashed with fixed keys: the order is the same in every run. A set of boxes, because its slots
/// are up to twice as many as its devices.
#[allow(clippy::disallowed_types)]
type ActiveSet = std::collections::HashSet<Box<Active>, BuildHasherDefault<DefaultHasher>>;

/// Looks at the idle order per tick: bounds how long a tick keeps the arbiter.
const LOOKS_PER_TICK: usize = 1024;
/// Looks before an activation beyond `active_max` is refused.
const LOOKS_PER_ACTIVATION: usize = 16;

/// Slots of the map that are not worth giving back.
const SLOTS_KEPT: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Messages one device may hold, in its mailbox or while it waits to be started again.
    /// Default 64; 1..=1024.
    pub mailbox_max: usize,
    /// Commands the host may hold that are not yet answered. Default 8192; 1..=1,000,000.
    pub queue_max: usize,
    /// Devices in memory. Default 100,000; at least 1. Beyond, the longest idle leave at once.
    pub active_max: usize,
    /// Idle time after which a device leaves memory. Default 60,000.
    pub passivate_after_ms: u64,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self {
            mailbox_max: 64,
            queue_max: 8192,
            active_max: 100_000,
            passivate_after_ms: 60_000,
        }
    }
}

/// What a host is made of.
pub struct HostParts {
    pub rules: Rc<Rules>,
    pub journal: Rc<dyn Journal>,
    pub store: Rc<dyn Store>,
    pub spawn: Spawn,
    pub limits: HostLimits,
}

/// What a host has done and holds; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounts {
    pub active: usize,
    /// Devices that panicked and wait until what they had submitted is settled.
    pub recovering: usize,
    /// Commands not yet answered.
    pub outstanding: usize,
    pub activations: u64,
    pub passivations: u64,
    pub panics: u64,
    /// Commands refused because something was full.
    pub overloaded: u64,
}

/// Takes commands for the devices of one shard. `!Send`; see the module.
pub struct ShardHost {
    crew: Rc<Crew>,
    store: Rc<dyn Store>,
    spawn: Spawn,
    limits: HostLimits,
    admission: Admission,
    active: ActiveSet,
    idle: IdleOrder,
    recovering: BTreeMap<DeviceKey, Recovering>,
    /// Of the last tick. Coarse on purpose: a message reads no clock for it.
    now_ms: u64,
    counts: HostCounts,
}

struct Active {
    addr: Addr<DeviceActor>,
    desk: Rc<Desk>,
}

impl Borrow<DeviceKey> for Box<Active> {
    fn borrow(&self) -> &DeviceKey {
        &self.desk.key
    }
}

impl Hash for Active {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.desk.key.hash(hasher);
    }
}

impl PartialEq for Active {
    fn eq(&self, other: &Self) -> bool {
        self.desk.key == other.desk.key
    }
}

impl Eq for Active {}

/// A device whose actor panicked. Its committed state is known once `until` is settled.
struct Recovering {
    until: Ticket,
    queue: VecDeque<Ask>,
}

impl ShardHost {
    pub fn new(parts: HostParts) -> Self {
        Self {
            crew: Rc::new(Crew::new(parts.rules, parts.journal)),
            store: parts.store,
            spawn: parts.spawn,
            admission: Admission::new(parts.limits.queue_max),
            limits: parts.limits,
            active: ActiveSet::default(),
            idle: IdleOrder::default(),
            recovering: BTreeMap::new(),
            now_ms: 0,
            counts: HostCounts::default(),
        }
    }

    /// Hands `command` to its device, which is activated if need be. Returns at once; the outcome
    /// goes to `reply`: `Overloaded` from here, anything else through the journal. Commands of
    /// one device are decided in the order of the calls.
    ///
    /// # Errors
    /// The device's state could not be read (its caller hears `Unknown`). Stop serving the shard.
    pub fn deliver(&mut self, key: DeviceKey, command: Command, reply: ReplyTo) -> io::Result<()> {
        let Some(reply) = self.admission.admit(reply) else {
            self.counts.overloaded += 1;
            return Ok(());
        };
        self.take_in_fallen();
        let ask = Ask { command, reply };
        if !self.recovering.is_empty() && self.recovering.contains_key(&key) {
            return self.deliver_recovering(&key, ask);
        }
        self.deliver_active(&key, ask)
    }

    /// To be called regularly (every second or so) with the clock's monotonic time: starts
    /// recovering devices, lets idle ones leave memory.
    ///
    /// # Errors
    /// As [`Self::deliver`].
    pub fn tick(&mut self, monotonic_ms: u64) -> io::Result<()> {
        self.now_ms = self.now_ms.max(monotonic_ms);
        self.on_settled()?;
        self.passivate_idle();
        Ok(())
    }

    /// Starts devices again that panicked and whose submissions are all settled. Cheap when there
    /// are none; to be called when the journal has settled something.
    ///
    /// # Errors
    /// As [`Self::deliver`].
    pub fn on_settled(&mut self) -> io::Result<()> {
        self.take_in_fallen();
        if self.recovering.is_empty() {
            return Ok(());
        }
        let settled = self.crew.journal.settled();
        let ready = |(key, r): (&DeviceKey, &Recovering)| (r.until <= settled).then(|| key.clone());
        let ready: Vec<DeviceKey> = self.recovering.iter().filter_map(ready).collect();
        ready.iter().try_for_each(|key| self.recover(key))
    }

    /// Forgets every device, because a proposal failed or leadership is lost. What had not been
    /// answered by the journal ends as `Unknown`. Devices are activated anew from the store, so
    /// the caller delivers nothing until the store is known to hold all that is committed.
    pub fn reset(&mut self) {
        self.take_in_fallen();
        self.crew.retired.set(true);
        self.crew = Rc::new(Crew::new(Rc::clone(&self.crew.rules), Rc::clone(&self.crew.journal)));
        self.active = ActiveSet::default();
        self.recovering.clear();
        self.idle.clear();
    }

    /// Devices in memory from now on; the next ticks shrink to it. For use under memory pressure.
    pub fn limit_active(&mut self, active_max: usize) {
        self.limits.active_max = active_max.max(1);
    }

    pub fn counts(&self) -> HostCounts {
        HostCounts {
            active: self.active.len(),
            recovering: self.recovering.len(),
            outstanding: self.admission.outstanding(),
            panics: self.counts.panics + self.crew.fallen.borrow().len() as u64,
            ..self.counts
        }
    }

    fn deliver_active(&mut self, key: &DeviceKey, ask: Ask) -> io::Result<()> {
        let sent = if let Some(active) = self.active.get(key) {
            active.desk.used_ms.set(self.now_ms);
            active.send(ask)
        } else if self.has_room() {
            self.activate(key)?.send(ask)
        } else {
            refuse(ask.reply, "active devices of this shard");
            Sent::Full
        };
        if sent == Sent::Full {
            self.counts.overloaded += 1;
        }
        Ok(())
    }

    fn deliver_recovering(&mut self, key: &DeviceKey, ask: Ask) -> io::Result<()> {
        let recovering = self.recovering.get_mut(key).expect("the caller has just found it");
        if recovering.until <= self.crew.journal.settled() {
            self.recover(key)?;
            return self.deliver_active(key, ask);
        }
        if recovering.queue.len() >= self.limits.mailbox_max {
            self.counts.overloaded += 1;
            refuse(ask.reply, "messages of a device that is starting again");
        } else {
            recovering.queue.push_back(ask);
        }
        Ok(())
    }

    fn activate(&mut self, key: &DeviceKey) -> io::Result<&Active> {
        let head = self.store.load(key)?;
        #[cfg(feature = "planted")]
        let head = one_seq_back(head);
        let desk = Rc::new(Desk::new(key.clone(), self.now_ms));
        let crew = Rc::clone(&self.crew);
        let addr = DeviceActor::start((Rc::clone(&desk), head), crew, self.limits.mailbox_max, &self.spawn);
        self.counts.activations += 1;
        self.idle.insert(Rc::clone(&desk));
        self.active.insert(Box::new(Active { addr, desk }));
        Ok(self.active.get(key).expect("it was inserted just now"))
    }

    /// Notes the devices whose actors panicked. What lay in their mailboxes is answered already.
    fn take_in_fallen(&mut self) {
        if self.crew.fallen.borrow().is_empty() {
            return;
        }
        for desk in mem::take(&mut *self.crew.fallen.borrow_mut()) {
            self.counts.panics += 1;
            self.active.remove(&desk.key);
            self.idle.remove(&desk);
            let recovering = Recovering {
                until: desk.last_ticket.get(),
                queue: VecDeque::new(),
            };
            self.recovering.insert(desk.key.clone(), recovering);
        }
    }

    fn recover(&mut self, key: &DeviceKey) -> io::Result<()> {
        let Some(recovering) = self.recovering.remove(key) else {
            return Ok(());
        };
        recovering
            .queue
            .into_iter()
            .try_for_each(|ask| self.deliver_active(key, ask))
    }

    fn passivate_idle(&mut self) {
        let idle_since_ms = self.now_ms.saturating_sub(self.limits.passivate_after_ms);
        let surplus = |host: &Self| host.active.len() > host.limits.active_max;
        self.passivate_while(LOOKS_PER_TICK, |host, used_ms| used_ms < idle_since_ms || surplus(host));
        // A map keeps the room it once needed, which would be memory of passive devices.
        let slots = self.active.capacity();
        if slots > SLOTS_KEPT && self.active.len() < slots / 8 {
            self.active.shrink_to(slots / 4);
        }
    }

    /// Whether one more device may be activated; makes room if that is possible.
    fn has_room(&mut self) -> bool {
        let full = |host: &Self| host.active.len() >= host.limits.active_max;
        if full(self) {
            self.passivate_while(LOOKS_PER_ACTIVATION, |host, _| full(host));
        }
        !full(self)
    }

    /// Lets the longest idle devices go, while `go` says so of the next one.
    fn passivate_while(&mut self, looks: usize, go: impl Fn(&Self, u64) -> bool) {
        let settled = self.crew.journal.settled();
        let mut busy = Vec::new();
        for _ in 0..looks {
            let desk = match self.idle.longest_idle() {
                Look::Idle(desk) => desk,
                Look::Moved => continue,
                Look::Nobody => break,
            };
            if !go(self, desk.used_ms.get()) {
                busy.push(desk);
                break;
            }
            if desk.at_rest(settled) {
                // Dropping the address stops the actor. It has no message and nothing unsettled,
                // so the next message may load the same state from the store at once.
                self.active.remove(&desk.key);
                self.counts.passivations += 1;
            } else {
                busy.push(desk);
            }
        }
        for desk in busy {
            self.idle.insert(desk);
        }
    }
}

impl Drop for ShardHost {
    fn drop(&mut self) {
        // Actors outlive their addresses by what is in their mailboxes; none of it may be submitted.
        self.crew.retired.set(true);
    }
}

#[derive(PartialEq, Eq)]
enum Sent {
    Yes,
    Full,
}

impl Active {
    fn send(&self, ask: Ask) -> Sent {
        match self.addr.try_send(ask) {
            Ok(()) => {
                self.desk.queued.set(self.desk.queued.get() + 1);
                Sent::Yes
            }
            Err(SendError::Full(ask)) => {
                refuse(ask.reply, "messages of this device");
                Sent::Full
            }
            // The runtime has dropped the actor's task: this thread is shutting down. The reply
            // says `Unknown` as it goes.
            Err(SendError::Closed(_)) => Sent::Yes,
        }
    }
}

/// What was recorded last seems not to be there.
#[cfg(feature = "planted")]
fn one_seq_back(mut head: crate::device::DeviceState) -> crate::device::DeviceState {
    if crate::planted::is(crate::planted::Planted::ReuseSeq) && head.telemetry.last_seq > head.telemetry.first_seq {
        head.telemetry.last_seq -= 1;
    }
    head
}
