//! `chaos heal`: finishes what wardens could not, and deletes leases on nodes that are named.

use std::time::{Duration, Instant};

use chaos::process::Process;
use chaos::warden::{leftovers, state_dir, Leftover};
use clap::Args;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{ground, Reach};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// How long a living warden may take to undo everything.
const WARDEN: Duration = Duration::from_secs(600);

#[derive(Args, Clone, Debug)]
pub struct HealArgs {
    #[command(flatten)]
    reach: Reach,
}

pub fn heal(args: &HealArgs, output: Output) -> Result<u8, Failure> {
    let (mut healed, mut problems) = (Vec::new(), Vec::new());
    for left in journals()? {
        if let Some(warden) = left.warden {
            told(warden);
        }
        for (fault, _) in &left.faults {
            healed.push(fault.clone());
        }
    }
    // What wardens have undone meanwhile is no longer in their journals.
    for left in journals()? {
        problems.extend(left.heal());
    }
    if let Some(site) = ground::site(&args.reach)? {
        let http = ground::http(&site)?;
        for node in site.current() {
            // A node that does not know leases has none.
            let _ = http.call(
                "DELETE",
                &node.http,
                "/api/v1/chaos/leases",
                None,
                Duration::from_secs(5),
            );
        }
    }
    match output {
        Output::Json => output::json(&json!({
            "healed": healed, "problems": problems.iter().map(|(fault, why)| json!({ "fault": fault, "why": why })).collect::<Vec<_>>(),
        })),
        Output::Table if healed.is_empty() => output::line("nothing was left behind"),
        Output::Table => healed
            .iter()
            .for_each(|fault| output::line(&format!("{fault}: undone"))),
    }
    match problems.first() {
        None => Ok(Exit::Success as u8),
        Some((fault, why)) => Err(Failure::new(Exit::Harness, format!("{fault} could not be undone"))
            .because(why)
            .advise("mend what it names, then run `holdfast chaos heal` again: its journal is kept")),
    }
}

fn journals() -> Result<Vec<Leftover>, Failure> {
    let dir = state_dir();
    leftovers(&dir).map_err(|error| Failure::disk(format!("cannot read {}", dir.display()), &error))
}

/// Asks a warden to undo everything, and waits for its end.
fn told(warden: Process) {
    output::warn(&format!(
        "a drill is under way; its warden (pid {}) undoes everything and ends",
        warden.pid
    ));
    let _ = warden.signal(Signal::SIGTERM);
    let end = Instant::now() + WARDEN;
    while warden.is_alive() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
}
