//! What messages hold: templates, variables that move, distributions, and recorded traces.
//!
//! Everything comes from the seed; nothing here looks at a clock.

pub mod chance;
pub mod dist;
pub mod replay;
pub mod template;
pub mod value;

pub use chance::Chance;
pub use dist::Dist;
pub use template::Template;
pub use value::{Value, Variable};
