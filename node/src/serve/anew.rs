//! Begins this process anew: the same program, arguments, environment and pid, nothing else.
//!
//! A node that has met damaged bytes does not trust what it holds in memory either; its start
//! knows from the note beside the data what is to be done.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::ServeError;

/// Does not return, unless the program cannot be started: then that is why the node ends.
///
/// Everything this process holds ends with it: descriptors are closed on exec, and with them locks
/// and sockets.
pub fn begin(reason: &str) -> ServeError {
    tracing::warn!(reason, "beginning anew");
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return ServeError::Fatal(format!("{reason}; and this program cannot be found again: {error}")),
    };
    let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
    ServeError::Fatal(format!("{reason}; and this program cannot be started again: {error}"))
}
