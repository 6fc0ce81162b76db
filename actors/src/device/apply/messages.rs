//! What the events of messages do to the head of the queue.

use super::{require, Unappliable};
use crate::device::messages::NUDGE_AFTER_MS;
use crate::device::{DeadLetter, DeviceState, MessageQueued, Messages, Outcome, Queued};
use crate::time::Timestamp;

const NOT_QUEUED: Unappliable = Unappliable("the message is not in the queue");
const NO_SUCH_LETTER: Unappliable = Unappliable("there is no such dead letter");

pub(super) fn queue(
    state: &mut DeviceState,
    event: &MessageQueued,
    version: u64,
    at: Timestamp,
) -> Result<(), Unappliable> {
    require(state.registration.is_some(), "the device is not registered")?;
    require(event.number == version, "the message's number is not the version")?;
    require(!state.messages().holds(&event.message.id), "the message id is in use")?;
    push(
        state,
        at,
        Queued {
            number: event.number,
            row: event.number,
            id: event.message.id.as_str().into(),
            bytes: u32::try_from(event.message.body.len()).unwrap_or(u32::MAX),
            enqueued_at: at,
            expires_at: event.expires_at,
            deliveries: 0,
            generation: 0,
            packet_id: 0,
            resent: false,
        },
    )?;
    let messages = state.messages.get_or_insert_default();
    messages.remember(&event.message.id, event.digest, event.ids_max);
    Ok(())
}

fn push(state: &mut DeviceState, at: Timestamp, queued: Queued) -> Result<(), Unappliable> {
    let last = state.messages().queue.last().map_or(0, |last| last.number);
    require(last < queued.number, "the message's number does not grow")?;
    let connected = state.connected_via().is_some();
    let messages = state.messages.get_or_insert_default();
    messages.queue.push(queued);
    messages.nudges = 0;
    messages.nudge_at = connected.then(|| at.plus_millis(NUDGE_AFTER_MS));
    Ok(())
}

pub(super) fn send(
    state: &mut DeviceState,
    number: u64,
    (generation, packet_id, resent): (u64, u16, bool),
    at: Timestamp,
) -> Result<(), Unappliable> {
    let live = state
        .session
        .as_deref()
        .is_some_and(|s| s.generation == generation && s.connected);
    require(live, "the session is not the live one")?;
    let messages = state.messages.as_deref_mut().ok_or(NOT_QUEUED)?;
    let position = messages.position(number).ok_or(NOT_QUEUED)?;
    let queued = &mut messages.queue[position];
    queued.deliveries = queued.deliveries.saturating_add(1);
    queued.generation = generation;
    queued.packet_id = packet_id;
    queued.resent = resent;
    messages.last_packet_id = if resent { messages.last_packet_id } else { packet_id };
    messages.nudge_at.get_or_insert(at.plus_millis(NUDGE_AFTER_MS));
    Ok(())
}

pub(super) fn end(
    state: &mut DeviceState,
    number: u64,
    (outcome, feedback_seq, kept): (Outcome, u64, bool),
    at: Timestamp,
) -> Result<(), Unappliable> {
    let messages = state.messages.as_deref_mut().ok_or(NOT_QUEUED)?;
    let position = messages.position(number).ok_or(NOT_QUEUED)?;
    require(
        messages.last_feedback.checked_add(1) == Some(feedback_seq),
        "the feedback is not the next one",
    )?;
    messages.last_feedback = feedback_seq;
    let queued = messages.queue.remove(position);
    messages.nudges = 0;
    if messages.queue.is_empty() {
        messages.nudge_at = None;
    }
    if kept {
        messages.dead.push(DeadLetter {
            number,
            row: queued.row,
            id: queued.id,
            bytes: queued.bytes,
            enqueued_at: queued.enqueued_at,
            died_at: at,
            deliveries: queued.deliveries,
            reason: outcome,
        });
    }
    Ok(())
}

pub(super) fn drop_dead(state: &mut DeviceState, number: u64) -> Result<(), Unappliable> {
    take_dead(state, number).map(drop)
}

fn take_dead(state: &mut DeviceState, number: u64) -> Result<DeadLetter, Unappliable> {
    let messages = state.messages.as_deref_mut().ok_or(NO_SUCH_LETTER)?;
    let position = messages.dead.iter().position(|letter| letter.number == number);
    Ok(messages.dead.remove(position.ok_or(NO_SUCH_LETTER)?))
}

pub(super) fn replay(
    state: &mut DeviceState,
    number: u64,
    (new_number, expires_at): (u64, Timestamp),
    version: u64,
    at: Timestamp,
) -> Result<(), Unappliable> {
    require(new_number == version, "the message's number is not the version")?;
    let last = state.messages().queue.last().map_or(0, |last| last.number);
    require(last < new_number, "the message's number does not grow")?;
    let letter = take_dead(state, number)?;
    push(
        state,
        at,
        Queued {
            number: new_number,
            row: letter.row,
            id: letter.id,
            bytes: letter.bytes,
            enqueued_at: at,
            expires_at,
            deliveries: 0,
            generation: 0,
            packet_id: 0,
            resent: false,
        },
    )
}

pub(super) fn trim_feedback(state: &mut DeviceState, before_seq: u64) -> Result<(), Unappliable> {
    let messages = messages(state)?;
    let trimmed = before_seq.checked_sub(1);
    let there = messages.trimmed_feedback..=messages.last_feedback;
    let trimmed = trimmed.filter(|trimmed| there.contains(trimmed));
    messages.trimmed_feedback = trimmed.ok_or(Unappliable("the feedback to trim is not there"))?;
    Ok(())
}

pub(super) fn nudge(state: &mut DeviceState, next: Option<Timestamp>) -> Result<(), Unappliable> {
    let messages = messages(state)?;
    messages.nudges = messages.nudges.saturating_add(1);
    messages.nudge_at = next;
    Ok(())
}

fn messages(state: &mut DeviceState) -> Result<&mut Messages, Unappliable> {
    state
        .messages
        .as_deref_mut()
        .ok_or(Unappliable("the device never had a message"))
}
