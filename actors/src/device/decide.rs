//! What becomes of a command: events, or a refusal.
//!
//! Knows the state, the policy and the time it is handed, nothing else. Writes over a session go
//! through [`Scene::over_session`], which gives each its turn.

mod messages;
mod registry;
mod sections;
mod session;
mod telemetry;

use super::{Command, DeviceState, Event, Fence, Origin, Policy, Refusal, Registration, Status};
use crate::id::DeviceKey;
use crate::time::Timestamp;

pub(super) use telemetry::check_properties;
pub use telemetry::check_telemetry;

/// The events that `command` causes on `state`; none for a read and for what was done before.
///
/// # Errors
/// Why it was not carried out; nothing happened then, and no ordinal was consumed.
pub fn decide(
    key: &DeviceKey,
    state: &DeviceState,
    command: &Command,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    if state.quarantined {
        return Err(Refusal::Quarantined);
    }
    let scene = Scene {
        key,
        state,
        policy,
        now,
    };
    #[cfg(feature = "planted")]
    if let Some(events) = scene.former_session(command) {
        return events;
    }
    match command {
        Command::PutDevice {
            status,
            condition,
            gateway,
        } => scene.put_device(*status, gateway, *condition),
        Command::PatchDevice {
            status,
            condition,
            gateway,
        } => scene.patch_device(*status, gateway.as_ref(), *condition),
        Command::DeleteDevice { condition } => scene.delete_device(*condition),
        Command::ReadDevice | Command::ReadTwin | Command::ReadMessages => scene.registered().map(|_| Vec::new()),

        Command::OpenSession(open) => scene.open_session(open),
        Command::CloseSession { generation, cause } => Ok(scene.close_session(*generation, *cause)),
        Command::AnnounceSession { generation, gateway } => scene.announce_session(*generation, *gateway),
        Command::Subscribe { fence, subscriptions } => {
            scene.over_session(fence, |events| scene.subscribe(fence.ordinal, subscriptions, events))
        }
        Command::Unsubscribe { fence, filters } => {
            scene.over_session(fence, |events| scene.unsubscribe(fence.ordinal, filters, events))
        }

        Command::RecordTelemetry { origin, telemetry } => {
            scene.write(origin, |events| scene.record_telemetry(origin, telemetry, events))
        }
        Command::UpdateTwin {
            origin,
            writes,
            condition,
        } => scene.write(origin, |events| scene.update_twin(origin, writes, *condition, events)),

        Command::ExpireSession => Ok(scene.expire_session()),
        Command::PublishWill => Ok(scene.publish_will()),
        Command::TrimTelemetry { before_seq, oldest_at } => Ok(scene.trim_telemetry(*before_seq, *oldest_at)),
        Command::RecordBatch { telemetry } => scene.record_batch(telemetry),

        Command::EnqueueMessage { message, ttl_secs } => scene.enqueue_message(message, *ttl_secs),
        Command::TakeMessages {
            generation,
            held,
            count_max,
        } => scene.take_messages(*generation, held, usize::from(*count_max)),
        Command::SettleMessages { generation, settled } => Ok(scene.settle_messages(*generation, settled)),
        Command::PurgeMessages { id } => scene.purge_messages(id.as_deref()),
        Command::ReplayMessage { id, ttl_secs } => scene.replay_message(id, *ttl_secs),
        Command::DropDeadLetters { id } => scene.drop_dead_letters(id.as_deref()),
        Command::TendMessages => Ok(scene.tend_messages()),
    }
}

/// What a decision rests on.
#[derive(Clone, Copy)]
struct Scene<'a> {
    key: &'a DeviceKey,
    state: &'a DeviceState,
    policy: &'a Policy,
    now: Timestamp,
}

impl Scene<'_> {
    /// A message over a session that was taken over is taken, as if that were still there.
    #[cfg(feature = "planted")]
    fn former_session(&self, command: &Command) -> Option<Result<Vec<Event>, Refusal>> {
        use crate::planted::{is, Planted};
        let Command::RecordTelemetry {
            origin: Origin::Session { fence, .. },
            telemetry,
        } = command
        else {
            return None;
        };
        let live = self.state.session.as_deref()?.generation;
        if fence.generation >= live || !is(Planted::TwoSessions) {
            return None;
        }
        let mut events = Vec::new();
        let recorded = self.record_telemetry(&Origin::Operator, telemetry, &mut events);
        Some(recorded.map(|()| events))
    }

    fn registered(&self) -> Result<&Registration, Refusal> {
        self.state.registration.as_ref().ok_or(Refusal::NotRegistered)
    }

    fn enabled(&self) -> Result<(), Refusal> {
        match self.registered()?.status {
            Status::Enabled => Ok(()),
            Status::Disabled => Err(Refusal::Disabled),
        }
    }

    fn write(
        &self,
        origin: &Origin,
        act: impl FnOnce(&mut Vec<Event>) -> Result<(), Refusal>,
    ) -> Result<Vec<Event>, Refusal> {
        match origin {
            Origin::Session { fence, .. } => self.over_session(fence, act),
            Origin::Operator => {
                self.registered()?;
                let mut events = Vec::new();
                act(&mut events)?;
                Ok(events)
            }
        }
    }

    /// Lets a session's command act in its turn. Whatever comes of it, the turn is over: a refusal
    /// by `act` becomes an event, and so does having nothing to do.
    fn over_session(
        &self,
        fence: &Fence,
        act: impl FnOnce(&mut Vec<Event>) -> Result<(), Refusal>,
    ) -> Result<Vec<Event>, Refusal> {
        let ordinal = fence.ordinal;
        let Some(mut events) = self.admit(fence)? else {
            return Ok(Vec::new());
        };
        let admitted = events.len();
        if let Err(refusal) = act(&mut events) {
            events.truncate(admitted);
            let refusal = Box::new(refusal);
            events.push(Event::SessionCommandRefused { ordinal, refusal });
        } else if events.len() == admitted {
            events.push(Event::OrdinalAdvanced { ordinal });
        }
        Ok(events)
    }

    /// The events that must come before those of the command, or `None` for a repetition.
    fn admit(&self, fence: &Fence) -> Result<Option<Vec<Event>>, Refusal> {
        self.enabled()?;
        let live = self.state.session_at(self.now);
        let stale = || Refusal::StaleSession {
            given: fence.generation,
            live: live.map(|session| session.generation),
        };
        let session = live
            .filter(|session| session.generation == fence.generation)
            .ok_or_else(stale)?;
        if !session.connected && !session.lost {
            return Err(stale());
        }
        let expected = session.last_ordinal.saturating_add(1);
        if fence.ordinal > expected || fence.ordinal == 0 {
            return Err(Refusal::OrdinalGap {
                given: fence.ordinal,
                expected,
            });
        }
        if fence.ordinal < expected {
            return Ok(None);
        }
        let mut events = Vec::with_capacity(1);
        if !session.connected {
            events.push(Event::SessionResumed {
                generation: session.generation,
                gateway: session.gateway,
            });
        }
        Ok(Some(events))
    }
}
