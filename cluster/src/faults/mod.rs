//! Fault leases: what a drill breaks inside this node, and for how long.
//!
//! One table per node ([`Faults`]), consulted where bytes, disks and clocks are touched. Nobody
//! consults it where drills are not allowed, and while it is empty that costs one atomic read.
//! Every lease ends by itself, on the clock of the machine, which no fault here touches; a node that
//! starts has none. What a fault proves, and whether the product stood it, is judged elsewhere.
//!
//! ```text
//! transport ── Wire ──┐
//! stores ── DiskFaults ├── Faults ── Lease (one fault, until when, how often it acted)
//! clock ── DrillClock ─┘      └── machine: threads that use up what the process has
//! ```

mod clock;
mod disk;
mod kind;
mod lease;
mod link;
mod machine;
mod parse;
mod table;
#[cfg(test)]
mod tests;

pub use clock::DrillClock;
pub use kind::{DiskOp, Fault, Peers, Way, KINDS};
pub use lease::{LeaseView, PastView};
pub use link::{Entry, Shape, Tear, Wire};
pub use parse::{BadFault, Wanted};
pub use table::{Faults, InstallError, LEASES_MAX, PAST_MAX, TTL_MS};
