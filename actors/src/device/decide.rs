use super::{Command, DeviceState, Event, Policy, Refusal};
use crate::id::DeviceKey;
use crate::time::Timestamp;

pub fn decide(
    _key: &DeviceKey,
    _state: &DeviceState,
    _command: &Command,
    _policy: &Policy,
    _now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    todo!()
}
