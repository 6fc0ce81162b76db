//! A program with bugs planted in it says so, and runs no node before one of them is named.

use super::failure::{Exit, Failure};

/// Takes the name from the environment.
///
/// # Errors
/// None is named, or one that does not exist (65).
pub fn choose() -> Result<(), Failure> {
    let named = std::env::var(actors::planted::VARIABLE).ok();
    let chosen = actors::planted::choose(named.as_deref()).map_err(|reason| {
        Failure::new(Exit::BadInput, "this program is not for use")
            .because(reason)
            .advise("use the program that `make build` makes; this one only proves that drills find bugs")
    })?;
    eprintln!("holdfast: a program with planted bugs; planted now: {chosen}");
    Ok(())
}
