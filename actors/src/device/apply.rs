use super::{DeviceState, Event};
use crate::time::Timestamp;

/// The event contradicts the state; the device must be quarantined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event does not fit the state: {0}")]
pub struct Unappliable(pub &'static str);

pub fn apply(_state: &mut DeviceState, _event: &Event, _at: Timestamp) -> Result<(), Unappliable> {
    todo!()
}
