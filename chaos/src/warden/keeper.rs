//! One fault from its injection to its undoing, on a thread of its own.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::journal::Journal;
use super::{Healer, Order, Tell};
use crate::deed::{Context, Doing, Outcome, Undo};

/// Tries to undo, and the pause between two.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);
/// A long time is waited for in pieces, so that no arithmetic on it can overflow.
const PIECE: Duration = Duration::from_secs(3_600);

/// Runs the fault to its end. `heal` brings who wants it healed.
pub fn keep(
    order: &Order,
    context: &Arc<Context>,
    journal: &Mutex<Journal>,
    heal: &Receiver<Healer>,
    tell: &dyn Fn(Tell),
) {
    let until = Instant::now() + Duration::from_millis(order.ttl_ms);
    let mut doings: Vec<Doing> = order
        .deeds
        .iter()
        .map(|deed| Doing::new(deed.clone(), context.clone()))
        .collect();
    let say = |outcome| {
        tell(Tell::Outcome {
            fault: order.fault.clone(),
            outcome,
        });
    };
    let undo = match plan(&doings) {
        Ok(undo) => undo,
        Err(why) => return say(Outcome::Skipped(why)),
    };
    let planned = lock(journal).planned(&order.fault, &undo);
    if let Err(error) = planned {
        return say(Outcome::Skipped(format!("its undoing cannot be written down: {error}")));
    }
    let (outcome, touched) = begin(&mut doings);
    let lasts = matches!(outcome, Outcome::Installed(_));
    say(outcome);
    let by = match lasts {
        true => last(&mut doings, until, heal),
        // What may have been done is undone at once.
        false => Healer::Asked,
    };
    doings.iter().for_each(Doing::let_go);
    // Where nothing was done, nothing is undone: a node that is down may be another fault's.
    let problem = if touched { mend(&undo, context) } else { None };
    if problem.is_none() {
        let _ = lock(journal).healed(&order.fault);
    }
    tell(Tell::Healed {
        fault: order.fault.clone(),
        by,
        problem,
    });
}

fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn plan(doings: &[Doing]) -> Result<Vec<Undo>, String> {
    let mut whole = Vec::new();
    for doing in doings {
        whole.extend(doing.undo().map_err(|error| error.to_string())?);
    }
    Ok(whole)
}

/// All deeds, up to the first that could not be done; and whether anything may have been.
fn begin(doings: &mut [Doing]) -> (Outcome, bool) {
    let mut said = Vec::new();
    for doing in doings {
        match doing.begin() {
            Outcome::Installed(what) => said.push(what),
            Outcome::Skipped(why) => return (Outcome::Skipped(why), !said.is_empty()),
            other => return (other, true),
        }
    }
    (Outcome::Installed(said.join("; ")), true)
}

/// Until it is to be healed.
fn last(doings: &mut [Doing], until: Instant, heal: &Receiver<Healer>) -> Healer {
    let now = Instant::now();
    let mut due: Vec<Option<Instant>> = doings
        .iter()
        .map(|doing| doing.first().map(|wait| now + wait))
        .collect();
    loop {
        let now = Instant::now();
        if now >= until {
            return Healer::Lease;
        }
        let next = due.iter().flatten().min().map_or(until, |at| (*at).min(until));
        match heal.recv_timeout(next.saturating_duration_since(now).min(PIECE)) {
            Ok(by) => return by,
            Err(RecvTimeoutError::Disconnected) => return Healer::Warden,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        for (doing, due) in doings.iter_mut().zip(&mut due) {
            if due.is_some_and(|at| at <= now) {
                *due = doing.go_on().map(|wait| Instant::now() + wait);
            }
        }
    }
}

/// Undoes every step, each as often as it takes. Returns what could not be.
fn mend(undo: &[Undo], context: &Context) -> Option<String> {
    let mut problems = Vec::new();
    for step in undo {
        let mut last = String::new();
        let done = (0..TRIES).any(|attempt| {
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            step.run(&context.site)
                .map_err(|error| last = error.to_string())
                .is_ok()
        });
        if !done {
            problems.push(last);
        }
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
