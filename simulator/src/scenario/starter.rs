//! What `sim init` writes: a scenario that runs as it is and explains itself.

pub const STARTER: &str = include_str!("../../profiles/starter/scenario.toml");
