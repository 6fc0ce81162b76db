//! What an event does to a device.
//!
//! Runs on every replica for committed events and on the leader for speculative ones. Either an
//! event fits and is done whole, or nothing has changed.

mod messages;

use super::state::REFUSALS_KEPT;
use super::{
    CloseCause, DeviceState, Event, Refusal, Registration, Session, SessionOpened, Status, Subscription, TelemetryHead,
    TelemetryRecorded, Twin, TwinSectionChanged, Windows,
};
use crate::id::{DeviceId, Gateway};
use crate::time::Timestamp;

/// The event contradicts the state; the device must be quarantined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event does not fit the state: {0}")]
pub struct Unappliable(pub &'static str);

/// Carries `event`, decided at `at`, out on `state`.
///
/// # Errors
/// `Unappliable` when the event was not decided on this state; the state is as it was.
pub fn apply(state: &mut DeviceState, event: &Event, at: Timestamp) -> Result<(), Unappliable> {
    require(!state.quarantined, "the device is quarantined")?;
    let version = state
        .version
        .checked_add(1)
        .ok_or(Unappliable("the version is exhausted"))?;
    match event {
        Event::DeviceRegistered { status, automatic } => register(state, *status, *automatic, version, at)?,
        Event::StatusChanged { status } => change_status(state, *status, version, at)?,
        Event::DeviceDeleted => delete(state)?,
        Event::SessionOpened(opened) => open_session(state, opened, at)?,
        Event::SessionClosed { generation, cause } => close_session(state, *generation, *cause, at)?,
        Event::SessionResumed { generation, gateway } => resume_session(state, *generation, *gateway, at)?,
        Event::SessionExpired { generation } => expire_session(state, *generation)?,
        Event::Subscribed { ordinal, subscriptions } => {
            subscribe(state.take_turn(*ordinal)?, subscriptions);
        }
        Event::Unsubscribed { ordinal, filters } => {
            let session = state.take_turn(*ordinal)?;
            session.subscriptions.retain(|kept| !filters.contains(&kept.filter));
        }
        Event::TelemetryRecorded(recorded) => record(state, recorded, at)?,
        Event::TelemetryTrimmed { before_seq, oldest_at } => trim(&mut state.telemetry, *before_seq, *oldest_at)?,
        Event::TwinSectionChanged(changed) => change_section(state, changed, at)?,
        Event::OrdinalAdvanced { ordinal } => {
            state.take_turn(*ordinal)?;
        }
        Event::SessionCommandRefused { ordinal, refusal } => remember_refusal(state, *ordinal, refusal)?,
        Event::WillDropped { generation } => drop_will(state.live_session(*generation)?),
        Event::GatewayAssigned { gateway } => assign_gateway(state, gateway.clone(), version, at)?,
        Event::MessageQueued(queued) => messages::queue(state, queued, version, at)?,
        Event::MessageSent {
            number,
            generation,
            packet_id,
            resent,
        } => messages::send(state, *number, (*generation, *packet_id, *resent), at)?,
        Event::MessageEnded {
            number,
            outcome,
            feedback_seq,
            kept,
        } => messages::end(state, *number, (*outcome, *feedback_seq, *kept), at)?,
        Event::DeadLetterDropped { number } => messages::drop_dead(state, *number)?,
        Event::DeadLetterReplayed {
            number,
            new_number,
            expires_at,
        } => messages::replay(state, *number, (*new_number, *expires_at), version, at)?,
        Event::FeedbackTrimmed { before_seq } => messages::trim_feedback(state, *before_seq)?,
        Event::MessagesNudged { next } => messages::nudge(state, *next)?,
    }
    state.version = version;
    Ok(())
}

fn require(fits: bool, otherwise: &'static str) -> Result<(), Unappliable> {
    if fits {
        Ok(())
    } else {
        Err(Unappliable(otherwise))
    }
}

fn register(
    state: &mut DeviceState,
    status: Status,
    automatic: bool,
    version: u64,
    at: Timestamp,
) -> Result<(), Unappliable> {
    require(state.registration.is_none(), "the device is registered already")?;
    state.registration = Some(Registration {
        status,
        etag: version,
        created_at: at,
        updated_at: at,
        automatic,
        gateway: None,
    });
    forget_belongings(state);
    Ok(())
}

fn change_status(state: &mut DeviceState, status: Status, version: u64, at: Timestamp) -> Result<(), Unappliable> {
    let registration = state
        .registration
        .as_mut()
        .ok_or(Unappliable("the device is not registered"))?;
    registration.status = status;
    registration.etag = version;
    registration.updated_at = at;
    // A disabled device writes nothing, not even its will.
    if let (Status::Disabled, Some(session)) = (status, state.session.as_deref_mut()) {
        drop_will(session);
    }
    Ok(())
}

fn assign_gateway(
    state: &mut DeviceState,
    gateway: Option<DeviceId>,
    version: u64,
    at: Timestamp,
) -> Result<(), Unappliable> {
    let registration = state.registration.as_mut();
    let registration = registration.ok_or(Unappliable("the device is not registered"))?;
    registration.gateway = gateway;
    registration.etag = version;
    registration.updated_at = at;
    Ok(())
}

fn delete(state: &mut DeviceState) -> Result<(), Unappliable> {
    require(state.registration.is_some(), "the device is not registered")?;
    state.registration = None;
    forget_belongings(state);
    Ok(())
}

fn forget_belongings(state: &mut DeviceState) {
    state.session = None;
    state.telemetry = TelemetryHead::default();
    state.windows = Windows::default();
    state.twin = Twin::default();
    state.messages = None;
}

fn open_session(state: &mut DeviceState, opened: &SessionOpened, at: Timestamp) -> Result<(), Unappliable> {
    require(state.registration.is_some(), "the device is not registered")?;
    require(
        state.last_generation.checked_add(1) == Some(opened.generation),
        "the session is not the next generation",
    )?;
    let (subscriptions, first_generation) = match state.session.take() {
        Some(former) if !opened.clean => (former.subscriptions, former.first_generation),
        _ => (Vec::new(), opened.generation),
    };
    state.last_generation = opened.generation;
    state.session = Some(Box::new(Session {
        generation: opened.generation,
        gateway: opened.gateway,
        connected: true,
        lost: false,
        since: at,
        expiry_secs: opened.expiry_secs,
        keep_alive_secs: opened.keep_alive_secs,
        protocol: opened.protocol,
        last_ordinal: 0,
        refused: Vec::new(),
        subscriptions,
        will: opened.will.clone().map(Box::new),
        will_due: None,
        expires_at: None,
        via: opened.via.clone(),
        first_generation,
    }));
    Ok(())
}

fn close_session(
    state: &mut DeviceState,
    generation: u64,
    cause: CloseCause,
    at: Timestamp,
) -> Result<(), Unappliable> {
    let session = state.live_session(generation)?;
    require(session.connected || session.lost, "the session is closed already")?;
    if let CloseCause::Graceful { expiry_secs } = cause {
        session.expiry_secs = expiry_secs.unwrap_or(session.expiry_secs);
        drop_will(session);
    }
    if session.expiry_secs == 0 {
        state.session = None;
        return Ok(());
    }
    session.connected = false;
    session.lost = cause == CloseCause::GatewayLost;
    session.since = at;
    session.expires_at = Some(after_secs(at, session.expiry_secs));
    session.will_due = session
        .will
        .as_deref()
        .map(|will| after_secs(at, will.delay_secs.min(session.expiry_secs)));
    Ok(())
}

fn resume_session(
    state: &mut DeviceState,
    generation: u64,
    gateway: Gateway,
    at: Timestamp,
) -> Result<(), Unappliable> {
    let session = state.live_session(generation)?;
    require(!session.connected, "the session is connected already")?;
    session.gateway = gateway;
    session.connected = true;
    session.lost = false;
    session.since = at;
    session.will_due = None;
    session.expires_at = None;
    Ok(())
}

fn expire_session(state: &mut DeviceState, generation: u64) -> Result<(), Unappliable> {
    let session = state.live_session(generation)?;
    require(!session.connected, "the session is connected")?;
    state.session = None;
    Ok(())
}

fn subscribe(session: &mut Session, subscriptions: &[Subscription]) {
    for new in subscriptions {
        match session.subscriptions.iter_mut().find(|kept| kept.filter == new.filter) {
            Some(kept) => kept.clone_from(new),
            None => session.subscriptions.push(new.clone()),
        }
    }
}

fn record(state: &mut DeviceState, recorded: &TelemetryRecorded, at: Timestamp) -> Result<(), Unappliable> {
    require(state.registration.is_some(), "the device is not registered")?;
    #[cfg(feature = "planted")]
    if crate::planted::is(crate::planted::Planted::ReuseSeq) && recorded.seq > 0 {
        // The head may have been one back when this was decided.
        state.telemetry.last_seq = recorded.seq - 1;
    }
    require(
        state.telemetry.last_seq.checked_add(1) == Some(recorded.seq),
        "the telemetry is not the next one",
    )?;
    if recorded.will {
        let session = state.session.as_deref_mut().filter(|session| session.will.is_some());
        drop_will(session.ok_or(Unappliable("no session has a will"))?);
    } else if recorded.ordinal != 0 {
        state.take_turn(recorded.ordinal)?;
    }
    let head = &mut state.telemetry;
    if !head.has_rows() {
        head.first_seq = recorded.seq;
        head.oldest_at = Some(at);
    }
    head.last_seq = recorded.seq;
    head.last_at = Some(at);
    if let Some(id) = &recorded.telemetry.message_id {
        state
            .windows
            .remember_message(id, recorded.seq, recorded.message_ids_max);
    }
    if let Some((packet_id, digest)) = recorded.packet {
        state
            .windows
            .remember_packet(packet_id, digest, recorded.seq, recorded.packet_ids_max);
    }
    Ok(())
}

fn trim(head: &mut TelemetryHead, before_seq: u64, oldest_at: Option<Timestamp>) -> Result<(), Unappliable> {
    let end = head.last_seq.saturating_add(1);
    require(
        (head.first_seq..=end).contains(&before_seq),
        "the telemetry to trim is not there",
    )?;
    require(
        oldest_at.is_some() == (before_seq < end),
        "the oldest time does not fit what stays",
    )?;
    head.first_seq = before_seq;
    head.oldest_at = oldest_at;
    Ok(())
}

fn change_section(state: &mut DeviceState, changed: &TwinSectionChanged, at: Timestamp) -> Result<(), Unappliable> {
    require(state.registration.is_some(), "the device is not registered")?;
    let before = state.twin.section(changed.section).version;
    require(
        before.checked_add(1) == Some(changed.section_version),
        "the section's version is not the next one",
    )?;
    let twin_version = state
        .twin
        .version
        .checked_add(1)
        .ok_or(Unappliable("the twin's version is exhausted"))?;
    if changed.ordinal != 0 {
        state.take_turn(changed.ordinal)?;
    }
    state.twin.version = twin_version;
    let section = state.twin.section_mut(changed.section);
    section.version = changed.section_version;
    section.updated_at = Some(at);
    section.json = Some(changed.json.as_str().into());
    Ok(())
}

fn remember_refusal(state: &mut DeviceState, ordinal: u64, refusal: &Refusal) -> Result<(), Unappliable> {
    let session = state.take_turn(ordinal)?;
    if session.refused.len() >= REFUSALS_KEPT {
        session.refused.remove(0);
    }
    session.refused.push((ordinal, refusal.clone()));
    Ok(())
}

fn drop_will(session: &mut Session) {
    session.will = None;
    session.will_due = None;
}

fn after_secs(at: Timestamp, secs: u32) -> Timestamp {
    at.plus_millis(u64::from(secs) * 1000)
}

impl DeviceState {
    fn live_session(&mut self, generation: u64) -> Result<&mut Session, Unappliable> {
        let session = self.session.as_deref_mut();
        let live = session.filter(|session| session.generation == generation);
        live.ok_or(Unappliable("the session is not the live one"))
    }

    /// Counts a command of the session in; `ordinal` must be the next.
    fn take_turn(&mut self, ordinal: u64) -> Result<&mut Session, Unappliable> {
        let session = self.session.as_deref_mut().ok_or(Unappliable("there is no session"))?;
        require(
            session.last_ordinal.checked_add(1) == Some(ordinal),
            "the ordinal is not the next one",
        )?;
        session.last_ordinal = ordinal;
        Ok(session)
    }
}
