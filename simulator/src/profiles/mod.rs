//! The kinds of devices: what a file says of them, those that ship, and the machines that obey.
//!
//! A machine takes what it is told and the time, and says what to do; it opens no socket and
//! looks at no clock.

pub mod answering;
pub mod citizen;
mod model;
pub mod obeying;
pub mod outage;
mod shipped;
pub mod updating;

pub use model::{ByState, Connectivity, Firmware, Gateway, Methods, Misbehave, Profile, Spread, Stream, Twin};
pub use shipped::{shipped, source, NAMES};
