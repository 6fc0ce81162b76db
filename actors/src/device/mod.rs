//! The rules of a device: `decide` may refuse, `apply` may not, `answer` says what came of it.
//!
//! Pure: the same state and the same input give the same bytes on every replica.

mod answer;
mod apply;
mod command;
mod decide;
mod event;
mod messages;
mod refusal;
mod state;
mod twin;
mod window;

pub use answer::{
    answer, device_view, Answer, Connection, DeviceView, MessagesView, SectionView, TakenMessage, TwinView,
};
pub use apply::{apply, Unappliable};
pub use command::{
    CloseCause, Command, Delivery, Fence, OpenSession, Origin, Policy, Precondition, Qos, Section, SectionWrite,
    Subscription, Telemetry, TwinMatch, Will, WriteMode,
};
use decide::check_properties;
pub use decide::{check_telemetry, decide};
pub use event::{Event, MessageQueued, SessionOpened, TelemetryRecorded, TwinSectionChanged};
pub use messages::{check_message, DeadLetter, Message, Messages, Outcome, Queued, Settlement, PACKET_IDS, PUSHED_MAX};
pub use refusal::Refusal;
pub use state::{DeviceState, Due, Registration, SectionState, Session, Status, TelemetryHead, Twin, REFUSALS_KEPT};
pub use twin::{check_section_write, desired_patch_json};
pub use window::Windows;
